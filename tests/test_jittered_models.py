"""A thousand randomly jittered models of each kind: CLs against a global scan.

A Newton fit that is right on nominal templates can be silently wrong on a few per cent of
slightly different ones, where the Hessian is indefinite or there are two minima.
"""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from scipy.stats import norm

from nablab.infer import hypotests, limits, mle
from nablab.model.histfactory import from_spec

MODELS = 1000
ALPHAS = np.linspace(-5.0, 5.0, 81)
SMALLEST_RATE = 1e-70


def templates(bins, size, seed):
    """Signal, background, down and up variation [models, bins], each bin off by ``size``."""
    x = (np.arange(bins) + 0.5) / bins
    signal, background = np.exp(-0.5 * ((x - 0.6) / 0.15) ** 2), np.exp(-x)
    signal, background = 40 * signal / signal.sum(), 400 * background / background.sum()
    tilt = 0.1 * (x - 0.5)
    nominal = np.stack([signal, background, background * (1 - tilt), background * (1 + tilt)])
    jitter = np.random.default_rng(seed).normal(size=(MODELS, 4, bins))
    return np.clip(nominal * (1 + size * jitter), 0.01, None).transpose(1, 0, 2)


def interpolated(alpha, down, nominal, up):
    """Code 4p, written down independently: shapes [models, alphas, bins]."""
    alpha, down, up = alpha[..., None], (nominal - down)[:, None], (up - nominal)[:, None]
    even = alpha**2 * (15 - 10 * alpha**2 + 3 * alpha**4) / 16
    inside = alpha * (up + down) / 2 + even * (up - down)
    return nominal[:, None] + np.where(
        np.abs(alpha) <= 1, inside, alpha * np.where(alpha > 0, up, down)
    )


def best_gamma(slope):
    """Root of an increasing function of gamma, by bisection."""
    shape = slope(np.ones(1)).shape
    low, high = np.full(shape, 1e-10), np.full(shape, 10.0)
    for _ in range(30):
        middle = 0.5 * (low + high)
        rising = slope(middle) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    return 0.5 * (low + high)


def distance(rates, counts):
    rates = np.maximum(rates, SMALLEST_RATE)
    return 2 * (rates - counts - counts * np.log(rates / counts)).sum(axis=-1)


def deviance(kind, alpha, signal, background, down, up, error):
    """-2 log L of mu = 1 on the Asimov data of mu = 0, minimised over the per-bin parameters."""
    alone = "histosys" not in kind
    shifted = background[:, None] if alone else interpolated(alpha, down, background, up)
    signal, counts, error = signal[:, None], background[:, None], error[:, None]
    pull = 0.0 if alone else alpha**2
    if "shapesys" in kind:
        fixed, scaled, tau = signal, shifted, (background[:, None] / error) ** 2
    elif "staterror" in kind:
        fixed, scaled, width = 0.0, signal + shifted, error / (signal + background[:, None])
    else:
        return distance(signal + shifted, counts) + pull

    def slope(gamma):
        constraint = tau * (1 - 1 / gamma) if "shapesys" in kind else (gamma - 1) / width**2
        rate = np.maximum(fixed + gamma * scaled, SMALLEST_RATE)
        return scaled * (1 - counts / rate) + constraint

    gamma = best_gamma(slope)
    if "shapesys" in kind:
        constraint = distance(gamma * tau, tau)
    else:
        constraint = (((gamma - 1) / width) ** 2).sum(axis=-1)
    return distance(fixed + gamma * scaled, counts) + constraint + pull


def global_minimum(kind, numbers):
    """Scan in alpha, then five zooms around every local minimum of the scan."""
    alphas = np.broadcast_to(ALPHAS, (MODELS, len(ALPHAS)))
    if "histosys" not in kind:
        return deviance(kind, alphas[:, :1], *numbers)[:, 0]
    values = deviance(kind, alphas, *numbers)
    padded = np.pad(values, ((0, 0), (1, 1)), constant_values=np.inf)
    minima = np.where((values <= padded[:, :-2]) & (values <= padded[:, 2:]), values, np.inf)
    lowest = np.full(MODELS, np.inf)
    for place in np.argsort(minima, axis=1)[:, :3].T:
        centre, width = ALPHAS[place], ALPHAS[1] - ALPHAS[0]
        for _ in range(5):
            near = np.clip(centre[:, None] + width * np.linspace(-1, 1, 21), -5, 5)
            values = deviance(kind, near, *numbers)
            centre = near[np.arange(MODELS), values.argmin(axis=1)]
            width = width / 8
        lowest = np.minimum(lowest, values.min(axis=1))
    return lowest


