"""Roots of functions that are fits, several at once, and the derivatives of these roots.

How a root was found does not matter for its derivative: the implicit function theorem gives it from
the derivatives of the function at the root, which follow from the fits that were made there.
"""

import jax
import jax.numpy as jnp

TOLERANCE = 1e-11  # of a root
LARGEST_STEP = 3.0  # of a logarithm: a factor of 20
MAX_ITERATIONS = 100

FOUND, BEYOND_BOUND, NOT_FOUND = range(3)


def newton(evaluate, start, near, bound):
    """Roots of rising functions, elementwise: Newton steps within a bracket that they narrow.

    The fits of each step start where those of the last one, ``near``, have ended. Roots, NaN where
    there is none, how the search for each ended, and the fits there.
    """

    def step(state):
        x, low, high, count = (state[name] for name in ("x", "low", "high", "count"))
        value, slope, fit = evaluate(x, state["near"], count == 0)
        found = jnp.abs(value) <= TOLERANCE
        beyond = (value < 0) & (x >= bound)
        done = found | beyond
        low, high = jnp.where(value < 0, x, low), jnp.where(value < 0, high, x)
        downhill = jnp.where(value < 0, jnp.inf, -jnp.inf)  # where the slope is of no use
        move = jnp.where((slope > 0) & jnp.isfinite(value / slope), -value / slope, downhill)
        trial = x + jnp.clip(move, -LARGEST_STEP, LARGEST_STEP)
        halve = (trial <= low) | (trial >= high) | ((count > 15) & (count % 2 == 0))
        halve = halve & jnp.isfinite(high - low)
        trial = jnp.minimum(jnp.where(halve, (low + high) / 2, trial), bound)
        status = jnp.where(
            found,
            FOUND,
            jnp.where(beyond, BEYOND_BOUND, NOT_FOUND),
        )
        return {
            "x": jnp.where(done, x, trial),
            "low": low,
            "high": high,
            "near": jnp.where(jnp.isfinite(fit["parameters"]), fit["parameters"], state["near"]),
            "count": count + 1,
            "status": status,
            "fit": fit,
        }

    def unfinished(state):
        return (state["status"] == NOT_FOUND).any() & (state["count"] < MAX_ITERATIONS)

    nothing = jax.eval_shape(evaluate, start, near, jnp.array(True))[2]
    state = {
        "x": start,
        "low": jnp.full_like(start, -jnp.inf),
        "high": jnp.full_like(start, jnp.inf),
        "near": near,
        "count": jnp.zeros((), int),
        "status": jnp.full(start.shape, NOT_FOUND, int),
        "fit": jax.tree.map(lambda field: jnp.zeros(field.shape, field.dtype), nothing),
    }
    state = jax.lax.while_loop(unfinished, step, state)
    found = state["status"] == FOUND
    return jnp.where(found, state["x"], jnp.nan), state["status"], state["fit"]


def attached(residual, roots, found, otherwise):
    """The roots with all their derivatives; NaN where none was ``found``, and where the residual is
    evaluated ``otherwise``."""

    def somewhere(roots):
        return residual(jnp.where(found, roots, otherwise))

    def solve_linear(linear, right_hand_side):
        """A root depends on no other root: the Jacobian is diagonal, with 0 where not found."""
        slope = linear(jnp.ones_like(right_hand_side))

        def divide(_, x):
            # A root that was not found has no derivative, but does not spoil those of the others.
            return jnp.where(x == 0, 0.0, x / jnp.where(slope == 0, jnp.nan, slope))

        return jax.lax.custom_linear_solve(
            lambda x: slope * x, right_hand_side, divide, symmetric=True
        )

    roots = jnp.where(found, roots, jnp.nan)
    return jax.lax.custom_root(somewhere, roots, lambda _, x: x, solve_linear)
