"""Spline histograms against a penalised fit done by scipy, their kernel, bias and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import quad
from scipy.interpolate import BSpline
from scipy.stats import norm

from nablab.relax import splines
from nablab.relax.histograms import kde_counts
from nablab.relax.splines import CHUNK, spline_counts

EDGES = np.array([-2.0, -0.7, 0.1, 0.5, 2.5])
BINS = len(EDGES) - 1
BANDWIDTH = 0.3
counts = jax.jit(spline_counts, static_argnames="fold_tails")


def sample(events, seed=1):
    generator = np.random.default_rng(seed)
    return 1.5 * generator.normal(size=events), generator.normal(1.0, 0.6, size=events)


def fitted_memberships(x, edges, bandwidth):
    """One event at a time: the penalised fit by scipy's B-splines and dense linear algebra."""
    inner = splines.KNOTS_PER_BIN * (len(edges) - 1 + splines.EXTRA_BINS)
    spacing = (edges[-1] - edges[0] + 2 * splines.MARGIN * bandwidth) / inner
    # Knots go on far beyond those that spline_counts keeps events on.
    first = edges[0] - splines.MARGIN * bandwidth - (splines.REACH + 80) * spacing
    knots = first + spacing * np.arange(inner + 2 * splines.REACH + 161)
    number = len(knots) - 4
    basis = BSpline(knots, np.eye(number), 3, extrapolate=False)
    points, point_weights = np.polynomial.legendre.leggauss(4)
    places = (knots[:-1, None] + spacing * (points + 1) / 2).ravel()
    weights = np.tile(point_weights * spacing / 2, len(knots) - 1)
    values, second = np.nan_to_num(basis(places)), np.nan_to_num(basis.derivative(2)(places))
    system = (values.T * weights) @ values + bandwidth**4 * (second.T * weights) @ second
    below = np.nan_to_num(basis.antiderivative()(np.clip(edges, knots[3], knots[-4])))
    integrals = np.diff(below, axis=0)
    return np.linalg.solve(system, np.nan_to_num(basis(x)).T).T @ integrals.T


@pytest.mark.parametrize("bandwidth", [1e-3, 0.3, 2.0])
def test_memberships_are_those_of_a_penalised_fit(bandwidth):
    x = np.linspace(-4.0, 4.5, 40)
    one_by_one = jax.jit(
        jax.vmap(lambda x: spline_counts(x[None], EDGES, bandwidth=bandwidth).values)
    )
    expected = fitted_memberships(x, EDGES, bandwidth)
    np.testing.assert_allclose(one_by_one(jnp.array(x)), expected, atol=1e-6)


