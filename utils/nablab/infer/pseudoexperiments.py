"""Pseudo-experiments ("toys"): data that a model could have given, each fitted like the data.

Toys are thrown and fitted in small chunks by one compiled step, driven by a Python loop that shows
its progress, and that can be interrupted: the toys done so far are kept. So these functions do not
work under ``jit``, ``grad`` or ``vmap``, except for :func:`sample` and :func:`p_value`.
"""

import warnings
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from nablab import checks, memory
from nablab.checks import Numbers
from nablab.infer import bounds
from nablab.infer.certificates import MEANING, Status, refuse
from nablab.infer.test_statistics import TestStatistic
from nablab.model.histfactory import Model
from nablab.pytrees import pytree

# Toys fitted side by side, measured on 2 cores: with 1 to 5 bins more than this gains little, with
# 20 bins it costs, where the fits no longer stay in the cache and all wait for the slowest.
CHUNK = 128
# Equal data have equal test statistics, up to rounding: with few events many toys equal the data.
TIE = 1e-8


@pytree
class Toys:
    """A test statistic in toys.

    Attributes:
        values: the test statistic; NaN where a fit failed.
        statuses: the worse :class:`~nablab.infer.minimizer.Status` of the fits behind each value.
    """

    values: Float[Array, "*hypotheses toys"]
    statuses: Int[Array, "*hypotheses toys"]

    @property
    def failed(self) -> Int[Array, "*hypotheses"]:
        """How many toys have no value, because a fit failed."""
        return jnp.sum(self.statuses != Status.CONVERGED, axis=-1)

    @property
    def converged(self) -> Bool[Array, "*hypotheses"]:
        """Whether the fits of every toy found a minimum."""
        return self.failed == 0

    def require(self) -> "Toys":
        """Raise ``RuntimeError`` if a fit failed; return the toys otherwise."""
        failed = self.statuses != Status.CONVERGED
        refuse(failed, lambda toy: f"fit failed: {MEANING[Status(int(self.statuses[toy]))]}")
        return self


@partial(jax.jit, static_argnames="toys")
def sample(
    model: Model, parameters: Float[Numbers, "parameters"], *, key: PRNGKeyArray, toys: int
) -> Float[Array, "toys data"]:
    """Data that the model could have given, main and auxiliary, in pyhf's order.

    The distribution is that of ``pyhf.Model.make_pdf(parameters).sample((toys,))``: Poisson main
    counts, Poisson or normal auxiliary measurements, all independent. Toy ``i`` depends on ``key``
    and ``i`` only. Not differentiable: counts jump.
    """
    return jax.vmap(lambda toy: _toy(model, parameters, key, toy))(jnp.arange(toys))


def _toy(model, parameters, key, toy):
    """Data of one toy."""
    counts_key, normal_key = jax.random.split(jax.random.fold_in(key, toy))
    counts = jax.random.poisson(counts_key, model.poisson_rates(parameters)).astype(float)
    fluctuation = model.normal_width * jax.random.normal(normal_key, model.normal_width.shape)
    return model.joined(counts, parameters[model.structure.at.normal_parameter] + fluctuation)


def distribution(
    test_statistic: Callable[..., TestStatistic],
    model: Model,
    parameters: Float[Numbers, "parameters"],
    *,
    key: PRNGKeyArray,
    toys: int = 10_000,
    mu: Float[Numbers, ""] | float | None = None,
    progress: bool = True,
) -> Toys:
    """Distribution of a test statistic: each toy is fitted with the poi free and with it fixed.

    Args:
        test_statistic: ``q0``, ``qmu``, ``qmu_tilde``, ..., or any function of
            ``(model, data)`` or ``(model, data, mu)`` with a ``TestStatistic`` as result.
        model: the likelihood.
        parameters: the truth behind the toys.
        key: random key.
        toys: how many.
        mu: what the test statistic tests, which need not be the truth; absent for ``q0``.
        progress: show a progress bar.

    Returns:
        The toys, those done so far if interrupted. A warning says how many fits failed.

    Raises:
        ValueError: ``parameters`` are of the wrong length, not finite, or give a negative rate; or
            ``mu`` is outside of the bounds of the model.
    """
    if mu is not None:
        bounds.check(model, model.poi_index, "mu", mu)
    mus = None if mu is None else np.array([mu], dtype=float)
    parameters = jnp.asarray(parameters, dtype=float)[None]
    thrown = throw(test_statistic, model, parameters, mus, key[None], toys, progress)
    return jax.tree.map(lambda field: field[0], thrown)


