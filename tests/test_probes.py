"""The errors that the probes quote are those that many samples show; the rules find the least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from nablab.relax.cuts import PROFILES, soft_cut
from nablab.relax.estimators import boundary_gradient
from nablab.relax.histograms import hard_counts, kde_counts, softmax_counts
from nablab.relax.probes import BLOCK, ENOUGH, choose_bandwidth, choose_slope, probe

EDGES = np.array([-2.0, -0.5, 0.1, 1.0, 2.5])


def kde(x, weights, bandwidth=0.4):
    return kde_counts(x, EDGES, bandwidth=bandwidth, weights=weights).values


def smeared(bandwidth, events):
    """Derivative of the expected soft counts of a Gaussian that moves."""
    width = np.hypot(1.0, bandwidth)
    return -events * np.diff(norm.pdf(EDGES, 0.0, width))


@pytest.mark.parametrize(
    "relaxation", [kde, lambda x, w: softmax_counts(x, EDGES, bandwidth=0.2, weights=w).values]
)
@pytest.mark.parametrize("events", [1, 7, BLOCK + 3])
def test_gradient_and_carrying_fraction_by_brute_force(relaxation, events):
    x = np.random.default_rng(events).normal(size=events)
    weights, velocity = np.linspace(-0.5, 2, events), np.linspace(1, 3, events)
    c = (
        weights[:, None]
        * velocity[:, None]
        * jax.vmap(lambda x: jax.jacfwd(lambda x: relaxation(x[None], jnp.ones(1)))(x))(
            jnp.asarray(x)
        )
    )
    found = probe(relaxation, x, np.ones(4), weights=weights, velocity=velocity)
    np.testing.assert_allclose(found.gradient, c.sum(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.bias, c.sum(axis=0) - 1.0, rtol=1e-10, atol=1e-10)
    if events > 1:
        np.testing.assert_allclose(found.variance, events * c.var(axis=0, ddof=1), rtol=1e-10)
    lengths = np.linalg.norm(c, axis=1)
    carrying = lengths.sum() ** 2 / (events * (lengths**2).sum())
    assert found.carrying == pytest.approx(carrying, rel=1e-10)
    assert found.relative_error == pytest.approx(np.linalg.norm(found.bias) / 2, rel=1e-10)


def test_bias_and_variance_are_those_of_many_samples():
    """The bias is known for a Gaussian: its width grows by the bandwidth."""
    samples = jax.random.normal(jax.random.key(2), (2000, 200))
    truth = boundary_gradient(lambda x: 200 * norm.pdf(x), EDGES)
    found = jax.jit(jax.vmap(lambda x: probe(kde, x, truth)))(samples)
    error = np.sqrt(found.variance.mean(axis=0) / 2000)
    bias = smeared(0.4, 200) - truth
    assert np.all(np.abs(found.bias.mean(axis=0) - bias) < 4 * error)
    assert np.all(np.abs(bias) > 8 * error)
    np.testing.assert_allclose(found.variance.mean(axis=0), found.gradient.var(axis=0), rtol=0.15)


def test_hard_counts_have_no_gradient_and_narrow_kernels_hardly_any_events():
    x = jax.random.normal(jax.random.key(3), (3000,))
    truth = boundary_gradient(lambda x: 3000 * norm.pdf(x), EDGES)
    hard = probe(lambda x, w: hard_counts(x, EDGES, bandwidth=None, weights=w).values, x, truth)
    np.testing.assert_array_equal(hard.gradient, 0.0)
    assert hard.relative_error == 1.0 and hard.carrying == 0.0
    carrying = [probe(lambda x, w, h=h: kde(x, w, h), x, truth).carrying for h in (0.01, 0.1, 1.0)]
    assert carrying[0] < 0.05 < carrying[1] < 0.5 < carrying[2]


def test_probe_of_a_cut():
    x = jax.random.normal(jax.random.key(4), (500,))
    reference = boundary_gradient(lambda x: 500 * norm.pdf(x), np.array([0.3, np.inf]))
    found = probe(lambda x, w: (w * soft_cut(x, 0.3, slope=8.0)).sum()[None], x, reference)
    slope = jax.grad(lambda c: soft_cut(x, c, slope=8.0).sum())(0.3)
    assert found.gradient[0] == pytest.approx(-float(slope), rel=1e-12)
    assert found.relative_error < 0.3


def mixture(key, events):
    """A narrow peak on a wide one: events, and their density."""
    kinds, noise = jax.random.split(key)
    narrow = jax.random.bernoulli(kinds, 0.4, (events,))
    x = jax.random.normal(noise, (events,))
    return jnp.where(narrow, 1.5 + 0.3 * x, -1 + 1.2 * x)


def density(x):
    return 0.4 * norm.pdf(x, 1.5, 0.3) + 0.6 * norm.pdf(x, -1, 1.2)


@pytest.mark.parametrize("bins, events", [(10, 800), (30, 3000)])
def test_chosen_bandwidth_is_close_to_the_best(bins, events):
    """Root mean squared error over samples: at most 20 % above that of the best fixed bandwidth."""
    edges = np.linspace(-4.0, 3.0, bins + 1)
    truth = boundary_gradient(lambda x: events * density(x), edges)
    samples = [mixture(key, events) for key in jax.random.split(jax.random.key(5), 15)]

    @jax.jit
    def squared_errors(x, bandwidths):
        def gradient(bandwidth):
            def moved(shift):
                return kde_counts(x + shift, edges, bandwidth=bandwidth).values

            return jax.jacfwd(moved)(0.0)

        return ((jax.lax.map(gradient, bandwidths) - truth) ** 2).sum(axis=1)

    tried = np.geomspace(0.05, 0.8, 16)
    best = np.mean([squared_errors(x, tried) for x in samples], axis=0).min()
    chosen = [squared_errors(x, jnp.array([choose_bandwidth(x, edges).best]))[0] for x in samples]
    assert np.mean(chosen) < 1.2**2 * best


def test_quoted_error_is_the_error():
    edges = np.linspace(-4.0, 3.0, 15)
    truth = boundary_gradient(lambda x: 1000 * density(x), edges)
    choices, found = [], []
    quick = jax.jit(
        lambda x: probe(
            lambda x, w: kde_counts(x, edges, bandwidth=0.2, weights=w).values, x, truth
        )
    )
    for key in jax.random.split(jax.random.key(6), 40):
        x = mixture(key, 1000)
        choices.append(choose_bandwidth(x, edges))
        found.append(quick(x))
    quoted = [np.interp(0.2, choice.tried, choice.error) for choice in choices]
    actual = np.sqrt(np.mean([f.relative_error**2 for f in found]))
    assert np.mean(quoted) == pytest.approx(actual, rel=0.15)


def test_rule_knows_weights_velocities_and_many_events():
    x = mixture(jax.random.key(7), ENOUGH + 50)
    edges = np.linspace(-4.0, 3.0, 15)
    plain = choose_bandwidth(x[:2000], edges)
    scaled = choose_bandwidth(x[:2000], edges, weights=np.full(2000, 3.0), velocity=-2.0)
    np.testing.assert_allclose(scaled.error, plain.error, rtol=1e-9)
    wider = choose_bandwidth(10 * x[:2000] + 7, 10 * edges + 7)
    assert wider.best == pytest.approx(10 * plain.best, rel=1e-9)
    # Events far away do not matter, but weights that vary are fewer effective events.
    uneven = choose_bandwidth(
        x[:2000], edges, weights=np.random.default_rng(1).exponential(size=2000) ** 3
    )
    assert uneven.noise[20] > 2 * plain.noise[20]
    assert choose_bandwidth(x, edges).best < plain.best
    other = choose_bandwidth(x[:2000], edges, kernel="biweight").best
    assert other == pytest.approx(plain.best, rel=0.2)


@pytest.mark.parametrize("profile", PROFILES)
def test_chosen_slope_is_close_to_the_best(profile):
    cuts = np.linspace(-1.0, 1.0, 9)

    @jax.jit
    def squared_errors(x, slopes):
        def count(cut, slope):
            return soft_cut(x, cut, slope=slope, profile=profile).sum()

        gradients = jax.vmap(jax.grad(count), (0, None))
        return jax.lax.map(
            lambda k: ((gradients(cuts, k) + 1500 * density(cuts)) ** 2).sum(), slopes
        )

    slopes = np.geomspace(1.0, 100.0, 30)
    errors, chosen = [], []
    for key in jax.random.split(jax.random.key(8), 20):
        x = mixture(key, 1500)
        choice = choose_slope(x, -1.0, 1.0, profile=profile)
        assert choice.best == choice.tried[np.argmin(choice.error)]
        errors.append(squared_errors(x, slopes))
        chosen.append(squared_errors(x, jnp.array([choice.best]))[0])
    assert np.mean(chosen) < 1.2**2 * np.mean(errors, axis=0).min()
    with pytest.raises(ValueError, match="low must be below high: low=2"):
        choose_slope(x, 2.0, 1.0)


def test_few_events_give_a_choice():
    for events in (2, 5, 20):
        x = jax.random.normal(jax.random.key(events), (events,))
        assert 0 < choose_bandwidth(x, EDGES).best < 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros(0), EDGES), "no events"),
        ((np.ones(5), EDGES), "spread of x"),
        ((np.array([1.0]), EDGES), "spread of x"),
        ((np.linspace(50, 51, 9), EDGES), "no events near the edges"),
        ((np.array([1.0, np.nan]), EDGES), r"x\[1\] is nan"),
        ((np.arange(3.0), EDGES[::-1]), "edges must increase"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_bandwidth(*arguments)
    with pytest.raises(ValueError, match="kernel is 'box'"):
        choose_bandwidth(np.arange(3.0), EDGES, kernel="box")
