"""The likelihood as a fit sees it: fewer parameters, and derivatives that know their structure.

A nuisance parameter that scales samples in one bin only (shapesys, staterror) has a best value in
closed form once all others are given. Putting it in leaves the *profile* deviance of the shared
parameters: the Schur complement of an arrowhead Hessian, exactly, at a cost linear in the bins.

What is left is differentiated twice by way of a second-order expansion of the interpolations:
each depends on one parameter, so the expansion is made elementwise, and the Hessian needs it only
once instead of once for every parameter.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab.infer import interpolation
from nablab.infer.histfactory import Model
from nablab.infer.indexing import put, take
from nablab.infer.specification import Structure


@dataclass(frozen=True, eq=False)
class Plan:
    """Which parameters are fitted, which are eliminated, and where each acts.

    ``private`` parameters come with their bin and the place of their constraint in the model's
    list of Poisson, then normal terms. The tables say, for each parameter and cell, which row of
    the model's histosys or entry of its normsys numbers applies, or the one after the last.
    """

    shared: np.ndarray
    private: np.ndarray
    private_bin: np.ndarray
    is_private: np.ndarray  # [cells]: scaled by the private parameter of its bin
    constraint: np.ndarray
    direct: np.ndarray  # [rows, cells]: index into (parameters, 1)
    histosys_parameters: np.ndarray
    histosys_row: np.ndarray  # [histosys parameters, cells]
    normsys_parameters: np.ndarray
    normsys_entry: np.ndarray  # [normsys parameters, cells]


@functools.lru_cache(maxsize=256)
def plan(structure: Structure) -> Plan:
    """Work out, once per structure, how its likelihood is profiled."""
    s, size = structure, len(structure.parameter_names)
    entries = len(s.normsys_parameter)
    constrained = np.concatenate([s.poisson_parameter, s.normal_parameter])
    interpolated = set(s.interpolated.tolist())

    private, taken = [], set()
    for place, parameter in enumerate(constrained):
        acts = s.factors == parameter
        bins = set(s.cell_bin[acts.any(axis=0)].tolist())
        alone = len(bins) == 1 and acts.sum(axis=0).max() == 1 and not bins & taken
        if alone and parameter not in interpolated and parameter != s.poi_index:
            private.append((parameter, *bins, place))
            taken |= bins
    private = np.array(private, dtype=int).reshape(-1, 3)

    is_direct = (s.factors < size) & ~np.isin(s.factors, private[:, 0])
    direct = np.where(is_direct, s.factors, size)
    direct = np.sort(direct, axis=0)[: max(1, is_direct.sum(axis=0).max(initial=0))]
    histosys = [p for p in np.unique(s.shifts) if p in interpolated]
    normsys = np.unique(s.normsys_parameter)
    parameter_of = np.append(s.normsys_parameter, -1)
    entry = np.where(s.factors < size, entries, s.factors - size)
    return Plan(
        shared=np.setdiff1d(np.arange(size), private[:, 0]),
        private=private[:, 0],
        private_bin=private[:, 1],
        is_private=np.isin(s.factors, private[:, 0]).any(axis=0),
        constraint=private[:, 2],
        direct=direct,
        histosys_parameters=np.array(histosys, dtype=int),
        histosys_row=_first(s.shifts, histosys, np.indices(s.shifts.shape)[0], len(s.shifts)),
        normsys_parameters=normsys,
        normsys_entry=_first(parameter_of[entry], normsys, entry, entries),
    )


def _first(table, parameters, values, otherwise) -> np.ndarray:
    """For each parameter and cell: the value at its first row in the table, [parameters, cells]."""
    found = np.full((len(parameters), table.shape[1]), otherwise)
    for row in reversed(range(len(table))):
        here = table[row] == np.reshape(parameters, (-1, 1))
        found = np.where(here, values[row], found)
    return found


def complete(
    model: Model, data: Float[Array, "data"], parameters: Float[Array, "parameters"]
) -> Float[Array, "parameters"]:
    """Parameters with the private ones at their best values, given the shared ones."""
    return _with_private(model, data, parameters, _sums(model, _cells(model, parameters)))[0]


def deviance(
    model: Model, data: Float[Array, "data"], parameters: Float[Array, "parameters"]
) -> Float[Array, ""]:
    """Deviance minimised over the private parameters."""
    others, scaled = sums = _sums(model, _cells(model, parameters))
    parameters, gamma, _ = _with_private(model, data, parameters, sums)
    return model.deviance_at(others + gamma * scaled, parameters, data)


def _cells(model, parameters):
    """Expected events by cell, the private parameters left out."""
    private = plan(model.structure).private
    return model.expected_by_cell(put(parameters, private, jnp.ones(len(private))))


def _sums(model, cells) -> tuple[Float[Array, "bins"], Float[Array, "bins"]]:
    """Events in each bin: without, and with a private parameter."""
    p = plan(model.structure)
    if not len(p.private):
        return model.main_from_cells(cells), jnp.zeros(model.structure.main_bins)
    parts = jnp.where(p.is_private, 0.0, cells), jnp.where(p.is_private, cells, 0.0)
    return model.main_from_cells(parts[0]), model.main_from_cells(parts[1])


def _with_private(model, data, parameters, sums):
    """Parameters with the private ones at their best; these by bin (1 where there is none); and
    by bin the curvature of their constraints (infinite where they cannot move)."""
    p = plan(model.structure)
    gamma, rigid = jnp.ones_like(sums[0]), jnp.full(sums[0].shape, jnp.inf)
    if not len(p.private):
        return parameters, gamma, rigid
    best, curvature = _best_private(model, data, *(take(part, p.private_bin) for part in sums))
    lower, upper = take(model.lower, p.private), take(model.upper, p.private)
    fixed = take(model.fixed, p.private)
    stuck = (best < lower) | (best > upper) | fixed
    best = jnp.where(fixed, take(parameters, p.private), jnp.clip(best, lower, upper))
    gamma = put(gamma, p.private_bin, best)
    rigid = put(rigid, p.private_bin, jnp.where(stuck, jnp.inf, curvature))
    return put(parameters, p.private, best), gamma, rigid


def expansion(
    model: Model,
    data: Float[Array, "data"],
    parameters: Float[Array, "parameters"],
    fitted: np.ndarray,
) -> tuple[Float[Array, ""], Float[Array, "fitted"], Float[Array, "fitted fitted"]]:
    """The profile deviance, its gradient and its Hessian in the parameters ``fitted``."""
    s, p = model.structure, plan(model.structure)
    cells, cell_slopes, cell_curvature = _cell_derivatives(model, parameters, fitted)
    others, scaled = sums = _sums(model, cells)
    parameters, gamma, constraint = _with_private(model, data, parameters, sums)

    rates = others + gamma * scaled
    slope, bend = model.rate_slopes(rates, data)
    by_cell = slope[s.cell_bin]
    if len(p.private):
        by_cell = jnp.where(p.is_private, gamma[s.cell_bin], 1.0) * by_cell
    first, second = jax.vmap(lambda slope: _sums(model, slope))(cell_slopes)
    if len(p.private):
        # The best gamma moves with the two sums of its bin: ``others + gamma * scaled`` events.
        softness = 1.0 / (scaled**2 * bend + constraint)
        by_others = -scaled * bend * softness
        by_scaled = -(slope + gamma * scaled * bend) * softness
        twice_others = bend + bend * scaled * by_others
        mixed = bend * (gamma + scaled * by_scaled)
        twice_scaled = gamma * mixed + slope * by_scaled
        cross = (first * mixed) @ second.T
        hessian = (first * twice_others) @ first.T + (second * twice_scaled) @ second.T
        hessian = hessian + cross + cross.T
    else:
        hessian = (first * bend) @ first.T

    by_parameter, twice_by_parameter = model.constraint_slopes(parameters, data)
    gradient = cell_slopes @ by_cell + take(by_parameter, fitted)
    hessian = hessian + cell_curvature(by_cell)
    value = model.deviance_at(rates, parameters, data)
    return value, gradient, hessian + jnp.diag(take(twice_by_parameter, fitted))


def _cell_derivatives(model: Model, parameters, fitted):
    """Events by cell, their slopes [fitted, cells], and the Hessian of any weighted sum of them.

    A cell is (nominal + sum of shifts) x exp(sum of log normsys) x product of other factors.
    """
    s, p = model.structure, plan(model.structure)
    additive, factor = interpolation.ADDITIVE[s.codes[0]], interpolation.FACTOR[s.codes[1]]

    def with_derivatives(function, x):
        def slope(x):
            return jax.jvp(function, (x,), (jnp.ones_like(x),))

        (value, first), (_, second) = jax.jvp(slope, (x,), (jnp.ones_like(x),))
        return value, first, second

    def in_fitted(rows, row_parameters):
        """Rows of the fitted parameters, in their order, zero for those without a row."""
        mine = np.isin(row_parameters, fitted)
        place = np.searchsorted(fitted, row_parameters[mine])
        empty = jnp.zeros((len(fitted), rows.shape[1]))
        return put(empty, place, take(rows, np.flatnonzero(mine)))

    def histosys_rows(table):
        rows = jnp.concatenate([table, model.nominal[None]])
        return jnp.take_along_axis(rows, p.histosys_row, axis=0)

    down, up = histosys_rows(model.shift_down), histosys_rows(model.shift_up)
    alpha = jnp.broadcast_to(take(parameters, p.histosys_parameters)[:, None], down.shape)
    shift, shift_1, shift_2 = with_derivatives(
        lambda alpha: additive(alpha, down, model.nominal, up), alpha
    )
    events = model.nominal + shift.sum(axis=0)
    shift_1, shift_2 = (in_fitted(v, p.histosys_parameters) for v in (shift_1, shift_2))

    log_factors = with_derivatives(
        lambda alpha: jnp.log(factor(alpha, model.normsys_down, 1.0, model.normsys_up)),
        take(parameters, s.normsys_parameter),
    )
    log, log_1, log_2 = (jnp.append(v, 0.0)[p.normsys_entry] for v in log_factors)
    normsys = jnp.exp(log.sum(axis=0))
    log_1, log_2 = (in_fitted(v, p.normsys_parameters) for v in (log_1, log_2))

    def product(change):
        moved = put(parameters, fitted, take(parameters, fitted) + change)
        return jnp.prod(jnp.append(moved, 1.0)[p.direct], axis=0)

    here = jnp.zeros(len(fitted))
    some_logs = np.isin(fitted, p.normsys_parameters).any()
    some_direct = np.isin(fitted, p.direct).any()
    others = product(here)
    others_1 = jax.jacfwd(product)(here).T if some_direct else 0.0
    scale = normsys * others
    relative = scale * shift_1 + events * scale * log_1  # slopes but for those of the others
    cell_slopes = relative + events * normsys * others_1

    def curvature(weights):
        straight = weights * events * normsys
        total = jnp.diag((shift_2 + events * log_2) @ (weights * scale))
        if some_logs:
            mixed = shift_1 * (weights * scale) @ log_1.T
            total = total + mixed + mixed.T + log_1 * (straight * others) @ log_1.T
        if some_direct:
            mixed = (shift_1 + events * log_1) * (weights * normsys) @ others_1.T
            of_product = jax.hessian(lambda change: jnp.sum(straight * product(change)))(here)
            total = total + mixed + mixed.T + of_product
        return total

    return events * scale, cell_slopes, curvature


def _best_private(model, data, others, scaled):
    """Minimum over gamma of the deviance of a bin with ``others + gamma * scaled`` events, and
    the curvature of the constraint there.

    Where the derivative is zero gamma solves a quadratic equation; the deviance is convex where
    the rate is positive, which is beyond the smaller root.
    """
    s, p = model.structure, plan(model.structure)
    counts = take(data, p.private_bin)
    auxiliary = data[s.main_bins :]
    poisson = p.constraint < len(s.poisson_parameter)
    here, there = p.constraint[poisson], p.constraint[~poisson] - len(s.poisson_parameter)

    def from_poisson(others, scaled, counts):
        rate = take(model.poisson_scale, here)
        measured = take(auxiliary, s.poisson_auxdata[here])
        a = (scaled + rate) * scaled
        b = (scaled + rate) * others - (counts + measured) * scaled
        square = b**2 + 4.0 * a * measured * others
        # Without events to scale, the auxiliary measurement alone decides.
        best = _larger_root(a, b, -measured * others, square, measured / rate)
        return best, 2.0 * measured / jnp.where(best > 0, best, 1.0) ** 2

    def from_normal(others, scaled, counts):
        variance = take(model.normal_width, there) ** 2
        measured = take(auxiliary, s.normal_auxdata[there])
        b = others - measured * scaled + variance * scaled**2
        c = variance * scaled * (others - counts) - measured * others
        square = (others + measured * scaled - variance * scaled**2) ** 2
        square = square + 4.0 * variance * counts * scaled**2
        return _larger_root(scaled, b, c, square, measured), 2.0 / variance

    best, curvature = jnp.zeros((2, len(p.private)))
    for which, closed_form in ((poisson, from_poisson), (~poisson, from_normal)):
        if which.any():
            which = np.flatnonzero(which)
            roots, curvatures = closed_form(*(take(v, which) for v in (others, scaled, counts)))
            best, curvature = put(best, which, roots), put(curvature, which, curvatures)
    return best, curvature


def _larger_root(a, b, c, discriminant, without):
    """Larger root of a x^2 + b x + c, or ``without`` where a is 0; no digits are lost."""
    some = a > 0
    root = jnp.where(
        discriminant > 0, jnp.sqrt(jnp.where(discriminant > 0, discriminant, 1.0)), 0.0
    )
    positive = b > 0
    small = -2.0 * c / jnp.where(positive, b + root, 1.0)
    large = (root - b) / (2.0 * jnp.where(some, a, 1.0))
    return jnp.where(some, jnp.where(positive, small, large), without)
