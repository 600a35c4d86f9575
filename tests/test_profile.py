"""Profiling of the gammas, one level of them and two, against the full likelihood."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from hard_models import many_shapes

from nablab.infer import _profile, linalg, mle
from nablab.infer._per_bin import levels
from nablab.infer._plan import global_parameters
from nablab.model.histfactory import from_spec

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import size as large

BINS = 24


def spec(second_level=True, everywhere=True, bins=BINS):
    """Two backgrounds, each with an uncertainty of its own in each bin, and a shape."""
    rng = np.random.default_rng(bins)
    signal, first, second = (
        rng.uniform(low, high, bins).round(2) for low, high in ((0, 8), (20, 60), (5, 30))
    )
    tilt = first * np.linspace(0.9, 1.15, bins)
    shape = models.modifier(
        "histosys", "tilt", {"lo_data": (0.96 * first).tolist(), "hi_data": tilt.tolist()}
    )
    of_first = [shape]
    of_second = [models.modifier("shapesys", "control", (0.3 * second).tolist())]
    if second_level:
        of_first.append(models.modifier("staterror", "mc", (0.1 * first).tolist()))
    if second_level and everywhere:
        of_second.append(models.modifier("staterror", "mc", (0.15 * second).tolist()))
    sample = models.channel(
        "region",
        signal=(signal.tolist(), [models.MU]),
        first=(first.tolist(), of_first),
        second=(second.tolist(), of_second),
    )
    return {"channels": [sample]}


def jittered(model, seed=3):
    """Data that fluctuate, auxiliary ones included."""
    rng = np.random.default_rng(seed)
    truth = model.expected_data(model.parameters(1.0))
    return jnp.asarray(truth * rng.normal(1.0, 0.15, truth.shape))


CASES = {
    "one level": {"second_level": False},
    "different samples": {"everywhere": False},
    "the same sample": {},
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def model(request):
    model = from_spec(spec(**request.param))
    assert len(levels(model.structure)) == 2 - (request.param == CASES["one level"])
    return model


def point(model):
    rng = np.random.default_rng(8)
    return model.init + 0.2 * jnp.asarray(rng.normal(size=model.init.shape))


@jax.jit
def derivatives_of_all(model, parameters, data):
    return jax.grad(model.deviance)(parameters, data), jax.hessian(model.deviance)(parameters, data)


@jax.jit
def complete(model, data, parameters):
    """The parameters with the gammas at their best."""
    likelihood = _profile.profile_likelihood(model, data, parameters)
    return likelihood.complete(parameters[likelihood.plan.at])


def gammas_of(model):
    return np.setdiff1d(np.arange(len(model.init)), global_parameters(model.structure))


def test_gammas_are_at_their_minimum(model):
    data, gammas = jittered(model), gammas_of(model)
    parameters = complete(model, data, point(model))
    slopes, curvature = derivatives_of_all(model, parameters, data)
    np.testing.assert_allclose(slopes[gammas], 0.0, atol=1e-10)
    curvature = curvature[np.ix_(gammas, gammas)]
    assert np.linalg.eigvalsh(curvature).min() > 0


@pytest.mark.parametrize("number", [1, 2])
def test_expansion_equals_automatic_differentiation(number):
    """The second level with parameters at bounds and fixed ones."""
    model = with_bounds()[0] if number == 2 else from_spec(spec(second_level=False))
    assert len(levels(model.structure)) == number
    start = point(model)
    likelihood = _profile.profile_likelihood(model, jittered(model), start)

    @jax.jit
    def both(x):
        value = likelihood.value
        expected = value(x), jax.grad(value)(x), jax.hessian(value)(x)
        return expected, likelihood.expansion(x)

    for expected, found in zip(*both(start[likelihood.plan.at]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [*CASES, "all kinds of modifiers"])
def test_blocks_of_bins_add_up(case, monkeypatch):
    """To what all bins at once give: blocks that are full and not, in channels of any size."""
    model = from_spec(spec(**CASES[case]) if case in CASES else models.everything())
    given = model, jittered(model), point(model)

    def expansion(held):
        likelihood = _profile.profile_likelihood(*given, held=held)
        return jax.jit(lambda likelihood, x: likelihood.expansion(x))(
            likelihood, given[-1][likelihood.plan.at]
        )

    for held in ((), global_parameters(model.structure)[:1].tolist()):
        expected = expansion(held)
        with monkeypatch.context() as patched:
            patched.setattr(_profile, "LARGE_TABLE", 0)
            patched.setattr(_profile, "BLOCK", 15)
            found = expansion(held)
        for one, other in zip(found, expected, strict=True):
            scale = np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12 * scale)


def test_without_its_curvature_the_hessian_is_positive():
    """Far from the data, where the whole one is not; for the Asimov data both are the same."""
    model_spec, counts = many_shapes(40, 20, np.random.default_rng(3))
    model = from_spec(model_spec)
    far = jnp.concatenate([3.0 * jnp.array(counts), model.auxdata])

    @jax.jit
    def hessian(data, curved):
        return _profile.profile_likelihood(model, data, model.init).expansion(
            model.init, curved=curved
        )[2]

    assert np.linalg.eigvalsh(hessian(far, 1.0))[0] < 0
    assert np.linalg.eigvalsh(hessian(far, 0.0))[0] >= 2.0 - 1e-9  # that of the constraints
    asimov = model.expected_data(model.init)
    np.testing.assert_allclose(hessian(asimov, 0.0), hessian(asimov, 1.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mu", [None, 0.0])
def test_a_fit_as_large_ones_are_made_ends_where_the_others_do(mu, monkeypatch):
    """LAPACK, many bounds at once, bins in blocks, and Fisher scoring, for 101 parameters."""
    model = from_spec(large.specification(60, 100))
    data = large.shifted(model)
    held = {} if mu is None else {model.poi_index: mu}

    def fit():
        return jax.jit(lambda: mle.fits(model, data, held, anywhere=False)[0])()

    expected = fit().require()
    monkeypatch.setattr(linalg, "LARGE", 90)
    monkeypatch.setattr(_profile, "LARGE_TABLE", 0)
    monkeypatch.setattr(_profile, "BLOCK", 100)
    found = fit().require()
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-9)
    np.testing.assert_allclose(found.parameters, expected.parameters, rtol=1e-6, atol=1e-7)
    assert float(found.certificate.smallest_eigenvalue) == pytest.approx(
        float(expected.certificate.smallest_eigenvalue), rel=1e-3
    )


def test_statistics_of_unit_weights():
    """The linear term of the equation of each gamma is 0 at the nominal yields, but for
    rounding errors, which a compiler makes twice."""
    x, rng = np.linspace(0.0, 1.0, 100), np.random.default_rng(3)
    samples = {}
    for place, (name, size) in enumerate({"signal": 0.3, "a": 1.0, "b": 0.6, "c": 0.2}.items()):
        data = 1e4 * size * (0.2 + np.exp(-0.5 * ((x - 0.2 - 0.2 * place) / 0.2) ** 2))
        modifiers = [models.modifier("staterror", "mc", np.sqrt(data))]
        for shape in range(8):
            change = 3e-3 * np.sin(rng.integers(1, 40) * x + rng.uniform(0.0, 6.28))
            both = {"lo_data": data * (1.0 - change), "hi_data": data * (1.0 + 1.1 * change)}
            modifiers.append(models.modifier("histosys", f"{name}{shape}", both))
        samples[name] = (data, modifiers + [models.MU] * (name == "signal"))
    model = from_spec({"channels": [models.channel("c", **samples)]})
    data = model.expected_data(model.parameters(1.1))

    def deviance(model, data):
        likelihood = _profile.profile_likelihood(model, data, model.init)
        return likelihood.value(model.init[likelihood.plan.at])

    expected, found = deviance(model, data), jax.jit(deviance)(model, data)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def with_bounds():
    """Of each level: a parameter that is fixed, and two that are pressed against a bound."""
    model = from_spec(spec())
    held, low, high = np.transpose(
        [level.parameters[[2, 5, 9]] for level in levels(model.structure)]
    )
    model = replace(
        model,
        fixed=model.fixed.at[held].set(True),
        lower=model.lower.at[low].set(1.4),
        upper=model.upper.at[high].set(0.6),
    )
    return model, held, low, high


def test_bounds_and_fixed_parameters_hold():
    model, held, low, high = with_bounds()
    data = jittered(model)
    parameters = complete(model, data, model.init)
    np.testing.assert_array_equal(parameters[held], 1.0)
    np.testing.assert_array_equal(parameters[low], 1.4)
    np.testing.assert_array_equal(parameters[high], 0.6)
    slopes, _ = derivatives_of_all(model, parameters, data)
    assert (slopes[low] > 0).all() and (slopes[high] < 0).all()
    stuck = np.concatenate([held, low, high])
    free = np.setdiff1d(gammas_of(model), stuck)
    np.testing.assert_allclose(slopes[free], 0.0, atol=1e-10)


def test_derivatives_of_a_fit_equal_differences():
    """First and second ones of its parameters and value, along a direction of the data."""
    model = from_spec(spec())
    data = jittered(model)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=data.shape))

    def fit(t):
        fit = mle.best_fit(model, data + t * direction, held={model.poi_index: 0.3})
        return jnp.append(fit.parameters, fit.value), fit.certificate.converged

    def slope(t):
        value, first, converged = jax.jvp(fit, (t,), (1.0,), has_aux=True)
        return (value, first), converged

    @jax.jit
    def derivatives(t):
        (value, first), (_, second), converged = jax.jvp(slope, (t,), (1.0,), has_aux=True)
        return jnp.stack([value, first, second]), converged

    step = 1e-4
    (below, here, above), converged = zip(*map(derivatives, (-step, 0.0, step)), strict=True)
    assert all(converged)
    value, free = here[0], np.arange(len(model.init)) != model.poi_index
    slopes, curvature = derivatives_of_all(model, value[:-1], data)
    np.testing.assert_allclose(slopes[free], 0.0, atol=1e-8)
    assert np.linalg.eigvalsh(curvature[np.ix_(free, free)]).min() > 0
    np.testing.assert_allclose(here[1:], (above - below)[:2] / (2 * step), rtol=1e-6, atol=1e-7)
