"""Test statistics, p-values and CLs in the asymptotic limit (Cowan et al., arXiv:1007.1727).

The semantics are pyhf's. Upper tails are computed as such (``norm.sf``), never as ``1 - cdf``:
beyond 8 standard deviations the latter is exactly zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float, Int

from nablab.checks import Numbers
from nablab.infer import boxes, profiling
from nablab.infer.boxes import outside, refused
from nablab.infer.certificates import (
    Certificate,
    Fit,
    Status,
    all_converged,
    failure,
    refuse,
)
from nablab.infer.fits import SIDE_BY_SIDE, minimize
from nablab.infer.histfactory import SMALLEST_RATE, Model
from nablab.infer.indexing import put
from nablab.infer.plan import plan

# The expected band, in pyhf's order: the smallest CLs (most signal-unlike data) first.
BAND = np.array([2.0, 1.0, 0.0, -1.0, -2.0])


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "best_fit", "fixed_fit"],
    meta_fields=[],
)
@dataclass(frozen=True)
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


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["observed", "expected", "certificates"],
    meta_fields=[],
)
@dataclass(frozen=True)
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


def _compiled(
    function: Callable | None = None, *, holds: tuple = (), tests: bool = True
) -> Callable:
    """Compile a function of (model, data, ...) once per structure; check the arguments before.

    ``holds`` tells where it holds the parameter of interest: names of arguments, or numbers; and
    ``tests`` whether it compares that with a fit in which it is free.
    """
    if function is None:
        return partial(_compiled, holds=holds, tests=tests)
    form = signature(function)
    jitted = jax.jit(function, static_argnames={"test_statistic", "hold"} & set(form.parameters))

    @wraps(function)
    def checked(model, data, *args, **kwargs):
        model.check_data(data)
        if holds:
            given = form.bind(model, data, *args, **kwargs)
            given.apply_defaults()
            kind = given.arguments.get("test_statistic", function.__name__)
            within = _non_negative(model) if kind.endswith("tilde") else model
            _check_held(within, function.__name__, holds, given.arguments, tests)
        return jitted(model, jnp.asarray(data, dtype=float), *args, **kwargs)

    return checked


def _check_held(model, caller, holds, arguments, tests=True) -> None:
    """Raise ``ValueError`` where a signal strength that is to be held is out of bounds, or where
    one that is to be tested is not free."""
    for held in holds:
        if isinstance(held, str):
            boxes.check(model, model.poi_index, held, arguments[held])
        else:
            boxes.check(model, model.poi_index, f"the signal strength for {caller}", held)
    if tests:
        boxes.check_free(model, model.poi_index, "test it")


@_compiled
def best_fit(
    model: Model,
    data: Float[Numbers, "data"],
    *,
    tolerance: Float[Numbers, ""] | float = 1e-10,
    max_iterations: Int[Numbers, ""] | int = 500,
) -> Fit:
    """Maximum-likelihood fit of all parameters; ``value`` is the deviance.

    ``tolerance`` and ``max_iterations`` are those of :func:`nablab.infer.fits.minimize`.
    """
    return _fits(model, data, None, tolerance=tolerance, max_iterations=max_iterations)[0]


@_compiled(holds=("poi",), tests=False)
def fixed_poi_fit(
    model: Model, data: Float[Numbers, "data"], poi: Float[Numbers, ""] | float
) -> Fit:
    """Maximum-likelihood fit with the parameter of interest held at ``poi``, within its bounds."""
    return _tested(model, data, poi)[0]


def _fits(model, data, *pois, near=None, anywhere=True, **settings) -> list[Fit]:
    """Fits to the same data, side by side: for each value of the poi, or None where it is free.

    They start at the starting values of the model, or at the parameters ``near``, and look for
    lower minima from where they end; fits of a large model, which take long, only do so if
    ``anywhere`` (which may be traced). ``settings`` are those of :func:`minimize`.
    """
    fitted, bins = plan(model.structure).shared, model.structure.main_bins
    poi_index = model.structure.poi_index  # None where the model has none
    start = model.init if near is None else near
    inits = [start if poi is None else start.at[model.poi_index].set(poi) for poi in pois]
    fixed = [
        model.fixed if poi is None else model.fixed.at[model.poi_index].set(True) for poi in pois
    ]
    if len(pois) == 1:
        inits, fixed = inits[0], fixed[0]
        if pois != (None,):  # one parameter less
            fitted, start = fitted[fitted != model.poi_index], inits
    else:
        inits, fixed = jnp.stack(inits), jnp.stack(fixed)

    def function(x, model, data, start):
        return profiling.deviance(model, data, put(start, fitted, x))

    def expansion(x, model, data, start, curved=1.0):
        return profiling.expansion(model, data, put(start, fitted, x), fitted, curved=curved)

    alphas = np.isin(fitted, model.structure.interpolated)
    poi = np.isin(fitted, [] if poi_index is None else poi_index)
    x = inits[..., fitted]
    along, starts = np.flatnonzero(alphas), None
    if _is_small(model) and len(fitted) > 1 and alphas.any():
        # Two minima need not be on a line along one parameter: one on each side, half a standard
        # deviation apart, or one with signal and one without.
        moves = [(1.0, 1.0), (-1.0, 1.0), (0.5, 0.0), (-0.5, 0.0)]  # of alphas; a factor for poi
        starts = [x * np.where(poi, factor, 1.0) + move * alphas for move, factor in moves]
        along, starts = (), jnp.stack(starts)

    result = minimize(
        function,
        x,
        model.lower[fitted],
        model.upper[fitted],
        fixed[..., fitted],
        starts,
        along=along,
        look=anywhere | _is_small(model),
        args=(model, data, start),
        expansion=expansion,
        **settings,
    )

    def completed(init, fixed, result):
        best = put(init, fitted, result.parameters)
        best = profiling.complete(model, data, best)
        at_bound = (best <= model.lower) | (best >= model.upper)
        at_bound = put(at_bound, fitted, result.certificate.at_bound) & ~fixed
        # Data in a bin where none are expected have no likelihood. One signal strength may make
        # them impossible, which is a result; where all do, something is wrong.
        impossible = (data[:bins] > 0) & (model.expected_main(best) <= SMALLEST_RATE)
        held = jnp.zeros((), bool) if poi_index is None else fixed[poi_index]
        nothing_fits = impossible.any() & ~held
        status = jnp.where(nothing_fits, Status.NOT_FINITE, result.certificate.status)
        flattest = put(jnp.zeros(best.shape), fitted, result.certificate.flattest)
        certificate = replace(
            result.certificate, at_bound=at_bound, status=status, flattest=flattest
        )
        return Fit(best, result.value, certificate)

    if len(pois) == 1:
        return [completed(inits, fixed, result)]
    results = jax.vmap(completed)(inits, fixed, result)
    return [jax.tree.map(lambda field, k=k: field[k], results) for k in range(len(pois))]


def _each(model, function, arguments):
    """``function``, which makes a fit, of each of the arguments: side by side where the model is
    small; otherwise in turn, as all would wait for the slowest."""
    return jax.vmap(function)(arguments) if _is_small(model) else jax.lax.map(function, arguments)


def _is_small(model):
    return len(plan(model.structure).shared) <= SIDE_BY_SIDE


def _tested(model, data, *pois, near=None, **settings) -> list[Fit]:
    """:func:`_fits`, refused where they hold a value outside of the bounds, or where one that
    should be free is not: a test of a fixed parameter against itself finds nothing."""
    fits = _fits(model, data, *pois, near=near, **settings)
    not_free = model.fixed[model.poi_index] & (None in pois)
    return [
        refused(fit, not_free | (False if poi is None else outside(model, model.poi_index, poi)))
        for fit, poi in zip(fits, pois, strict=True)
    ]


@_compiled(holds=(0.0,))
def q0(model: Model, data: Float[Numbers, "data"]) -> TestStatistic:
    """Discovery: evidence against the absence of signal; 0 for a deficit (eq. 12)."""
    best, fixed = _tested(model, data, None, 0.0)
    return _statistic(model, data, best, fixed, best.parameters[model.poi_index] > 0.0)


@_compiled(holds=("mu",))
def qmu(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """Upper limit: evidence against signal strength ``mu``; 0 for an excess over it (eq. 14).

    With the bound of 0 on the parameter of interest, pyhf's default, this is also the value of
    q-mu-tilde (eq. 16); the two differ in their asymptotic distributions, see :func:`cls`.
    """
    best, fixed = _tested(model, data, None, mu)
    return _statistic(model, data, best, fixed, best.parameters[model.poi_index] < mu)


@_compiled(holds=("mu",))
def qmu_tilde(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """:func:`qmu` with the best fit restricted to signal strengths of at least 0 (eq. 16)."""
    return qmu(_non_negative(model), data, mu)


@_compiled(holds=("mu",))
def tmu(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """Two-sided: evidence against signal strength ``mu``, from either side (eq. 8)."""
    best, fixed = _tested(model, data, None, mu)
    return _statistic(model, data, best, fixed, True)


@_compiled(holds=("mu",))
def tmu_tilde(
    model: Model, data: Float[Numbers, "data"], mu: Float[Numbers, ""] | float
) -> TestStatistic:
    """:func:`tmu` with the best fit restricted to signal strengths of at least 0 (eq. 11)."""
    return tmu(_non_negative(model), data, mu)


def _non_negative(model: Model) -> Model:
    lower = model.lower.at[model.poi_index].max(0.0)
    return replace(model, lower=lower)


def _statistic(model, data, best, fixed, counts_as_evidence) -> TestStatistic:
    difference = jnp.maximum(fixed.value - best.value, 0.0)
    # A likelihood that is NaN must not pass for no evidence.
    counts_as_evidence |= jnp.isnan(difference)
    value = jnp.where(counts_as_evidence, difference, 0.0)
    impossible, fixed = _impossible(model, data, fixed)
    unlikely_at_best = data[: model.structure.main_bins] > 0
    unlikely_at_best &= model.expected_main(best.parameters) <= SMALLEST_RATE
    certain = (impossible & ~unlikely_at_best).any() & counts_as_evidence
    return TestStatistic(jnp.where(certain, jnp.inf, value), best, fixed)


def _impossible(model, data, fixed):
    """Bins with events where nothing is expected; and the fit, failed where its value is none of
    the likelihood's but that of the constant below which we follow it no further."""
    expected, seen = model.expected_main(fixed.parameters), data[: model.structure.main_bins] > 0
    unknown = (seen & (expected > 0) & (expected < SMALLEST_RATE)).any()
    status = jnp.where(unknown, Status.NOT_FINITE, fixed.certificate.status)
    certificate = replace(fixed.certificate, status=status)
    return seen & (expected <= 0), replace(fixed, certificate=certificate)


