"""Minimisation that says whether it worked, and whose result has a derivative.

The minimum x*(theta) of f(x, theta) has a gradient although the iterations that find it are not
differentiated: at the minimum the conditions of Karush, Kuhn and Tucker hold, and the implicit
function theorem turns their derivatives into that of x*. Parameters at a bound stay there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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

    parameters: Float[Array, "parameters"]
    value: Float[Array, ""]
    certificate: Certificate


def minimize(
    function: Callable[[Float[Array, "parameters"]], Float[Array, ""]],
    init: Float[Array, "parameters"],
    lower: Float[Array, "parameters"] | float = -jnp.inf,
    upper: Float[Array, "parameters"] | float = jnp.inf,
    fixed: Bool[Array, "parameters"] | bool = False,
    starts: Float[Array, "starts parameters"] | None = None,
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
        newton = partial(_newton, function, lower=box[0], upper=box[1], tolerance=tolerance,
                         max_iterations=max_iterations)  # fmt: skip
        if starts is None:
            x, (_, iterations) = newton(x)
            return x, iterations.astype(float)  # integers have no tangent
        all_starts = jnp.concatenate([x[None], jnp.clip(starts, *box)])
        points, (values, iterations) = jax.vmap(newton)(all_starts)
        best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        return points[best], iterations[best].astype(float)

    def tangent_solve(linear, right_hand_side):
        jacobian = jax.vmap(linear, out_axes=1)(jnp.eye(init.shape[0]))
        return _inverse(jacobian)[0] @ right_hand_side

    parameters, iterations = jax.lax.custom_root(
        optimality, jnp.clip(init, *box), solve, tangent_solve, has_aux=True
    )
    certificate = _certify(function, parameters, box, tolerance, iterations)
    return Fit(parameters, function(parameters), certificate)


def _newton(function, x, *, lower, upper, tolerance, max_iterations):
    """Damped projected Newton iteration; returns the point, and (value, iterations)."""
    derivatives = _derivatives(function, lower, upper)

    def step(state):
        x, value, (gradient, hessian, active, scale), damping, iterations, _ = state
        free_hessian = jnp.where(active[:, None] | active, jnp.diag(active * scale), hessian)
        inverse, smallest_pivot = _inverse(free_hessian + damping * jnp.diag(scale))
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
        x, value = jnp.where(good, trial, x), jnp.where(good, trial_value, value)
        eased = jnp.where(damping > 1e-6, damping / 10, 0.0)
        damping = jnp.where(good, eased, jnp.maximum(10 * damping, 1e-3))
        at_x = derivatives(x)
        return x, value, at_x, damping, iterations + 1, _gradient_norm(at_x) <= tolerance

    def unfinished(state):
        _, value, _, damping, iterations, done = state
        return ~done & (iterations < max_iterations) & (damping < 1e12) & jnp.isfinite(value)

    at_x = derivatives(x)
    start = (
        x,
        function(x),
        at_x,
        jnp.zeros(()),
        jnp.zeros((), int),
        _gradient_norm(at_x) <= tolerance,
    )
    x, value, _, _, iterations, _ = jax.lax.while_loop(unfinished, step, start)
    return x, (value, iterations)


def _derivatives(function, lower, upper):
    """At a point: gradient, Hessian, parameters pressed against a bound, curvature scales."""

    def at(x):
        gradient, hessian = jax.grad(function)(x), jax.hessian(function)(x)
        active = (
            ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0)) | (lower == upper)
        )
        curvature = jnp.abs(jnp.diagonal(hessian))
        return gradient, hessian, active, jnp.where(curvature > 1e-12, curvature, 1.0)

    return at


def _gradient_norm(at_x):
    gradient, _, active, scale = at_x
    return jnp.max(jnp.abs(jnp.where(active, 0.0, gradient)) / jnp.sqrt(scale), initial=0.0)


def _certify(function, x, box, tolerance, iterations) -> Certificate:
    x = jax.lax.stop_gradient(x)
    at_x = gradient, hessian, active, scale = _derivatives(function, *box)(x)
    norm = _gradient_norm(at_x)
    unit = 1.0 / jnp.sqrt(scale)
    in_units = jnp.where(
        active[:, None] | active, jnp.diag(active * 1.0), unit[:, None] * hessian * unit
    )
    finite = jnp.isfinite(function(x)) & jnp.isfinite(gradient).all() & jnp.isfinite(hessian).all()
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
    smallest = jnp.linalg.eigvalsh(jnp.where(finite, in_units, jnp.eye(x.shape[0])))[0]
    return jax.lax.stop_gradient(
        Certificate(status, norm, smallest, active & (box[0] < box[1]), iterations.astype(int))
    )


def _inverse(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Inverse by Gauss-Jordan elimination without pivoting, and the smallest pivot.

    Without pivoting this is stable for positive definite matrices, which a minimum has, and the
    sign of the smallest pivot tells whether the matrix is one. It is written out because LAPACK
    calls inside a batched loop have been seen to hang.
    """

    def eliminate(k, state):
        matrix, smallest = state
        pivot = matrix[k, k]
        safe = jnp.where(jnp.abs(pivot) > 1e-300, pivot, 1.0)
        row = (matrix[k] / safe).at[k].set(1.0 / safe)
        column = matrix[:, k].at[k].set(-1.0)
        matrix = matrix.at[:, k].set(0.0) - jnp.outer(column, row)
        matrix = matrix.at[k].set(row)
        return matrix, jnp.minimum(smallest, pivot)

    size = matrix.shape[0]
    return jax.lax.fori_loop(0, size, eliminate, (matrix, jnp.full((), jnp.inf)), unroll=size <= 8)
