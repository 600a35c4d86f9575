"""The network is the formula it claims to be, with seeds and gradients."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nablab.train.networks import MLP, mlp

SIZES = (2, 8, 5, 3)
KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(4), (40, 2))


def layers(params):
    """(kernel, bias) of each layer, as numpy arrays."""
    state = nnx.to_pure_dict(params)["layers"]
    return [(np.asarray(state[i]["kernel"]), np.asarray(state[i]["bias"])) for i in sorted(state)]


def test_shapes():
    apply, params = mlp(SIZES, key=KEY)
    expected = [((before, after), (after,)) for before, after in pairwise(SIZES)]
    assert [(kernel.shape, bias.shape) for kernel, bias in layers(params)] == expected
    assert apply(params, X).shape == (40, 3)
    assert apply(params, X[0]).shape == (3,)
    assert apply(params, X.reshape(4, 10, 2)).shape == (4, 10, 3)
    assert apply(params, X).dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_output_is_the_formula():
    """ReLU between the layers, nothing after the last: outputs of both signs."""
    apply, params = mlp(SIZES, key=KEY)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases start at 0
    hidden = np.asarray(X, dtype=np.float32)
    *first, (kernel, bias) = layers(params)
    for k, b in first:
        hidden = np.maximum(hidden @ k + b, 0)
    expected = hidden @ kernel + bias
    np.testing.assert_allclose(apply(params, X), expected, rtol=2e-5, atol=2e-6)
    assert expected.min() < 0 < expected.max()
    np.testing.assert_allclose(jax.jit(apply)(params, X), expected, rtol=2e-5, atol=2e-6)


def test_single_layer_is_linear():
    apply, params = mlp((2, 1), key=KEY)
    ((kernel, bias),) = layers(params)
    np.testing.assert_allclose(
        apply(params, X), np.asarray(X, np.float32) @ kernel + bias, rtol=1e-5, atol=1e-6
    )


def test_module_and_function_agree():
    apply, params = mlp(SIZES, key=KEY)
    network = MLP(SIZES, nnx.Rngs(params=KEY))
    np.testing.assert_array_equal(network(X), apply(params, X))


def test_seeds():
    kernels, again, others = (layers(mlp(SIZES, key=jax.random.key(seed))[1]) for seed in (3, 3, 4))
    for (kernel, _), (same, _), (other, _) in zip(kernels, again, others, strict=True):
        np.testing.assert_array_equal(kernel, same)
        assert not np.any(kernel == other)
    assert kernels[1][0].ravel()[0] != kernels[0][0].ravel()[0]


def test_gradient_reaches_every_layer_and_the_input():
    apply, params = mlp(SIZES, key=KEY)

    def total(params, x):
        return jnp.sum(apply(params, x) ** 2)

    in_params, in_x = jax.jit(jax.grad(total, argnums=(0, 1)))(params, X)
    for kernel, bias in layers(in_params):
        assert np.all(np.isfinite(kernel))
        assert np.any(kernel != 0)
        assert np.any(bias != 0)
    assert in_x.shape == X.shape
    # ReLU is straight between its kinks: a central difference, in single precision.
    direction = jnp.zeros_like(X).at[5, 1].set(1e-2)
    difference = (total(params, X + direction) - total(params, X - direction)) / 2e-2
    assert float(in_x[5, 1]) == pytest.approx(float(difference), rel=0.02, abs=1e-3)


@pytest.mark.parametrize("sizes", [(), (2,), (2, 0, 1), (0, 1), (2, 4, -1)])
def test_bad_sizes_are_named(sizes):
    with pytest.raises(ValueError, match=r"sizes is \(.*give at least inputs and outputs"):
        mlp(sizes, key=KEY)


def test_wrong_number_of_features_is_refused():
    apply, params = mlp(SIZES, key=KEY)
    with pytest.raises((TypeError, ValueError)):
        apply(params, jnp.ones((4, 3)))
