"""Minimisation that says whether it worked, and whose result has a derivative.

The minimum x*(theta) of f(x, theta) has a gradient although the iterations that find it are not
differentiated: at the minimum the conditions of Karush, Kuhn and Tucker hold, and the implicit
function theorem turns their derivatives into that of x*. Parameters at a bound stay there.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nablab.checks import Numbers

# Up to this size a matrix is inverted in straight-line code, which small fits are faster with.
UNROLLED = 4
# Up to this size fits from several starting points run side by side.
SIDE_BY_SIDE = 16
# Fractions of a step that are tried; long ones lead away from a maximum.
FRACTIONS = (1.0, 8.0, 0.25, 0.05)


class Status(IntEnum):
    """How a fit ended."""

    CONVERGED = 0
    NOT_CONVERGED = 1
    NOT_A_MINIMUM = 2
    NOT_FINITE = 3


MEANING = {
    Status.CONVERGED: "a minimum was found",
    Status.NOT_CONVERGED: "the gradient is not zero: out of iterations, or stuck",
    Status.NOT_A_MINIMUM: "the curvature is not positive: a saddle, or a direction without effect",
    Status.NOT_FINITE: "the function or its gradient is NaN or infinite",
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["status", "gradient_norm", "smallest_eigenvalue", "at_bound", "iterations"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Certificate:
    """What is known about the point where a fit ended.

    Attributes:
        status: a :class:`Status`.
        gradient_norm: largest component of the gradient that is free to move, in units of
            (change of f) per (parameter uncertainty, 1 / sqrt of its curvature).
        smallest_eigenvalue: of the Hessian of the free parameters, each in units of its own
            uncertainty; 1 for uncorrelated parameters, 0 for a direction without effect.
        at_bound: which parameters rest on a bound.
        iterations: Newton steps tried.
    """

    status: Int[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    smallest_eigenvalue: Float[Array, "*batch"]
    at_bound: Bool[Array, "*batch parameters"]
    iterations: Int[Array, "*batch"]

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether the fit found a minimum."""
        return self.status == Status.CONVERGED

    def require(self) -> None:
        """Raise ``RuntimeError`` unless the fit (each fit of a batch) found a minimum."""
        worst = Status(int(jnp.max(self.status)))
        if worst != Status.CONVERGED:
            norm, eigenvalue = jnp.max(self.gradient_norm), jnp.min(self.smallest_eigenvalue)
            raise RuntimeError(
                f"fit failed: {MEANING[worst]} "
                f"(gradient norm {float(norm):.1e}, smallest eigenvalue {float(eigenvalue):.1e})"
            )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters", "value", "certificate"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Fit:
    """Where the minimum is, how deep, and how sure."""

    parameters: Float[Array, "*batch parameters"]
    value: Float[Array, "*batch"]
    certificate: Certificate


def minimize(
    function: Callable[..., Float[Array, ""]],
    init: Float[Numbers, "parameters"],
    lower: Float[Numbers, "parameters"] | float = -jnp.inf,
    upper: Float[Numbers, "parameters"] | float = jnp.inf,
    fixed: Bool[Numbers, "parameters"] | bool = False,
    starts: Float[Numbers, "starts parameters"] | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 200,
    args: tuple = (),
    slopes: Callable | None = None,
) -> Fit:
    """Minimise a smooth function of a few (up to some hundred) parameters within a box.

    Newton steps with Levenberg-Marquardt damping: a step that does not lead downhill, or a
    curvature that is not positive, raises the damping. Steps are clipped to the box; parameters
    pressed against a bound are left out of the next step.

    Args:
        function: what to minimise, ``function(x, *args)``. It may also close over traced values:
            the result is differentiable in those and in ``args``, in forward and reverse mode and
            repeatedly, by the implicit function theorem. At an active bound the derivative is the
            one-sided one that keeps the bound active.
        init: starting point, and value of the fixed parameters.
        lower, upper: bounds.
        fixed: parameters that are not fitted.
        starts: additional starting points; the lowest minimum wins.
        tolerance: for the gradient norm of the certificate.
        max_iterations: of Newton steps tried.
        args: further arguments of the function, pytrees of arrays.
        slopes: ``slopes(x, *args)`` gives gradient and Hessian, where there is a faster way than
            to differentiate the function twice. Function and slopes then close over nothing that
            is traced.

    Returns:
        The fit. Look at ``certificate.converged``, or call ``certificate.require()`` outside jit.
    """
    init = jnp.asarray(init, dtype=float)
    lower, upper = jnp.broadcast_to(lower, init.shape), jnp.broadcast_to(upper, init.shape)
    fixed = jnp.broadcast_to(fixed, init.shape)
    lower, upper = jnp.where(fixed, init, lower), jnp.where(fixed, init, upper)
    if slopes is None:
        function, hoisted = jax.closure_convert(function, init, *args)
        args, slopes = (*args, *hoisted), partial(_slopes, function)

    # Plain arrays: the tangents of a model are not a model.
    args, tree = jax.tree.flatten(args)
    function, slopes = _on_leaves(function, tree), _on_leaves(slopes, tree)

    still = jax.lax.stop_gradient
    box, constants = still((lower, upper)), still(args)

    def newton(x):
        x = jnp.clip(still(x), *box)
        return _newton(function, slopes, constants, x, *box, tolerance, max_iterations)

    if starts is None:
        end = newton(init)
    else:
        ends = in_turn_or_together(newton, len(init))(jnp.concatenate([init[None], starts]))
        best = jnp.argmin(jnp.where(jnp.isfinite(ends.value), ends.value, jnp.inf))
        end = jax.tree.map(lambda field: field[best], ends)

    rest = jnp.where(end.x >= upper, upper, lower)
    parameters = _minimum(function, slopes, end.x, end.active, rest, args)
    value = _lowest(function, parameters, end.active, rest, args)
    return Fit(parameters, value, _certify(end, box, tolerance))


