"""Expected events of each cell, a sample in a bin, with their derivatives in the fitted parameters.

A cell is (nominal + sum of shifts) x product of normsys factors x product of other factors. Each
interpolation depends on one parameter, so that it is expanded to second order elementwise, and the
Hessian needs the expansion only once instead of once for every parameter.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nablab.indexing import put
from nablab.infer._plan import Plan
from nablab.model import interpolation
from nablab.model.histfactory import Model

# A normsys factor closer to 0 than this is taken for this, where its logarithm is differentiated.
SMALLEST_FACTOR = 1e-9


class Curvature(NamedTuple):
    """Second derivatives of a weighted sum of cells, in pieces that add up over blocks of cells."""

    own: Float[Array, "fitted"]  # of each interpolation by itself
    factors: Float[Array, "factors factors"]  # among parameters that are factors themselves
    mixed_factors: Float[Array, "fitted factors"]  # of all parameters together with these

    def add_to(self, hessian, plan: Plan) -> Float[Array, "fitted fitted"]:
        """The Hessian with all pieces."""
        hessian = hessian + jnp.diag(self.own)
        if not plan.factor_count:
            return hessian
        half = self.mixed_factors[plan.factors] + self.factors / 2
        half = put(self.mixed_factors, plan.factors, half)
        half = put(jnp.zeros(hessian.shape), plan.factors, half.T)
        return hessian + half + half.T


def expand(
    model: Model, plan: Plan, parameters, *, cells=None
) -> tuple[Float[Array, "cells"], Float[Array, "fitted cells"], Callable]:
    """Events by cell, their slopes, and their second derivatives as a function of weights [cells]:
    what normsys factors make together with others [fitted, fitted], and a :class:`Curvature`.

    ``cells`` tells some of many; then no more is made for each parameter and cell than needed.
    """
    s, some = model.structure, cells is not None

    def here(table):
        return jnp.asarray(table)[..., cells] if some else table

    sample = here(s.cell_sample)
    events, shift_1, shift_2 = _shifted(model, plan, parameters, sample, here, some)
    entry = jnp.asarray(plan.normsys.entry)[:, sample] if some else plan.normsys.entry[:, sample]
    normsys, log_1, log_2 = _normsys(model, plan, parameters, entry)

    # Few of many parameters are factors: derivatives in the others would be a lot of zeros.
    def product(change):
        changed = parameters[plan.factor_parameters] + change
        moved = put(parameters, plan.factor_parameters, changed)
        return jnp.prod(jnp.append(moved, 1.0)[here(plan.direct)], axis=0)

    nothing = jnp.zeros(plan.factor_count)
    others = product(nothing)
    others_1 = jax.jacfwd(product)(nothing).T
    scale = normsys * others
    slopes = scale * shift_1 + events * scale * log_1  # but for those of the others
    with_others = slopes[plan.factors] + events * normsys * others_1
    slopes = put(slopes, plan.factors, with_others)

    def curvature(weights):
        straight, mixed_logs = weights * events * normsys, 0.0
        if plan.normsys.some:
            mixed = shift_1 * (weights * scale) @ log_1.T
            mixed_logs = mixed + mixed.T + log_1 * (straight * others) @ log_1.T
        return mixed_logs, Curvature(
            (shift_2 + events * log_2) @ (weights * scale),
            jax.hessian(lambda change: jnp.sum(straight * product(change)))(nothing),
            (shift_1 + events * log_1) * (weights * normsys) @ others_1.T,
        )

    return events * scale, slopes, curvature


def _shifted(model, plan, parameters, sample, here, some):
    """Nominal events with all shifts, and first and second derivatives [fitted, cells]."""
    s, histosys, nominal = model.structure, plan.histosys, here(model.nominal)
    additive = interpolation.ADDITIVE[s.codes[0]]
    if some:
        down, up = here(model.shift_down), here(model.shift_up)
        alpha = model.alphas(parameters)[:, sample]
    else:

        def rows(table):
            rows = jnp.concatenate([table, nominal[None]])
            return jnp.take_along_axis(rows, histosys.entry[:, sample], axis=0)

        down, up = rows(model.shift_down), rows(model.shift_up)
        alpha = jnp.broadcast_to(parameters[histosys.parameters][:, None], down.shape)

    def in_fitted(table):
        """From the rows of the model to those of the parameters, most of which are zero."""
        if not some:
            return _in_fitted(plan, histosys, table)
        table, row = jnp.pad(table, ((0, 1), (0, 0))), jnp.asarray(plan.fitted_histosys_row)
        return jnp.take_along_axis(table, row[:, sample], axis=0)

    shift, first, second = _with_derivatives(
        lambda alpha: additive(alpha, down, nominal, up), alpha
    )
    return nominal + shift.sum(axis=0), in_fitted(first), in_fitted(second)


def _normsys(model, plan, parameters, entry):
    """Product of the normsys factors by cell, and first and second derivatives [fitted, cells] of
    the logarithm of (the size of) it."""
    s = model.structure
    factor = interpolation.FACTOR[s.codes[1]]
    factors, first, second = _with_derivatives(
        lambda alpha: factor(alpha, model.normsys_down, 1.0, model.normsys_up),
        parameters[s.at.normsys_parameter],
    )
    # Inside [-1, 1] a factor is a polynomial, which can be negative, and zero in between.
    value = jnp.where(jnp.abs(factors) > SMALLEST_FACTOR, factors, SMALLEST_FACTOR)
    relative = first / value
    product = jnp.prod(jnp.append(value, 1.0)[entry], axis=0)
    if not plan.normsys.some:
        return product, 0.0, 0.0
    logs = relative, second / value - relative**2
    return product, *(_in_fitted(plan, plan.normsys, jnp.append(v, 0.0)[entry]) for v in logs)


def _in_fitted(plan, kind, rows):
    """Rows of the fitted parameters, in their order, zero for those without a row."""
    empty = jnp.zeros((len(plan.fitted), rows.shape[1]))
    return put(empty, kind.at, rows[kind.fitted])


def _with_derivatives(function, x):
    """Value, first and second derivative, elementwise."""

    def slope(x):
        return jax.jvp(function, (x,), (jnp.ones_like(x),))

    (value, first), (_, second) = jax.jvp(slope, (x,), (jnp.ones_like(x),))
    return value, first, second
