"""Toys against pyhf's, and p-values from toys against exact Poisson probabilities."""

import gc
import weakref

import interruption
import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
from scipy.stats import poisson

from nablab.infer import hypotests, pseudoexperiments, test_statistics, toy_hypotests
from nablab.infer.certificates import Fit, Status
from nablab.model.histfactory import from_spec

KEY = jax.random.key(3)
SIGNAL, BACKGROUND = 5.0, 10.0
COUNTING = {"channels": [models.channel("c", s=([SIGNAL], [models.MU]), b=([BACKGROUND], []))]}
SPEC = models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])


@pytest.fixture(scope="module", autouse=True)
def tight_fits():
    """Drive pyhf's fits to convergence (set once: each change recomputes every live model)."""
    pyhf.set_backend("numpy", pyhf.optimize.scipy_optimizer(tolerance=1e-13, maxiter=10_000))
    yield
    pyhf.set_backend("numpy")


@pytest.fixture(scope="module")
def model():
    return from_spec(SPEC)


@pytest.fixture(scope="module")
def toys(model):
    """200 toys of one model, which several tests look at."""
    return pseudoexperiments.distribution(
        test_statistics.qmu_tilde,
        model,
        model.parameters(0.5),
        key=KEY,
        toys=200,
        mu=1.0,
        progress=False,
    )


def test_sampled_data_have_the_moments_of_those_of_pyhf():
    """All modifiers, away from the nominal parameters; main and both kinds of auxiliary data."""
    spec, number = models.everything(), 20_000
    model, reference = from_spec(spec), pyhf.Model(spec)
    shift = np.random.default_rng(0).uniform(0.7, 1.3, model.init.shape)
    parameters = np.where(model.init == 0.0, shift - 1.0, model.init * shift)
    ours = pseudoexperiments.sample(model, parameters, key=KEY, toys=number)
    np.random.seed(1)  # noqa: NPY002 - pyhf's numpy backend samples with the legacy generator
    theirs = reference.make_pdf(parameters).sample((number,))
    assert ours.shape == theirs.shape
    mean, variance = theirs.mean(axis=0), theirs.var(axis=0)
    np.testing.assert_array_less(abs(ours.mean(axis=0) - mean), 5 * np.sqrt(2 * variance / number))
    fourth = ((theirs - mean) ** 4).mean(axis=0)
    error = np.sqrt(2 * (fourth - variance**2) / number)
    np.testing.assert_array_less(abs(ours.var(axis=0) - variance), 5 * error)
    whole = (theirs == np.round(theirs)).all(axis=0)
    np.testing.assert_array_equal((ours == jnp.round(ours)).all(axis=0), whole)
    correlations = np.corrcoef(ours.T) - np.eye(ours.shape[1])
    assert abs(correlations).max() < 5 / np.sqrt(number)


def test_toys_depend_on_key_and_number_only(model):
    many = pseudoexperiments.sample(model, model.init, key=KEY, toys=200)
    assert len(np.unique(many, axis=0)) > 190
    keys = jnp.stack([KEY, jax.random.key(4)])
    few = jax.vmap(lambda key: pseudoexperiments.sample(model, model.init, key=key, toys=4))(keys)
    np.testing.assert_array_equal(few[0], many[:4])
    assert not (few[1] == many[:4]).all(axis=1).any()


def test_each_toy_has_the_test_statistic_of_pyhf(model, toys):
    reference = pyhf.Model(SPEC)
    settings = reference.config.suggested_init(), reference.config.suggested_bounds()
    across = slice(122, 134)  # the end of one chunk, and the beginning of the next
    data = pseudoexperiments.sample(model, model.parameters(0.5), key=KEY, toys=200)[across]
    theirs = [
        pyhf.infer.test_statistics.qmu_tilde(1.0, d.tolist(), reference, *settings, [False] * 3)
        for d in data
    ]
    assert np.count_nonzero(theirs) > 3
    np.testing.assert_allclose(toys.values[across], theirs, rtol=1e-5, atol=1e-6)
    assert toys.values.shape == (200,) and int(toys.failed) == 0


