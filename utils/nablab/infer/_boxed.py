"""The lowest point of a quadratic within a box: what a Newton step is where bounds are near.

A step that is cut off coordinate by coordinate leaves the valley it should follow. Here parameters
that meet a bound stay on it while the others are solved for again, until none wants to leave its
bound: the primal active-set method (Nocedal and Wright, Numerical Optimization, 16.5). A parameter
that joins the free ones, or leaves them, costs one step of Gauss-Jordan elimination; where there
are hundreds, many do so at once first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablab.infer import linalg

SMALLEST_PIVOT = 1e-3  # in place of a curvature that is zero
STEPS = 20  # of many parameters at once, before they meet their bounds one by one
CLEARLY = 1e-12  # a slope smaller than this does not pull a parameter off its bound


class _State(NamedTuple):
    """Where the search stands: ``tableau`` is the matrix after elimination of the free parameters,
    ``slope`` that of the others, and ``switch`` the parameter that joins or leaves them next."""

    tableau: Array
    free: Array
    z: Array
    slope: Array
    switch: Array
    done: Array
    count: Array


def lowest(
    matrix: Float[Array, "n n"],
    slope: Float[Array, "n"],
    lower: Float[Array, "n"],
    upper: Float[Array, "n"],
    held: Bool[Array, "n"],
    longer: Float[Array, ""],
) -> tuple[Float[Array, "n"], Float[Array, ""], Bool[Array, ""]]:
    """Where ``slope @ z + z @ matrix @ z / 2`` is lowest within a box around 0.

    Negative pivots of the elimination are turned around (and made smaller by a factor ``longer``)
    and small ones raised, so that no number grows: the point is that of a positive definite matrix
    that differs from the given one on the diagonal only (Gill, Murray and Wright, Practical
    Optimization, 4.4.2.2). To the diagonal of a large matrix the same is added everywhere.

    Args:
        matrix: symmetric, with a diagonal of about 1.
        slope: at 0.
        lower, upper: at most and at least 0, or infinite.
        held: parameters with a bound at 0, which stay there unless the others pull them off.
        longer: at least 1.

    Returns:
        The point, how much lower the positive quadratic is there than at 0, and whether a pivot
        was negative.
    """
    size = matrix.shape[0]
    if not size:
        return slope, jnp.zeros(()), jnp.zeros((), bool)
    problem = matrix, slope, lower, upper, held
    if size < linalg.LARGE:
        return _active_set(*problem, longer)
    added, _ = linalg.until_positive(matrix)
    z, value, reached = _primal_dual(linalg.raised(matrix, added), *problem[1:])
    found = z, -value, added > 0
    return jax.lax.cond(reached, lambda: found, lambda: _active_set(*problem, longer))


def _primal_dual(matrix, slope, lower, upper, held):
    """The lowest point, the value there, and whether that is the answer.

    Many parameters at once meet their bounds, or leave them, and the others are solved for again
    (Hintermueller, Ito and Kunisch, SIAM J. Optim. 13 (2003) 865). This takes few steps, but need
    not end, and asks for a positive definite matrix.
    """

    def step(state):
        low, high, _, _, count, _ = state
        stopped = low | high
        z = jnp.where(low, lower, jnp.where(high, upper, 0.0))
        factor = linalg.cholesky(linalg.without(matrix, stopped))
        push = jnp.where(stopped, 0.0, slope + matrix @ z)
        z = z - jax.scipy.linalg.cho_solve((factor, True), push)
        pull = slope + matrix @ z
        still_low = jnp.where(stopped, low & (pull >= -CLEARLY), z < lower)
        still_high = jnp.where(stopped, high & (pull <= CLEARLY), z > upper) & ~still_low
        never = lower == upper
        still_low, still_high = still_low | never, still_high & ~never
        done = ((still_low == low) & (still_high == high)).all() | jnp.isnan(z).any()
        return still_low, still_high, z, 0.5 * z @ (slope + pull), count + 1, done

    def unfinished(state):
        return ~state[-1] & (state[-2] < STEPS)

    low = held & (lower == 0.0)
    start = (low, held & ~low, jnp.zeros_like(slope), jnp.zeros(()), 0, jnp.zeros((), bool))
    *_, z, value, _, done = jax.lax.while_loop(unfinished, step, start)
    return z, value, done & jnp.isfinite(value)


def _active_set(matrix, slope, lower, upper, held, longer):
    """:func:`lowest`, where one parameter after the other meets its bound or leaves it."""
    size = matrix.shape[0]
    index = np.arange(size)
    largest = jnp.diagonal(matrix).max(initial=1.0)

    def positive(pivot, below):
        turned = jnp.where(pivot > 0, pivot, jnp.maximum(-pivot / longer, SMALLEST_PIVOT))
        return jnp.maximum(turned, below**2 / largest)

    def eliminate(k, state):
        tableau, negative = state
        pivot = tableau[k, k]
        below = jnp.abs(jnp.where(held | (index <= k), 0.0, tableau[:, k])).max()
        joined = linalg.pivoted(tableau, k, positive(pivot, below))
        return jnp.where(held[k], tableau, joined), negative | ((pivot < 0) & ~held[k])

    def go_on(state):
        """Switch a parameter, then go to the lowest point, or until a free parameter is stopped."""
        tableau, free, z, *_, k, _, count = state
        pivot = jnp.where(free[k], tableau[k, k], positive(tableau[k, k], 0.0))
        tableau = jnp.where(count > 0, linalg.pivoted(tableau, k, pivot), tableau)
        free = jnp.where((index == k) & (count > 0), ~free, free)

        product = tableau @ jnp.where(free, slope, z)
        step = jnp.where(free, -product - z, 0.0)
        bound = jnp.where(step > 0, upper, lower)
        reach = jnp.where(step == 0, jnp.inf, (bound - z) / jnp.where(step == 0, 1.0, step))
        first = jnp.argmin(reach)
        stopped = reach[first] < 1.0
        z = jnp.clip(z + jnp.where(stopped, reach[first], 1.0) * step, lower, upper)
        z = jnp.where(stopped & (index == first), bound, z)
        # Only where nothing is in the way it makes sense to let a parameter off its bound.
        pull = jnp.where(free, 0.0, slope + product)
        inward = jnp.where(free | (lower == upper), 0.0, jnp.where(z <= lower, -pull, pull))
        switch = jnp.where(stopped, first, jnp.argmax(inward))
        done = ~stopped & (inward.max() <= CLEARLY)
        return _State(tableau, free, z, pull, switch, done, count + 1)

    def unfinished(state):
        return ~state.done & (state.count < 5 * size + 5)

    tableau, negative = linalg.in_turn(size, eliminate, (matrix, jnp.zeros((), bool)))
    nothing = jnp.zeros(size)
    state = _State(tableau, ~held, nothing, nothing, 0, jnp.zeros((), bool), 0)
    if size == 1:  # cut off at its bound, a single parameter is where it should be
        z = go_on(state).z
        return z, -z @ (slope + 0.5 * z / tableau[0]), negative
    state = jax.lax.while_loop(unfinished, go_on, state)
    return state.z, -0.5 * state.z @ (slope + state.slope), negative
