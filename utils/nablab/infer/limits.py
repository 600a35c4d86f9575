"""Upper limits: the signal strength whose CLs is 0.05, and its derivative in every number.

The limit solves CLs(mu) = 1 - confidence.
"""

from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nablab import checks
from nablab.checks import Numbers
from nablab.infer import _roots, bounds
from nablab.infer._calls import compiled
from nablab.infer.bounds import outside
from nablab.infer.certificates import Certificate, Fit, all_converged, beaten_by, failure, refuse
from nablab.infer.hypotests import BAND, distance_to_median, for_statistic, log_cls, root_of
from nablab.infer.mle import each, fits, lowest_deviance
from nablab.model.histfactory import Model
from nablab.model.positivity import warn_of_negative
from nablab.pytrees import pytree


class LimitStatus(IntEnum):
    """How the search for a limit ended."""

    FOUND = _roots.FOUND
    BEYOND_BOUND = _roots.BEYOND_BOUND
    NOT_FOUND = _roots.NOT_FOUND
    OUTSIDE_BOUNDS = 3


MEANING = {
    LimitStatus.FOUND: "the limit was found",
    LimitStatus.BEYOND_BOUND: "CLs is above 1 - confidence up to the upper bound of the parameter "
    "of interest: raise that bound, or look whether there is any signal",
    LimitStatus.NOT_FOUND: "no signal strength was found where CLs is 1 - confidence",
    LimitStatus.OUTSIDE_BOUNDS: "the model fixes the parameter of interest, or a signal strength "
    "of 0, which the limit is compared with, is outside of its bounds: free it, or widen them",
}