@pytest.mark.parametrize("n", [4, 6, 11])
def test_cls_of_a_counting_experiment_is_exact(n):
    """Most toys have the counts of the data here, so that rounding errors must not part them."""
    model, number = from_spec(COUNTING), 20_000
    result = toy_hypotests.cls(
        model, jnp.array([n * 1.0]), key=KEY, mu=1.0, toys=number, progress=False
    )
    background = poisson.cdf(n, BACKGROUND)
    exact = poisson.cdf(n, SIGNAL + BACKGROUND) / background
    assert abs(result.observed - exact) < 4 * result.error
    # Both tails fluctuate, independently.
    tails = np.array([poisson.cdf(n, SIGNAL + BACKGROUND), background])
    relative = np.sqrt((1 - tails) / (tails * number))
    # An error from toys fluctuates by half as much as the number itself; four times that.
    error = np.hypot(*relative)
    assert result.error == pytest.approx(exact * error, rel=0.02 + 2 * error)
    # The band: CLs falls with the counts, whose quantiles are known.
    quantiles = poisson.ppf([0.0228, 0.1587, 0.5, 0.8413, 0.9772], BACKGROUND)
    band = poisson.cdf(quantiles, SIGNAL + BACKGROUND) / poisson.cdf(quantiles, BACKGROUND)
    band = np.where(quantiles < SIGNAL + BACKGROUND, band, 1.0)  # an excess: no evidence, q = 0
    np.testing.assert_allclose(result.expected, band, atol=0.02)
    assert result.median == result.expected[2]
    assert result.require() is result


@pytest.mark.parametrize("n", [10, 14, 17])
def test_p0_of_a_counting_experiment_is_exact(n):
    model, number = from_spec(COUNTING), 20_000
    result = toy_hypotests.p0(model, jnp.array([n * 1.0]), key=KEY, toys=number, progress=False)
    # Without an excess q0 is 0, and no toy is less extreme.
    exact = poisson.sf(n - 1, BACKGROUND) if n > BACKGROUND else 1.0
    assert abs(result.observed - exact) < 4 * result.error
    quantiles = poisson.ppf([0.9772, 0.8413, 0.5, 0.1587, 0.0228], SIGNAL + BACKGROUND)
    band = np.where(quantiles > BACKGROUND, poisson.sf(quantiles - 1, BACKGROUND), 1.0)
    np.testing.assert_allclose(result.expected, band, atol=0.02)


def test_p_values_and_band_are_those_of_pyhf_for_the_same_toys(model, monkeypatch):
    def percentile(tensorlib, values, q, axis=None, interpolation="linear"):
        return np.percentile(values, q, axis=axis, method=interpolation)

    # pyhf 0.7.6 calls NumPy's by an argument that NumPy 2.4 no longer has.
    monkeypatch.setattr(type(pyhf.tensorlib), "percentile", percentile)
    data = jnp.concatenate([jnp.array([51.0, 48.0]), model.auxdata])
    result = toy_hypotests.cls(model, data, key=KEY, toys=300, progress=False)
    calculator = pyhf.infer.calculators.ToyCalculator(data.tolist(), pyhf.Model(SPEC))
    distributions = [
        pyhf.infer.calculators.EmpiricalDistribution(np.asarray(toys.values))
        for toys in (result.tested, result.alternative)
    ]
    observed = float(test_statistics.qmu_tilde(model, data, 1.0).value)
    assert result.observed == pytest.approx(calculator.pvalues(observed, *distributions)[2])
    expected = calculator.expected_pvalues(*distributions)[2]
    np.testing.assert_allclose(result.expected, expected, rtol=1e-8)
    # Tested toys are thrown with signal, the others without, with the nuisances of the data.
    assert result.tested.values.mean() < result.alternative.values.mean()


def test_p_value_and_its_error():
    values = jnp.array([0.0, 0.0, 1.0, 2.0, jnp.nan])
    for observed, p in [(0.0, 1.0), (0.5, 0.5), (1.0, 0.5), (2.0, 0.25), (2.1, 0.0)]:
        assert pseudoexperiments.p_value(values, observed)[0] == p
    assert jnp.isnan(pseudoexperiments.p_value(values, jnp.nan)[0])
    # The error covers the truth of a binomial, also where no toy is as extreme.
    uniform = jax.random.uniform(KEY, (400, 1000))
    p, error = jax.vmap(pseudoexperiments.p_value, (0, None))(uniform, 0.9)
    assert jnp.std((p - 0.1) / error) == pytest.approx(1.0, abs=0.1)
    p, error = pseudoexperiments.p_value(uniform[0], 2.0)
    assert p == 0 and error == pytest.approx(1e-3, rel=0.01)


