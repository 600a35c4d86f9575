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
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nablab.checks import Numbers
from nablab.infer import matrices

# Up to this size fits from several starting points run side by side.
SIDE_BY_SIDE = 16
# How much longer steps get where the curvature is negative, which leads away from a maximum.
LONGER = 4.0


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
    Status.NOT_FINITE: "the function or its gradient is NaN or infinite, as the deviance is of "
    "data in a bin where nothing is expected",
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
        iterations: points tried, the starting point included.
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
    init: Float[Numbers, "*fits parameters"],
    lower: Float[Numbers, "*#fits parameters"] | float = -jnp.inf,
    upper: Float[Numbers, "*#fits parameters"] | float = jnp.inf,
    fixed: Bool[Numbers, "*#fits parameters"] | bool = False,
    starts: Float[Numbers, "starts *fits parameters"] | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 500,
    args: tuple = (),
    expansion: Callable | None = None,
) -> Fit:
    """Minimise a smooth function of a few (up to some hundred) parameters within a box.

    Newton steps with Levenberg-Marquardt damping: a step that does not lead downhill raises the
    damping, and a curvature that is not positive is turned around. Steps are clipped to the box;
    parameters pressed against a bound are left out of the next step.

    Args:
        function: what to minimise, ``function(x, *args)``. It may also close over traced values:
            the result is differentiable in those and in ``args``, in forward and reverse mode and
            repeatedly, by the implicit function theorem. At an active bound the derivative is the
            one-sided one that keeps the bound active.
        init: starting point, and value of the fixed parameters; with a leading axis, those of
            several fits of the same function within different boxes.
        lower, upper: bounds.
        fixed: parameters that are not fitted.
        starts: additional starting points; the lowest minimum wins.
        tolerance: for the gradient norm of the certificate.
        max_iterations: of Newton steps tried.
        args: further arguments of the function, pytrees of arrays.
        expansion: ``expansion(x, *args)`` gives value, gradient and Hessian, where there is a
            faster way than to differentiate the function twice. It and the function then close
            over nothing that is traced.

    Returns:
        The fit. Look at ``certificate.converged``, or call ``certificate.require()`` outside jit.
    """
    init = jnp.asarray(init, dtype=float)
    lower, upper = jnp.broadcast_to(lower, init.shape), jnp.broadcast_to(upper, init.shape)
    fixed = jnp.broadcast_to(fixed, init.shape)
    lower, upper = jnp.where(fixed, init, lower), jnp.where(fixed, init, upper)
    if expansion is None:
        example = jnp.zeros(init.shape[-1])
        function, hoisted = jax.closure_convert(function, example, *args)
        args, expansion = (*args, *hoisted), partial(_expansion, function)

    # Plain arrays: the tangents of a model are not a model.
    args, tree = jax.tree.flatten(args)
    function, expansion = _on_leaves(function, tree), _on_leaves(expansion, tree)

    starts = init[None] if starts is None else jnp.concatenate([init[None], starts])
    still = jax.lax.stop_gradient
    end = _search(expansion, still(args), *still((starts, lower, upper)), tolerance, max_iterations)

    def attach(end, lower, upper):
        rest = jnp.where(end.x >= upper, upper, lower)
        x = _minimum(expansion, end.x, end.hessian, end.active, rest, args)
        value = _lowest(function, end.value, x, end.active, rest, args)
        return Fit(x, value, _certify(end, lower < upper, tolerance))

    return attach(end, lower, upper) if init.ndim == 1 else jax.vmap(attach)(end, lower, upper)


def _on_leaves(function, tree):
    return lambda x, *leaves: function(x, *tree.unflatten(leaves))


def _expansion(function, x, *args):
    """Value, gradient and Hessian by automatic differentiation."""

    def gradient_twice(x):
        value, gradient = jax.value_and_grad(function)(x, *args)
        return gradient, (value, gradient)

    hessian, value_and_gradient = jax.jacfwd(gradient_twice, has_aux=True)(x)
    return *value_and_gradient, hessian


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _minimum(expansion, x, hessian, active, rest, args):
    """The minimum as a function of ``args`` (and of the bounds, where one is active)."""
    return jnp.where(active, rest, x)


@_minimum.defjvp
def _minimum_jvp(expansion, primals, tangents):
    x, hessian, active, rest, args = primals
    _, _, _, rest_dot, args_dot = tangents
    # Once more, so that second derivatives see how the minimum and the Hessian move.
    x = _minimum(expansion, x, hessian, active, rest, args)
    hessian = _known_hessian(expansion, hessian, x, args)
    # The gradient of the free parameters stays zero: H dx + d(gradient) = 0.
    moved = jnp.where(active, rest_dot, 0.0)
    _, change = jax.jvp(lambda x, args: expansion(x, *args)[1], (x, args), (moved, args_dot))
    free = jnp.where(active[:, None] | active, jnp.diag(active * 1.0), hessian)
    step = -matrices.eliminated(free)[0] @ jnp.where(active, 0.0, change)
    return x, jnp.where(active, rest_dot, step)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _known_hessian(expansion, hessian, x, args):
    """The Hessian at ``x``, which the search has left behind."""
    return hessian


@_known_hessian.defjvp
def _known_hessian_jvp(expansion, primals, tangents):
    _, *primals = primals
    _, *tangents = tangents
    return jax.jvp(lambda x, args: expansion(x, *args)[2], primals, tangents)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _lowest(function, value, x, active, rest, args):
    """The function at its minimum, whose own movement does not count: its slope is zero."""
    return value


