"""Profile-likelihood intervals of any parameter (MINOS), and their derivative in every number.

The interval contains the values that a likelihood-ratio test accepts (Wilks): those where the
deviance, the other parameters fitted, is above its minimum by less than a quantile of chi-squared.
Unlike the Cramer-Rao bound it knows how the likelihood goes on away from its minimum.
"""

from enum import IntEnum
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from nablab import checks
from nablab.checks import Numbers
from nablab.infer import _roots, bounds
from nablab.infer.certificates import Certificate, Fit, all_converged, beaten_by, failure, refuse
from nablab.infer.mle import best_fit, each, fits, lowest_deviance
from nablab.model.histfactory import Model
from nablab.pytrees import pytree

ONE_SIGMA = 0.6826894921370859


class EndStatus(IntEnum):
    """How the search for an end of an interval ended."""

    FOUND = _roots.FOUND
    AT_BOUND = _roots.BEYOND_BOUND
    NOT_FOUND = _roots.NOT_FOUND


@pytree
class ProfileInterval:
    """The best fit of a parameter, and the interval around it.

    Where the deviance has several minima an interval may have gaps, and its ends are those of the
    piece with the best fit or of another one: look at :func:`nablab.infer.mle.profile_scan`.

    Attributes:
        best: the parameter at the best fit.
        lower, upper: ends of the interval. One that reaches a bound of the parameter ends there.
        status: an :class:`EndStatus` for the lower and the upper end. NaN where it was not found.
        certificates: of the best fit, and of the fits at both ends.
    """

    best: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    status: Int[Array, "*batch 2"]
    certificates: tuple[Certificate, ...]

    @property
    def errors(self) -> Float[Array, "*batch 2"]:
        """How far the interval reaches from the best fit: down (negative) and up."""
        return jnp.stack([self.lower - self.best, self.upper - self.best], axis=-1)

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether both ends were found and every fit behind them found a minimum."""
        found = (self.status != EndStatus.NOT_FOUND).all(axis=-1)
        return found & all_converged(self.certificates, self.best)

    def require(self) -> "ProfileInterval":
        """Raise ``RuntimeError`` if an end was not found or a fit failed; return the interval."""

        def reason(item):
            if (np.asarray(self.status)[item] == EndStatus.NOT_FOUND).any():
                return "an end of the interval was not found: look at the scan of the likelihood"
            return failure(self.certificates, item)

        refuse(~self.converged, reason)
        return self


def profile_interval(
    model: Model,
    data: Float[Numbers, "data"],
    parameter: str | int | None = None,
    *,
    confidence: Float[Numbers, ""] | float = ONE_SIGMA,
) -> ProfileInterval:
    """Interval of a parameter, the one of interest unless another is named, all others profiled.

    Works under jit, grad (forward, reverse, repeated) and vmap over models and data.

    Args:
        model: the likelihood.
        data: main and auxiliary measurements, in pyhf's order.
        parameter: one of ``model.parameter_names``, or an index into them.
        confidence: confidence level; 0.683, one standard deviation, if absent.

    Raises:
        ValueError: unknown parameter or one that the model holds fixed, ``confidence`` is not
            between 0 and 1, or data that do not fit the model.
    """
    index = model.index(model.poi_index if parameter is None else parameter)
    bounds.check_free(model, index, "find an interval of it")
    checks.fraction("confidence", confidence)
    # A program of its own, the same for all parameters.
    best = best_fit(model, data)
    return _around(model, jnp.asarray(data, dtype=float), best, confidence, index)


@partial(jax.jit, static_argnames="index")
def _around(model, data, best, confidence, index):
    height, middle = ndtri(0.5 * (1.0 + confidence)) ** 2, best.parameters[index]
    limits = jnp.stack([model.lower[index], model.upper[index]])
    values, status, ends = _search(*jax.lax.stop_gradient((model, data, best, height)), index)

    def residual(values):
        """How much the ends are too high, with the fits that the search has made."""

        def deviance(value_end):
            return lowest_deviance(model, data, {index: value_end[0]}, value_end[1])

        return each(model, deviance, (values, ends)) - best.value - height

    at_best = jax.lax.stop_gradient(jnp.stack(2 * [middle]))
    values = _roots.attached(residual, values, status == EndStatus.FOUND, at_best)
    lower, upper = jnp.where(status == EndStatus.AT_BOUND, limits, values)
    certificates = beaten_by(best, ends.value).certificate, ends.certificate
    return ProfileInterval(middle, lower, upper, status, certificates)


def _search(model, data, best, height, index):
    """Both ends, how the search for each ended, and the fits there.

    Solved for the logarithm of the distance to the best fit, as a function of which the logarithm
    of the deviance is a straight line if the deviance is a parabola.
    """
    middle, side = best.parameters[index], jnp.array([-1.0, 1.0])
    limits = jnp.stack([model.lower[index], model.upper[index]])

    def at(log_distances):
        return jnp.clip(middle + side * jnp.exp(log_distances), *limits)

    def excess(log_distances, deviances):
        above = jnp.maximum(deviances - best.value, jnp.finfo(float).tiny)
        return jnp.log(above / height) / 2

    def evaluate(log_distances, near, first):
        def fit(value_near):
            value, near = value_near
            return fits(model, data, {index: value}, near=near, anywhere=first)[0]

        ends = each(model, fit, (at(log_distances), near))

        def with_parameters_held(log_distances):
            """At a minimum the slope is the same as if the other parameters did not follow."""
            moved = ends.parameters.at[:, index].set(at(log_distances))
            return excess(log_distances, jax.vmap(model.deviance, (0, None))(moved, data))

        ones = jnp.ones_like(log_distances)
        value, slope = jax.jvp(with_parameters_held, (log_distances,), (ones,))
        return value, slope, {**vars(ends), "certificate": vars(ends.certificate)}

    def along(value):
        return model.deviance(best.parameters.at[index].set(value), data)

    curvature = jax.grad(jax.grad(along))(middle)
    alone = jnp.sqrt(2.0 * height / jnp.where(curvature > 0, curvature, 2.0))
    bound = jnp.log(jnp.abs(limits - middle))
    guess = jnp.minimum(jnp.log(alone), bound)
    near = jnp.stack(2 * [best.parameters])
    log_distances, status, ends = _roots.newton(jax.jit(evaluate), guess, near, bound)
    ends = Fit(**{**ends, "certificate": Certificate(**ends["certificate"])})
    return at(log_distances), status, ends
