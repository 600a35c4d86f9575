"""Hypothesis tests without asymptotics: p-values and CLs from pseudo-experiments ("toys").

A Python loop throws and fits the toys, see :mod:`nablab.infer.pseudoexperiments`: these functions
do not work under ``jit``, ``grad`` or ``vmap``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from nablab.checks import Numbers
from nablab.infer import bounds, test_statistics
from nablab.infer.certificates import Certificate
from nablab.infer.hypotests import BAND
from nablab.infer.mle import best_fit
from nablab.infer.pseudoexperiments import Toys, p_value, tail, throw
from nablab.model.histfactory import Model
from nablab.pytrees import pytree


@pytree
class ToyPValues:
    """Observed and expected p-values (or CLs) from toys.

    Attributes:
        observed: for the data.
        error: Monte Carlo error of ``observed``.
        expected: the band, smallest first, as in :class:`~nablab.infer.hypotests.PValues`.
        tested: toys of the hypothesis under test.
        alternative: toys of the hypothesis that the band is expected for.
        certificates: of the fits to the data.
    """

    observed: Float[Array, ""]
    error: Float[Array, ""]
    expected: Float[Array, "5"]
    tested: Toys
    alternative: Toys
    certificates: tuple[Certificate, ...]

    @property
    def median(self) -> Float[Array, ""]:
        """The median expected value."""
        return self.expected[2]

    @property
    def failed(self) -> int:
        """How many toys were left out, because a fit failed."""
        return int(self.tested.failed + self.alternative.failed)

    @property
    def converged(self) -> bool:
        """Whether every fit, to data and toys, found a minimum."""
        return self.failed == 0 and all(bool(fit.converged) for fit in self.certificates)

    def require(self) -> "ToyPValues":
        """Raise ``RuntimeError`` if a fit, to data or toys, failed; return the result otherwise."""
        for certificate in self.certificates:
            certificate.require()
        if self.failed:
            raise RuntimeError(f"{self.failed} toys have a failed fit: see the statuses")
        return self


def cls(
    model: Model,
    data: Float[Numbers, "data"],
    *,
    key: PRNGKeyArray,
    mu: Float[Numbers, ""] | float = 1.0,
    toys: int = 10_000,
    test_statistic: str = "qtilde",
    progress: bool = True,
) -> ToyPValues:
    """Observed CLs and its expected band, from toys.

    The toys of both hypotheses have their nuisance parameters profiled on ``data``. The band holds
    the quantiles of the CLs of the background-only toys.

    Args:
        model, data, mu, test_statistic: as in :func:`nablab.infer.hypotests.cls`.
        key: random key.
        toys: how many for each of the two hypotheses.
        progress: show a progress bar.

    Returns:
        The values of ``pyhf.infer.hypotest(mu, data, model, calctype="toybased",
        ntoys=toys, return_expected_set=True)``, and their Monte Carlo error.

    Raises:
        ValueError: ``mu`` or 0 is outside of the bounds of the model, unknown test statistic, or
            data that do not fit the model.
    """
    choices = {"q": test_statistics.qmu, "qtilde": test_statistics.qmu_tilde}
    if test_statistic not in choices:
        raise ValueError(f"test_statistic is {test_statistic!r}: choose 'q' or 'qtilde'")
    observed, tested, alternative, certificates = _both(
        choices[test_statistic], model, data, key, (mu,), 0.0, toys, progress
    )
    (p, p_error), (p_background, background_error) = (
        p_value(thrown.values, observed) for thrown in (tested, alternative)
    )
    # The toys of the two hypotheses are independent.
    error = jnp.hypot(p_error, p / p_background * background_error) / p_background
    band = tail(tested.values, alternative.values) / tail(alternative.values, alternative.values)
    return ToyPValues(p / p_background, error, _band(band), tested, alternative, certificates)


def p0(
    model: Model,
    data: Float[Numbers, "data"],
    *,
    key: PRNGKeyArray,
    toys: int = 10_000,
    progress: bool = True,
) -> ToyPValues:
    """Discovery p-value, and its expected band for signal strength 1, from toys.

    The toys of both hypotheses have their nuisance parameters profiled on ``data``. A deficit has
    q0 = 0 and p = 1, where the asymptotic formula gives 1/2.

    Args:
        model, data: as in :func:`nablab.infer.hypotests.p0`.
        key: random key.
        toys: how many for each of the two hypotheses: to measure p to 10 % takes 100 / p.
        progress: show a progress bar.

    Returns:
        The values of ``pyhf.infer.hypotest(0, data, model, test_stat="q0", calctype="toybased",
        ntoys=toys, return_expected_set=True)``, and their Monte Carlo error.

    Raises:
        ValueError: 0 or 1 is outside of the bounds of the model, or data that do not fit it.
    """
    observed, tested, alternative, certificates = _both(
        test_statistics.q0, model, data, key, (), 1.0, toys, progress
    )
    band = tail(tested.values, alternative.values)
    return ToyPValues(
        *p_value(tested.values, observed), _band(band), tested, alternative, certificates
    )


def _band(values):
    """The expected band: quantiles of the values, those that are NaN left out."""
    return jnp.nanpercentile(values, 100.0 * jax.scipy.stats.norm.cdf(-BAND))


def _both(statistic, model, data, key, mus, other, toys, progress):
    """Test statistic of the data and of toys of two hypotheses, and the fits to the data.

    Both hypotheses are profiled on the data: that under test, and the one of strength ``other``.
    """
    observed = statistic(model, data, *mus)
    bounds.check(model, model.poi_index, "the signal strength of the other hypothesis", other)
    other_fit = best_fit(model, data, held={model.poi_index: other})
    parameters = jnp.stack([observed.fixed_fit.parameters, other_fit.parameters])
    keys, mus = jax.random.split(key), np.full(2, *mus, dtype=float) if mus else None
    thrown = throw(statistic, model, parameters, mus, keys, toys, progress)
    tested, alternative = (jax.tree.map(lambda field, k=k: field[k], thrown) for k in range(2))
    fits = (observed.best_fit, observed.fixed_fit, other_fit)
    return observed.value, tested, alternative, tuple(fit.certificate for fit in fits)
