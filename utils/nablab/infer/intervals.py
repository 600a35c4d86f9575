"""Confidence intervals with the right coverage for few events, from toys."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from nablab import checks
from nablab.checks import Numbers
from nablab.infer import bounds, pseudoexperiments
from nablab.infer._calls import compiled, non_negative
from nablab.infer.certificates import Certificate, all_converged
from nablab.infer.test_statistics import tmu
from nablab.model.histfactory import Model
from nablab.pytrees import pytree


@pytree
class Interval:
    """A confidence interval of the parameter of interest, and the scan behind it.

    Attributes:
        lower, upper: the outermost accepted values, interpolated to where the p-value is
            ``1 - confidence``; infinite where the end of the grid is still accepted, NaN where
            nothing is. At the physical boundary ``lower`` is the boundary.
        lower_error, upper_error: how far the ends move with the p-values by one Monte Carlo error,
            and the standard deviation within a step of the grid, in quadrature.
        confidence: the confidence level.
        grid: the values tried.
        p_values, p_errors: probability of data at most as likely, and its Monte Carlo error.
        failed: toys left out at each point, because a fit failed.
        certificates: of the free and fixed fits to the data, for each point.
    """

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    lower_error: Float[Array, ""]
    upper_error: Float[Array, ""]
    confidence: Float[Array, ""]
    grid: Float[Array, "points"]
    p_values: Float[Array, "points"]
    p_errors: Float[Array, "points"]
    failed: Int[Array, "points"]
    certificates: tuple[Certificate, ...]

    @property
    def accepted(self) -> Bool[Array, "points"]:
        """Which points of the grid belong to the interval; with few events it can have gaps."""
        return self.p_values > 1.0 - self.confidence

    @property
    def converged(self) -> Bool[Array, ""]:
        """Whether every fit, to data and toys, found a minimum."""
        fits = all_converged(self.certificates, self.grid).all()
        return fits & (self.failed.sum() == 0)

    def require(self) -> "Interval":
        """Raise ``RuntimeError`` if a fit, to data or toys, failed; return the result otherwise."""
        for certificate in self.certificates:
            certificate.require()
        if int(self.failed.sum()):
            raise RuntimeError(f"{int(self.failed.sum())} toys have a failed fit: see failed")
        return self


def feldman_cousins(
    model: Model,
    data: Float[Numbers, "data"],
    grid: Float[Numbers, "points"],
    *,
    key: PRNGKeyArray,
    confidence: float = 0.9,
    toys: int = 1_000,
    progress: bool = True,
) -> Interval:
    """Interval of Feldman and Cousins (physics/9711021): one-sided or two-sided as the data tell.

    A value of the parameter of interest is accepted if data as likely as the observed ones, or less
    likely, have a probability of more than ``1 - confidence``; the likelihood is taken relative to
    that of the best fit with a parameter of interest of at least 0 (their eq. 4.1; t-mu-tilde of
    arXiv:1007.1727). Nuisance parameters are profiled: in the ratio, and on the observed data for
    the values that toys are thrown with. Toys of all points share their random numbers, so
    that the p-value is a smooth function of the point wherever it truly is.

    Does not work under ``jit``, ``grad`` or ``vmap``: see :mod:`nablab.infer.pseudoexperiments`.

    Args:
        model: the likelihood.
        data: main and auxiliary measurements, in pyhf's order.
        grid: values of the parameter of interest to try, increasing.
        key: random key.
        confidence: confidence level.
        toys: how many at each point.
        progress: show a progress bar.

    Returns:
        The interval. In their tables, but not here, ends are moved where a larger background would
        give a longer interval: 0 events at a background of 3 have [0, 1.08] instead of [0, 0.95].

    Raises:
        ValueError: a grid outside of the bounds or not increasing, a confidence that is not between
            0 and 1, or data that do not fit the model.
    """
    model = non_negative(model)
    checks.edges("grid", grid)
    bounds.check(model, model.poi_index, "grid", grid)
    checks.fraction("confidence", confidence)
    lowest = model.lower[model.poi_index]
    grid = jnp.asarray(grid, dtype=float)
    observed, best, fixed = _scan(model, data, grid)
    thrown = pseudoexperiments.throw(
        tmu,
        model,
        fixed.parameters,
        np.asarray(grid),
        jnp.stack([key] * len(grid)),
        toys,
        progress,
    )
    p_values, p_errors = jax.vmap(pseudoexperiments.p_value)(thrown.values, observed)
    ends = _ends(grid, p_values, p_errors, 1.0 - confidence, lowest)
    certificates = (best.certificate, fixed.certificate)
    confidence = jnp.asarray(confidence, dtype=float)
    return Interval(*ends, confidence, grid, p_values, p_errors, thrown.failed, certificates)


@compiled()
def _scan(model, data, grid):
    """The test statistic of the data, and the two fits behind it, at each point."""

    def point(mu):
        result = tmu(model, data, mu)
        return result.value, result.best_fit, result.fixed_fit

    return jax.vmap(point)(grid)


@jax.jit
def _ends(grid, p_values, p_errors, threshold, lowest):
    """Lower and upper end, and their errors."""

    def outermost(p_values):
        """Where the p-value, straight between the points, leaves the accepted range for good."""
        accepted = p_values > threshold
        first, last = jnp.argmax(accepted), len(grid) - 1 - jnp.argmax(accepted[::-1])

        def crossing(inside, outside):
            way = (threshold - p_values[inside]) / (p_values[outside] - p_values[inside])
            return grid[inside] + way * (grid[outside] - grid[inside])

        boundary = jnp.where(grid[0] == lowest, lowest, -jnp.inf)
        lower = jnp.where(first > 0, crossing(first, first - 1), boundary)
        upper = jnp.where(last < len(grid) - 1, crossing(last, last + 1), jnp.inf)
        return jnp.where(accepted.any(), jnp.array([lower, upper]), jnp.nan)

    ends = outermost(p_values)
    high, low = outermost(p_values + p_errors), outermost(p_values - p_errors)
    spread = jnp.where(high == low, 0.0, 0.5 * jnp.abs(high - low))
    # An end on a straight line may be anywhere on it, if the p-value jumps.
    right = jnp.clip(jnp.searchsorted(grid, ends), 1, len(grid) - 1)
    scanned = jnp.isfinite(ends) & (ends > lowest)
    step = jnp.where(scanned, grid[right] - grid[right - 1], 0.0)
    return *ends, *jnp.hypot(spread, step / jnp.sqrt(12.0))
