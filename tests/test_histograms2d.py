"""Histograms in two observables against brute force and numpy, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import norm

from nablab.relax import histograms
from nablab.relax.histograms import BLOCK, kde_counts
from nablab.relax.histograms2d import hard_counts_2d, kde_counts_2d

X_EDGES = np.array([-2.0, -0.7, 0.1, 2.5])
Y_EDGES = np.array([-1.0, 0.5, 1.5])
BANDWIDTHS = (0.3, 0.5)
soft_counts = jax.jit(kde_counts_2d, static_argnames="fold_tails")
EXACT = {kde_counts_2d: soft_counts, hard_counts_2d: hard_counts_2d}


def sample(events, seed=1):
    generator = np.random.default_rng(seed)
    x, y = 1.5 * generator.normal(size=(2, events))
    return x, x / 2 + y, generator.normal(1.0, 0.6, size=events)


def memberships(x, edges, bandwidth, fold_tails):
    below = norm.cdf((edges - x[:, None]) / bandwidth)
    p = np.diff(below, axis=1)
    if fold_tails:
        p[:, 0] += below[:, 0]
        p[:, -1] += 1 - below[:, -1]
    return p


@pytest.mark.parametrize("fold_tails", [False, True])
@pytest.mark.parametrize("events", [1, BLOCK, 2 * BLOCK + 37])
def test_soft_counts_are_the_brute_force_ones(events, fold_tails):
    x, y, weights = sample(events)
    p_x = memberships(x, X_EDGES, BANDWIDTHS[0], fold_tails)
    p_y = memberships(y, Y_EDGES, BANDWIDTHS[1], fold_tails)
    p = p_x[:, :, None] * p_y[:, None, :]
    soft = soft_counts(
        x, y, X_EDGES, Y_EDGES, bandwidths=BANDWIDTHS, weights=weights, fold_tails=fold_tails
    )
    np.testing.assert_allclose(soft.values, np.tensordot(weights, p, 1), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(soft.variances, np.tensordot(weights**2, p**2, 1), rtol=1e-10)
    if fold_tails:
        np.testing.assert_allclose(soft.values.sum(), weights.sum(), rtol=1e-12)


def test_sum_over_y_is_the_histogram_of_x():
    x, y, weights = sample(300)
    both = soft_counts(
        x, y, X_EDGES, Y_EDGES, bandwidths=BANDWIDTHS, weights=weights, fold_tails=True
    )
    alone = kde_counts(x, X_EDGES, bandwidth=BANDWIDTHS[0], weights=weights, fold_tails=True)
    np.testing.assert_allclose(both.values.sum(axis=1), alone.values, rtol=1e-12)


@pytest.mark.parametrize("fold_tails", [False, True])
def test_hard_counts_are_numpys(fold_tails):
    x, y, _ = sample(3000)
    on_edges = np.array([(a, b) for a in X_EDGES for b in Y_EDGES]).T
    x, y = np.append(x, on_edges[0]), np.append(y, on_edges[1])
    weights = np.random.default_rng(2).integers(-8, 24, size=len(x)) / 8
    hard = jax.jit(hard_counts_2d, static_argnames="fold_tails")(
        x, y, X_EDGES, Y_EDGES, weights=weights, fold_tails=fold_tails
    )
    if fold_tails:
        x, y = np.clip(x, *X_EDGES[[0, -1]]), np.clip(y, *Y_EDGES[[0, -1]])
    for part, w in ((hard.values, weights), (hard.variances, weights**2)):
        np.testing.assert_array_equal(part, np.histogram2d(x, y, [X_EDGES, Y_EDGES], weights=w)[0])


@pytest.mark.parametrize("bandwidths", [(1e-300, 1e-300), (1e-9, 1e-6)])
def test_small_bandwidth_is_the_hard_histogram(bandwidths):
    x, y, weights = sample(2000)
    soft = soft_counts(x, y, X_EDGES, Y_EDGES, bandwidths=bandwidths, weights=weights)
    hard = hard_counts_2d(x, y, X_EDGES, Y_EDGES, weights=weights)
    np.testing.assert_allclose(soft.values, hard.values, rtol=1e-10)
    np.testing.assert_allclose(soft.variances, hard.variances, rtol=1e-10)


@pytest.mark.parametrize(("fold_tails", "block"), [(True, BLOCK), (False, 4)])
def test_derivatives_are_the_central_differences(fold_tails, block, monkeypatch):
    monkeypatch.setattr(histograms, "BLOCK", block)  # 4: seven events take two blocks
    jax.clear_caches()  # of what was compiled with the other size of blocks
    inputs = (*sample(7)[:2], X_EDGES, Y_EDGES, np.array(BANDWIDTHS), sample(7)[2])
    flat, unravel = ravel_pytree([jnp.array(a) for a in inputs])
    factors = jnp.arange(1.0, 7.0).reshape(3, 2)

    def function(flat):
        *where, bandwidths, weights = unravel(flat)
        values, variances, _ = kde_counts_2d(
            *where, bandwidths=bandwidths, weights=weights, fold_tails=fold_tails
        )
        return jnp.sum(factors * values) + jnp.sum(jnp.cos(factors) * variances)

    gradient = jax.jit(jax.grad(function))(flat)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(function))(flat), gradient, atol=1e-12)
    steps = 1e-5 * jnp.eye(len(flat))
    both = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(function))))
    (up, down), (up_slope, down_slope) = both(jnp.stack([flat + steps, flat - steps]))
    np.testing.assert_allclose(gradient, (up - down) / 2e-5, rtol=1e-6, atol=1e-8)
    hessian = jax.jit(jax.hessian(function))(flat)
    np.testing.assert_allclose(hessian, (up_slope - down_slope) / 2e-5, rtol=1e-5, atol=1e-6)
    assert all(np.any(np.abs(part) > 1e-3) for part in unravel(gradient))


@pytest.mark.parametrize("bandwidths", [(1e-300, 1e6), (1e6, 1e6), (1e-300, 1e-300)])
def test_extremes_are_finite(bandwidths):
    x, y = np.array([*X_EDGES, 1e6]), np.array([*Y_EDGES, 0.3, -1e6])
    function = jax.grad(
        lambda x, y, w: soft_counts(
            x, y, X_EDGES, Y_EDGES, bandwidths=bandwidths, weights=w
        ).values.sum(),
        (1, 2),
    )
    assert all(np.all(np.isfinite(part)) for part in function(x, y, np.array([1, 0, -1.0, 2, 1])))


@pytest.mark.parametrize("counts", EXACT)
def test_no_events_absent_weights_and_single_precision(counts):
    counts = EXACT[counts]
    nothing = np.zeros(0)
    empty = counts(nothing, nothing, X_EDGES, Y_EDGES, bandwidths=BANDWIDTHS)
    np.testing.assert_array_equal(empty[:2], np.zeros((2, 3, 2)))
    x, y, _ = sample(20)
    unweighted = counts(x, y, X_EDGES, Y_EDGES, bandwidths=BANDWIDTHS)
    ones = counts(x, y, X_EDGES, Y_EDGES, bandwidths=BANDWIDTHS, weights=np.ones(20))
    np.testing.assert_array_equal(unweighted[:2], ones[:2])
    single = counts(
        x.astype("float32"), y.astype("float32"), X_EDGES, Y_EDGES, bandwidths=BANDWIDTHS
    )
    np.testing.assert_allclose(single[:2], unweighted[:2], rtol=1e-5)
    assert single.values.dtype == jnp.float64


def test_mapped_over_bandwidths():
    x, y, _ = sample(30)
    bandwidths = jnp.array([[0.1, 0.2], [0.5, 1.0]])
    mapped = jax.vmap(lambda b: kde_counts_2d(x, y, X_EDGES, Y_EDGES, bandwidths=b).values)(
        bandwidths
    )
    rows = [soft_counts(x, y, X_EDGES, Y_EDGES, bandwidths=b).values for b in bandwidths]
    np.testing.assert_allclose(mapped, jnp.stack(rows), rtol=1e-12)


def test_memory_does_not_grow_with_events_times_bins():
    x = jax.ShapeDtypeStruct((200_000,), jnp.float64)
    edges = jax.ShapeDtypeStruct((21,), jnp.float64)

    def objective(x, y, edges, weights):
        return kde_counts_2d(
            x, y, edges, edges, bandwidths=BANDWIDTHS, weights=weights
        ).variances.sum()

    gradient = jax.jit(jax.grad(objective, argnums=(0, 1, 2, 3)))
    size = gradient.lower(x, x, edges, x).compile().memory_analysis().temp_size_in_bytes
    assert size < 8 * 200_000 * 20  # the memberships of all events along one axis


@pytest.mark.parametrize("counts", EXACT)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": [0.0, np.nan]}, r"x\[1\] is nan"),
        ({"y": [np.inf, 0.0]}, r"y\[0\] is inf"),
        ({"x_edges": [0.0, 0.0]}, "x_edges must increase"),
        ({"y_edges": [1.0, 0.0]}, r"y_edges must increase: y_edges\[0\]=1.0"),
        ({"weights": [0.0, np.nan]}, r"weights\[1\] is nan"),
    ],
)
def test_bad_input_is_named(counts, wrong, message):
    good = {"x": [0.0, 1.0], "y": [0.0, 1.0], "x_edges": [0.0, 1.0], "y_edges": [0.0, 1.0]}
    arguments = {name: np.array(value) for name, value in (good | wrong).items()}
    with pytest.raises(ValueError, match=message):
        counts(bandwidths=BANDWIDTHS, **arguments)


def test_bad_bandwidths_are_named():
    x = np.zeros(2)
    with pytest.raises(ValueError, match=r"bandwidths\[1\] is 0.0"):
        kde_counts_2d(x, x, X_EDGES, Y_EDGES, bandwidths=[0.1, 0.0])
    with pytest.raises(ValueError, match="bandwidths must be two"):
        kde_counts_2d(x, x, X_EDGES, Y_EDGES, bandwidths=[0.1])
