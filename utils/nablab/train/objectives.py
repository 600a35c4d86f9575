"""What a training minimises (or, for a significance, maximises). Expected data only.

An objective of a training is a plain function ``objective(params, events) -> scalar``. The
functions here are its last step: from yields, or from a likelihood, to one number.
"""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Numbers
from nablab.infer import fisher, hypotests
from nablab.infer.histfactory import Model

# Fewer background events than this count as this many: the formula diverges at 0.
SMALLEST_BACKGROUND = 1e-9
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def cross_entropy(
    logits: Float[Numbers, "events"],
    labels: Float[Numbers, "events"],
    weights: Float[Numbers, "events"] | None = None,
) -> Float[Array, ""]:
    """Weighted mean binary cross-entropy.

    Args:
        logits: output of the network *before* the sigmoid.
        labels: 1 for signal, 0 for background.
        weights: event weights; equal where absent.

    Raises:
        ValueError: ``logits`` and ``labels`` differ in shape: every event would meet every label.
    """
    if jnp.shape(logits) != jnp.shape(labels):
        raise ValueError(
            f"logits and labels must have the same shape, got {jnp.shape(logits)} and "
            f"{jnp.shape(labels)}"
        )
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(float), labels)
    return jnp.average(losses, weights=weights)


def asimov_significance(
    signal: Float[Numbers, "*bins"] | float,
    background: Float[Numbers, "*bins"] | float,
    background_sigma: Float[Numbers, "*bins"] | float = 0.0,
) -> Float[Array, "*bins"]:
    """Median discovery significance of a counting experiment, in standard deviations.

    Args:
        signal: expected signal events.
        background: expected background events; fewer than 1e-9 count as 1e-9, where the estimate
            has lost its meaning (and its gradient in ``background``).
        background_sigma: absolute uncertainty of the background, in events.

    Returns:
        The significance of eq. 97 of arXiv:1007.1727, or with an uncertainty that of
        G. Cowan's note of 2012 (eq. 20; arXiv:1806.00322, eq. 3). Combine bins in quadrature.

    Raises:
        ValueError: an entry is negative or not finite.
    """
    checks.positive("signal", signal, allow_zero=True)
    checks.positive("background", background, allow_zero=True)
    checks.positive("background_sigma", background_sigma, allow_zero=True)
    s, b = jnp.asarray(signal, dtype=float), jnp.maximum(background, SMALLEST_BACKGROUND)
    variance = jnp.asarray(background_sigma, dtype=float) ** 2

    # Z^2 = 2 int_0^s log(1 + slope(t) t) dt. For few signal events the closed form is a small
    # difference of large numbers, and the integral by quadrature keeps all digits.
    def slope(t):
        return b / (b * (b + variance) + variance * t)

    few = s < 0.1 * b
    some, many = jnp.where(few, s, 0.0), jnp.where(few, b, s)
    square = jnp.zeros(jnp.broadcast_shapes(s.shape, b.shape, variance.shape))
    for node, weight in zip((_NODES + 1) / 2, _WEIGHTS, strict=True):
        y = slope(node * some) * node * some
        safe = jnp.where(y > 1e-8, y, 1.0)
        log_over_y = jnp.where(y > 1e-8, jnp.log1p(safe) / safe, 1.0 - y / 2)
        square = square + weight * node * slope(node * some) * log_over_y
    from_integral = some * jnp.sqrt(square)

    u = variance * many / (b * (b + variance))
    safe = jnp.where(u > 1e-8, u, 1.0)
    log_over_u = jnp.where(u > 1e-8, jnp.log1p(safe) / safe, 1.0 - u / 2)
    closed = (many + b) * jnp.log1p(slope(many) * many) - b * many / (b + variance) * log_over_u
    return jnp.where(few, from_integral, jnp.sqrt(2.0 * closed))


def log_cls(model: Model, mu: Float[Numbers, ""] | float = 1.0) -> Float[Array, ""]:
    """Logarithm of the median expected CLs of signal strength ``mu``: small is a strong limit."""
    return jnp.log(hypotests.expected_cls(model, mu).median)


def log_p0(model: Model, mu: Float[Numbers, ""] | float = 1.0) -> Float[Array, ""]:
    """Logarithm of the median discovery p-value expected for signal strength ``mu``."""
    return jnp.log(hypotests.expected_p0(model, mu).median)


def sigma_mu(model: Model, mu: Float[Numbers, ""] | float = 1.0) -> Float[Array, ""]:
    """Expected standard deviation of the signal strength at ``mu`` (INFERNO, arXiv:1806.04743)."""
    return fisher.poi_uncertainty(model, mu)
