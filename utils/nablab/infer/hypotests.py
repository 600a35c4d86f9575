"""p-values and CLs in the asymptotic limit (Cowan et al., arXiv:1007.1727).

The semantics are pyhf's. Upper tails are computed as such (``norm.sf``), never as ``1 - cdf``:
beyond 8 standard deviations the latter is exactly zero.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, Int

from nablab.checks import Numbers
from nablab.infer._calls import check_held, compiled, non_negative
from nablab.infer.bounds import outside
from nablab.infer.certificates import Certificate, all_converged, failure, refuse
from nablab.infer.mle import best_fit
from nablab.infer.test_statistics import impossible_bins, statistic, tested
from nablab.model.histfactory import Model
from nablab.pytrees import pytree

# The expected band, in pyhf's order: the smallest CLs (most signal-unlike data) first.
BAND = np.array([2.0, 1.0, 0.0, -1.0, -2.0])


@pytree
class PValues:
    """Observed and expected p-values (or CLs), with what is known about the fits.

    Attributes:
        observed: for the data; NaN where only the expectation was asked for.
        expected: for fluctuations of +2, +1, 0, -1, -2 standard deviations, as in pyhf.
        certificates: one per fit.
    """

    observed: Float[Array, "*batch"]
    expected: Float[Array, "*batch 5"]
    certificates: tuple[Certificate, ...]

    @property
    def median(self) -> Float[Array, "*batch"]:
        """The median expected value."""
        return self.expected[..., 2]

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether every fit behind the numbers found a minimum."""
        return all_converged(self.certificates, self.observed)

    def require(self) -> "PValues":
        """Raise ``RuntimeError`` if a fit failed; return the p-values otherwise."""
        refuse(~self.converged, lambda item: failure(self.certificates, item))
        return self


@compiled(holds=("mu", 0.0))
def cls(
    model: Model,
    data: Float[Numbers, "data"],
    mu: Float[Numbers, ""] | float = 1.0,
    *,
    test_statistic: str = "qtilde",
    hold: str | None = None,
    tolerance: Float[Numbers, ""] | float = 1e-10,
    max_iterations: Int[Numbers, ""] | int = 500,
) -> PValues:
    """Observed CLs and its expected band, with the nuisance parameters profiled on ``data``.

    Args:
        model: the likelihood.
        data: main and auxiliary measurements, in pyhf's order.
        mu: the signal strength under test.
        test_statistic: ``"qtilde"`` (pyhf's default) or ``"q"``. With ``"qtilde"`` the best fit has
            a signal strength of at least 0 (eq. 16), also where the model allows negative ones.
            pyhf warns there, and keeps the bound of the model: its value is then that of ``"q"``
            with the distribution of ``"qtilde"``.
        hold: where the gradient stops in the Asimov data, see :func:`asimov_data`.
        tolerance, max_iterations: of the fits, see :func:`nablab.infer.minimizer.minimize`.

    Returns:
        The values of ``pyhf.infer.hypotest(mu, data, model, return_expected_set=True)``. Where
        ``mu`` or 0 is traced and outside of the bounds of the model, NaN and the status
        OUTSIDE_BOUNDS.

    Raises:
        ValueError: ``mu`` or 0 is outside of the bounds that the best fit keeps, unknown test
            statistic, or data that do not fit the model.
    """
    model = for_statistic(model, test_statistic)
    settings = {"tolerance": tolerance, "max_iterations": max_iterations}
    best, fixed, background = tested(model, data, None, mu, 0.0, **settings)
    observed = statistic(model, data, best, fixed, best.parameters[model.poi_index] < mu)
    root_asimov, asimov_fit = _root_asimov(model, background.parameters, mu, hold, **settings)
    certain = jnp.isinf(observed.value)  # data that mu makes impossible exclude it beyond doubt
    root = root_of(jnp.where(certain, 0.0, observed.value))
    value = jnp.exp(log_cls(distance_to_median(root, root_asimov, test_statistic), root_asimov))
    value = jnp.where(certain & ~jnp.isnan(value), 0.0, value)
    fits = best, observed.fixed_fit, background, asimov_fit
    return PValues(value, _cls(BAND, root_asimov), tuple(fit.certificate for fit in fits))


def expected_cls(
    model: Model, mu: Float[Numbers, ""] | float = 1.0, *, hold: str | None = None
) -> PValues:
    """Expected CLs and its band, before any data: nuisance parameters at their starting values.

    This is what an optimisation may look at. The background-only Asimov data set is described
    perfectly by the parameters that made it, so that a single fit is enough. ``hold`` says where
    the gradient stops in it, see :func:`asimov_data`.

    Raises:
        ValueError: ``mu`` or 0 is outside of the bounds of the model, or unknown ``hold``.
    """
    check_held(model, "expected_cls", ("mu", 0.0), {"mu": mu})
    return _expected_cls(model, mu, hold)


@partial(jax.jit, static_argnames="hold")
def _expected_cls(model, mu, hold):
    root_asimov, fit = _root_asimov(model, _before_data(model, 0.0), mu, hold)
    return PValues(jnp.full((), jnp.nan), _cls(BAND, root_asimov), (fit.certificate,))