def one_in_ten_fails(model, data):
    """The count as a test statistic whose fit fails for 10, 20, 30, ... events."""
    poor = model.parameters(0.0)
    certificate = hypotests.Certificate(
        jnp.where(data[0] % 10 == 0, Status.NOT_FINITE, Status.CONVERGED),
        gradient_norm=jnp.zeros(()),
        smallest_eigenvalue=jnp.ones(()),
        flattest=poor,
        at_bound=poor < 0,
        iterations=jnp.zeros((), int),
        heights=jnp.zeros(1),
    )
    fit = Fit(poor, data[0], certificate)
    return test_statistics.TestStatistic(data[0], fit, fit)


def test_failed_fits_are_counted_and_reported(model):
    counts = pseudoexperiments.sample(model, model.init, key=KEY, toys=200)[:, 0]
    failed = int((counts % 10 == 0).sum())
    assert failed > 10
    with pytest.warns(UserWarning, match=f"{failed} of 200 toys have a failed fit"):
        toys = pseudoexperiments.distribution(
            one_in_ten_fails, model, model.init, key=KEY, toys=200, progress=False
        )
    assert toys.failed == failed
    np.testing.assert_array_equal(jnp.isnan(toys.values), counts % 10 == 0)
    number = jnp.array(0.0)
    result = toy_hypotests.ToyPValues(number, number, jnp.zeros(5), toys, toys, ())
    assert result.failed == 2 * failed
    with pytest.raises(RuntimeError, match=f"{2 * failed} toys have a failed fit"):
        result.require()


def test_an_interruption_keeps_the_toys_done(model, toys, monkeypatch):
    interruption.at_call(monkeypatch, pseudoexperiments, "_fit_chunk", 2)
    arguments = test_statistics.qmu_tilde, model, model.parameters(0.5)
    settings = {"key": KEY, "toys": 200, "mu": 1.0}
    with pytest.warns(UserWarning, match="interrupted: 128 of 200 toys"):
        kept = pseudoexperiments.distribution(*arguments, **settings, progress=False)
    np.testing.assert_array_equal(kept.values, toys.values[:128])
    interruption.at_call(monkeypatch, pseudoexperiments, "_fit_chunk", 1)  # nothing to keep
    with pytest.raises(KeyboardInterrupt):
        pseudoexperiments.distribution(*arguments, **settings, progress=False)


def test_a_statistic_is_not_kept_alive(model):
    def mine(model, data, mu):
        return test_statistics.qmu_tilde(model, data, mu)

    pseudoexperiments.evaluate(mine, model, model.expected_data(model.init)[None], 1.0)
    gone = weakref.ref(mine)
    del mine
    gc.collect()
    assert gone() is None


def test_progress_is_shown_and_can_be_silenced(model, capfd):
    arguments = test_statistics.qmu_tilde, model, model.parameters(0.5)
    settings = {"key": KEY, "toys": 100, "mu": 1.0}
    pseudoexperiments.distribution(*arguments, **settings, progress=False)
    assert capfd.readouterr().err == ""
    pseudoexperiments.distribution(*arguments, **settings)
    assert "/100" in capfd.readouterr().err


def test_the_compiled_step_calls_no_lapack(model):
    """Batched LAPACK calls have been seen to hang."""
    data = jnp.stack([model.expected_data(model.init)] * 2)
    step = jax.jit(
        lambda data: pseudoexperiments._fit_chunk(
            test_statistics.qmu_tilde, model, data, jnp.ones(2)
        )
    )
    text = step.lower(data).as_text()
    assert "while" in text and "lapack" not in text.lower()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toys": 0}, "toys is 0"),
        ({"parameters": jnp.ones(5)}, r"parameters has shape \(5,\), but the model has 3"),
        ({"parameters": jnp.array([1.0, jnp.nan, 1.0])}, r"parameters\[\(0, 1\)\] is nan"),
        ({"parameters": jnp.array([-90.0, 1.0, 1.0])}, "expected counts.* must be at least 0"),
    ],
)
def test_bad_input_is_named(model, change, message):
    arguments = {"parameters": model.init, "toys": 10, **change}
    with pytest.raises(ValueError, match=message):
        pseudoexperiments.distribution(
            test_statistics.q0, model, key=KEY, progress=False, **arguments
        )


def test_unknown_test_statistic_and_wrong_data(model):
    with pytest.raises(ValueError, match="test_statistic is 'q0': choose"):
        toy_hypotests.cls(model, model.expected_data(model.init), key=KEY, test_statistic="q0")
    with pytest.raises(ValueError, match="data has shape"):
        toy_hypotests.p0(model, jnp.ones(3), key=KEY)
