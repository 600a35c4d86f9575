"""Reading and writing at fixed places: as slices where the places are consecutive.

XLA can merge slices with what is around them, forwards and backwards, but not general gathers and
scatters: a small likelihood without them takes half the time.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from nablab.checks import Numbers


def stretch(places: np.ndarray) -> slice | np.ndarray:
    """What to read ``array[places]`` with: a slice where the places follow one another.

    To be worked out once, where the places are.
    """
    if not len(places) or (np.diff(places) != 1).any():
        return np.asarray(places, dtype=int)
    return slice(int(places[0]), int(places[-1]) + 1)


def put(
    array: Shaped[Numbers, "size *rest"],
    places: slice | np.ndarray,
    values: Shaped[Numbers, "places *rest"],
) -> Shaped[Array, "size *rest"]:
    """``array.at[places].set(values)`` for the places of a :func:`stretch`."""
    if isinstance(places, slice):
        return jnp.concatenate([array[: places.start], values, array[places.stop :]])
    return jnp.asarray(array).at[places].set(values)
