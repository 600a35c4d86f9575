"""Fits as fixed points: a minimum is where its own update stands still, x = update(x, theta).

These are written to be taught; an analysis calls :func:`nablab.infer.minimizer.minimize`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nablab import checks
from nablab.checks import Numbers

Update = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class FixedPoint(NamedTuple):
    """Where an iteration ended after ``steps`` updates, and whether it stood still there.

    ``residual`` is the largest component of the last step, relative to 1 + abs(value), and
    ``converged`` says that it is within the tolerance, which NaN is not. A slow iteration is
    farther from its end than that: by rate / (1 - rate) if each step leaves ``rate`` of the error.
    """

    value: Float[Array, "..."]
    residual: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def two_phase(
    update: Update,
    init: Float[Numbers, "..."] | float,
    tolerance: float = 1e-12,
    max_steps: int = 10_000,
) -> FixedPoint:
    """Iterate ``x <- update(x)`` until it stands still; a second iteration gives the derivative.

    Christianson, Optim. Methods Softw. 3 (1994) 311 and 9 (1998) 307. No step is stored, and a
    gradient costs the same for any number of inputs. Works under ``jit``, ``vmap`` and, repeatedly,
    ``grad``; not in forward mode.

    Args:
        update: keeps the shape, and brings points near its fixed point closer to it. ``value`` is
            differentiable in the traced values that it closes over; ``init`` does not matter.
        init: starting point.
        tolerance: for the residual, in both phases; a plain number, not a traced one.
        max_steps: the most updates, in both phases; likewise.

    Returns:
        The fixed point: look at ``converged``. Where it is not, a gradient is off by about as much
        as the value. A second phase that does not converge gives NaN; :func:`adjoint` shows it.

    Raises:
        ValueError: ``init`` is not finite, ``update`` changes its shape, ``tolerance`` or
            ``max_steps`` is not positive.
    """
    init = _checked(update, init, tolerance, max_steps)
    update, inputs = jax.closure_convert(update, init)
    limits = (float(tolerance), int(max_steps))
    return _report(_two_phase(update, limits, init, inputs), tolerance)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _two_phase(update, limits, init, inputs):
    tolerance, max_steps = limits

    def moves(state):
        return (state[1] > tolerance) & (state[2] < max_steps)

    return jax.lax.while_loop(moves, lambda state: _move(update, state, inputs), _start(init))


def _first_phase(update, limits, init, inputs):
    end = _two_phase(update, limits, init, inputs)
    return end, (end[0], inputs)


def _second_phase(update, limits, kept, cotangents):
    x, inputs = kept
    found = adjoint(lambda x: update(x, *inputs), x, cotangents[0], *limits)
    _, pull_back = jax.vjp(lambda inputs: update(x, *inputs), inputs)
    return jnp.zeros_like(x), *pull_back(jnp.where(found.converged, found.value, jnp.nan))


_two_phase.defvjp(_first_phase, _second_phase)


def adjoint(
    update: Update,
    fixed_point: Float[Numbers, "..."] | float,
    cotangent: Float[Numbers, "..."] | float,
    tolerance: float = 1e-12,
    max_steps: int = 10_000,
) -> FixedPoint:
    """The second phase, ``v <- cotangent + v d(update)/dx``, which :func:`two_phase` does unseen.

    ``cotangent`` is the derivative of some scalar with respect to the fixed point, and then
    ``v d(update)/d(theta)`` its gradient. The residual is relative to ``cotangent``. As ``v`` is
    a fixed point too, and found by the same function, it can be differentiated again.
    """
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(cotangent)))
    pushed = cotangent / jnp.where(size > 0, size, 1.0)
    _, pull_back = jax.vjp(update, jnp.asarray(fixed_point, dtype=float))
    start = jnp.zeros_like(pushed)
    found = two_phase(lambda v: pushed + pull_back(v)[0], start, tolerance, max_steps)
    return found._replace(value=size * found.value)


def unrolled(
    update: Update, init: Float[Numbers, "..."] | float, steps: int, tolerance: float = 1e-12
) -> FixedPoint:
    """Do ``x <- update(x)`` a fixed number of times, and differentiate through every step.

    Both modes work; reverse mode stores all steps. The derivative is that of the last iterate, and
    needs more steps than the iterate itself. Arguments and errors are as for :func:`two_phase`.
    """
    init = _checked(update, init, tolerance, steps)
    end, _ = jax.lax.scan(lambda s, _: (_move(update, s, ()), None), _start(init), length=steps)
    return _report(end, tolerance)


def _checked(update, init, tolerance, steps):
    checks.finite("init", init)
    checks.positive("tolerance", tolerance)
    checks.positive("the number of steps", steps)
    init = jnp.asarray(init, dtype=float)
    shape = jax.eval_shape(update, init).shape
    if shape != init.shape:
        raise ValueError(f"update turns shape {init.shape} into {shape}: it must keep the shape")
    return init


def _start(init):
    return init, jnp.full((), jnp.inf), jnp.zeros((), int)


def _move(update, state, inputs):
    x, _, steps = state
    new = update(x, *inputs)
    residual = jnp.max(jnp.abs(new - x) / (1.0 + jnp.abs(new)), initial=0.0)
    return new, jax.lax.stop_gradient(residual), steps + 1


def _report(end, tolerance) -> FixedPoint:
    return FixedPoint(*end, converged=end[1] <= tolerance)
