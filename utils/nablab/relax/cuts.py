"""Cuts as event weights: the soft one has a gradient, the hard one is what gets published."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Numbers


def soft_cut(
    x: Float[Numbers, "*events"],
    threshold: Float[Numbers, ""] | float,
    slope: Float[Numbers, ""] | float = 1.0,
) -> Float[Array, "*events"]:
    """Weight between 0 and 1 of each event for the requirement ``x > threshold``.

    Args:
        x: the feature, in its own unit.
        threshold: where the weight is 1/2, in the unit of ``x``.
        slope: steepness at the threshold, in 1/(unit of ``x``); the weight rises from 0.27 to
            0.73 within ``1 / slope`` on either side.

    Returns:
        ``sigmoid(slope * (x - threshold))``, finite with a finite gradient for any slope.

    Raises:
        ValueError: ``x`` or ``threshold`` is not finite, or ``slope`` is not positive.
    """
    _check(x, threshold)
    checks.positive("slope", slope)
    return jax.nn.sigmoid(slope * (jnp.asarray(x) - threshold))


def hard_cut(
    x: Float[Numbers, "*events"],
    threshold: Float[Numbers, ""] | float,
    slope: Float[Numbers, ""] | float | None = None,
) -> Float[Array, "*events"]:
    """Weight 1 for ``x > threshold`` and 0 otherwise; the derivative is 0 everywhere.

    The signature is that of :func:`soft_cut`, so that evaluation is one switch; ``slope`` is not
    used.
    """
    _check(x, threshold)
    return (jnp.asarray(x) > threshold).astype(float)


def _check(x, threshold):
    checks.finite("x", x)
    checks.finite("threshold", threshold)