@pytest.mark.parametrize("events", [1, 2 * CHUNK + 37])
def test_values_and_variances_are_sums_over_events(events):
    x, weights = sample(events)
    for fold_tails in (False, True):
        one_by_one = jax.jit(
            jax.vmap(
                lambda x, fold=fold_tails: (
                    spline_counts(x[None], EDGES, bandwidth=BANDWIDTH, fold_tails=fold).values
                )
            )
        )
        p = np.asarray(one_by_one(jnp.array(x)))
        soft = counts(
            jnp.array(x),
            EDGES,
            bandwidth=BANDWIDTH,
            weights=jnp.array(weights),
            fold_tails=fold_tails,
        )
        np.testing.assert_allclose(soft.values, weights @ p, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(soft.variances, weights**2 @ p**2, rtol=1e-10, atol=1e-12)
        unweighted = counts(jnp.array(x), EDGES, bandwidth=BANDWIDTH, fold_tails=fold_tails)
        np.testing.assert_allclose(unweighted.values, p.sum(axis=0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(unweighted.variances, (p**2).sum(axis=0), rtol=1e-10, atol=1e-12)


def test_kernel_is_silvermans():
    def kernel(u):
        u = abs(u) / np.sqrt(2)
        return np.exp(-u) * np.sin(u + np.pi / 4) / 2

    for distance in (-3.0, 0.0, 0.4, 2.0):
        x = jnp.array([0.5 + distance * BANDWIDTH])
        expected = [
            quad(kernel, a, b, points=[0.0])[0]
            for a, b in np.lib.stride_tricks.sliding_window_view((EDGES - x[0]) / BANDWIDTH, 2)
        ]
        np.testing.assert_allclose(
            counts(x, EDGES, bandwidth=BANDWIDTH).values, expected, atol=2e-4
        )


def test_total_is_the_number_of_events_inside():
    x = 0.3 * sample(5000)[0]
    edges = np.linspace(-6.0, 6.0, 25)
    np.testing.assert_allclose(counts(x, edges, bandwidth=0.2).values.sum(), 5000.0, rtol=1e-6)
    everything = counts(
        jnp.append(x, jnp.array([-1e9, 1e9])), edges, bandwidth=0.2, fold_tails=True
    )
    np.testing.assert_allclose(everything.values.sum(), 5002.0, rtol=1e-12)


@pytest.mark.parametrize("bandwidth", [1e-300, 0.3, 1e6])
def test_folded_tails(bandwidth):
    x, weights = sample(1000)
    folded = counts(x, EDGES, bandwidth=bandwidth, weights=weights, fold_tails=True).values
    np.testing.assert_allclose(folded.sum(), weights.sum(), rtol=1e-12)
    inner = counts(x, EDGES, bandwidth=bandwidth, weights=weights).values[1:-1]
    np.testing.assert_allclose(folded[1:-1], inner, rtol=1e-12, atol=1e-12)
    one_bin = counts(x, EDGES[:2], bandwidth=bandwidth, weights=weights, fold_tails=True)
    np.testing.assert_allclose(one_bin.values, [weights.sum()], rtol=1e-12)
    np.testing.assert_allclose(one_bin.variances, [(weights**2).sum()], rtol=1e-12)


@pytest.mark.parametrize(("bandwidth", "gain"), [(0.2, 4.0), (0.1, 15.0)])
def test_bias_is_of_fourth_order(bandwidth, gain):
    """Events on the quantiles of a Gaussian have no noise: what is left is the bias."""
    x = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    edges = np.linspace(-3.0, 3.0, 13)
    true = 200_000 * np.diff(norm.cdf(edges))
    bias = np.abs(counts(x, edges, bandwidth=bandwidth).values - true).max()
    bias_of_kde = np.abs(kde_counts(x, edges, bandwidth=bandwidth).values - true).max()
    assert gain * bias < bias_of_kde
    twice = np.abs(counts(x, edges, bandwidth=2 * bandwidth).values - true).max()
    assert twice > 7 * bias  # second order: at most 4


def one_number(fold_tails, x, edges, bandwidth, weights):
    values, variances, _ = spline_counts(
        x, edges, bandwidth=bandwidth, weights=weights, fold_tails=fold_tails
    )
    return jnp.sum(jnp.arange(1.0, BINS + 1) * values) + jnp.cos(jnp.arange(BINS)) @ variances


@pytest.mark.parametrize(("fold_tails", "chunk"), [(True, CHUNK), (False, 2)])
def test_derivatives_are_the_central_differences(fold_tails, chunk, monkeypatch):
    monkeypatch.setattr(splines, "CHUNK", chunk)  # 2: seven events take four chunks
    splines._counts.clear_cache()
    x, weights = sample(7)
    flat, unravel = ravel_pytree([jnp.array(a) for a in (x, EDGES, BANDWIDTH, weights)])

    def function(flat):
        return one_number(fold_tails, *unravel(flat))

    gradient = jax.jit(jax.grad(function))
    slope = gradient(flat)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(function))(flat), slope, atol=1e-11)
    compiled = jax.jit(function)
    for i, step in enumerate(1e-5 * np.eye(len(flat))):
        difference = (compiled(flat + step) - compiled(flat - step)) / 2e-5
        np.testing.assert_allclose(slope[i], difference, rtol=1e-6, atol=1e-7)
    assert all(np.any(np.abs(part) > 1e-3) for part in unravel(slope))
    direction = jnp.array(np.random.default_rng(3).normal(size=len(flat)))
    step = 1e-5 * direction
    difference = (gradient(flat + step) - gradient(flat - step)) / 2e-5
    forward = jax.jit(lambda flat: jax.jvp(jax.grad(function), [flat], [direction])[1])(flat)
    np.testing.assert_allclose(forward, difference, rtol=1e-4, atol=1e-5)
    if fold_tails:
        reverse = jax.jit(jax.grad(lambda flat: jax.grad(function)(flat) @ direction))(flat)
        np.testing.assert_allclose(reverse, forward, atol=1e-9)
    splines._counts.clear_cache()


def test_events_fade_beyond_the_knots():
    """Value, slope and curvature are continuous where the knots end, and zero beyond."""
    inner = splines.KNOTS_PER_BIN * (BINS + splines.EXTRA_BINS)
    spacing = (EDGES[-1] - EDGES[0] + 2 * splines.MARGIN * BANDWIDTH) / inner
    end = EDGES[-1] + splines.MARGIN * BANDWIDTH + splines.REACH * spacing
    for fold_tails in (False, True):

        def last_bin(x, fold=fold_tails):
            return counts(x[None], EDGES, bandwidth=BANDWIDTH, fold_tails=fold).values[-1]

        for derivative in (last_bin, jax.grad(last_bin), jax.grad(jax.grad(last_bin))):
            beyond = derivative(jnp.array(end + 1.0))
            expected = 1.0 if fold_tails and derivative is last_bin else 0.0
            np.testing.assert_allclose(beyond, expected, atol=1e-15)
            np.testing.assert_allclose(derivative(jnp.array(end - 1e-6)), beyond, atol=1e-7)


@pytest.mark.parametrize("bandwidth", [1e-300, 1e6])
@pytest.mark.parametrize("fold_tails", [False, True])
def test_extreme_bandwidths_are_finite(bandwidth, fold_tails):
    x = jnp.array([*EDGES, 0.3, -50.0, 1e6])
    function = jax.jit(jax.value_and_grad(one_number, argnums=(1, 2, 3, 4)), static_argnums=0)
    value, gradient = function(fold_tails, x, jnp.array(EDGES), bandwidth, jnp.ones(len(x)))
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(part)) for part in gradient)


