"""The likelihood as a fit sees it: fewer parameters, and derivatives that know their structure.

Putting in the best values of the private parameters, which act in one bin only, leaves the
*profile* deviance of the shared ones: the Schur complement of an arrowhead Hessian, exactly, at a
cost linear in the bins.

What is left is differentiated twice by way of a second-order expansion of the interpolations:
each depends on one parameter, so the expansion is made elementwise, and the Hessian needs it only
once instead of once for every parameter.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab.infer import interpolation
from nablab.infer.histfactory import Model
from nablab.infer.indexing import put, take
from nablab.infer.plan import plan
from nablab.infer.private import by_layer, eliminate, scaled, with_private

# A normsys factor closer to 0 than this is taken for this, where its logarithm is differentiated.
SMALLEST_FACTOR = 1e-9


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
) -> tuple[Float[Array, ""], Float[Array, "fitted"], Float[Array, "fitted fitted"]]:
    """The profile deviance, its gradient and its Hessian in the parameters ``fitted``."""
    s, p = model.structure, plan(model.structure)
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
    mixed = []
    for layer, (rate_slope, coupling, softness) in enumerate(eliminated):
        mixed.append(bend * rate_slope * rate_slopes + slope * scaled(sum_slopes, gammas, {layer}))
        for earlier, factor in enumerate(coupling):
            mixed[layer] = mixed[layer] - factor * mixed[earlier]
        hessian = hessian - (mixed[layer] * softness) @ mixed[layer].T

    by_parameter, twice_by_parameter = model.constraint_slopes(parameters, data)
    gradient = cell_slopes @ by_cell + take(by_parameter, fitted)
    hessian = hessian + cell_curvature(by_cell)
    value = model.deviance_at(rates, parameters, data)
    return value, gradient, hessian + jnp.diag(take(twice_by_parameter, fitted))


def _cell_derivatives(model: Model, parameters, fitted):
    """Events by cell, their slopes [fitted, cells], and the Hessian of any weighted sum of them.

    A cell is (nominal + sum of shifts) x product of normsys factors x product of other factors;
    ``log_1`` and ``log_2`` are the derivatives of the logarithm of (the size of) the second.
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

    factors = with_derivatives(
        lambda alpha: factor(alpha, model.normsys_down, 1.0, model.normsys_up),
        take(parameters, s.normsys_parameter),
    )
    # Inside [-1, 1] a factor is a polynomial, which can be negative, and zero in between.
    value = jnp.where(jnp.abs(factors[0]) > SMALLEST_FACTOR, factors[0], SMALLEST_FACTOR)
    relative_1 = factors[1] / value
    normsys = jnp.prod(jnp.append(value, 1.0)[p.normsys_entry], axis=0)
    log_1, log_2 = (
        in_fitted(jnp.append(v, 0.0)[p.normsys_entry], p.normsys_parameters)
        for v in (relative_1, factors[2] / value - relative_1**2)
    )

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
