"""The likelihood as a fit sees it: fewer parameters, and derivatives that know their structure.

A nuisance parameter that scales samples in one bin only (shapesys, staterror) has a best value in
closed form once all others are given. Putting it in leaves the *profile* deviance of the shared
parameters: the Schur complement of an arrowhead Hessian, exactly, at a cost linear in the bins.
A second such parameter in the same bin is found by Newton steps on its own, all bins at once.

What is left is differentiated twice by way of a second-order expansion of the interpolations:
each depends on one parameter, so the expansion is made elementwise, and the Hessian needs it only
once instead of once for every parameter.
"""

import functools
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab.infer import interpolation
from nablab.infer.histfactory import Model
from nablab.infer.indexing import put, take
from nablab.infer.specification import Structure

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
    parameter and cell, which row of the model's histosys or entry of its normsys numbers applies,
    or the one after the last.
    """

    shared: np.ndarray
    layers: tuple[Layer, ...]
    private: np.ndarray  # of all layers
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
    histosys = [p for p in np.unique(s.shifts) if p in interpolated]
    normsys = np.unique(s.normsys_parameter)
    parameter_of = np.append(s.normsys_parameter, -1)
    entry = np.where(s.factors < size, entries, s.factors - size)
    return Plan(
        shared=np.setdiff1d(np.arange(size), private),
        layers=layers,
        private=private,
        direct=direct,
        histosys_parameters=np.array(histosys, dtype=int),
        histosys_row=_first(s.shifts, histosys, np.indices(s.shifts.shape)[0], len(s.shifts)),
        normsys_parameters=normsys,
        normsys_entry=_first(parameter_of[entry], normsys, entry, entries),
    )


def _layer(structure, rows) -> Layer:
    parameters, bins, constraint = np.array(rows, dtype=int).T
    scales = np.isin(structure.factors, parameters).any(axis=0)
    return Layer(parameters, bins, constraint, scales)


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
    sums = _sums(model, _cells(model, parameters))
    parameters, gammas, _ = _with_private(model, data, parameters, sums)
    return model.deviance_at(_scaled(sums, gammas), parameters, data)


def _cells(model, parameters):
    """Expected events by cell, the private parameters left out."""
    private = plan(model.structure).private
    return model.expected_by_cell(put(parameters, private, jnp.ones(len(private))))


def _sums(model, cells) -> Float[Array, "... bins"]:
    """Events in each bin, an axis of 2 for each layer: those that it leaves alone, and scales.

    The axis of the last layer comes first.
    """
    parts = [cells]
    for layer in plan(model.structure).layers:
        parts = [
            jnp.where(layer.scales == scaled, part, 0.0) for scaled in (0, 1) for part in parts
        ]
    sums = jnp.stack([model.main_from_cells(part) for part in parts])
    return sums.reshape(*(2 for _ in plan(model.structure).layers), -1)


def _scaled(sums, gammas, slopes=()):
    """Events with the private parameters ``gammas`` of each layer, [bins] each.

    ``slopes`` tells layers in whose parameter the derivative is taken.
    """
    for layer in reversed(range(len(gammas))):
        sums = sums[1] if layer in slopes else sums[0] + gammas[layer] * sums[1]
    return sums


def expansion(
    model: Model,
    data: Float[Array, "data"],
    parameters: Float[Array, "parameters"],
    fitted: np.ndarray,
) -> tuple[Float[Array, ""], Float[Array, "fitted"], Float[Array, "fitted fitted"]]:
    """The profile deviance, its gradient and its Hessian in the parameters ``fitted``."""
    s, p = model.structure, plan(model.structure)
    cells, cell_slopes, cell_curvature = _cell_derivatives(model, parameters, fitted)
    sums = _sums(model, cells)
    parameters, gammas, stiffness = _with_private(model, data, parameters, sums)

    rates = _scaled(sums, gammas)
    slope, bend = model.rate_slopes(rates, data)
    by_cell = slope[s.cell_bin]
    for layer, gamma in zip(p.layers, gammas, strict=True):
        by_cell = jnp.where(layer.scales, gamma[s.cell_bin], 1.0) * by_cell
    sum_slopes = jnp.moveaxis(jax.vmap(lambda slopes: _sums(model, slopes))(cell_slopes), 0, -2)
    rate_slopes = _scaled(sum_slopes, gammas)
    hessian = (rate_slopes * bend) @ rate_slopes.T
    # The best private parameters move with the fitted ones, which makes the deviance softer.
    eliminated = _eliminate(sums, gammas, slope, bend, stiffness)
    mixed = []
    for layer, (rate_slope, coupling, softness) in enumerate(eliminated):
        mixed.append(bend * rate_slope * rate_slopes + slope * _scaled(sum_slopes, gammas, {layer}))
        for earlier, factor in enumerate(coupling):
            mixed[layer] = mixed[layer] - factor * mixed[earlier]
        hessian = hessian - (mixed[layer] * softness) @ mixed[layer].T

    by_parameter, twice_by_parameter = model.constraint_slopes(parameters, data)
    gradient = cell_slopes @ by_cell + take(by_parameter, fitted)
    hessian = hessian + cell_curvature(by_cell)
    value = model.deviance_at(rates, parameters, data)
    return value, gradient, hessian + jnp.diag(take(twice_by_parameter, fitted))


def _eliminate(sums, gammas, slope, bend, stiffness):
    """Elimination of the private parameters of each bin, a layer after the other.

    For each layer: the slope of the expected events in its parameter, the factors with which the
    earlier ones follow, and the inverse of what is then left of its curvature.
    """
    eliminated = []
    for layer in range(len(gammas)):
        rate_slope = _scaled(sums, gammas, {layer})
        curvature = bend * rate_slope**2 + stiffness[layer]
        coupling = []
        for earlier, (other_slope, _, softness) in enumerate(eliminated):
            both = bend * rate_slope * other_slope + slope * _scaled(sums, gammas, {layer, earlier})
            coupling.append(both * softness)
            curvature = curvature - both * both * softness
        eliminated.append((rate_slope, coupling, 1.0 / curvature))
    return eliminated


def _with_private(model, data, parameters, sums):
    """Parameters with the private ones at their best; and by layer and bin, these (1 where there
    is none) and the curvature of their constraints (infinite where they cannot move)."""
    layers = plan(model.structure).layers
    if not layers:
        return parameters, [], []
    if len(layers) == 1:
        found = [_best_of_first(model, data, parameters, sums)]
    else:
        gamma, stiffness = _best_of_second(model, data, parameters, sums)
        others_and_scaled = sums[0] + gamma * sums[1]
        found = [_best_of_first(model, data, parameters, others_and_scaled), (gamma, stiffness)]
    for layer, (gamma, _) in zip(layers, found, strict=True):
        parameters = put(parameters, layer.parameters, take(gamma, layer.bins))
    return parameters, *map(list, zip(*found, strict=True))


def _best_of_first(model, data, parameters, others_and_scaled):
    """Of the first layer, by bin: its best parameters, and the curvature of their constraints."""
    layer = plan(model.structure).layers[0]
    best, curvature = _closed_form(model, data, layer, take(others_and_scaled.T, layer.bins).T)
    lower, upper = take(model.lower, layer.parameters), take(model.upper, layer.parameters)
    fixed = take(model.fixed, layer.parameters)
    stuck = (best < lower) | (best > upper) | fixed
    best = jnp.where(fixed, take(parameters, layer.parameters), jnp.clip(best, lower, upper))
    bins = model.structure.main_bins
    gamma = put(jnp.ones(bins), layer.bins, best)
    return gamma, put(jnp.full(bins, jnp.inf), layer.bins, jnp.where(stuck, jnp.inf, curvature))


def _best_of_second(model, data, parameters, sums):
    """The same of the second layer, while the first one follows."""
    layer, ones = plan(model.structure).layers[1], jnp.ones(model.structure.main_bins)
    fixed = take(model.fixed, layer.parameters)
    rest = take(parameters, layer.parameters)
    lower, upper = (
        put(ones, layer.bins, jnp.where(fixed, rest, take(bound, layer.parameters)))
        for bound in (model.lower, model.upper)
    )
    args = model, data, parameters, sums
    still = jax.lax.stop_gradient((args, lower, upper))
    gamma = _rising_root(partial(_slopes_of_second, *still[0]), *still[1:])
    stuck = (gamma <= lower) | (gamma >= upper)
    bound = jnp.where(gamma <= lower, lower, upper)

    def polish(gamma, _):
        slope, curvature, constraint = _slopes_of_second(*args, gamma)
        return jnp.where(stuck, bound, gamma - slope / jnp.where(stuck, 1.0, curvature)), constraint

    # Each Newton step at the root gives it another order of derivatives.
    gamma, constraint = jax.lax.scan(polish, gamma, length=2)
    return gamma, jnp.where(stuck, jnp.inf, constraint[-1])


def _slopes_of_second(model, data, parameters, sums, gamma):
    """Of the deviance in the second layer's parameters while the first one follows: the slope and
    the curvature, of which the constraint gives the last."""
    layer = plan(model.structure).layers[1]
    first, stiffness = _best_of_first(model, data, parameters, sums[0] + gamma * sums[1])
    gammas = [first, gamma]
    slope, bend = model.rate_slopes(_scaled(sums, gammas), data)
    parameters = put(parameters, layer.parameters, take(gamma, layer.bins))
    pull, constraint = (
        put(elsewhere, layer.bins, take(derivative, layer.parameters))
        for elsewhere, derivative in zip(
            (jnp.zeros_like(gamma), jnp.ones_like(gamma)),
            model.constraint_slopes(parameters, data),
            strict=True,
        )
    )
    _, (rate_slope, _, softness) = _eliminate(sums, gammas, slope, bend, [stiffness, constraint])
    return slope * rate_slope + pull, 1.0 / softness, constraint


def _rising_root(function, lower, upper):
    """Elementwise, where a function rises through 0, to some six digits: Newton steps within a
    bracket that they narrow. The bound where it does not."""

    def step(state):
        x, low, high, count, _ = state
        value, slope, _ = function(x)
        low, high = jnp.where(value < 0, x, low), jnp.where(value < 0, high, x)
        trial = jnp.where(slope > 0, x - value / slope, jnp.where(value < 0, jnp.inf, -jnp.inf))
        trial = jnp.clip(trial, lower, upper)
        halve = (trial <= low) | (trial >= high) | ((count > 10) & (count % 2 == 0))
        trial = jnp.where(halve & jnp.isfinite(high - low), (low + high) / 2, trial)
        trial = jnp.where(value == 0, x, trial)
        return trial, low, high, count + 1, jnp.abs(trial - x) <= 1e-6 * jnp.abs(x)

    def unfinished(state):
        *_, count, done = state
        return ~done.all() & (count < 100)

    start = jnp.clip(jnp.ones_like(lower), lower, upper)
    nowhere = jnp.full_like(lower, jnp.inf)
    state = (start, -nowhere, nowhere, 0, jnp.zeros(lower.shape, bool))
    return jax.lax.while_loop(unfinished, step, state)[0]


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


def _closed_form(model, data, layer, others_and_scaled):
    """Minimum over gamma of the deviance of a bin with ``others + gamma * scaled`` events, and
    the curvature of the constraint there.

    Where the derivative is zero gamma solves a quadratic equation; the deviance is convex where
    the rate is positive, which is beyond the smaller root.
    """
    s, constraint = model.structure, layer.constraint
    counts = take(data, layer.bins)
    auxiliary = data[s.main_bins :]
    poisson = constraint < len(s.poisson_parameter)
    here, there = constraint[poisson], constraint[~poisson] - len(s.poisson_parameter)

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

    best, curvature = jnp.zeros((2, len(layer.bins)))
    for which, closed_form in ((poisson, from_poisson), (~poisson, from_normal)):
        if which.any():
            which = np.flatnonzero(which)
            roots, curvatures = closed_form(*(take(v, which) for v in (*others_and_scaled, counts)))
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
