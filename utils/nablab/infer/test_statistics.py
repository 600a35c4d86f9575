"""Test statistics: how much better another hypothesis describes the data (arXiv:1007.1727)."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nablab.checks import Numbers
from nablab.infer import mle
from nablab.infer._calls import compiled, non_negative
from nablab.infer.bounds import refused
from nablab.infer.certificates import Fit, Status, failure, refuse
from nablab.model.histfactory import SMALLEST_RATE, Model
from nablab.pytrees import pytree


@pytree
class TestStatistic:
    """Value of a test statistic and the two fits behind it.

    The value is infinite where the tested hypothesis makes the data impossible, with events in a
    bin where it expects none, and another one does not.
    """

    __test__ = False  # not a test class

    value: Float[Array, "*batch"]
    best_fit: Fit
    fixed_fit: Fit

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether both fits found a minimum."""
        return self.best_fit.converged & self.fixed_fit.converged

    def require(self) -> "TestStatistic":
        """Raise ``RuntimeError`` if a fit failed; return the result otherwise."""
        certificates = self.best_fit.certificate, self.fixed_fit.certificate
        refuse(~self.converged, lambda item: failure(certificates, item))
        return self


def tested(model: Model, data: Float[Array, "data"], *pois, near=None, **settings) -> list[Fit]:
    """Fits with the parameter of interest at each value, or free for None.

    Refused where one that should be free is not: a test of a fixed parameter against itself finds
    nothing.
    """
    poi = model.poi_index
    held = [{} if mu is None else {poi: mu} for mu in pois]
    fits = mle.fits(model, data, *held, near=near, **settings)
    return [refused(fit, model.fixed[poi] & (None in pois)) for fit in fits]


@compiled(holds=(0.0,))
def q0(model: Model, data: Float[Numbers, "data"]) -> TestStatistic:
    """Discovery: evidence against the absence of signal; 0 for a deficit (eq. 12)."""
    best, fixed = tested(model, data, None, 0.0)
    return statistic(model, data, best, fixed, best.parameters[model.poi_index] > 0.0)


@compiled(holds=("mu",))
def qmu(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """Upper limit: evidence against signal strength ``mu``; 0 for an excess over it (eq. 14).

    With the bound of 0 on the parameter of interest, pyhf's default, this is also the value of
    q-mu-tilde (eq. 16); the two differ in their asymptotic distributions, see :func:`cls`.
    """
    best, fixed = tested(model, data, None, mu)
    return statistic(model, data, best, fixed, best.parameters[model.poi_index] < mu)


@compiled(holds=("mu",))
def qmu_tilde(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """:func:`qmu` with the best fit restricted to signal strengths of at least 0 (eq. 16)."""
    return qmu(non_negative(model), data, mu)


@compiled(holds=("mu",))
def tmu(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """Two-sided: evidence against signal strength ``mu``, from either side (eq. 8)."""
    best, fixed = tested(model, data, None, mu)
    return statistic(model, data, best, fixed, True)


@compiled(holds=("mu",))
def tmu_tilde(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """:func:`tmu` with the best fit restricted to signal strengths of at least 0 (eq. 11)."""
    return tmu(non_negative(model), data, mu)


def statistic(model, data, best, fixed, counts_as_evidence) -> TestStatistic:
    difference = jnp.maximum(fixed.value - best.value, 0.0)
    # A likelihood that is NaN must not pass for no evidence.
    counts_as_evidence |= jnp.isnan(difference)
    value = jnp.where(counts_as_evidence, difference, 0.0)
    impossible, fixed = impossible_bins(model, data, fixed)
    unlikely_at_best = data[: model.structure.main_bins] > 0
    unlikely_at_best &= model.expected_main(best.parameters) <= SMALLEST_RATE
    certain = (impossible & ~unlikely_at_best).any() & counts_as_evidence
    return TestStatistic(jnp.where(certain, jnp.inf, value), best, fixed)


def impossible_bins(model, data, fixed):
    """Bins with events where nothing is expected; and the fit, failed where its value is none of
    the likelihood's but that of the constant below which we follow it no further."""
    expected, seen = model.expected_main(fixed.parameters), data[: model.structure.main_bins] > 0
    unknown = (seen & (expected > 0) & (expected < SMALLEST_RATE)).any()
    status = jnp.where(unknown, Status.NOT_FINITE, fixed.certificate.status)
    certificate = replace(fixed.certificate, status=status)
    return seen & (expected <= 0), replace(fixed, certificate=certificate)