@_compiled(holds=("mu", 0.0))
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
        tolerance, max_iterations: of the fits, see :func:`nablab.infer.fits.minimize`.

    Returns:
        The values of ``pyhf.infer.hypotest(mu, data, model, return_expected_set=True)``. Where
        ``mu`` or 0 is traced and outside of the bounds of the model, NaN and the status
        OUTSIDE_BOUNDS.

    Raises:
        ValueError: ``mu`` or 0 is outside of the bounds that the best fit keeps, unknown test
            statistic, or data that do not fit the model.
    """
    model = _for_statistic(model, test_statistic)
    settings = {"tolerance": tolerance, "max_iterations": max_iterations}
    best, fixed, background = _tested(model, data, None, mu, 0.0, **settings)
    observed = _statistic(model, data, best, fixed, best.parameters[model.poi_index] < mu)
    root_asimov, asimov_fit = _root_asimov(model, background.parameters, mu, hold, **settings)
    certain = jnp.isinf(observed.value)  # data that mu makes impossible exclude it beyond doubt
    root = _root(jnp.where(certain, 0.0, observed.value))
    value = jnp.exp(_log_cls(_distance(root, root_asimov, test_statistic), root_asimov))
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
    _check_held(model, "expected_cls", ("mu", 0.0), {"mu": mu})
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
    _check_held(model, "asimov_data", ("mu",), {"mu": mu}, tests=False)
    if data is None:
        return _asimov(model, _before_data(model, mu), hold)
    return _asimov(model, fixed_poi_fit(model, data, mu).parameters, hold)


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
    impossible, fit = _impossible(model, data, _tested(model, data, mu, near=truth)[0])
    return _root(jnp.where(impossible.any(), jnp.inf, fit.value)), fit


def _for_statistic(model: Model, test_statistic: str) -> Model:
    """The model with the bound that the test statistic asks for."""
    if test_statistic not in ("q", "qtilde"):
        raise ValueError(f"test_statistic is {test_statistic!r}: choose 'q' or 'qtilde'")
    return _non_negative(model) if test_statistic == "qtilde" else model


def _distance(root, root_asimov, test_statistic):
    """Distance of the data from the background-only median, in standard deviations.

    Beyond the Asimov value q-mu-tilde has another distribution (eq. 65).
    """
    distance = root - root_asimov
    if test_statistic == "q":
        return distance
    far = (root > root_asimov) & (root_asimov > 0)
    beyond = (root**2 - root_asimov**2) / (2.0 * jnp.where(far, root_asimov, 1.0))
    return jnp.where(far, beyond, distance)


def _log_cls(distance, root_asimov):
    """Logarithm of CLs: far beyond the median both tails are zero in double precision."""
    return norm.logsf(distance + root_asimov) - norm.logsf(distance)


def _cls(distance, root_asimov):
    """CLs+b / CLb at a distance from the background-only median, in standard deviations."""
    return norm.sf(distance + root_asimov) / norm.sf(distance)


def _root(q):
    """Square root whose derivative at 0 is 0: one-sided, as q only grows from there. NaN stays."""
    zero = q <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, q)))


@_compiled(holds=(0.0, 1.0))
def p0(model: Model, data: Float[Numbers, "data"]) -> PValues:
    """Discovery p-value, and its expected band for signal strength 1 profiled on ``data``.

    Returns:
        The values of ``pyhf.infer.hypotest(0, data, model, test_stat="q0",
        return_expected_set=True)``. Exactly 0 for events in a bin where no background is expected.

    Raises:
        ValueError: 0 or 1 is outside of the bounds of the model, or data that do not fit it.
    """
    best, fixed, signal = _tested(model, data, None, 0.0, 1.0)
    observed = _statistic(model, data, best, fixed, best.parameters[model.poi_index] > 0.0)
    root_asimov, asimov_fit = _root_asimov(model, signal.parameters, 0.0)
    fits = best, observed.fixed_fit, signal, asimov_fit
    certificates = tuple(fit.certificate for fit in fits)
    return PValues(norm.sf(_root(observed.value)), norm.sf(BAND + root_asimov), certificates)


def expected_p0(
    model: Model, mu: Float[Numbers, ""] | float = 1.0, *, hold: str | None = None
) -> PValues:
    """Expected discovery p-value and its band for signal strength ``mu``, before any data.

    ``hold`` says where the gradient stops in the Asimov data, see :func:`asimov_data`.

    Raises:
        ValueError: ``mu`` or 0 is outside of the bounds of the model, or unknown ``hold``.
    """
    _check_held(model, "expected_p0", ("mu", 0.0), {"mu": mu})
    return _expected_p0(model, mu, hold)


@partial(jax.jit, static_argnames="hold")
def _expected_p0(model, mu, hold):
    root_asimov, fit = _root_asimov(model, _before_data(model, mu), 0.0, hold)
    return PValues(jnp.full((), jnp.nan), norm.sf(BAND + root_asimov), (fit.certificate,))
