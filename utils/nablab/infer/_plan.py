"""How the likelihood of a structure is profiled: which parameters are fitted, which eliminated.

A *private* parameter scales samples in one bin only (shapesys, staterror); the others are shared.
"""

import functools
from dataclasses import dataclass

import numpy as np

from nablab.model._specification import Structure

# Up to so many private parameters in a second layer are fitted with the shared ones instead.
FEW = 16


@dataclass(frozen=True, eq=False)
class Layer:
    """Private parameters, at most one in each bin.

    ``constraint`` is the place of each in the model's list of Poisson, then normal terms.
    """

    parameters: np.ndarray
    bins: np.ndarray
    constraint: np.ndarray
    scales: np.ndarray  # [cells]: whether the parameter of the bin scales the cell


@dataclass(frozen=True, eq=False)
class Plan:
    """Which parameters are fitted, which are eliminated, and where each acts.

    ``layers`` holds the private parameters: none, one layer, or two. The tables say, for each
    parameter and sample, which row of the model's histosys or entry of its normsys numbers applies,
    or the one after the last.
    """

    shared: np.ndarray
    layers: tuple[Layer, ...]
    private: np.ndarray  # of all layers
    direct: np.ndarray  # [rows, cells]: index into (parameters, 1)
    histosys_parameters: np.ndarray
    histosys_row: np.ndarray  # [histosys parameters, samples]
    normsys_parameters: np.ndarray
    normsys_entry: np.ndarray  # [normsys parameters, samples]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Bins in groups of equal size, the last ones filled up with cells that do not count.

    What a cell adds to depends on which of the layers scale it: ``part`` numbers the combinations,
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
    for bit, layer in enumerate(plan(structure).layers):
        part += layer.scales << bit
    return Blocks(cells, counted, bins, part, tuple(np.unique(part).tolist()))


@functools.lru_cache(maxsize=256)
def plan(structure: Structure) -> Plan:
    """Work out, once per structure, how its likelihood is profiled."""
    s, size = structure, len(structure.parameter_names)
    entries = len(s.normsys_parameter)
    constrained = np.concatenate([s.poisson_parameter, s.normal_parameter])
    interpolated = set(s.interpolated.tolist())

    layers = [], []
    for place, parameter in enumerate(constrained):
        acts = s.factors == parameter
        bins = set(s.cell_bin[acts.any(axis=0)].tolist())
        alone = len(bins) == 1 and acts.sum(axis=0).max() == 1
        if not alone or parameter in interpolated or parameter == s.poi_index:
            continue
        for layer in layers:
            if not bins & {taken for _, taken, _ in layer}:
                layer.append((parameter, *bins, place))
                break
    least = (0, FEW)
    layers = [layer for layer, few in zip(layers, least, strict=True) if len(layer) > few]
    layers = tuple(_layer(s, layer) for layer in layers)
    private = np.concatenate([np.array([], int), *(layer.parameters for layer in layers)])

    is_direct = (s.factors < size) & ~np.isin(s.factors, private)
    direct = np.where(is_direct, s.factors, size)
    direct = np.sort(direct, axis=0)[: max(1, is_direct.sum(axis=0).max(initial=0))]
    histosys = np.unique(s.shift_parameters[s.shift_parameters >= 0])
    normsys = np.unique(s.normsys_parameter)
    parameter_of = np.append(s.normsys_parameter, -1)
    factors = s.factors[:, np.unique(s.cell_sample, return_index=True)[1]]
    entry = np.where(factors < size, entries, factors - size)
    rows = np.indices(s.shift_parameters.shape)[0]
    return Plan(
        shared=np.setdiff1d(np.arange(size), private),
        layers=layers,
        private=private,
        direct=direct,
        histosys_parameters=histosys,
        histosys_row=_first(s.shift_parameters, histosys, rows, len(rows)),
        normsys_parameters=normsys,
        normsys_entry=_first(parameter_of[entry], normsys, entry, entries),
    )


def _layer(structure, rows) -> Layer:
    parameters, bins, constraint = np.array(rows, dtype=int).T
    scales = np.isin(structure.factors, parameters).any(axis=0)
    return Layer(parameters, bins, constraint, scales)


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
