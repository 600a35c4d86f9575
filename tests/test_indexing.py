"""Fixed places, consecutive or not, against plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.indexing import put, stretch

PLACES = [[2, 3, 4], [0, 1, 2, 3, 4, 5], [5], [4, 2], [1, 3], [3, 2, 1], []]


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("shape", [(6,), (6, 2)])
def test_stretch_and_put_are_indexing(places, shape):
    places = np.array(places, dtype=int)
    array = jnp.arange(float(np.prod(shape))).reshape(shape)
    values = -1.0 - array[: len(places)]
    at = stretch(places)
    np.testing.assert_array_equal(array[at], array[places])
    np.testing.assert_array_equal(put(array, at, values), array.at[places].set(values))
    slope = jax.grad(lambda a: jnp.sum(a[at] ** 2))(array)
    expected = jnp.zeros(shape).at[places].set(2 * array[places])
    np.testing.assert_array_equal(slope, expected)


def test_consecutive_places_are_a_slice():
    assert stretch(np.array([2, 3, 4])) == slice(2, 5)
    assert not isinstance(stretch(np.array([4, 2])), slice)