def specification(kind, signal, background, down, up, error):
    modifiers, on_signal = [], [models.MU]
    if "histosys" in kind:
        modifiers.append(models.modifier("histosys", "shape", {"lo_data": down, "hi_data": up}))
    if "shapesys" in kind:
        modifiers.append(models.modifier("shapesys", "bins", error))
    if "staterror" in kind:
        modifiers.append(models.modifier("staterror", "bins", error))
        on_signal = [models.MU, models.modifier("staterror", "bins", 0.0 * error)]
    channel = models.channel("c", signal=(signal, on_signal), background=(background, modifiers))
    return {"channels": [channel]}


@pytest.mark.parametrize("bins", [5, 20])
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (("histosys",), (0.03, 0.05, 0.2)),
        (("shapesys",), (0.2,)),
        (("staterror",), (0.2,)),
        (("histosys", "shapesys"), (0.05, 0.2)),
        (("histosys", "staterror"), (0.05, 0.2)),
    ],
)
def test_cls_of_jittered_models_is_that_of_the_global_minimum(kind, sizes, bins):
    @jax.jit
    @jax.vmap
    def fitted(*numbers):
        result = hypotests.expected_cls(from_spec(specification(kind, *numbers)))
        return result.median, result.converged

    for seed, size in enumerate(sizes):
        signal, background, down, up = templates(bins, size, seed)
        numbers = (signal, background, down, up, 0.06 * background)
        found, converged = fitted(*map(jnp.asarray, numbers))
        root = np.sqrt(np.maximum(global_minimum(kind, numbers), 0.0))
        expected = 2 * norm.sf(root)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert converged.all()


def observations(bins, size, seed):
    """Templates without any order, each bin off by up to ``size``, and fluctuating data."""
    rng = np.random.default_rng(seed)
    signal, background = (
        rng.uniform(low, high, (4 * MODELS, bins)) for low, high in ((2, 12), (30, 70))
    )
    down, up = background * rng.uniform(1 - size, 1 + size, (2, *background.shape))
    truth = background + signal * rng.choice([0, 1], (len(signal), 1))
    counts = truth + np.sqrt(truth) * rng.normal(size=truth.shape)
    return signal, background, down, up, counts, rng.normal(size=(len(signal), 1))


@pytest.mark.parametrize("bins", [2, 3])
def test_free_fits_to_fluctuating_data_are_not_above_a_scan(bins):
    mus, alphas = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 10, 51), ALPHAS))

    def beside_scan(numbers):
        *templates, counts, measured = numbers
        model = from_spec(models.histosys(*templates))
        data = jnp.concatenate([counts, measured])
        points = jnp.zeros((len(mus), 2)).at[:, model.poi_index].set(mus)
        points = points.at[:, 1 - model.poi_index].set(alphas)
        scan = jax.vmap(lambda point: model.deviance(point, data))(points)
        fit = mle.best_fit(model, data)
        return fit.value - scan.min(), fit.certificate.converged

    numbers = tuple(map(jnp.asarray, observations(bins, 0.2, seed=bins + 7)))
    above, converged = jax.jit(lambda x: jax.lax.map(beside_scan, x, batch_size=50))(numbers)
    assert converged.all()
    assert above.max() < 1e-6


def test_limits_of_jittered_models_are_where_cls_is_the_level():
    """The fits of a limit find the same minima as those of CLs, at each of its steps."""

    def at_limits(*numbers):
        *templates, counts, measured = numbers
        model = from_spec(models.histosys(*templates))
        data = jnp.concatenate([counts, measured])
        limit = limits.upper_limit(model, data)
        results = jax.vmap(lambda mu: hypotests.cls(model, data, mu))(
            jnp.append(limit.observed, limit.expected)
        )
        return jnp.diagonal(jnp.column_stack([results.observed, results.expected]))

    numbers = [array[:200] for array in observations(3, 0.2, seed=5)]
    found = jax.jit(jax.vmap(at_limits))(*map(jnp.asarray, numbers))
    np.testing.assert_allclose(found, 0.05, rtol=1e-7)
