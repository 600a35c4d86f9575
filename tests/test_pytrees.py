"""Results as pytrees: which fields are branches, and which belong to the structure."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from nablab.pytrees import pytree


@pytree(static=("unit",))
class Length:
    value: jax.Array
    unit: str
    error: jax.Array


def test_static_fields_belong_to_the_structure():
    length = Length(jnp.array(2.0), "GeV", jnp.array(0.5))
    assert jax.tree.leaves(length) == [2.0, 0.5]
    doubled = jax.jit(lambda length: jax.tree.map(lambda leaf: 2 * leaf, length))(length)
    assert (float(doubled.value), doubled.unit, float(doubled.error)) == (4.0, "GeV", 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        length.unit = "m"


def test_other_settings_are_those_of_a_dataclass():
    @pytree(eq=False)
    class Same:
        value: int

    assert Same(1) != Same(1)
    assert jax.tree.leaves(Same(1)) == [1]
