"""Bin edges that can be trained: in order by construction.

Edges that are parameters themselves may overtake each other. To repair that with
``where(edges[1:] > edges[:-1], ...)`` gives the overtaken edge a gradient of zero, and it never
comes back; widths that are positive by construction do not have this problem.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Numbers

#: No bin is narrower than this fraction of the mean width, however extreme the parameters.
NARROWEST = 1e-3


def ordered_edges(
    raw: Float[Numbers, "bins"],
    low: Float[Numbers, ""] | float,
    high: Float[Numbers, ""] | float,
) -> Float[Array, "edges"]:
    """Increasing edges from ``low`` to ``high`` whose widths are a softmax of ``raw``.

    Args:
        raw: any numbers, one per bin; equal ones give equal widths. A number added to all of them
            changes nothing. A bin's width is proportional to exp(raw), apart from
            ``NARROWEST`` times the mean width which every bin has; so far apart in ``raw`` that
            this is all that is left of a bin, its gradient is small, but the edges keep their
            order.
        low: the first edge, exactly.
        high: the last edge, exactly.

    Returns:
        One edge more than bins, differentiable in ``raw``, ``low`` and ``high``.

    Raises:
        ValueError: an entry is not finite, there is no bin, or ``low`` is not below ``high``.
    """
    if jnp.ndim(raw) != 1 or jnp.shape(raw)[0] < 1:
        raise ValueError(f"raw must be a list of at least 1 number, got shape {jnp.shape(raw)}")
    checks.finite("raw", raw)
    checks.finite("low", low)
    checks.finite("high", high)
    if not checks.is_traced(low, high) and not low < high:
        raise ValueError(f"low must be below high: low={low}, high={high}")
    low, high = jnp.asarray(low, dtype=float), jnp.asarray(high, dtype=float)
    raw = jnp.asarray(raw, dtype=float)
    shares = NARROWEST / raw.shape[0] + (1 - NARROWEST) * jax.nn.softmax(raw)
    inner = low + (high - low) * jnp.cumsum(shares)[:-1]
    return jnp.concatenate([low[None], inner, high[None]])
