"""The likelihood as a fit sees it: fewer parameters, and derivatives that know their structure.

Putting in the best values of the private parameters, which act in one bin only, leaves the
*profile* deviance of the shared ones: the Schur complement of an arrowhead Hessian, exactly, at a
cost linear in the bins.

What is left is differentiated twice by way of a second-order expansion of the interpolations:
each depends on one parameter, so the expansion is made elementwise, and the Hessian needs it only
once instead of once for every parameter. Where the tables of parameters and cells that this takes
are large, the bins are gone through in blocks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab.indexing import put, take
from nablab.infer._per_bin import by_layer, eliminate, scaled, with_private
from nablab.infer._plan import blocks, plan
from nablab.model import interpolation
from nablab.model.histfactory import Model

# A normsys factor closer to 0 than this is taken for this, where its logarithm is differentiated.
SMALLEST_FACTOR = 1e-9
# Tables with more entries are made for blocks of so many cells.
LARGE_TABLE = 1_000_000
BLOCK = 1024


def complete(
    model: Model, data: Float[Array, "data"], parameters: Float[Array, "parameters"]
) -> Float[Array, "parameters"]:
    """Parameters with the private ones at their best values, given the shared ones."""
    return with_private(model, data, parameters, by_layer(model, _cells(model, parameters)))[0]


def deviance(
    model: Model, data: Float[Array, "data"], parameters: Float[Array, "parameters"]
) -> Float[Array, ""]:
    """Deviance minimised over the private parameters."""
    sums = by_layer(model, _cells(model, parameters))
    parameters, gammas, _ = with_private(model, data, parameters, sums)
    return model.deviance_at(scaled(sums, gammas), parameters, data)


def _cells(model, parameters):
    """Expected events by cell, the private parameters left out."""
    private = plan(model.structure).private
    return model.expected_by_cell(put(parameters, private, jnp.ones(len(private))))


def expansion(
    model: Model,
    data: Float[Array, "data"],
    parameters: Float[Array, "parameters"],
    fitted: np.ndarray,
    *,
    curved: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, "fitted"], Float[Array, "fitted fitted"]]:
    """The profile deviance, its gradient and its Hessian in the parameters ``fitted``.

    With ``curved`` at 0 the expected events are taken for straight lines in the Hessian, which is
    then positive however far the data are from the model (Fisher scoring).
    """
    s, p = model.structure, plan(model.structure)
    if len(fitted) * len(s.cell_bin) > LARGE_TABLE:
        return _expansion_in_blocks(model, data, parameters, fitted, curved)
    cells, cell_slopes, cell_curvature = _cell_derivatives(model, parameters, fitted)
    sums = by_layer(model, cells)
    parameters, gammas, stiffness = with_private(model, data, parameters, sums)

    rates = scaled(sums, gammas)
    slope, bend = model.rate_slopes(rates, data)
    by_cell = slope[s.cell_bin]
    for layer, gamma in zip(p.layers, gammas, strict=True):
        by_cell = jnp.where(layer.scales, gamma[s.cell_bin], 1.0) * by_cell
    sum_slopes = jnp.moveaxis(jax.vmap(lambda slopes: by_layer(model, slopes))(cell_slopes), 0, -2)
    rate_slopes = scaled(sum_slopes, gammas)
    hessian = (rate_slopes * bend) @ rate_slopes.T
    # The best private parameters move with the fitted ones, which makes the deviance softer.
    eliminated = eliminate(sums, gammas, slope, bend, stiffness)
    for mixed, (*_, softness) in zip(
        _mixed(sum_slopes, gammas, slope, bend, eliminated), eliminated, strict=True
    ):
        hessian = hessian - (mixed * softness) @ mixed.T

    by_parameter, twice_by_parameter = model.constraint_slopes(parameters, data)
    gradient = cell_slopes @ by_cell + take(by_parameter, fitted)
    hessian = hessian + jnp.diag(take(twice_by_parameter, fitted))
    of_logs, own, *of_factors = cell_curvature(curved * by_cell)
    hessian = _with_curvature(hessian + of_logs, own, *of_factors, _factors(p, fitted))
    return model.deviance_at(rates, parameters, data), gradient, hessian


def _factors(plan, fitted):
    """Places among the fitted parameters of those that are factors themselves."""
    return np.flatnonzero(np.isin(fitted, plan.direct))


def _with_curvature(hessian, own, of_factors, mixed, places):
    """The Hessian with what the cells' curvature adds: in one parameter, among the factors at
    ``places``, and between all parameters and these."""
    hessian = hessian + jnp.diag(own)
    if not len(places):
        return hessian
    half = put(mixed, places, take(mixed, places) + of_factors / 2)
    half = put(jnp.zeros(hessian.shape), places, half.T)
    return hessian + half + half.T


def _mixed(sum_slopes, gammas, slope, bend, eliminated):
    """For each layer: derivatives of the deviance in the private parameter of each bin and in what
    has the ``sum_slopes``, while the parameters of the earlier layers follow."""
    rate_slopes = scaled(sum_slopes, gammas)
    mixed = []
    for layer, (rate_slope, coupling, _) in enumerate(eliminated):
        mixed.append(bend * rate_slope * rate_slopes + slope * scaled(sum_slopes, gammas, {layer}))
        for earlier, factor in enumerate(coupling):
            mixed[layer] = mixed[layer] - factor * mixed[earlier]
    return mixed


def _expansion_in_blocks(model, data, parameters, fitted, curved):
    """:func:`expansion`, a block of bins after the other.

    In each bin the deviance is a function of a few sums of events, by which layers scale them, and
    it has a small matrix of second derivatives in these.
    """
    s = model.structure
    b = blocks(s, BLOCK)
    # Tables of differences, the same for all iterations, would be kept beside those of the model.
    model, parameters = jax.lax.optimization_barrier((model, parameters))
    sums = by_layer(model, _cells(model, parameters))
    parameters, gammas, stiffness = with_private(model, data, parameters, sums)
    rates = scaled(sums, gammas)
    slope, bend = model.rate_slopes(rates, data)
    eliminated = eliminate(sums, gammas, slope, bend, stiffness)

    # Derivatives in these sums; those that no cell is part of are left out.
    place, parts = np.searchsorted(b.parts, b.part), len(b.parts)
    units = np.eye(2 ** len(gammas))[:, list(b.parts)]
    units = units.reshape(*(2 for _ in gammas), parts, 1)
    by_sum = jnp.broadcast_to(scaled(units, gammas), (parts, s.main_bins))
    twice_by_sum = bend * by_sum[:, None] * by_sum
    for mixed, (*_, softness) in zip(
        _mixed(units, gammas, slope, bend, eliminated), eliminated, strict=True
    ):
        twice_by_sum = twice_by_sum - softness * mixed[:, None] * mixed
    by_sum = slope * by_sum

    def add(totals, block):
        cells, counted, bins = block
        part = jnp.asarray(place)[cells]
        weights = jnp.where(counted, by_sum[part, bins], 0.0).reshape(-1)
        _, slopes, curvature = _cell_derivatives(model, parameters, fitted, cells.reshape(-1))
        slopes_3d = slopes.reshape(len(fitted), *cells.shape)
        sum_slopes = [
            jnp.where(counted & (part == k), slopes_3d, 0.0).sum(axis=1) for k in range(parts)
        ]
        bent = [sum(row[k][bins] * sum_slopes[k] for k in range(parts)) for row in twice_by_sum]
        of_bins = jnp.concatenate(bent, axis=1) @ jnp.concatenate(sum_slopes, axis=1).T
        gradient, hessian, *others = totals
        of_logs, *more = curvature(curved * weights)
        others = [one + other for one, other in zip(others, more, strict=True)]
        return (gradient + slopes @ weights, hessian + of_bins + of_logs, *others), None

    by_parameter, twice_by_parameter = model.constraint_slopes(parameters, data)
    size, places = len(fitted), _factors(plan(s), fitted)
    start = take(by_parameter, fitted), jnp.zeros((size, size)), take(twice_by_parameter, fitted)
    start = *start, jnp.zeros((len(places), len(places))), jnp.zeros((size, len(places)))
    totals, _ = jax.lax.scan(add, start, (b.cells, b.counted, b.bins))
    gradient, hessian, own, *of_factors = totals
    value = model.deviance_at(rates, parameters, data)
    return value, gradient, _with_curvature(hessian, own, *of_factors, places)


def _cell_derivatives(model: Model, parameters, fitted, cells=None):
    """Events by cell, their slopes [fitted, cells], and the Hessian of any weighted sum of them, in
    pieces: what normsys factors make together with others, what each interpolation makes by its
    own curvature (a diagonal), that among the parameters that are factors themselves, and that
    between all and these.

    A cell is (nominal + sum of shifts) x product of normsys factors x product of other factors;
    ``log_1`` and ``log_2`` are the derivatives of the logarithm of (the size of) the second.
    ``cells`` tells some of many; then no more is made for each parameter and cell than needed.
    """
    s, p = model.structure, plan(model.structure)
    additive, factor = interpolation.ADDITIVE[s.codes[0]], interpolation.FACTOR[s.codes[1]]
    some = cells is not None

    def here(table):
        return jnp.asarray(table)[..., cells] if some else table

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

    sample, nominal = here(s.cell_sample), here(model.nominal)
    if some:
        row = np.full((len(fitted), p.histosys_row.shape[1]), len(s.shift_parameters))
        mine = np.isin(p.histosys_parameters, fitted)
        row[np.searchsorted(fitted, p.histosys_parameters[mine])] = p.histosys_row[mine]

        def spread(table):
            """From the rows of the model to those of the parameters, most of which are zero."""
            table = jnp.pad(table, ((0, 1), (0, 0)))
            return jnp.take_along_axis(table, jnp.asarray(row)[:, sample], axis=0)

        down, up = here(model.shift_down), here(model.shift_up)
        alpha = model.alphas(parameters)[:, sample]
    else:

        def spread(table):
            return in_fitted(table, p.histosys_parameters)

        def histosys_rows(table):
            rows = jnp.concatenate([table, nominal[None]])
            return jnp.take_along_axis(rows, p.histosys_row[:, sample], axis=0)

        down, up = histosys_rows(model.shift_down), histosys_rows(model.shift_up)
        alpha = jnp.broadcast_to(take(parameters, p.histosys_parameters)[:, None], down.shape)
    shift, shift_1, shift_2 = with_derivatives(
        lambda alpha: additive(alpha, down, nominal, up), alpha
    )
    events = nominal + shift.sum(axis=0)
    shift_1, shift_2 = spread(shift_1), spread(shift_2)

    factors = with_derivatives(
        lambda alpha: factor(alpha, model.normsys_down, 1.0, model.normsys_up),
        take(parameters, s.normsys_parameter),
    )
    # Inside [-1, 1] a factor is a polynomial, which can be negative, and zero in between.
    value = jnp.where(jnp.abs(factors[0]) > SMALLEST_FACTOR, factors[0], SMALLEST_FACTOR)
    relative_1 = factors[1] / value
    entry = jnp.asarray(p.normsys_entry)[:, sample] if some else p.normsys_entry[:, sample]
    normsys = jnp.prod(jnp.append(value, 1.0)[entry], axis=0)
    some_logs = np.isin(fitted, p.normsys_parameters).any()
    log_1, log_2 = (
        in_fitted(jnp.append(v, 0.0)[entry], p.normsys_parameters) if some_logs else 0.0
        for v in (relative_1, factors[2] / value - relative_1**2)
    )

    # Few of many parameters are factors: derivatives in the others would be a lot of zeros.
    places = _factors(p, fitted)

    def product(change):
        moved = put(parameters, fitted[places], take(parameters, fitted[places]) + change)
        return jnp.prod(jnp.append(moved, 1.0)[here(p.direct)], axis=0)

    nothing = jnp.zeros(len(places))
    others = product(nothing)
    others_1 = jax.jacfwd(product)(nothing).T
    scale = normsys * others
    relative = scale * shift_1 + events * scale * log_1  # slopes but for those of the others
    cell_slopes = put(relative, places, take(relative, places) + events * normsys * others_1)

    def curvature(weights):
        straight, of_logs = weights * events * normsys, 0.0
        if some_logs:
            mixed = shift_1 * (weights * scale) @ log_1.T
            of_logs = mixed + mixed.T + log_1 * (straight * others) @ log_1.T
        own = (shift_2 + events * log_2) @ (weights * scale)
        of_factors = jax.hessian(lambda change: jnp.sum(straight * product(change)))(nothing)
        mixed = (shift_1 + events * log_1) * (weights * normsys) @ others_1.T
        return of_logs, own, of_factors, mixed

    return events * scale, cell_slopes, curvature
