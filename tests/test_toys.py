"""The toy samples have the moments they promise, and independent noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.data import toys

EVENTS = 40_000
KEY = jax.random.key(20)


def assert_moments(sample, mean, covariance):
    """Sample mean and covariance within 5 standard errors of those of the Gaussian."""
    sample, covariance = np.asarray(sample), np.asarray(covariance)
    variances = np.diag(covariance)
    mean_errors = np.sqrt(variances / len(sample))
    assert np.all(np.abs(sample.mean(axis=0) - mean) < 5 * mean_errors)
    # Variance of a covariance entry of Gaussian samples: (C_ii C_jj + C_ij^2) / n.
    covariance_errors = np.sqrt((np.outer(variances, variances) + covariance**2) / len(sample))
    assert np.all(np.abs(np.cov(sample.T) - covariance) < 5 * covariance_errors)


def assert_independent(samples, moments):
    """No correlation, beyond 5 standard errors, of the noise of any two samples, event by event."""
    names = list(samples)
    noise = [np.asarray(samples[name]) - np.asarray(moments[name][0]) for name in names]
    correlations = np.corrcoef(np.hstack(noise).T)
    for first in range(len(names)):
        for second in range(first):
            block = correlations[2 * first : 2 * first + 2, 2 * second : 2 * second + 2]
            assert np.abs(block).max() < 5 / np.sqrt(EVENTS), (names[first], names[second])


UNIT = [[1.0, 0.0], [0.0, 1.0]]
RECIPES = {
    "blobs": (toys.blobs, {name: (mean, UNIT) for name, mean in toys.BLOB_MEANS.items()}),
    "two_modes": (toys.two_modes, toys.TWO_MODES),
    "two_round_modes": (
        lambda events, key: toys.two_modes(events, key=key, moments=toys.TWO_ROUND_MODES),
        toys.TWO_ROUND_MODES,
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_moments_and_independence(recipe):
    draw, moments = RECIPES[recipe]
    samples = draw(EVENTS, key=KEY)
    assert list(samples) == list(moments)
    for name, (mean, covariance) in moments.items():
        assert samples[name].shape == (EVENTS, 2)
        assert_moments(samples[name], mean, covariance)
    assert_independent(samples, moments)


def test_one_key_for_all_samples_would_be_noticed():
    """The independence test fails on the recipe of the public code: the same noise everywhere."""
    noise = jax.random.normal(KEY, (EVENTS, 2))
    moments = {name: (mean, UNIT) for name, mean in toys.BLOB_MEANS.items()}
    samples = {name: jnp.asarray(mean) + noise for name, mean in toys.BLOB_MEANS.items()}
    with pytest.raises(AssertionError):
        assert_independent(samples, moments)


def test_published_numbers():
    assert toys.BLOB_MEANS == {
        "signal": (-1, 1),
        "background": (1, -1),
        "up": (2.5, 2),
        "down": (-2.5, -1.5),
    }
    covariances = {name: covariance for name, (_, covariance) in toys.TWO_MODES.items()}
    assert covariances["background_1"] != covariances["background_2"]
    means = {name: mean for name, (mean, _) in toys.TWO_MODES.items()}
    assert means == {"signal": (2, 5), "background_1": (4, 6), "background_2": (5.5, 4.5)}


def test_keys_decide_the_draw():
    first, again = toys.blobs(5, key=KEY), toys.blobs(5, key=KEY)
    other = toys.blobs(5, key=jax.random.key(21))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_cut_example_is_the_published_sample():
    signal, background = toys.cut_example()
    assert (signal.shape, background.shape) == ((300,), (8000,))
    s, b = np.sum(signal > 45.4509), np.sum(background > 45.4509)
    assert (s, b) == (249, 2260)
    significance = np.sqrt(2 * ((s + b) * np.log1p(s / b) - s))
    assert significance == pytest.approx(5.1457381078, rel=1e-10)
    # The exact optimum: one background event fewer in [45.456573, 45.457959).
    assert (np.sum(signal > 45.457), np.sum(background > 45.457)) == (249, 2259)


def test_cut_example_follows_numpys_global_seed():
    state = np.random.get_state()  # noqa: NPY002 - the published sample is the legacy one
    try:
        np.random.seed(0)  # noqa: NPY002
        background, signal = np.random.normal(40, 10, 8000), np.random.normal(50, 5, 300)  # noqa: NPY002
    finally:
        np.random.set_state(state)  # noqa: NPY002
    ours = toys.cut_example()
    assert np.array_equal(ours[0], signal)
    assert np.array_equal(ours[1], background)
    assert not np.array_equal(toys.cut_example(seed=1)[0], signal)


def test_moving_gaussian_moves_with_its_mean():
    still, moved = toys.moving_gaussian(0.0, key=KEY), toys.moving_gaussian(0.75, key=KEY)
    assert still.shape == (100,)
    assert still.dtype == jnp.float64
    np.testing.assert_allclose(moved - still, 0.75, rtol=1e-12)
    slope = jax.jacobian(lambda mean: toys.moving_gaussian(mean, key=KEY, events=7, width=2.0))(0.3)
    np.testing.assert_allclose(slope, np.ones(7), rtol=1e-12)
    slope = jax.jacobian(lambda width: toys.moving_gaussian(0.3, key=KEY, events=100, width=width))(
        2.0
    )
    np.testing.assert_allclose(slope, still, rtol=1e-12)


def test_moving_gaussian_under_jit_and_vmap():
    means = jnp.linspace(-1, 1, 5)
    rows = jax.jit(jax.vmap(lambda mean: toys.moving_gaussian(mean, key=KEY, events=30)))(means)
    np.testing.assert_allclose(
        rows[3], toys.moving_gaussian(means[3], key=KEY, events=30), rtol=1e-12
    )


def test_moving_gaussian_moments():
    sample = np.asarray(toys.moving_gaussian(3.0, key=KEY, events=EVENTS, width=0.5))
    assert abs(sample.mean() - 3.0) < 5 * 0.5 / np.sqrt(EVENTS)
    assert abs(sample.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * EVENTS)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: toys.moving_gaussian(float("nan"), key=KEY), "mean"),
        (lambda: toys.moving_gaussian(0.0, key=KEY, width=0.0), "width is 0"),
        (lambda: toys.moving_gaussian(0.0, key=KEY, events=0), "events is 0"),
        (lambda: toys.blobs(0, key=KEY), "events is 0"),
        (lambda: toys.two_modes(-3, key=KEY), "events is -3"),
    ],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


def test_inferno_has_the_moments_of_the_code():
    sample = toys.inferno(200_000, key=KEY)
    signal, background = (np.asarray(sample[name]) for name in ("signal", "background"))
    # Mean and variance of each feature; their errors are 0.2 % to 1 %.
    np.testing.assert_allclose(signal.mean(axis=0), [0, 0, 0.5], atol=0.012)
    np.testing.assert_allclose(signal.var(axis=0), [1, 1, 0.25], rtol=0.02)
    np.testing.assert_allclose(background.mean(axis=0), [2, 0, 1 / 3], atol=0.03)
    np.testing.assert_allclose(background.var(axis=0), [5, 9, 1 / 9], rtol=0.02)
    correlations = np.corrcoef(np.concatenate([signal, background], axis=1).T)
    assert np.abs(correlations - np.eye(6)).max() < 0.015


def test_inferno_background_moves_every_event():
    nominal = toys.inferno(50, key=KEY)["background"]
    np.testing.assert_array_equal(toys.inferno_background(nominal), nominal)
    moved = toys.inferno_background(nominal, shift=0.3, rate=1.5)
    np.testing.assert_allclose(moved, nominal * jnp.array([1, 1, 2]) + jnp.array([0.3, 0, 0]))
    slope = jax.jit(jax.jacfwd(lambda rate: toys.inferno_background(nominal, rate=rate)))(3.0)
    np.testing.assert_allclose(slope[:, 2], -nominal[:, 2] / 3)


def test_inferno_refuses_impossible_nuisances():
    nominal = toys.inferno(5, key=KEY)["background"]
    with pytest.raises(ValueError, match=r"rate is 0\.0: it must be greater than 0"):
        toys.inferno_background(nominal, rate=0.0)
    with pytest.raises(ValueError, match="shift is nan: not finite"):
        toys.inferno_background(nominal, shift=np.nan)
    with pytest.raises(ValueError, match="events is 0"):
        toys.inferno(0, key=KEY)
