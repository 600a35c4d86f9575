"""Fixed places, consecutive or not, against plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.indexing import put, take

PLACES = [[2, 3, 4], [0, 1, 2, 3, 4, 5], [5], [4, 2], [1, 3], [3, 2, 1], []]


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("shape", [(6,), (6, 2)])
def test_take_and_put_are_indexing(places, shape):
    places = np.array(places, dtype=int)
    array = jnp.arange(float(np.prod(shape))).reshape(shape)
    values = -1.0 - array[: len(places)]
    np.testing.assert_array_equal(take(array, places), array[places])
    np.testing.assert_array_equal(put(array, places, values), array.at[places].set(values))
    slope = jax.grad(lambda a: jnp.sum(take(a, places) ** 2))(array)
    expected = jnp.zeros(shape).at[places].set(2 * array[places])
    np.testing.assert_array_equal(slope, expected)
