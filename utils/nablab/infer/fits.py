"""Minimisation that says whether it worked, and whose result has a derivative.

The minimum x*(theta) of f(x, theta) has a gradient although the iterations that find it are not
differentiated: at the minimum the conditions of Karush, Kuhn and Tucker hold, and the implicit
function theorem turns their derivatives into that of x*. Parameters at a bound stay there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nablab.checks import Numbers


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
    function: Callable[[Float[Array, "parameters"]], Float[Array, ""]],
    init: Float[Numbers, "parameters"],
    lower: Float[Numbers, "parameters"] | float = -jnp.inf,
    upper: Float[Numbers, "parameters"] | float = jnp.inf,
    fixed: Bool[Numbers, "parameters"] | bool = False,
    starts: Float[Numbers, "starts parameters"] | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 200,
) -> Fit:
    """Minimise a smooth function of a few (up to some hundred) parameters within a box.

    Newton steps with Levenberg-Marquardt damping: a step that does not lead downhill, or a
    curvature that is not positive, raises the damping. Steps are clipped to the box; parameters
    pressed against a bound are left out of the next step.

    Args:
        function: what to minimise. It may close over traced values: the result is differentiable
            in them, in forward and reverse mode and repeatedly, by the implicit function theorem.
            At an active bound the derivative is the one-sided one that keeps the bound active.
        init: starting point, and value of the fixed parameters.
        lower, upper: bounds.
        fixed: parameters that are not fitted.
        starts: additional starting points; the lowest minimum wins.
        tolerance: for the gradient norm of the certificate.
        max_iterations: of Newton steps tried.

    Returns:
        The fit. Look at ``certificate.converged``, or call ``certificate.require()`` outside jit.
    """
    init = jnp.asarray(init, dtype=float)
    lower, upper = jnp.broadcast_to(lower, init.shape), jnp.broadcast_to(upper, init.shape)
    fixed = jnp.broadcast_to(fixed, init.shape)
    box = (jnp.where(fixed, init, lower), jnp.where(fixed, init, upper))
    gradient = jax.grad(function)

    def optimality(x):
        # The residual of the KKT conditions: the gradient inside the box, and the distance to
        # the bound where the gradient points out of it.
        return x - jnp.clip(x - gradient(x), *box)

    def solve(_, x):
        all_starts = x[None] if starts is None else jnp.concatenate([x[None], starts])
        end = jax.vmap(lambda x: _newton(function, x, *box, tolerance, max_iterations))(
            jnp.clip(all_starts, *box)
        )
        best = jnp.argmin(jnp.where(jnp.isfinite(end.value), end.value, jnp.inf))
        end = jax.tree.map(lambda field: field[best], end)
        return end.x, jax.tree.map(lambda field: field.astype(float), end)  # integers have no slope

    def tangent_solve(linear, right_hand_side):
        jacobian = jax.vmap(linear, out_axes=1)(jnp.eye(init.shape[0]))
        return _inverse(jacobian)[0] @ right_hand_side

    parameters, end = jax.lax.custom_root(
        optimality, jnp.clip(init, *box), solve, tangent_solve, has_aux=True
    )
    return Fit(parameters, function(parameters), _certify(end, box, tolerance))


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


def _newton(function, x, lower, upper, tolerance, max_iterations) -> _Iteration:
    """Damped projected Newton iteration."""

    def gradient_twice(x):
        gradient = jax.grad(function)(x)
        return gradient, gradient

    slopes = jax.jacfwd(gradient_twice, has_aux=True)

    def step(state):
        x, value = state.x, state.value
        hessian, gradient = slopes(x)
        # Parameters pressed against a bound, and the fixed ones, take no part in the step.
        active = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
        active = active | (lower == upper)
        scale = _scale(hessian)
        done = _gradient_norm(gradient, active, scale) <= tolerance
        free_hessian = jnp.where(active[:, None] | active, jnp.diag(active * scale), hessian)
        inverse, smallest_pivot = _inverse(free_hessian + state.damping * jnp.diag(scale))
        trial = jnp.clip(x - inverse @ jnp.where(active, 0.0, gradient), lower, upper)
        move = trial - x
        predicted = -(gradient @ move + 0.5 * move @ hessian @ move)
        trial_value = function(trial)
        # Near the minimum the change drowns in rounding errors, and a full step is right.
        rounding = 1e-13 * (1.0 + jnp.abs(value))
        downhill = (value - trial_value > 1e-4 * predicted) | (
            (jnp.abs(predicted) < rounding) & (trial_value - value < rounding)
        )
        good = (smallest_pivot > 0) & (predicted > 0) & downhill & jnp.isfinite(trial_value)
        eased = jnp.where(state.damping > 1e-6, state.damping / 10, 0.0)
        damping = jnp.where(good, eased, jnp.maximum(10 * state.damping, 1e-3))
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

    size = x.shape[0]
    start = _Iteration(
        x=x,
        value=function(x),
        gradient=jnp.full(size, jnp.nan),
        hessian=jnp.full((size, size), jnp.nan),
        active=jnp.zeros(size, bool),
        damping=jnp.zeros(()),
        count=jnp.zeros((), int),
        done=jnp.zeros((), bool),
    )
    return jax.lax.while_loop(unfinished, step, start)


def _scale(hessian):
    """Curvature of each parameter, 1 where there is none."""
    curvature = jnp.abs(jnp.diagonal(hessian))
    return jnp.where(curvature > 1e-12, curvature, 1.0)


def _gradient_norm(gradient, active, scale):
    return jnp.max(jnp.abs(jnp.where(active, 0.0, gradient)) / jnp.sqrt(scale), initial=0.0)


def _certify(end, box, tolerance) -> Certificate:
    end = jax.lax.stop_gradient(end)
    active, scale = end.active > 0, _scale(end.hessian)
    norm = _gradient_norm(end.gradient, active, scale)
    unit = 1.0 / jnp.sqrt(scale)
    in_units = unit[:, None] * end.hessian * unit
    in_units = jnp.where(active[:, None] | active, jnp.diag(active * 1.0), in_units)
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
    smallest = jnp.linalg.eigvalsh(jnp.where(finite, in_units, jnp.eye(unit.shape[0])))[0]
    at_bound = active & (box[0] < box[1])
    return Certificate(status, norm, smallest, at_bound, end.count.astype(int))


def _inverse(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Inverse by Gauss-Jordan elimination without pivoting, and the smallest pivot.

    Without pivoting this is stable for positive definite matrices, which a minimum has, and the
    sign of the smallest pivot tells whether the matrix is one. It is written out because LAPACK
    calls inside a batched loop have been seen to hang.
    """

    size = matrix.shape[0]
    index = jnp.arange(size)

    def eliminate(k, state):
        matrix, smallest = state
        here = index == k
        pivot = matrix[k, k]
        safe = jnp.where(jnp.abs(pivot) > 1e-300, pivot, 1.0)
        row = jnp.where(here, 1.0, matrix[k]) / safe
        column = jnp.where(here, 0.0, matrix[:, k])
        cleared = jnp.where(here, 0.0, matrix) - column[:, None] * row
        return jnp.where(here[:, None], row, cleared), jnp.minimum(smallest, pivot)

    return jax.lax.fori_loop(0, size, eliminate, (matrix, jnp.full((), jnp.inf)))
