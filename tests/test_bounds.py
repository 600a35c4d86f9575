"""A tested value and the best fit live in the same box, or no number comes out as a result."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from nablab.infer import (
    hypotests,
    intervals,
    limits,
    mle,
    pseudoexperiments,
    test_statistics,
    toy_hypotests,
)
from nablab.infer.certificates import Status
from nablab.infer.limits import LimitStatus
from nablab.judge.calibration import coverage
from nablab.model.histfactory import from_spec

DATA = jnp.array([95.0])
KEY = jax.random.key(1)
QUICK = {"toys": 10, "progress": False}


def counting(low, high, fixed=None):
    """Signal 10 on background 50."""
    signal, background = ([10.0], [models.MU]), ([50.0], [])
    spec = {"channels": [models.channel("c", signal=signal, background=background)]}
    model = from_spec(spec)
    index = model.poi_index
    init = (low + high) / 2 if fixed is None else fixed
    return replace(
        model,
        lower=model.lower.at[index].set(low),
        upper=model.upper.at[index].set(high),
        init=model.init.at[index].set(init),
        fixed=model.fixed.at[index].set(fixed is not None),
    )


NARROW, HIGH, LOW = counting(0.0, 2.0), counting(0.5, 20.0), counting(0.0, 0.5)
OFF = counting(0.0, 10.0, fixed=0.0)


def test_cls_within_bounds_and_beyond():
    """With the best fit stopped at 2, this was 0.500."""
    value = hypotests.cls(counting(0.0, 20.0), DATA, 6.0).require().observed
    np.testing.assert_allclose(value, 0.071502, atol=1e-6)
    with pytest.raises(ValueError, match=r"mu is 6, outside of the bounds \[0, 2\] of 'mu'.*widen"):
        hypotests.cls(NARROW, DATA, 6.0)
    # The bounds themselves are within.
    assert hypotests.cls(NARROW, DATA, 2.0).converged


REFUSED = {
    "cls": (lambda: hypotests.cls(NARROW, DATA, 6.0), "mu is 6, outside"),
    "cls by q": (
        lambda: hypotests.cls(NARROW, DATA, -1.0, test_statistic="q"),
        "mu is -1, outside",
    ),
    "cls without 0": (lambda: hypotests.cls(HIGH, DATA, 6.0), "strength for cls is 0, outside"),
    "qmu": (lambda: test_statistics.qmu(NARROW, DATA, 6.0), "mu is 6, outside"),
    "qmu_tilde": (
        lambda: test_statistics.qmu_tilde(counting(-5.0, 5.0), DATA, -1.0),
        r"mu is -1, outside of the bounds \[0, 5\]",
    ),
    "tmu": (lambda: test_statistics.tmu(NARROW, DATA, 6.0), "mu is 6, outside"),
    "tmu_tilde": (lambda: test_statistics.tmu_tilde(NARROW, DATA, 6.0), "mu is 6, outside"),
    "q0": (lambda: test_statistics.q0(HIGH, DATA), "strength for q0 is 0, outside"),
    "p0": (lambda: hypotests.p0(HIGH, DATA), "strength for p0 is 0, outside"),
    "p0 without 1": (lambda: hypotests.p0(LOW, DATA), "strength for p0 is 1, outside"),
    "held": (
        lambda: mle.best_fit(NARROW, DATA, held={NARROW.poi_index: 6.0}),
        "held.*is 6, outside",
    ),
    "expected_cls": (lambda: hypotests.expected_cls(NARROW, 6.0), "mu is 6, outside"),
    "expected_p0": (lambda: hypotests.expected_p0(NARROW, 6.0), "mu is 6, outside"),
    "asimov_data": (lambda: hypotests.asimov_data(NARROW, 6.0), "mu is 6, outside"),
    "profile_scan": (
        lambda: mle.profile_scan(NARROW, DATA, jnp.array([1.0, 6.0])),
        r"values\[1\] is 6, outside of the bounds \[0, 2\] of 'mu'",
    ),
    "upper_limit": (lambda: limits.upper_limit(HIGH, DATA), "compared with is 0, outside"),
    "expected_upper_limit": (lambda: limits.expected_upper_limit(HIGH), "with is 0, outside"),
    "toy cls": (
        lambda: toy_hypotests.cls(NARROW, DATA, key=KEY, mu=6.0, **QUICK),
        "mu is 6, outside",
    ),
    "toy p0": (
        lambda: toy_hypotests.p0(LOW, DATA, key=KEY, **QUICK),
        "hypothesis is 1, outside",
    ),
    "toys": (
        lambda: pseudoexperiments.distribution(
            test_statistics.qmu, NARROW, NARROW.init, key=KEY, toys=10, mu=6.0, progress=False
        ),
        "mu is 6, outside",
    ),
    "feldman_cousins": (
        lambda: intervals.feldman_cousins(NARROW, DATA, np.array([0.0, 6.0]), key=KEY, **QUICK),
        r"grid\[1\] is 6, outside",
    ),
    "coverage": (lambda: coverage(NARROW, NARROW, key=KEY, toys=10, mu=6.0), "mu is 6, outside"),
    "fixed": (lambda: hypotests.cls(OFF, DATA, 1.0), "mu is 1, but the model holds 'mu' fixed at"),
    "limit of a fixed one": (lambda: limits.upper_limit(OFF, DATA), "holds 'mu' fixed: free it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_outside_is_refused(name):
    function, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        function()


def test_grids_are_refused_in_any_parameter():
    spec = models.histosys([5.0, 11.0], [50.0, 60.0], [47.0, 63.0], [54.0, 56.0])
    model, inside, beyond = from_spec(spec), jnp.array([0.5, 1.0]), jnp.array([1.0, 6.0])
    data = model.expected_data(model.init)
    with pytest.raises(ValueError, match=r"values\[1\]\[1\] is 6, .* \[-5, 5\] of 'shape'"):
        mle.profile_grid(model, data, (inside, beyond), ("mu", "shape"))
    found = jax.jit(lambda axis: mle.profile_grid(model, data, (inside, axis), ("mu", "shape")))(
        beyond
    )
    np.testing.assert_array_equal(jnp.isnan(found.difference), [[False, True]] * 2)
    assert not found.converged
    with pytest.raises(RuntimeError, match=r"2 of 4 failed; the first is \[0, 1\].*outside of the"):
        found.require()


def test_traced_values_outside_are_nan_and_have_a_status():
    """Under vmap the others are as if alone; under grad the status comes beside the value."""
    many = jax.vmap(lambda mu: hypotests.cls(NARROW, DATA, mu))(jnp.array([1.0, 6.0, 2.0, -1.0]))
    np.testing.assert_array_equal(many.converged, [True, False, True, False])
    np.testing.assert_array_equal(jnp.isnan(many.observed), ~many.converged)
    np.testing.assert_array_equal(jnp.isnan(many.expected[:, 2]), ~many.converged)
    alone = hypotests.cls(NARROW, DATA, 1.0)
    np.testing.assert_allclose(many.observed[0], alone.observed, rtol=1e-12)
    with pytest.raises(RuntimeError, match=r"2 of 4 failed; the first is \[1\].* widen the bounds"):
        many.require()

    def with_status(mu):
        result = hypotests.cls(NARROW, DATA, mu)
        return result.observed, result.converged

    slope, converged = jax.jit(jax.grad(with_status, has_aux=True))(6.0)
    assert jnp.isnan(slope) and not converged


TRACED = {
    "cls": lambda model: hypotests.cls(model, DATA, 6.0),
    "cls by q": lambda model: hypotests.cls(model, DATA, 6.0, test_statistic="q"),
    "p0": lambda model: hypotests.p0(model, DATA),
    "expected_cls": lambda model: hypotests.expected_cls(model, 6.0),
    "expected_p0": lambda model: hypotests.expected_p0(model, 6.0),
    "limit": lambda model: limits.upper_limit(model, DATA),
    "expected limit": limits.expected_upper_limit,
    "qmu": lambda model: test_statistics.qmu(model, DATA, 6.0),
    "tmu_tilde": lambda model: test_statistics.tmu_tilde(model, DATA, 6.0),
    "fit": lambda model: mle.best_fit(model, DATA, held={model.poi_index: 6.0}),
    "asimov": lambda model: hypotests.asimov_data(model, 6.0, DATA),
}


@jax.jit
@jax.vmap
def all_traced(numbers):
    model = replace(NARROW, **numbers)
    return {name: function(model) for name, function in TRACED.items()}


def test_traced_models():
    """Bounds in which 0, 1 and 6 are, in which 6 is not, in which 0 is not, and a fixed mu."""
    wide, fixed = counting(0.0, 20.0), counting(0.0, 20.0, fixed=3.0)
    together = {
        name: jnp.stack([getattr(model, name) for model in (wide, NARROW, HIGH, fixed)])
        for name in ("lower", "upper", "init", "fixed")
    }
    found = all_traced(together)
    bad = {
        (1, 3): ("qmu", "tmu_tilde", "fit"),
        (2, 3): ("p0",),
        # The limits of the second model are beyond its bound.
        (1, 2, 3): ("cls", "cls by q", "expected_cls", "expected_p0", "limit", "expected limit"),
    }
    for name, places in [(name, places) for places, names in bad.items() for name in names]:
        good = np.isin(np.arange(4), places, invert=True)
        np.testing.assert_array_equal(found[name].converged, good, err_msg=name)
        result = found[name]
        if name.endswith("limit"):
            assert (result.status[2:] == LimitStatus.OUTSIDE_BOUNDS).all()
            assert jnp.isnan(result.expected[2:]).all()
        elif hasattr(result, "expected"):
            assert jnp.isnan(result.expected[~good]).all(), name
        else:
            np.testing.assert_array_equal(jnp.isnan(result.value), ~good, err_msg=name)
    np.testing.assert_array_equal(jnp.isnan(found["asimov"][:, 0]), [False, True, False, True])
    assert found["fit"].certificate.status[1] == Status.OUTSIDE_BOUNDS
    np.testing.assert_allclose(found["cls"].observed[0], 0.071502, atol=1e-6)