def _on_leaves(function, tree):
    return lambda x, *leaves: function(x, *tree.unflatten(leaves))


def in_turn_or_together(fit: Callable, size: int) -> Callable:
    """Map a fit of ``size`` parameters over an axis.

    Small fits run faster side by side. Large ones gain nothing from that, and would all make as
    many steps as the slowest.
    """
    return jax.vmap(fit) if size <= SIDE_BY_SIDE else partial(jax.lax.map, fit)


def _slopes(function, x, *args):
    """Gradient and Hessian by automatic differentiation."""

    def gradient_twice(x):
        gradient = jax.grad(function)(x, *args)
        return gradient, gradient

    hessian, gradient = jax.jacfwd(gradient_twice, has_aux=True)(x)
    return gradient, hessian


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _minimum(function, slopes, x, active, rest, args):
    """The minimum as a function of ``args`` (and of the bounds, where one is active)."""
    return jnp.where(active, rest, x)


@_minimum.defjvp
def _minimum_jvp(function, slopes, primals, tangents):
    x, active, rest, args = primals
    _, _, rest_dot, args_dot = tangents
    x = _minimum(function, slopes, x, active, rest, args)
    # The gradient of the free parameters stays zero: H dx + d(gradient) = 0.
    moved = jnp.where(active, rest_dot, 0.0)
    _, change = jax.jvp(jax.grad(function), (x, *args), (moved, *args_dot))
    hessian = slopes(x, *args)[1]
    free = jnp.where(active[:, None] | active, jnp.diag(active * 1.0), hessian)
    step = -_inverse(free)[0] @ jnp.where(active, 0.0, change)
    return x, jnp.where(active, rest_dot, step)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _lowest(function, x, active, rest, args):
    """The function at its minimum, whose own movement does not count: its slope is zero."""
    return function(x, *args)


@_lowest.defjvp
def _lowest_jvp(function, primals, tangents):
    x, active, _, args = primals
    _, _, rest_dot, args_dot = tangents
    moved = jnp.where(active, rest_dot, 0.0)
    return jax.jvp(function, (x, *args), (moved, *args_dot))


class _Iteration(NamedTuple):
    """Where the iteration stands: the derivatives are those at ``x`` once it is done."""

    x: Array
    value: Array
    gradient: Array
    hessian: Array
    active: Array
    damping: Array
    count: Array
    done: Array


