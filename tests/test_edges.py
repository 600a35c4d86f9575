"""Edges in order for any parameters, with a gradient."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from nablab.relax.edges import NARROWEST, ordered_edges

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


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"raw\[1\] is nan"):
        ordered_edges(np.array([0.0, np.nan]), 0.0, 1.0)
    with pytest.raises(ValueError, match="raw must be a list of at least 1 number"):
        ordered_edges(np.zeros(0), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"low must be below high: low=1\.0, high=1\.0"):
        ordered_edges(RAW, 1.0, 1.0)


@pytest.fixture
def without_type_checks():
    """Users have none: the functions themselves must notice a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_wrong_shapes_are_named(without_type_checks):
    with pytest.raises(ValueError, match=r"raw must be a list of at least 1 number, got shape \(2"):
        ordered_edges(np.ones((2, 2)), 0.0, 1.0)
