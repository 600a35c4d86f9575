"""How a yield moves between its down, nominal and up values: HistFactory's numbered codes.

``alpha`` is the nuisance parameter in units of its uncertainty: -1 is down, 0 nominal, +1 up.
The definitions are those of pyhf (CERN-OPEN-2012-016 and arXiv:1503.07622 for code 4), except for
code 2 beyond +-1, which says why. All arguments broadcast against each other.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Solves for a1..a6 of 1 + sum_i a_i alpha^i from the values, slopes and curvatures at -1 and +1.
_SEXTIC = (
    np.array(
        [
            [15, -15, -7, -7, 1, -1],
            [24, 24, -9, 9, 1, 1],
            [-10, 10, 10, 10, -2, 2],
            [-24, -24, 14, -14, -2, -2],
            [3, -3, -3, -3, 1, -1],
            [8, 8, -5, 5, 1, 1],
        ]
    )
    / 16.0
)


def code0(alpha, down, nominal, up) -> Float[Array, "..."]:
    """Additive shift, linear on either side, with a kink at 0."""
    return alpha * jnp.where(alpha > 0, up - nominal, nominal - down)


def code2(alpha, down, nominal, up) -> Float[Array, "..."]:
    """Additive shift: a parabola inside [-1, 1], its tangents outside, once differentiable.

    This is HistFactory's code 2. pyhf has the same slopes, but forgets the value at the joint: up
    to 0.7.6 its shift jumps from up - nominal back to 0 where alpha passes 1, and at -1 by
    (up + down) / 2 - nominal. A likelihood with jumps has no minimum that can be trusted.
    """
    curvature, slope = 0.5 * (up + down) - nominal, 0.5 * (up - down)
    held = jnp.clip(alpha, -1.0, 1.0)
    return held * (slope + curvature * held) + (alpha - held) * (slope + 2.0 * curvature * held)


def code4p(alpha, down, nominal, up) -> Float[Array, "..."]:
    """Additive shift: degree 6 inside [-1, 1], linear outside, twice differentiable."""
    rise, fall = up - nominal, nominal - down
    squared = alpha**2
    curved = squared * (squared * (squared * 3.0 - 10.0) + 15.0) * (rise - fall) / 16.0
    inside = alpha * (rise + fall) / 2.0 + curved
    return jnp.where(alpha > 1, alpha * rise, jnp.where(alpha < -1, alpha * fall, inside))


def code1(alpha, down, nominal, up) -> Float[Array, "..."]:
    """Factor: an exponential on either side, with a kink at 0."""
    return jnp.where(alpha > 0, up / nominal, down / nominal) ** jnp.abs(alpha)


def code4(alpha, down, nominal, up) -> Float[Array, "..."]:
    """Factor: degree 6 inside [-1, 1], exponential outside, twice differentiable."""
    up, down = up / nominal, down / nominal
    log_up, log_down = jnp.log(up), jnp.log(down)
    conditions = jnp.stack(
        jnp.broadcast_arrays(
            up - 1, down - 1, up * log_up, -down * log_down, up * log_up**2, down * log_down**2
        )
    )
    coefficients = jnp.tensordot(_SEXTIC, conditions, axes=1)
    # Outside [-1, 1] the powers are not used; holding them at the end keeps their gradient finite.
    held = jnp.clip(alpha, -1.0, 1.0)
    inside = 0.0
    for coefficient in coefficients[::-1]:
        inside = (inside + coefficient) * held
    outside = jnp.exp(jnp.abs(alpha) * jnp.where(alpha > 0, log_up, log_down))
    return jnp.where(jnp.abs(alpha) < 1, 1.0 + inside, outside)


ADDITIVE = {"code0": code0, "code2": code2, "code4p": code4p}
FACTOR = {"code1": code1, "code4": code4}
