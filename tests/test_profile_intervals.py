"""Profile-likelihood intervals against closed forms, scans and differences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from nablab.infer import diagnostics, mle
from nablab.infer.profile_intervals import EndStatus, profile_interval
from nablab.model.histfactory import from_spec

# Either sign of the parameter adds background where the signal is: the likelihood is no parabola.
FOLDED = {
    "signal": [12.0, 6.0],
    "background": [4.0, 60.0],
    "down": [16.0, 48.0],
    "up": [13.0, 51.0],
}


def folded(numbers):
    return from_spec(models.histosys(**numbers))


def brute_force(model, data, parameter, height, side):
    """The end of an interval by a root finder around conditional fits."""
    best = mle.best_fit(model, data).require()
    index = model.index(parameter)

    def excess(value):
        held = mle.best_fit(model, data, held={parameter: value}).require()
        return float(held.value - best.value) - height

    start = float(best.parameters[index])
    stop = start
    while excess(stop) < 0:
        stop += side * 0.5
    return scipy.optimize.brentq(excess, start, stop, xtol=1e-12)


@pytest.mark.parametrize(("observed", "confidence"), [(10.0, 0.6826894921370859), (4.0, 0.95)])
def test_counting_experiment(observed, confidence):
    """2 (s + b - n + n log(n / (s + b))) is the quantile of chi-squared at both ends."""
    spec = {"channels": [models.channel("c", signal=([1.0], [models.MU]), other=([3.0], []))]}
    spec["parameters"] = [{"name": "mu", "bounds": [[-2.9, 50.0]]}]
    model, height = from_spec(spec), scipy.stats.chi2.ppf(confidence, 1)

    def excess(rate):
        return 2 * (rate - observed + observed * np.log(observed / rate)) - height

    low = scipy.optimize.brentq(excess, 1e-3, observed, xtol=1e-13) - 3.0
    high = scipy.optimize.brentq(excess, observed, 100.0, xtol=1e-13) - 3.0
    found = profile_interval(model, jnp.array([observed]), confidence=confidence).require()
    np.testing.assert_allclose([found.lower, found.upper], [low, high], rtol=1e-9)
    np.testing.assert_allclose(found.errors, [low + 3 - observed, high + 3 - observed], rtol=1e-8)
    assert found.best == pytest.approx(observed - 3.0)


@pytest.mark.parametrize("parameter", ["mu", "shape"])
def test_asymmetric_interval_of_any_parameter(parameter):
    model = folded(FOLDED)
    data = model.expected_data(model.parameters(1.0))
    found = profile_interval(model, data, parameter).require()
    ends = [brute_force(model, data, parameter, 1.0, side) for side in (-1, 1)]
    np.testing.assert_allclose([found.lower, found.upper], ends, rtol=1e-7)
    if parameter == "mu":  # the slopes at the best fit know nothing of it
        fisher = float(diagnostics.poi_uncertainty(model))
        assert found.errors[1] == pytest.approx(fisher, rel=0.1)
        assert -found.errors[0] > 1.25 * fisher


def test_parabola_has_the_interval_of_its_curvature():
    """Many events and a straight dependence: one and two standard deviations."""
    model = from_spec(models.shapesys([1e6], [1e8], [2e4]))
    data = model.expected_data(model.parameters(1.0))
    sigma = float(diagnostics.poi_uncertainty(model))
    for level, sigmas in ((0.6826894921370859, 1.0), (0.9544997361036416, 2.0)):
        errors = profile_interval(model, data, confidence=level).require().errors
        np.testing.assert_allclose(errors, [-sigmas * sigma, sigmas * sigma], rtol=2e-2)


def test_derivatives_in_all_yields():
    def ends(yields):
        model = folded(yields)
        data = jnp.array([17.0, 64.0, 0.1])
        found = profile_interval(model, data)
        return jnp.array([found.best, found.lower, found.upper]), found

    yields = {name: jnp.array(numbers) for name, numbers in FOLDED.items()}
    reverse, found = jax.jacrev(ends, has_aux=True)(yields)
    forward = jax.jacfwd(lambda yields: ends(yields)[0])(yields)
    assert found.converged
    for name in yields:
        np.testing.assert_allclose(reverse[name], forward[name], rtol=1e-9)
        for place in range(2):
            step = 1e-4
            up, down = (
                ends(yields | {name: yields[name].at[place].add(sign * step)})[0]
                for sign in (1, -1)
            )
            difference = (up - down) / (2 * step)
            np.testing.assert_allclose(reverse[name][:, place], difference, rtol=1e-5, atol=1e-9)


def test_interval_ends_at_a_bound():
    """A deficit: the best fit is the lower bound, and so is the lower end."""
    model = from_spec(models.shapesys([10.0, 5.0], [50.0, 50.0], [3.0, 3.0]))
    data = jnp.concatenate([jnp.array([42.0, 45.0]), model.auxdata])

    def ends(upper):
        found = profile_interval(replace(model, upper=model.upper.at[0].set(upper)), data)
        return jnp.array([found.lower, found.upper]), found

    slopes, found = jax.jacrev(ends, has_aux=True)(10.0)
    assert found.converged and found.lower == 0.0 and found.best < 1e-9
    assert found.status.tolist() == [EndStatus.AT_BOUND, EndStatus.FOUND]
    np.testing.assert_array_equal(slopes, [0.0, 0.0])
    slopes, found = jax.jacrev(ends, has_aux=True)(0.1)
    assert found.status.tolist() == [EndStatus.AT_BOUND, EndStatus.AT_BOUND]
    assert found.upper == 0.1
    np.testing.assert_array_equal(slopes, [0.0, 1.0])


def test_batch_of_data():
    model = folded(FOLDED)
    data = jnp.array([[16.0, 66.0, 0.0], [20.0, 61.0, 0.3], [9.0, 70.0, -0.2]])
    together = jax.vmap(lambda data: profile_interval(model, data))(data).require()
    for place, one in enumerate(data):
        alone = profile_interval(model, one)
        np.testing.assert_allclose(together.errors[place], alone.errors, rtol=1e-8)


def test_bad_input():
    model = folded(FOLDED)
    data = model.expected_data(model.parameters(1.0))
    with pytest.raises(ValueError, match="parameter is 'mass'"):
        profile_interval(model, data, "mass")
    with pytest.raises(ValueError, match="confidence"):
        profile_interval(model, data, confidence=68.0)
    with pytest.raises(ValueError, match="holds 'mu' fixed"):
        profile_interval(
            replace(model, fixed=model.fixed.at[model.poi_index].set(True)), data, "mu"
        )
    with pytest.raises(ValueError, match="data has shape"):
        profile_interval(model, data[:2])


def test_failed_search_is_not_an_interval():
    """Data that the model makes impossible: NaN, and a reason."""
    spec = {"channels": [models.channel("c", signal=([0.0], [models.MU]), other=([0.0], []))]}
    found = profile_interval(from_spec(spec), jnp.array([3.0]))
    assert not found.converged
    with pytest.raises(RuntimeError, match=r"fit failed|not found"):
        found.require()
