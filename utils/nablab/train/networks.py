"""Networks that map the features of an event to its observable."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

# The default of flax: variance 1 / inputs.
LECUN_NORMAL = jax.nn.initializers.lecun_normal()


class MLP(nnx.Module):
    """Multilayer perceptron: ReLU between linear layers, nothing after the last one.

    Args:
        sizes: inputs, hidden units of each layer, outputs; for instance ``(2, 64, 64, 1)``.
        rngs: source of the starting weights.
        initializer: their distribution, from ``jax.nn.initializers``.
    """

    def __init__(self, sizes: Sequence[int], rngs: nnx.Rngs, initializer: Callable = LECUN_NORMAL):
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes is {sizes!r}: give at least inputs and outputs, each >= 1")
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List(
            [
                nnx.Linear(before, after, kernel_init=initializer, rngs=rngs)
                for before, after in pairs
            ]
        )

    def __call__(self, x: Float[Array, "*events inputs"]) -> Float[Array, "*events outputs"]:
        """The outputs of the last layer, in single precision."""
        x = x.astype("float32")
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def mlp(
    sizes: Sequence[int], *, key: PRNGKeyArray, initializer: Callable = LECUN_NORMAL
) -> tuple[Callable, PyTree]:
    """A network as a pure function: ``apply(params, x)``, and its starting parameters.

    Args:
        sizes, initializer: as for :class:`MLP`.
        key: random key of the starting weights.

    Returns:
        ``apply`` (shapes ``[events, inputs] -> [events, outputs]``) and the
        parameters, a tree of arrays.
    """
    network = MLP(sizes, nnx.Rngs(params=key), initializer)
    definition, state = nnx.split(network)

    def apply(params, x):
        return nnx.merge(definition, params)(x)

    return apply, state