def _newton(function, slopes, args, x, lower, upper, tolerance, max_iterations) -> _Iteration:
    """Damped projected Newton iteration."""
    size = x.shape[0]
    eye, fractions = np.eye(size), jnp.array(FRACTIONS)

    def step(state):
        x, value = state.x, state.value
        gradient, hessian = slopes(x, *args)
        # Parameters pressed against a bound, and the fixed ones, take no part in the step.
        active = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
        active = active | (lower == upper)
        scale = _scale(hessian)
        done = _gradient_norm(gradient, active, scale) <= tolerance
        unit = 1.0 / jnp.sqrt(scale)
        free = jnp.where(active, 0.0, gradient)
        inverse, _ = _inverse(_in_units(hessian, active, unit) + state.damping * eye, True)
        direction = -unit * (inverse @ (unit * free))
        trials = jnp.clip(x + fractions[:, None] * direction, lower, upper)
        values = jax.vmap(lambda x: function(x, *args))(trials)
        # Near the minimum the change drowns in rounding errors, and a full step is right.
        move = trials[0] - x
        predicted = jnp.abs(gradient @ move)
        rounding = 1e-13 * (1.0 + jnp.abs(value))
        full = (predicted < rounding) & (values[0] - value < rounding)
        lowest = jnp.where(full, 0, jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf)))
        good = full | (value - values[lowest] > 1e-4 * fractions[lowest] * predicted)
        damping = jnp.where(
            good,
            jnp.where(state.damping > 1e-3, state.damping / 10, 0.0),
            10 * state.damping + 1e-2,
        )
        trial, trial_value = trials[lowest], values[lowest]
        move_on = good & ~done
        return _Iteration(
            x=jnp.where(move_on, trial, x),
            value=jnp.where(move_on, trial_value, value),
            gradient=gradient,
            hessian=hessian,
            active=active,
            damping=damping,
            count=state.count + 1,
            done=done,
        )

    def unfinished(state):
        in_reach = (state.count < max_iterations) & (state.damping < 1e12)
        return ~state.done & in_reach & jnp.isfinite(state.value)

    start = _Iteration(
        x=x,
        value=function(x, *args),
        gradient=jnp.full(size, jnp.nan),
        hessian=jnp.full((size, size), jnp.nan),
        active=jnp.zeros(size, bool),
        damping=jnp.zeros(()),
        count=jnp.zeros((), int),
        done=jnp.zeros((), bool),
    )
    return jax.lax.while_loop(unfinished, step, start) if size else start


def _scale(hessian):
    """Curvature of each parameter, 1 where there is none."""
    curvature = jnp.abs(jnp.diagonal(hessian))
    return jnp.where(curvature > 1e-12, curvature, 1.0)


def _gradient_norm(gradient, active, scale):
    return jnp.max(jnp.abs(jnp.where(active, 0.0, gradient)) / jnp.sqrt(scale), initial=0.0)


def _in_units(hessian, active, unit):
    """The Hessian of the free parameters in units of their uncertainties, 1 for the others."""
    rest = jnp.diag(active * 1.0)
    return jnp.where(active[:, None] | active, rest, unit[:, None] * hessian * unit)


def _certify(end, box, tolerance) -> Certificate:
    active, scale = end.active, _scale(end.hessian)
    norm = _gradient_norm(end.gradient, active, scale)
    in_units = _in_units(end.hessian, active, 1.0 / jnp.sqrt(scale))
    finite = jnp.isfinite(end.value) & jnp.isfinite(norm) & jnp.isfinite(in_units).all()
    # The smallest pivot tells the sign of the smallest eigenvalue at a fraction of its cost.
    minimum = _inverse(in_units)[1] > 1e-12
    status = jnp.where(
        ~finite,
        Status.NOT_FINITE,
        jnp.where(
            norm > 100 * tolerance,
            Status.NOT_CONVERGED,
            jnp.where(minimum, Status.CONVERGED, Status.NOT_A_MINIMUM),
        ),
    )
    smallest = jnp.linalg.eigvalsh(jnp.where(finite, in_units, np.eye(len(active)))).min(
        initial=jnp.inf
    )
    at_bound = active & (box[0] < box[1])
    return Certificate(status, norm, smallest, at_bound, end.count)


def _inverse(
    matrix: Float[Array, "n n"], make_positive: bool = False
) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Inverse by Gauss-Jordan elimination without pivoting, and the smallest pivot.

    Without pivoting this is stable for positive definite matrices, which a minimum has, and the
    sign of the smallest pivot tells whether the matrix is one. It is written out because LAPACK
    calls inside a batched loop have been seen to hang.

    ``make_positive`` turns negative pivots around: the result is the inverse of a positive
    definite matrix that differs from the given one on the diagonal only (Gill and Murray).
    """
    size = matrix.shape[0]
    index = np.arange(size)

    def eliminate(k, state):
        matrix, smallest = state
        here = index == k
        pivot = matrix[k, k]
        if make_positive:
            safe = jnp.where(pivot > 0, pivot, jnp.maximum(-pivot, 1e-3))
        else:
            safe = jnp.where(jnp.abs(pivot) > 1e-300, pivot, 1.0)
        row = jnp.where(here, 1.0, matrix[k]) / safe
        column = jnp.where(here, 0.0, matrix[:, k])
        cleared = jnp.where(here, 0.0, matrix) - column[:, None] * row
        return jnp.where(here[:, None], row, cleared), jnp.minimum(smallest, pivot)

    start = (matrix, jnp.full((), jnp.inf))
    if size <= UNROLLED:
        return functools.reduce(lambda state, k: eliminate(k, state), range(size), start)
    return jax.lax.fori_loop(0, size, eliminate, start)
