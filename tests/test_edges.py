"""Edges in order for any parameters, with a gradient; edges with equal counts."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from nablab.relax.edges import NARROWEST, ordered_edges, quantile_edges, raw_widths
from nablab.relax.histograms import hard_counts

RAW = jnp.array([0.3, -1.0, 2.0, 0.0])


def derivatives_agree(function, point, tolerance=1e-6):
    """Forward, reverse and second derivatives against central differences."""
    function, jacobian = jax.jit(function), jax.jit(jax.jacrev(function))
    first, second = jacobian(point), jax.jit(jax.jacfwd(jax.jacrev(function)))(point)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(function))(point), first, atol=1e-12)
    for i, step in enumerate(1e-5 * np.eye(len(point))):
        difference = (function(point + step) - function(point - step)) / 2e-5
        np.testing.assert_allclose(first[:, i], difference, atol=tolerance)
        difference = (jacobian(point + step) - jacobian(point - step)) / 2e-5
        np.testing.assert_allclose(second[..., i], difference, atol=10 * tolerance)


def test_ordered_edges_by_hand():
    np.testing.assert_allclose(ordered_edges(jnp.zeros(4), -1.0, 3.0), [-1, 0, 1, 2, 3], atol=1e-15)
    edges = ordered_edges(jnp.log(jnp.array([1.0, 3.0])), 0.0, 1.0)
    np.testing.assert_allclose(edges, [0, 0.25 + NARROWEST / 4, 1], rtol=1e-14)
    np.testing.assert_array_equal(ordered_edges(jnp.array([5.0]), -1.0, 1.0), [-1.0, 1.0])


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e300])
def test_ends_are_exact_and_no_bin_vanishes(scale):
    raw = scale * jax.random.normal(jax.random.key(0), (50,))
    edges = jax.jit(ordered_edges)(raw, 0.1, 0.7)
    assert edges[0] == 0.1 and edges[-1] == 0.7
    assert np.min(np.diff(edges)) > 0.999 * NARROWEST * 0.6 / 50
    assert np.all(np.isfinite(jax.jit(jax.jacrev(ordered_edges))(raw, 0.1, 0.7)))


def test_single_precision():
    edges = ordered_edges(RAW.astype("float32"), jnp.float32(0.0), 1.0)
    np.testing.assert_allclose(edges, ordered_edges(RAW, 0.0, 1.0), rtol=1e-6)


def test_every_edge_has_a_gradient():
    jacobian = jax.jacrev(ordered_edges)(RAW, -1.0, 3.0)
    assert np.abs(np.asarray(jacobian)[1:-1]).min() > 1e-3
    derivatives_agree(lambda raw: ordered_edges(raw, -1.0, 3.0), RAW)
    derivatives_agree(lambda ends: ordered_edges(RAW, *ends), jnp.array([-1.0, 3.0]))


def test_overtaken_edge_comes_back():
    """Descent towards wanted edges from a start where the bins are all but closed."""
    wanted = jnp.array([0.0, 0.2, 0.3, 0.9, 1.0])
    raw = jnp.array([0.0, 6.0, 0.0, 0.0])
    gradient = jax.jit(jax.grad(lambda raw: jnp.sum((ordered_edges(raw, 0.0, 1.0) - wanted) ** 2)))
    for _ in range(3000):
        raw = raw - 5.0 * gradient(raw)
    np.testing.assert_allclose(ordered_edges(raw, 0.0, 1.0), wanted, atol=1e-3)


def test_raw_widths_are_the_inverse():
    edges = np.array([-1.0, -0.9, 0.5, 0.51, 3.0])
    raw = raw_widths(edges)
    np.testing.assert_allclose(ordered_edges(raw, -1.0, 3.0), edges, rtol=1e-13)
    np.testing.assert_allclose(raw.mean(), 0.0, atol=1e-15)
    again = jax.jit(raw_widths)(ordered_edges(RAW, 2.0, 3.0))
    np.testing.assert_allclose(again, RAW - RAW.mean(), atol=1e-13)
    derivatives_agree(raw_widths, jnp.array([-1.0, -0.2, 0.5, 1.0]), tolerance=1e-5)
    too_close = np.array([0.0, 0.5, 0.5001, 1.0])
    with pytest.raises(ValueError, match=r"edges\[1\]=0.5 and edges\[2\]=0.5001 are closer"):
        raw_widths(too_close)
    assert np.all(np.isnan(jax.jit(raw_widths)(too_close)))


@pytest.mark.parametrize("bins", [1, 7, 50])
def test_quantile_edges_share_the_events_equally(bins):
    x = np.random.default_rng(bins).exponential(size=50 * bins)
    edges = jax.jit(quantile_edges, static_argnums=1)(x, bins)
    np.testing.assert_array_equal(hard_counts(x, edges).values, np.full(bins, 50.0))
    assert edges[0] == x.min() and edges[-1] == x.max()
    np.testing.assert_allclose(edges, np.quantile(x, np.linspace(0, 1, bins + 1), method="hazen"))
    np.testing.assert_allclose(
        quantile_edges(x, bins, weights=np.full(50 * bins, 0.3)), edges, rtol=1e-9
    )


def test_weighted_quantile_edges():
    generator = np.random.default_rng(3)
    x, weights = generator.normal(size=2000), generator.uniform(0.0, 2.0, size=2000)
    values = hard_counts(x, quantile_edges(x, 6, weights=weights), weights=weights).values
    wanted = weights.sum() * np.arange(1, 7) / 6
    assert np.abs(np.cumsum(values) - wanted).max() <= weights.max() / 2 + 1e-9
    ignored = np.append(x, [-99.0, 99.0]), np.append(weights, [0.0, 0.0])
    edges = quantile_edges(ignored[0], 6, weights=ignored[1])
    np.testing.assert_allclose(edges, quantile_edges(x, 6, weights=weights), rtol=1e-12)
    np.testing.assert_array_equal(quantile_edges(np.arange(4.0), 2), [0.0, 1.5, 3.0])


def test_quantile_edges_have_gradients():
    x = jnp.array(np.random.default_rng(4).normal(size=13))
    weights = jnp.array(np.random.default_rng(5).uniform(0.5, 1.5, size=13))
    derivatives_agree(lambda x: quantile_edges(x, 4, weights=weights), x)
    derivatives_agree(lambda weights: quantile_edges(x, 4, weights=weights), weights)
    np.testing.assert_allclose(jax.jacrev(quantile_edges)(x, 4).sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(
        jax.vmap(lambda x: quantile_edges(x, 4))(jnp.stack([x, 2 * x])),
        jnp.stack([quantile_edges(x, 4), quantile_edges(2 * x, 4)]),
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"raw\[1\] is nan"):
        ordered_edges(np.array([0.0, np.nan]), 0.0, 1.0)
    with pytest.raises(ValueError, match="raw must be a list of at least 1 number"):
        ordered_edges(np.zeros(0), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"low must be below high: low=1\.0, high=1\.0"):
        ordered_edges(RAW, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"edges must increase: edges\[0\]"):
        raw_widths(np.array([1.0, 0.0]))
    x = np.arange(4.0)
    with pytest.raises(ValueError, match="x has 4 events with a weight, fewer than the 5 bins"):
        quantile_edges(x, 5)
    with pytest.raises(ValueError, match="x has 1 events with a weight, fewer than the 2 bins"):
        quantile_edges(x, 2, weights=np.array([0.0, 1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="x has 0 events with a weight, fewer than the 1 bins"):
        quantile_edges(np.zeros(0), 1)
    with pytest.raises(ValueError, match="bins is 0"):
        quantile_edges(x, 0)
    with pytest.raises(ValueError, match=r"weights\[2\] is -1.0"):
        quantile_edges(x, 2, weights=np.array([1.0, 1.0, -1.0, 1.0]))
    tied = np.array([0.0, 2.0, 2.0, 2.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"x has so many events at 2.0 that edges 1 and 2 of 3"):
        quantile_edges(tied, 3)
    assert np.all(np.isnan(jax.jit(quantile_edges, static_argnums=1)(tied, 3)))


@pytest.fixture
def without_type_checks():
    """Users have none: the functions themselves must notice a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_wrong_shapes_are_named(without_type_checks):
    with pytest.raises(ValueError, match="weights must have the shape of x"):
        quantile_edges(np.arange(4.0), 2, weights=np.ones(3))
    with pytest.raises(ValueError, match=r"x must have one value per event, got shape \(2, 2\)"):
        quantile_edges(np.ones((2, 2)), 2)
    with pytest.raises(ValueError, match=r"raw must be a list of at least 1 number, got shape \(2"):
        ordered_edges(np.ones((2, 2)), 0.0, 1.0)