@pytree
class UpperLimit:
    """Observed and expected upper limits on the parameter of interest.

    Attributes:
        observed: for the data; NaN where only the expectation was asked for.
        expected: where the bands of the expected CLs cross 1 - confidence, in pyhf's order: the
            smallest limit (-2 standard deviations) first.
        status: a :class:`LimitStatus` for the observed limit, if there is one, and the five
            expected ones. A limit that was not found is NaN.
        certificates: of the fits to the data, and of those at the limits.
    """

    observed: Float[Array, "*batch"]
    expected: Float[Array, "*batch 5"]
    status: Int[Array, "*batch limits"]
    certificates: tuple[Certificate, ...]

    @property
    def median(self) -> Float[Array, "*batch"]:
        """The median expected limit."""
        return self.expected[..., 2]

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether every limit was found and every fit behind it found a minimum."""
        found = (self.status == LimitStatus.FOUND).all(axis=-1)
        return found & all_converged(self.certificates, self.observed)

    def require(self) -> "UpperLimit":
        """Raise ``RuntimeError`` if a limit was not found or a fit failed; return the limits."""

        def reason(item):
            status = np.asarray(self.status)[item]
            if (status == LimitStatus.FOUND).all():
                return failure(self.certificates, item)
            return f"no upper limit: {MEANING[LimitStatus(int(status.max()))]}"

        refuse(~self.converged, reason)
        return self


def upper_limit(
    model: Model,
    data: Float[Numbers, "data"],
    *,
    confidence: Float[Numbers, ""] | float = 0.95,
    test_statistic: str = "qtilde",
) -> UpperLimit:
    """Observed upper limit by CLs, and its expected band with nuisances profiled on ``data``.

    Works under jit, grad (forward, reverse, repeated) and vmap over models and data. With more than
    16 fitted parameters the fits of a step of the search start where those of the step before have
    ended: where the likelihood has several minima, they stay with the one that was lowest at first.

    A gradient alone does not tell why a limit is NaN. Value, gradient and status in one call::

        def observed(yields):
            limit = limits.upper_limit(model_of(yields), data)
            return limit.observed, limit

        (value, limit), gradient = jax.value_and_grad(observed, has_aux=True)(yields)
        limit.require()  # says that the limit is beyond the bound, or which fit failed

    Args:
        model: the likelihood. Limits are looked for between 0 and the upper bound of its
            parameter of interest.
        data: main and auxiliary measurements, in pyhf's order.
        confidence: confidence level: at the limit CLs is ``1 - confidence``.
        test_statistic: ``"qtilde"`` (pyhf's default) or ``"q"``, see
            :func:`nablab.infer.hypotests.cls`.

    Returns:
        The values of ``pyhf.infer.intervals.upper_limits.upper_limit(data, model)``, to the last
        digits. Look at ``converged``, or call ``require()`` outside jit.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1, a signal strength of 0 is outside of the
            bounds of the model, unknown test statistic, or data that do not fit the model.
    """
    _check(model, confidence)
    return _upper_limit(model, data, confidence, test_statistic)


def expected_upper_limit(
    model: Model, *, confidence: Float[Numbers, ""] | float = 0.95
) -> UpperLimit:
    """Expected upper limit and its band, before any data: nuisances at their starting values.

    This is what an optimisation may look at, as :func:`nablab.infer.hypotests.expected_cls`.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1, or a signal strength of 0 is outside of
            the bounds of the model.
    """
    _check(model, confidence)
    return _expected_upper_limit(model, confidence)


def _check(model, confidence) -> None:
    checks.fraction("confidence", confidence)
    warn_of_negative(model)
    bounds.check(model, model.poi_index, "the signal strength that a limit is compared with", 0.0)
    bounds.check_free(model, model.poi_index, "find a limit on it")


@compiled()
def _upper_limit(model, data, confidence, test_statistic):
    model = for_statistic(model, test_statistic)
    best, background = fits(model, data, {}, {model.poi_index: 0.0})
    asimov = model.expected_data(background.parameters)

    def residual_of(q, poi):
        root = root_of(jnp.where(best.parameters[model.poi_index] < poi[0], q[0], 0.0))
        root_asimov = root_of(q[1:])
        distance = distance_to_median(root, root_asimov[0], test_statistic)
        return _residual(jnp.concatenate([distance[None], BAND]), root_asimov, confidence)

    # The observed limit needs two fits, to the data and to the Asimov data; the others need one.
    # The background-only Asimov data are described perfectly by what made them.
    datasets = jnp.stack([data] + 6 * [asimov])
    minima = jnp.zeros(7).at[0].set(best.value)
    truths = jnp.stack([best.parameters] + 6 * [background.parameters])
    limits, status, ends = _solve(
        model, datasets, truths, minima, (0, 0, 1, 2, 3, 4, 5), residual_of
    )
    best = beaten_by(best, ends.value[:1])
    certificates = (best.certificate, background.certificate, ends.certificate)
    return UpperLimit(limits[0], limits[1:], status, certificates)


@jax.jit
def _expected_upper_limit(model, confidence):
    truth = model.parameters(0.0)
    limits, status, ends = _solve(
        model,
        jnp.stack(5 * [model.expected_data(truth)]),
        jnp.stack(5 * [truth]),
        jnp.zeros(5),
        (0, 1, 2, 3, 4),
        lambda q, poi: _residual(BAND, root_of(q), confidence),
    )
    return UpperLimit(jnp.full((), jnp.nan), limits, status, (ends.certificate,))


def _residual(distance, root_asimov, confidence):
    """log(-log CLs) - log(-log(1 - confidence)).

    As a function of log mu this is close to a straight line over any number of decades: of slope 1
    for small mu (CLs falls linearly from 1) and at most 2 for large ones (as a normal tail).
    """
    return jnp.log(-log_cls(distance, root_asimov)) - jnp.log(-jnp.log1p(-confidence))


def _solve(model, datasets, near, minima, limit_of_dataset, residual_of):
    """The roots of ``residual_of(q, poi)``, all at once; NaN where there is none.

    Each data set is fitted with the poi at one of the limits, ``limit_of_dataset``, at first from
    its row of ``near``; q is the distance from its row of ``minima``. Solved for log(poi), so that
    no limit has a scale.
    """
    which = jnp.array(limit_of_dataset)
    still = jax.lax.stop_gradient

    def fits_at(log_limits, near, first):
        def fit(poi_data_near):
            poi, data, near = poi_data_near
            return fits(still(model), data, {model.poi_index: poi}, near=near, anywhere=first)[0]

        # Beyond the bound, be it by a rounding error, fits are refused.
        pois = jnp.minimum(jnp.exp(log_limits), still(model.upper[model.poi_index]))[which]
        return each(model, fit, (pois, still(datasets), near))

    def residual(log_limits, deviances):
        return residual_of(deviances - minima, jnp.exp(log_limits)[which])

    def evaluate(log_limits, near, first):
        fit = fits_at(log_limits, near, first)

        def with_parameters_held(log_limits):
            """At a minimum the slope is the same as if the other parameters did not follow."""
            moved = fit.parameters.at[:, model.poi_index].set(jnp.exp(log_limits)[which])
            return residual(log_limits, jax.vmap(model.deviance)(moved, datasets))

        ones = jnp.ones_like(log_limits)
        value, slope = still(jax.jvp(with_parameters_held, (log_limits,), (ones,)))
        return value, slope, {**vars(fit), "certificate": vars(fit.certificate)}

    guess = jnp.full(max(limit_of_dataset) + 1, _first_guess(model, datasets[-1]))
    bound = jnp.log(model.upper[model.poi_index])
    log_limits, status, ends = _roots.newton(jax.jit(evaluate), *still((guess, near, bound)))
    ends = Fit(**{**ends, "certificate": Certificate(**ends["certificate"])})

    def residual_at_ends(log_limits):
        """The residual with the fits that the search has made, and all their derivatives."""

        def deviance(poi_data_end):
            poi, data, end = poi_data_end
            return lowest_deviance(model, data, {model.poi_index: poi}, end)

        pois = jnp.exp(log_limits)[which]
        return residual(log_limits, each(model, deviance, (pois, datasets, ends)))

    no_test = model.fixed[model.poi_index] | outside(model, model.poi_index, 0.0)
    status = jnp.where(no_test, LimitStatus.OUTSIDE_BOUNDS, status)
    found = status == LimitStatus.FOUND
    log_limits = _roots.attached(residual_at_ends, log_limits, found, jnp.zeros(found.shape))
    return jnp.where(found, jnp.exp(jnp.where(found, log_limits, 0.0)), log_limits), status, ends


def _first_guess(model, asimov):
    """Logarithm of a poi that two standard deviations of the counts could tell from 0."""
    background = model.parameters(0.0)
    direction = jnp.zeros_like(background).at[model.poi_index].set(1.0)
    _, signal = jax.jvp(model.expected_main, (background,), (direction,))
    two_sigma = 2.0 * (1.0 + jnp.sqrt(1.0 + asimov[: model.structure.main_bins]))
    strength = jnp.sqrt(jnp.sum((signal / two_sigma) ** 2))
    upper = model.upper[model.poi_index]
    return jnp.log(jnp.where(strength * upper > 1.0, 1.0 / strength, upper))
