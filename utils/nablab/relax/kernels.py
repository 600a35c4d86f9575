"""The symmetric bumps that soft cuts and soft histograms share.

A histogram gives an event the area of a bump in a bin, a cut the area above the threshold: both are
values of the cumulative distribution. Derivatives are then values of the bump itself, so the
gradient of a soft cut *is* a kernel density estimate at the threshold.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Kernel(NamedTuple):
    """A probability density around 0, in its natural unit."""

    cdf: Callable
    log_cdf: Callable
    peak: float
    """Density at 0."""
    deviation: float
    """Standard deviation."""


def _gaussian_log_cdf(u):
    """``jax.scipy.stats.norm.logcdf``, whose derivatives lose their digits below -1e5."""
    u = jnp.maximum(u, -math.sqrt(jnp.finfo(jnp.result_type(u, float)).max))
    # Both forms are right around 0: a compiler that works u out twice may get both signs. NaN stays
    # NaN in both.
    below, above = jnp.where(u >= 0.5, -1.0, u), jnp.where(u <= -0.5, 1.0, u)
    tail = jnp.log(jax.scipy.special.erfcx(-below / math.sqrt(2)) / 2) - below**2 / 2
    return jnp.where(u < 0, tail, jnp.log1p(-jax.scipy.stats.norm.sf(above)))


def _smoothstep(u):
    """Cumulative distribution of 3/4 (1 - u²), |u| < 1, the kernel of Epanechnikov."""
    v = jnp.clip((1 + u) / 2, 0.0, 1.0)
    return v**2 * (3 - 2 * v)


def _smootherstep(u):
    """Cumulative distribution of 15/16 (1 - u²)², |u| < 1, the biweight kernel."""
    v = jnp.clip((1 + u) / 2, 0.0, 1.0)
    return v**3 * (10 + v * (6 * v - 15))


def _log_of(cdf):
    """Logarithm of a function that is exactly 0 somewhere; there the derivative is set to 0."""

    def log_cdf(u):
        p = cdf(u)
        tiny = jnp.finfo(p.dtype).tiny
        return jnp.where(p == 0, -jnp.inf, jnp.log(jnp.where(p == 0, tiny, p)))  # NaN stays NaN

    return log_cdf


KERNELS = {
    "logistic": Kernel(jax.nn.sigmoid, jax.nn.log_sigmoid, 1 / 4, math.pi / math.sqrt(3)),
    "gaussian": Kernel(
        jax.scipy.stats.norm.cdf, _gaussian_log_cdf, 1 / math.sqrt(2 * math.pi), 1.0
    ),
    "epanechnikov": Kernel(_smoothstep, _log_of(_smoothstep), 3 / 4, 1 / math.sqrt(5)),
    "biweight": Kernel(_smootherstep, _log_of(_smootherstep), 15 / 16, 1 / math.sqrt(7)),
}


def named(argument: str, name: str, names=tuple(KERNELS)) -> str:
    """The name, if it is one of ``names``.

    Raises:
        ValueError: it is not; ``argument`` says where it was given.
    """
    if name not in names:
        raise ValueError(f"{argument} is {name!r}: it must be one of {', '.join(names)}")
    return name
