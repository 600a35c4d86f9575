"""Tables of what each fitted parameter does in each cell: worked out once, and indexed with."""

import functools
from dataclasses import dataclass

import numpy as np

from nablab.indexing import stretch
from nablab.infer._per_bin import Level, levels
from nablab.model.histfactory import Structure

Places = slice | np.ndarray  # to index with


@dataclass(frozen=True, eq=False)
class Plan:
    """Which parameters are fitted, which are eliminated, and where each acts.

    A row of the histosys tables, or an entry of the normsys numbers, is that of the model for each
    parameter and sample; the one after the last where there is none.
    """

    fitted: np.ndarray
    at: Places  # of the fitted among all parameters
    levels: tuple[Level, ...]
    is_gamma: np.ndarray  # [parameters]: in one of the levels
    direct: np.ndarray  # [rows, cells]: index into (parameters, 1)
    factors: Places  # among the fitted, of those that are factors themselves
    factor_parameters: Places  # the same, among all parameters
    factor_count: int
    histosys: "Interpolated"
    normsys: "Interpolated"
    fitted_histosys_row: np.ndarray  # [fitted, samples]


@dataclass(frozen=True, eq=False)
class Interpolated:
    """Parameters of one kind of interpolation."""

    parameters: Places
    entry: np.ndarray  # [parameters, samples]: row or entry in the model's numbers
    fitted: Places  # places of those that are fitted, among these parameters
    at: Places  # and among the fitted ones
    some: bool  # whether any is fitted


@dataclass(frozen=True, eq=False)
class Blocks:
    """Bins in groups of equal size, the last ones filled up with cells that do not count.

    What a cell adds to depends on which of the levels scale it: ``part`` numbers the combinations,
    of which ``parts`` are there.
    """

    cells: np.ndarray  # [blocks, samples, bins]
    counted: np.ndarray  # the same
    bins: np.ndarray  # [blocks, bins]
    part: np.ndarray  # [cells]
    parts: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def blocks(structure: Structure, size: int) -> Blocks:
    """Blocks of some ``size`` cells."""
    samples = max(samples for samples, _ in structure.channel_shapes)
    width = max(1, size // samples)
    found, first_cell, first_bin = [], 0, 0
    for here, bins in structure.channel_shapes:
        for start in range(0, bins, width):
            row, column = np.arange(samples)[:, None], start + np.arange(width)
            counted = (row < here) & (column < bins)
            cells = np.where(counted, first_cell + row * bins + column, first_cell)
            found.append((cells, counted, first_bin + np.minimum(column, bins - 1)))
        first_cell, first_bin = first_cell + here * bins, first_bin + bins
    cells, counted, bins = (np.stack(each) for each in zip(*found, strict=True))
    part = np.zeros(first_cell, int)
    for bit, level in enumerate(levels(structure)):
        part += level.scales << bit
    return Blocks(cells, counted, bins, part, tuple(np.unique(part).tolist()))


def global_parameters(structure: Structure) -> np.ndarray:
    """Parameters that are not eliminated."""
    gammas = [level.parameters for level in levels(structure)]
    size = len(structure.parameter_names)
    return np.setdiff1d(np.arange(size), np.concatenate([np.array([], int), *gammas]))


@functools.lru_cache(maxsize=256)
def plan(structure: Structure, held: tuple[int, ...] = ()) -> Plan:
    """The plan of a fit with the parameters at ``held`` held."""
    s, size = structure, len(structure.parameter_names)
    free = global_parameters(s)
    fitted = np.setdiff1d(free, held)
    is_gamma = ~np.isin(np.arange(size), free)
    direct, histosys, normsys = _tables(s)
    is_factor = np.isin(fitted, direct)
    rows = np.full((len(fitted), histosys[1].shape[1]), len(s.shift_parameters))
    mine = np.isin(histosys[0], fitted)
    rows[np.searchsorted(fitted, histosys[0][mine])] = histosys[1][mine]
    return Plan(
        fitted=fitted,
        at=stretch(fitted),
        levels=levels(s),
        is_gamma=is_gamma,
        direct=direct,
        factors=stretch(np.flatnonzero(is_factor)),
        factor_parameters=stretch(fitted[is_factor]),
        factor_count=int(is_factor.sum()),
        histosys=_interpolated(*histosys, fitted),
        normsys=_interpolated(*normsys, fitted),
        fitted_histosys_row=rows,
    )


def _interpolated(parameters, entry, fitted) -> Interpolated:
    mine = np.isin(parameters, fitted)
    place = np.searchsorted(fitted, parameters[mine])
    at = stretch(parameters), entry, stretch(np.flatnonzero(mine)), stretch(place)
    return Interpolated(*at, bool(mine.any()))


@functools.lru_cache(maxsize=256)
def _tables(s: Structure):
    """What does not depend on which parameters are held: :attr:`Plan.direct`, and the parameters
    and entries of histosys and normsys."""
    size, entries = len(s.parameter_names), len(s.normsys_parameter)
    is_direct = np.isin(s.factors, global_parameters(s))
    direct = np.where(is_direct, s.factors, size)
    direct = np.sort(direct, axis=0)[: max(1, is_direct.sum(axis=0).max(initial=0))]
    histosys = np.unique(s.shift_parameters[s.shift_parameters >= 0])
    normsys = np.unique(s.normsys_parameter)
    parameter_of = np.append(s.normsys_parameter, -1)
    factors = s.factors[:, np.unique(s.cell_sample, return_index=True)[1]]
    entry = np.where(factors < size, entries, factors - size)
    rows = np.indices(s.shift_parameters.shape)[0]
    return (
        direct,
        (histosys, _first(s.shift_parameters, histosys, rows, len(rows))),
        (normsys, _first(parameter_of[entry], normsys, entry, entries)),
    )


def _first(table, parameters, values, otherwise) -> np.ndarray:
    """For each parameter and sample: the value at its first row in the table."""
    found = np.full((len(parameters), table.shape[1]), otherwise)
    place = np.full(max([*parameters, table.max(initial=0)]) + 2, -1)  # the last one is for -1
    place[np.asarray(parameters, dtype=int)] = np.arange(len(parameters))
    for row in reversed(range(len(table))):
        which = place[table[row]]
        samples = np.flatnonzero(which >= 0)
        found[which[samples], samples] = values[row][samples]
    return found