def throw(test_statistic, model, parameters, mus, keys, toys, progress) -> Toys:
    """Toys of several hypotheses: one row of ``parameters``, ``mus`` and ``keys`` for each.

    With equal keys the hypotheses share their random numbers.
    """
    check_truth(model, parameters, toys)
    hypotheses = parameters.shape[0]
    values, statuses, done = [], [], 0
    from tqdm.auto import tqdm

    with tqdm(total=toys, unit="toy", disable=not progress, leave=False) as bar:
        try:
            # Hypotheses take turns, so that an interruption leaves them all with the same toys.
            for first in range(0, hypotheses * toys, CHUNK):
                numbers = first + np.arange(CHUNK)  # the last chunk overshoots: one compilation
                data = _throw_chunk(model, parameters, keys, numbers)
                chunk_mus = None if mus is None else mus[numbers % hypotheses]
                chunk = _fit_chunk(test_statistic, model, data, chunk_mus)
                values.append(np.asarray(chunk[0]))
                statuses.append(np.asarray(chunk[1]))
                bar.update(min((first + CHUNK) // hypotheses, toys) - done)
                done = min((first + CHUNK) // hypotheses, toys)
        except KeyboardInterrupt:
            if not done:
                raise
            warnings.warn(f"interrupted: {done} of {toys} toys are done, and kept", stacklevel=3)

    def by_hypothesis(chunks):
        return jnp.asarray(np.concatenate(chunks)[: hypotheses * done].reshape(done, -1).T)

    thrown = Toys(by_hypothesis(values), by_hypothesis(statuses))
    failed = int(thrown.failed.sum())
    if failed:
        message = f"{failed} of {hypotheses * done} toys have a failed fit: their value is NaN"
        warnings.warn(message, stacklevel=3)
    return thrown


def check_truth(
    model: Model, parameters: Float[Numbers, "hypotheses parameters"], toys: int
) -> None:
    """Raise ``ValueError`` unless toys can be thrown: their number, and the truth behind them."""
    if toys < 1:
        raise ValueError(f"toys is {toys}: it must be at least 1")
    if parameters.shape[1:] != model.init.shape:
        raise ValueError(
            f"parameters has shape {parameters.shape[1:]}, but the model has "
            f"{model.init.shape[0]} parameters"
        )
    checks.finite("parameters", parameters)
    checks.positive("expected counts", _rates(model, parameters), allow_zero=True)


@jax.jit
def _rates(model, parameters):
    return jax.vmap(model.poisson_rates)(parameters)


@jax.jit
def _throw_chunk(model, parameters, keys, numbers):
    """Data of some toys: hypotheses take turns."""
    hypotheses = parameters.shape[0]

    def one(number):
        hypothesis, toy = number % hypotheses, number // hypotheses
        return _toy(model, parameters[hypothesis], keys[hypothesis], toy)

    return jax.vmap(one)(numbers)


def evaluate(
    test_statistic: Callable[..., TestStatistic],
    model: Model,
    data: Float[Numbers, "toys data"],
    mu: Float[Numbers, ""] | float,
) -> Float[np.ndarray, "done"]:
    """A test statistic of ``mu`` in toys that are already thrown; NaN where a fit failed.

    Interrupted, it warns and returns the values of the first toys, those that are done.
    """
    data, mus = np.asarray(data), np.full(CHUNK, mu, dtype=float)
    # The last chunk is filled up with copies of the last toy: one compilation.
    rows = np.minimum(np.arange(-(-len(data) // CHUNK) * CHUNK), len(data) - 1)
    values = []
    try:
        for some in rows.reshape(-1, CHUNK):
            values.append(np.asarray(_fit_chunk(test_statistic, model, data[some], mus)[0]))
    except KeyboardInterrupt:
        if not values:
            raise
        done = CHUNK * len(values)
        warnings.warn(f"interrupted: {done} of {len(data)} toys are done, and kept", stacklevel=3)
    return np.concatenate(values)[: len(data)]


def _fit_chunk(test_statistic, model, data, mus):
    """Test statistics of some toys, and the worse status of the fits behind each."""
    return memory.compiled(_fitting, (test_statistic,))(model, data, mus)


def _fitting(test_statistic):
    def fit_chunk(model, data, mus):
        def one(data, *mu):
            result = test_statistic()(model, data, *mu)
            fits = (result.best_fit, result.fixed_fit)
            status = jnp.maximum(*(fit.certificate.status for fit in fits))
            return jnp.where(status == Status.CONVERGED, result.value, jnp.nan), status

        return jax.vmap(one)(data, *(() if mus is None else (mus,)))

    return fit_chunk


@jax.jit
def p_value(
    values: Float[Numbers, "toys"], observed: Float[Numbers, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fraction of toys at least as extreme as the data, and its Monte Carlo error.

    Values that are NaN (failed fits) are left out. The error is binomial, as the standard deviation
    of Beta(k + 1, n - k + 1) for k of n toys: it is not 0 where no toy is as extreme.
    """
    good = jnp.sum(~jnp.isnan(values))
    p = tail(values, observed)
    above = p * good
    variance = (above + 1) * (good - above + 1) / ((good + 2) ** 2 * (good + 3.0))
    return p, jnp.sqrt(variance)


def tail(values, at):
    """Fraction of the values (NaN left out) that are at least ``at``."""
    good = jnp.sum(~jnp.isnan(values))
    below = jnp.searchsorted(jnp.sort(values), at - TIE)  # NaN is sorted to the end
    return jnp.where(jnp.isnan(at), jnp.nan, (good - below) / good)
