"""Posterior samples against a closed form and against numeric integration."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import gamma, norm, poisson

from nablab.infer import posterior
from nablab.model.histfactory import from_spec

KEY = jax.random.key(11)
SIGNAL = 5.0


def one_bin(background, uncertainty, fixed):
    """One bin with an uncertain background, whose parameter may be fixed."""
    settings = {"parameters": [{"name": "uncorrelated", "fixed": fixed}]}
    return from_spec({**models.shapesys([SIGNAL], [background], [uncertainty]), **settings})


def assert_distributed(samples, effective, cdf):
    """Fractions below some points, against their probabilities, in units of the sampling error."""
    samples = np.asarray(samples).ravel()
    points = np.quantile(samples, [0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99])
    probability = cdf(points)
    fractions = (samples[:, None] <= points).mean(axis=0)
    error = np.sqrt(probability * (1 - probability) / effective)
    np.testing.assert_array_less(abs(fractions - probability), 4 * error)


@pytest.mark.parametrize(("n", "background"), [(0, 1e-6), (6, 1e-6), (2, 4.0), (9, 4.0)], ids=str)
def test_poisson_with_flat_prior_is_gamma(n, background):
    """Expected events are distributed as Gamma(n + 1), above the known background."""
    model = one_bin(background, 0.1 * background, fixed=True)
    assert model.fixed.sum() == 1
    data = jnp.concatenate([jnp.array([n * 1.0]), model.auxdata])
    found = posterior.sample(model, data, key=KEY, progress=False).require()
    assert found.samples.shape == (4, 1000, 2)
    mu, fixed = found.samples[..., 0], found.samples[..., 1]
    assert (fixed == model.init[1]).all() and mu.min() >= 0
    assert found.r_hat[1] == 1 and found.effective_samples[1] == 4000
    assert 1 <= found.r_hat[0] + 1e-3 and 500 < found.effective_samples[0] < 4500
    low = gamma.cdf(background, n + 1)

    def cdf(mu):
        return (gamma.cdf(background + SIGNAL * mu, n + 1) - low) / (1 - low)

    assert_distributed(mu, float(found.effective_samples[0]), cdf)
    lower, upper = posterior.credible_interval(found.samples, confidence=0.9)[:, 0]
    assert cdf(upper) - cdf(lower) == pytest.approx(0.9, abs=0.03)
    # A posterior that is highest at the bound gives an upper limit.
    assert (lower < 0.02) == (n <= background)


def test_nuisance_parameter_against_numeric_integration():
    background, uncertainty, n = 10.0, 4.0, 15
    model = one_bin(background, uncertainty, fixed=False)
    scale = (background / uncertainty) ** 2  # auxiliary events per unit of the parameter
    measured = 8.0
    found = posterior.sample(model, jnp.array([n, measured]), key=KEY, progress=False).require()

    mu, nuisance = np.linspace(0, 10, 2001)[:, None], np.linspace(1e-3, 5, 1500)
    density = poisson.pmf(n, SIGNAL * mu + background * nuisance) * np.exp(
        measured * np.log(scale * nuisance) - scale * nuisance
    )
    density /= density.sum()
    for k, (grid, marginal) in enumerate(
        [(mu[:, 0], density.sum(axis=1)), (nuisance, density.sum(axis=0))]
    ):
        steps = np.cumsum(marginal) - 0.5 * marginal
        effective = float(found.effective_samples[k])
        assert_distributed(
            found.samples[..., k], effective, lambda x, g=grid, s=steps: np.interp(x, g, s)
        )
        mean = (grid * marginal).sum()
        width = np.sqrt(((grid - mean) ** 2 * marginal).sum())
        assert abs(found.samples[..., k].mean() - mean) < 4 * width / np.sqrt(effective)
        if k == 0:
            mean_mu, width_mu = mean, width
    covariance = ((mu - mean_mu) * (nuisance - mean) * density).sum()
    correlation = np.corrcoef(np.asarray(found.samples).reshape(-1, 2).T)[0, 1]
    assert correlation == pytest.approx(covariance / (width_mu * width), abs=0.08)

    again = posterior.sample(model, jnp.array([n, measured]), key=KEY, progress=False)
    np.testing.assert_array_equal(again.samples, found.samples)
    # Blocks of draws are cut to length, and chains are different ones.
    short = posterior.sample(model, jnp.array([n, measured]), key=KEY, draws=130, progress=False)
    np.testing.assert_array_equal(short.samples, found.samples[:, :130])
    assert not (found.samples[0] == found.samples[1]).all()


def test_log_density_in_coordinates_without_bounds():
    """The Jacobian makes the density integrate to that of the parameters."""
    model = one_bin(4.0, 2.0, fixed=True)
    data = jnp.concatenate([jnp.array([2.0]), model.auxdata])
    log_density = jax.vmap(posterior._log_density(model, data, (0,)))
    z = jnp.linspace(-30.0, 30.0, 6001)[:, None]
    mu = jnp.linspace(0.0, 10.0, 10_001)
    parameters = jax.vmap(model.parameters)(mu)
    direct = jnp.exp(-0.5 * jax.vmap(lambda p: model.deviance(p, data))(parameters))
    integral = jnp.trapezoid(jnp.exp(log_density(z)), z[:, 0])
    np.testing.assert_allclose(integral, jnp.trapezoid(direct, mu), rtol=1e-6)


def test_starts_surround_the_best_fit_within_the_bounds():
    model = one_bin(40.0, 4.0, fixed=False)
    best = jnp.array([0.0, 1.0])
    z = posterior._starts(model, best, (0, 1), KEY, 400)
    starts, _ = jax.vmap(lambda z: posterior._inside(model, (0, 1), z))(z)
    assert (starts > model.lower).all() and (starts < model.upper).all()
    widths = np.sqrt(np.diagonal(np.linalg.inv([[25 / 40, 5.0], [5.0, 40.0 + 100.0]])))
    # Reflected at its bound, the signal strength has the root mean square, not the deviation.
    spread = np.sqrt(((starts - best) ** 2).mean(axis=0))
    np.testing.assert_allclose(spread, 2 * widths, rtol=0.15)
    # A direction without effect on the data is started anywhere.
    blind = replace(model, nominal=jnp.where(model.nominal == SIGNAL, 0.0, model.nominal))
    assert jnp.isfinite(posterior._starts(blind, best, (0, 1), KEY, 5)).all()


def test_credible_interval_is_the_shortest():
    probability = (np.arange(40_000) + 0.5) / 40_000
    shapes = np.stack([gamma.ppf(probability, 3.0), gamma.ppf(probability, 1.0)], axis=-1)
    samples = np.random.default_rng(0).permutation(shapes).reshape(4, 10_000, 2)

    def length(low):
        return gamma.ppf(gamma.cdf(low, 3.0) + 0.68, 3.0) - low

    low = minimize_scalar(length, bounds=(0.0, gamma.ppf(0.319, 3.0)), method="bounded").x
    found = posterior.credible_interval(samples, confidence=0.68)
    np.testing.assert_allclose(found[:, 0], [low, low + length(low)], atol=0.02)
    np.testing.assert_allclose(found[:, 1], [0.0, gamma.ppf(0.68, 1.0)], atol=1e-3)
    single = posterior.credible_interval(samples[..., 0], confidence=0.68)
    np.testing.assert_array_equal(single, found[:, 0])
    normal = norm.ppf(probability).reshape(2, -1)
    np.testing.assert_allclose(posterior.credible_interval(normal), [-1, 1], atol=0.02)
    with pytest.raises(ValueError, match=r"confidence is 68.0: it must be between 0 and 1"):
        posterior.credible_interval(samples, confidence=68.0)


def test_chains_that_disagree_are_seen():
    draws = np.random.default_rng(1).normal(size=(4, 500, 2))
    r_hat, effective = posterior._quality(jnp.asarray(draws), (0, 1))
    assert (r_hat < 1.01).all() and (effective > 1000).all()
    draws[0, :, 1] += 1.0
    r_hat, effective = posterior._quality(jnp.asarray(draws), (0, 1))
    assert r_hat[0] < 1.01 and r_hat[1] > 1.05 and effective[1] < 100


def test_an_interruption_keeps_the_draws_done(monkeypatch):
    model = one_bin(4.0, 0.4, fixed=True)
    data, settings = model.expected_data(model.init), {"warmup": 50, "progress": False}
    draw, calls = posterior._draw, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(posterior, "_draw", interrupted)
    with pytest.warns(UserWarning, match="interrupted: 100 of 300 draws are done, and kept"):
        kept = posterior.sample(model, data, key=KEY, draws=300, **settings)
    whole = posterior.sample(model, data, key=KEY, draws=100, **settings)
    np.testing.assert_array_equal(kept.samples, whole.samples)
    calls[:] = [None]  # interrupted in the first block: nothing to keep
    with pytest.raises(KeyboardInterrupt):
        posterior.sample(model, data, key=KEY, draws=300, **settings)


def test_require():
    good = posterior.Posterior(jnp.zeros((2, 4, 1)), jnp.ones(1), jnp.ones(1), jnp.zeros(2, int))
    assert good.require() is good
    for r_hat in (1.02, jnp.nan):
        with pytest.raises(RuntimeError, match=f"R-hat is {r_hat}"):
            replace(good, r_hat=jnp.array([r_hat])).require()
    with pytest.raises(RuntimeError, match="3 steps diverged"):
        replace(good, divergences=jnp.array([1, 2])).require()


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    model = one_bin(4.0, 2.0, fixed=False)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra, nablab\[posterior\]"):
        posterior.sample(model, model.expected_data(model.init), key=KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chains": 1}, "chains is 1 and draws 1000: at least 2 and 4 are needed"),
        ({"data": jnp.ones(5)}, "data has shape"),
        ({"upper": jnp.array([jnp.inf, 10.0])}, r"upper bounds of the model\[0\] is inf"),
        ({"fixed": jnp.ones(2, bool)}, "all parameters of the model are fixed"),
    ],
)
def test_bad_input_is_named(change, message):
    model = one_bin(4.0, 2.0, fixed=False)
    settings = {name: change.pop(name) for name in ("upper", "fixed") if name in change}
    arguments = {"data": model.expected_data(model.init), **change}
    with pytest.raises(ValueError, match=message):
        posterior.sample(replace(model, **settings), key=KEY, progress=False, **arguments)
