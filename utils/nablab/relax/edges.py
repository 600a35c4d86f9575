"""Bin edges that can be trained: in order by construction, or with equal counts.

Edges that are parameters themselves may overtake each other. To repair that with
``where(edges[1:] > edges[:-1], ...)`` gives the overtaken edge a gradient of zero, and it never
comes back; widths that are positive by construction do not have this problem.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Column, Numbers

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


def raw_widths(edges: Float[Numbers, "edges"]) -> Float[Array, "bins"]:
    """The numbers from which :func:`ordered_edges` makes these edges, with mean 0.

    Raises:
        ValueError: an edge is not finite, the edges do not increase, or a bin is not wider than
            ``NARROWEST`` times the mean width. Under ``jit`` that bin makes all numbers NaN.
    """
    checks.edges("edges", edges)
    edges = jnp.asarray(edges, dtype=float)
    bins = edges.shape[0] - 1
    shares = jnp.diff(edges) / (edges[-1] - edges[0]) - NARROWEST / bins
    if not checks.is_traced(edges) and np.any(shares <= 0):
        i = int(np.argmax(shares <= 0))
        raise ValueError(
            f"edges[{i}]={edges[i]} and edges[{i + 1}]={edges[i + 1]} are closer than "
            f"{NARROWEST:g} of the mean bin width, which ordered_edges cannot do"
        )
    logarithms = jnp.log(jnp.where(shares > 0, shares, jnp.nan))
    return logarithms - jnp.mean(logarithms)


def quantile_edges(x: Column, bins: int, *, weights: Column | None = None) -> Float[Array, "edges"]:
    """Edges between which the events have equal counts, from the smallest to the largest of ``x``.

    Each event's weight is thought of as half below and half above it, and the sum is interpolated
    between events (Hyndman & Fan 1996, doi:10.2307/2684934, definition 5). So without weights and
    with a multiple of ``bins`` events the hard counts are equal exactly; always, the sum of weights
    below an edge differs from the wanted one by at most half the largest weight.

    Args:
        x: the observable, one value per event.
        bins: number of bins.
        weights: event weights, none negative; 1 where absent. Events of weight 0 are ignored.

    Returns:
        ``bins + 1`` edges, differentiable in ``x`` (each edge moves with its two neighbours) and
        ``weights``; twice, but the second derivative in ``x`` alone is zero.

    Raises:
        ValueError: an entry is not finite, a weight is negative, there are fewer events than bins,
            or so many equal ones that two edges coincide. Under ``jit`` all edges are NaN then.
    """
    x = checks.array("x", x)
    if jnp.ndim(x) != 1:
        raise ValueError(f"x must have one value per event, got shape {jnp.shape(x)}")
    if bins < 1:
        raise ValueError(f"bins is {bins}: it must be at least 1")
    checks.finite("x", x)
    x = jnp.asarray(x, dtype=float)
    weights = jnp.ones(x.shape) if weights is None else checks.array("weights", weights)
    weights = jnp.asarray(weights, dtype=float)
    checks.same_shape("weights", weights, "x", x)
    checks.positive("weights", weights, allow_zero=True)
    known = not checks.is_traced(x, weights)
    events = int(jnp.sum(weights > 0)) if known else x.shape[0]
    if events < bins:
        raise ValueError(f"x has {events} events with a weight, fewer than the {bins} bins")
    order = jnp.argsort(x)
    x, weights = x[order], weights[order]
    below = jnp.cumsum(weights)
    total = below[-1]
    inner = jnp.interp(total * np.arange(1, bins) / bins, below - weights / 2, x)
    first = jnp.min(x, where=weights > 0, initial=jnp.inf)
    last = jnp.max(x, where=weights > 0, initial=-jnp.inf)
    edges = jnp.concatenate([first[None], inner, last[None]])
    steps = jnp.diff(edges)
    if known and np.any(steps <= 0):
        i = int(np.argmax(steps <= 0))
        raise ValueError(
            f"x has so many events at {edges[i]} that edges {i} and {i + 1} of {bins} bins "
            "coincide: ask for fewer bins"
        )
    good = jnp.all(steps > 0) & jnp.all(jnp.isfinite(x)) & jnp.all(weights >= 0)
    return jnp.where(good, edges, jnp.nan)
