"""Newton iterations that stay within bounds, and know how far to trust a parabola."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nablab.infer import _boxed, linalg

# How much longer steps get where the curvature is negative, which leads away from a maximum.
LONGER = 4.0
# A fit whose gradient is all rounding errors has arrived only if no more than this can be gained.
STALLED = 1e-6
# A large fit with more than this to gain takes the positive part of the Hessian.
FAR = 1.0


class Iteration(NamedTuple):
    """Where the iteration stands, with the derivatives there, and the point to try next."""

    x: Array
    value: Array
    gradient: Array
    hessian: Array
    active: Array
    norm: Array
    trial: Array
    predicted: Array  # how much lower the quadratic model is at the trial point
    length: Array  # of the step to it, in uncertainties
    radius: Array  # how far the quadratic model is trusted
    longer: Array
    count: Array
    done: Array


def newton(expansion, args, x, lower, upper, tolerance, max_iterations) -> Iteration:
    """Newton iterations side by side: of each argument from ``x`` on, [lanes, size].

    Each step goes to the lowest point of the quadratic model within the bounds and a radius, which
    grows and shrinks with how well the model has foretold the last value.
    """

    step = partial(_step, expansion, args, tolerance)

    def unfinished(state):
        in_reach = (state.count < max_iterations) & (state.radius > 1e-14)
        return (~state.done & in_reach & jnp.isfinite(state.value)).any()

    def steps(state):
        if len(x) > 1:
            return jax.vmap(step)(state, lower, upper)
        # By itself, so that what need not be done is not done.
        alone = jax.tree.map(lambda field: field[0], (state, lower, upper))
        return jax.tree.map(lambda field: field[None], step(*alone))

    return jax.lax.while_loop(unfinished, steps, beginning(x))


def _step(expansion, args, tolerance, state, lower, upper):
    """The iteration at its trial point, where that is better, and with the next one to try."""
    options, far = {}, False
    if state.x.size >= linalg.LARGE:
        far = (state.count == 0) | (state.predicted > FAR)
        options = {"curved": 1.0 - far}
    value, gradient, hessian = expansion(state.trial, *args, **options)
    change = value - state.value
    # Near the minimum the change drowns in rounding errors, and a full step is right.
    rounding = 1e-13 * (1.0 + jnp.abs(value))
    full = (state.predicted < rounding) & (change < rounding)
    good = full | (change < -1e-4 * state.predicted) | (state.count == 0)
    good = good & ~state.done
    radius = _radius(state, change, good)

    x, value, gradient, hessian = jax.tree.map(
        partial(jnp.where, good),
        (state.trial, value, gradient, hessian),
        (state.x, state.value, state.gradient, state.hessian),
    )
    # Parameters pressed against a bound, and the fixed ones.
    active = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
    active = active | (lower == upper)
    scale = curvatures(hessian)
    norm = gradient_norm(gradient, active, scale)
    # Where whole steps no longer lower it, the gradient is all rounding errors. One that has grown
    # to something else is that of the other side of a kink.
    same = (norm > 0.5 * state.norm) & (norm < 1e3 * state.norm)
    stalled = good & full & same & (state.count > 0)
    whole = (state.length < state.radius) & (state.predicted < STALLED)
    done = ((norm <= tolerance) | (stalled & whole)) & ~jnp.asarray(far)
    unit = 1.0 / jnp.sqrt(scale)
    moved, predicted, negative = _boxed.lowest(
        in_units(hessian, lower == upper, unit),
        unit * gradient,
        jnp.maximum((lower - x) / unit, -radius),
        jnp.minimum((upper - x) / unit, radius),
        active,
        state.longer,
    )
    return Iteration(
        x=x,
        value=value,
        gradient=gradient,
        hessian=hessian,
        active=active,
        norm=norm,
        trial=jnp.clip(x + unit * moved, lower, upper),
        predicted=predicted,
        length=jnp.abs(moved).max(initial=0.0),
        radius=radius,
        longer=jnp.where(good & negative, LONGER * state.longer, 1.0),
        count=state.count + ~state.done,
        done=done | state.done,
    )


def beginning(x) -> Iteration:
    """Nothing is known yet but where to start, [lanes, size]."""
    number, size = x.shape
    nothing, everywhere = jnp.zeros(number), jnp.full(number, jnp.inf)
    return Iteration(
        x=x,
        value=nothing,
        gradient=jnp.zeros((number, size)),
        hessian=jnp.zeros((number, size, size)),
        active=jnp.zeros((number, size), bool),
        norm=everywhere,
        trial=x,
        predicted=nothing,
        length=nothing,
        radius=everywhere,
        longer=jnp.ones(number),
        count=jnp.zeros(number, int),
        done=jnp.zeros(number, bool),
    )


def _radius(state, change, good):
    """How far the next step may go: after one that was not good as far as the parabola through the
    values has its lowest point, and farther and farther where the values are foretold well."""
    told = -change / state.predicted
    # Of the parabola with slope -2 * predicted that changes by ``change``, in units of the step.
    lowest = 1.0 / (2.0 + change / state.predicted)
    shorter = jnp.where(jnp.isfinite(lowest), jnp.clip(lowest, 0.05, 0.5), 0.05)
    kept = jnp.where(told > 0.75, 10.0 * state.radius, state.radius)
    kept = jnp.where((told < 0.25) & jnp.isfinite(told), state.length, kept)
    return jnp.where(state.count == 0, state.radius, jnp.where(good, kept, shorter * state.length))


def curvatures(hessian):
    """Curvature of each parameter, 1 where there is none."""
    curvature = jnp.abs(jnp.diagonal(hessian))
    return jnp.where(curvature > 1e-12, curvature, 1.0)


def gradient_norm(gradient, active, scale):
    return jnp.max(jnp.abs(jnp.where(active, 0.0, gradient)) / jnp.sqrt(scale), initial=0.0)


def in_units(hessian, active, unit):
    """The Hessian of the free parameters in units of their uncertainties, 1 for the others."""
    return linalg.without(unit[:, None] * hessian * unit, active)