def asimov_data(
    model: Model,
    mu: Float[Numbers, ""] | float,
    data: Float[Numbers, "data"] | None = None,
    *,
    hold: str | None = None,
) -> Float[Array, "data"]:
    """The data that signal strength ``mu`` predicts, without fluctuations.

    Args:
        model: the likelihood.
        mu: the true signal strength.
            NaN data where it is traced and outside of the bounds of the model.
        data: where the nuisance parameters are fitted, as pyhf does; without it they have their
            starting values.
        hold: what is a constant for the gradient. ``None``: nothing; the data follow the numbers of
            the model and the nuisance parameters fitted with them. ``"parameters"``: the fitted
            nuisance parameters; the data follow the numbers of the model alone. ``"data"``: all of
            it, as if somebody had measured these data. The values are the same.

    Raises:
        ValueError: ``mu`` is outside of the bounds of the model, unknown ``hold``, or data that do
            not fit the model.
    """
    check_held(model, "asimov_data", ("mu",), {"mu": mu}, tests=False)
    if data is None:
        return _asimov(model, _before_data(model, mu), hold)
    held = best_fit(model, data, held={model.poi_index: mu})
    return _asimov(model, held.parameters, hold)


@partial(jax.jit, static_argnames="hold")
def _asimov(model, parameters, hold):
    if hold not in (None, "parameters", "data"):
        raise ValueError(f"hold is {hold!r}: choose None, 'parameters' or 'data'")
    if hold == "parameters":
        parameters = jax.lax.stop_gradient(parameters)
    asimov = model.expected_data(parameters)
    return jax.lax.stop_gradient(asimov) if hold == "data" else asimov


def _before_data(model, mu):
    """The starting values with the signal strength ``mu``; NaN outside of the bounds."""
    return jnp.where(outside(model, model.poi_index, mu), jnp.nan, model.parameters(mu))


def _root_asimov(model, truth, mu, hold=None, **settings):
    """Root of the test statistic of ``mu`` on the Asimov data of ``truth``, and the fit behind it.

    At ``truth`` the deviance of these data is 0 and at its minimum, also where they are held.
    """
    data = _asimov(model, truth, hold)
    impossible, fit = impossible_bins(model, data, tested(model, data, mu, near=truth)[0])
    return root_of(jnp.where(impossible.any(), jnp.inf, fit.value)), fit


def for_statistic(model: Model, test_statistic: str) -> Model:
    """The model with the bound that the test statistic asks for."""
    if test_statistic not in ("q", "qtilde"):
        raise ValueError(f"test_statistic is {test_statistic!r}: choose 'q' or 'qtilde'")
    return non_negative(model) if test_statistic == "qtilde" else model


def distance_to_median(root, root_asimov, test_statistic):
    """Distance of the data from the background-only median, in standard deviations.

    Beyond the Asimov value q-mu-tilde has another distribution (eq. 65).
    """
    distance = root - root_asimov
    if test_statistic == "q":
        return distance
    far = (root > root_asimov) & (root_asimov > 0)
    beyond = (root**2 - root_asimov**2) / (2.0 * jnp.where(far, root_asimov, 1.0))
    return jnp.where(far, beyond, distance)


def log_cls(distance, root_asimov):
    """Logarithm of CLs: far beyond the median both tails are zero in double precision."""
    return norm.logsf(distance + root_asimov) - norm.logsf(distance)


def _cls(distance, root_asimov):
    """CLs+b / CLb at a distance from the background-only median, in standard deviations."""
    return norm.sf(distance + root_asimov) / norm.sf(distance)


def root_of(q):
    """Square root whose derivative at 0 is 0: one-sided, as q only grows from there. NaN stays."""
    zero = q <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, q)))


@compiled(holds=(0.0, 1.0))
def p0(model: Model, data: Float[Numbers, "data"]) -> PValues:
    """Discovery p-value, and its expected band for signal strength 1 profiled on ``data``.

    Returns:
        The values of ``pyhf.infer.hypotest(0, data, model, test_stat="q0",
        return_expected_set=True)``. Exactly 0 for events in a bin where no background is expected.

    Raises:
        ValueError: 0 or 1 is outside of the bounds of the model, or data that do not fit it.
    """
    best, fixed, signal = tested(model, data, None, 0.0, 1.0)
    observed = statistic(model, data, best, fixed, best.parameters[model.poi_index] > 0.0)
    root_asimov, asimov_fit = _root_asimov(model, signal.parameters, 0.0)
    fits = best, observed.fixed_fit, signal, asimov_fit
    certificates = tuple(fit.certificate for fit in fits)
    return PValues(norm.sf(root_of(observed.value)), norm.sf(BAND + root_asimov), certificates)


def expected_p0(
    model: Model, mu: Float[Numbers, ""] | float = 1.0, *, hold: str | None = None
) -> PValues:
    """Expected discovery p-value and its band for signal strength ``mu``, before any data.

    ``hold`` says where the gradient stops in the Asimov data, see :func:`asimov_data`.

    Raises:
        ValueError: ``mu`` or 0 is outside of the bounds of the model, or unknown ``hold``.
    """
    check_held(model, "expected_p0", ("mu", 0.0), {"mu": mu})
    return _expected_p0(model, mu, hold)


@partial(jax.jit, static_argnames="hold")
def _expected_p0(model, mu, hold):
    root_asimov, fit = _root_asimov(model, _before_data(model, mu), 0.0, hold)
    return PValues(jnp.full((), jnp.nan), norm.sf(BAND + root_asimov), (fit.certificate,))