@_lowest.defjvp
def _lowest_jvp(function, primals, tangents):
    _, x, active, _, args = primals
    _, _, _, rest_dot, args_dot = tangents
    moved = jnp.where(active, rest_dot, 0.0)
    return jax.jvp(function, (x, *args), (moved, *args_dot))


def _search(expansion, args, starts, lower, upper, tolerance, max_iterations):
    """The best end of the Newton iterations from all starts, for each of the fits."""
    *batch, size = starts.shape

    def lanes(array):
        return jnp.broadcast_to(array, starts.shape).reshape(np.prod(batch, dtype=int), size)

    def newton(x, lower, upper):
        return _newton(expansion, args, x, lower, upper, tolerance, max_iterations)

    lower, upper = lanes(lower), lanes(upper)
    x = jnp.clip(lanes(starts), lower, upper)
    if size <= SIDE_BY_SIDE:
        ends = newton(x, lower, upper)
    else:
        ends = jax.lax.map(lambda lane: newton(*lane), (x[:, None], lower[:, None], upper[:, None]))
        ends = jax.tree.map(lambda field: field[:, 0], ends)
    ends = jax.tree.map(lambda field: field.reshape(*batch, *field.shape[1:]), ends)
    best = jnp.argmin(jnp.where(jnp.isfinite(ends.value), ends.value, jnp.inf), axis=0)
    place = (best, *np.indices(best.shape))
    return jax.tree.map(lambda field: field[place], ends)


class _Iteration(NamedTuple):
    """Where the iteration stands, with the derivatives there, and the point to try next."""

    x: Array
    value: Array
    gradient: Array
    hessian: Array
    active: Array
    trial: Array
    stretch: Array
    damping: Array
    count: Array
    done: Array


def _newton(expansion, args, x, lower, upper, tolerance, max_iterations) -> _Iteration:
    """Projected Newton iterations side by side: of each argument from ``x`` on, [lanes, size]."""
    number, size = x.shape

    def step(state, lower, upper):
        value, gradient, hessian = expansion(state.trial, *args)
        # Near the minimum the change drowns in rounding errors, and a full step is right.
        change = value - state.value
        predicted = jnp.abs(state.gradient @ (state.trial - state.x))
        rounding = 1e-13 * (1.0 + jnp.abs(value))
        full = (predicted < rounding) & (change < rounding)
        good = full | (change < -1e-4 * predicted) | (state.count == 0)
        good = good & ~state.done

        x, value, gradient, hessian = jax.tree.map(
            partial(jnp.where, good),
            (state.trial, value, gradient, hessian),
            (state.x, state.value, state.gradient, state.hessian),
        )
        # Parameters pressed against a bound, and the fixed ones, take no part in the step.
        active = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
        active = active | (lower == upper)
        scale = _scale(hessian)
        done = _gradient_norm(gradient, active, scale) <= tolerance
        unit = 1.0 / jnp.sqrt(scale)
        free = jnp.where(active, 0.0, gradient)
        # A step that led uphill is shortened and, as this does not help where it is clipped at a
        # bound, turned towards steepest descent by damping.
        less = jnp.where(state.damping > 0.01, state.damping / 10, 0.0)
        damping = jnp.where(good, less, jnp.maximum(10 * state.damping, 0.01))
        damped = _in_units(hessian, active, unit) + damping * np.eye(size)
        inverse, pivots = matrices.eliminated(damped, make_positive=True)
        direction = -unit * (inverse @ (unit * free))
        longer = jnp.where(
            pivots.min(initial=jnp.inf) < 0, LONGER * jnp.maximum(state.stretch, 1.0), 1.0
        )
        stretch = jnp.where(good, longer, jnp.minimum(state.stretch / 4, 2.0))
        return _Iteration(
            x=x,
            value=value,
            gradient=gradient,
            hessian=hessian,
            active=active,
            trial=jnp.clip(x + stretch * direction, lower, upper),
            stretch=stretch,
            damping=damping,
            count=state.count + ~state.done,
            done=done,
        )

    def unfinished(state):
        in_reach = (state.count < max_iterations) & (state.damping < 1e12)
        return (~state.done & in_reach & jnp.isfinite(state.value)).any()

    start = _Iteration(
        x=x,
        value=jnp.zeros(number),
        gradient=jnp.zeros((number, size)),
        hessian=jnp.zeros((number, size, size)),
        active=jnp.zeros((number, size), bool),
        trial=x,
        stretch=jnp.ones(number),
        damping=jnp.zeros(number),
        count=jnp.zeros(number, int),
        done=jnp.zeros(number, bool),
    )

    def steps(state):
        return jax.vmap(step)(state, lower, upper)

    return jax.lax.while_loop(unfinished, steps, start) if size else steps(start)


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


def _certify(end, movable, tolerance) -> Certificate:
    active, scale = end.active, _scale(end.hessian)
    norm = _gradient_norm(end.gradient, active, scale)
    in_units = _in_units(end.hessian, active, 1.0 / jnp.sqrt(scale))
    finite = jnp.isfinite(end.value) & jnp.isfinite(norm) & jnp.isfinite(in_units).all()
    # The smallest pivot tells the sign of the smallest eigenvalue at a fraction of its cost.
    minimum = matrices.eliminated(in_units)[1].min(initial=jnp.inf) > 1e-12
    status = jnp.where(
        ~finite,
        Status.NOT_FINITE,
        jnp.where(
            norm > 100 * tolerance,
            Status.NOT_CONVERGED,
            jnp.where(minimum, Status.CONVERGED, Status.NOT_A_MINIMUM),
        ),
    )
    smallest = matrices.smallest_eigenvalue(jnp.where(finite, in_units, np.eye(len(active))))
    return Certificate(status, norm, smallest, active & movable, end.count)