def test_no_events_no_weight_and_single_precision():
    empty = counts(jnp.zeros(0), jnp.array(EDGES), bandwidth=BANDWIDTH)
    np.testing.assert_array_equal(empty[:2], np.zeros((2, BINS)))
    x, weights = sample(100)
    weightless = counts(x, EDGES, bandwidth=BANDWIDTH, weights=np.zeros(100))
    np.testing.assert_array_equal(weightless[:2], np.zeros((2, BINS)))
    x_32, edges_32, h_32, w_32 = (
        jnp.array(a, dtype="float32") for a in (x, EDGES, BANDWIDTH, weights)
    )
    single = counts(x_32, edges_32, bandwidth=h_32, weights=w_32)
    assert single.values.dtype == jnp.float64
    double = counts(x, EDGES, bandwidth=BANDWIDTH, weights=weights)
    np.testing.assert_allclose(single[:2], double[:2], rtol=1e-5)


def test_far_from_all_bins_variances_are_not_negative():
    x = jnp.array(sample(10_000)[0]) + 6.0
    assert np.all(np.array(counts(x, EDGES, bandwidth=0.02).variances) >= 0)


def test_mapped_over_bandwidths_and_samples():
    x = jnp.array(sample(50)[0])
    bandwidths = jnp.array([0.05, 0.3, 1.0])
    mapped = jax.jit(jax.vmap(lambda b: spline_counts(x, EDGES, bandwidth=b).values))(bandwidths)
    rows = jnp.stack([counts(x, EDGES, bandwidth=b).values for b in bandwidths])
    np.testing.assert_allclose(mapped, rows, atol=1e-12)
    samples = jnp.stack([x, x + 0.5])
    mapped = jax.jit(jax.vmap(lambda x: spline_counts(x, EDGES, bandwidth=0.3).variances))(samples)
    rows = jnp.stack([counts(x, EDGES, bandwidth=0.3).variances for x in samples])
    np.testing.assert_allclose(mapped, rows, atol=1e-12)


def test_memory_does_not_grow_with_events_times_bins():
    x = jax.ShapeDtypeStruct((1_000_000,), jnp.float64)
    edges = jax.ShapeDtypeStruct((51,), jnp.float64)

    def objective(x, edges, weights):
        values, variances, _ = spline_counts(x, edges, bandwidth=0.1, weights=weights)
        return jnp.sum(values**2 / (1.0 + variances))

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2)))
    compiled = gradient.lower(x, edges, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 5 * 16_000_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": [0.0, 1.0, np.nan]}, r"x\[2\] is nan"),
        ({"weights": [np.nan, 1.0, 1.0]}, r"weights\[0\] is nan"),
        ({"edges": [0.0, 2.0, 1.0]}, r"edges\[1\]=2.0, edges\[2\]=1.0"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"bandwidth": float("nan")}, "bandwidth is nan"),
    ],
)
def test_bad_input_is_named(wrong, message):
    good = {"x": [0.0, 1.0, 2.0], "edges": EDGES, "bandwidth": 0.3, "weights": [1.0, 1.0, 1.0]}
    arguments = {name: jnp.array(value) for name, value in (good | wrong).items()}
    with pytest.raises(ValueError, match=message):
        spline_counts(**arguments)
