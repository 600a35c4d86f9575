"""Reading and writing at fixed places: as slices where the places are consecutive.

XLA can merge slices with what is around them, forwards and backwards, but not general gathers and
scatters: a small likelihood without them takes half the time.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from nablab.checks import Numbers


def take(
    array: Shaped[Numbers, "size *rest"], places: np.ndarray
) -> Shaped[Numbers, "places *rest"]:
    """``array[places]``."""
    stretch = _stretch(places)
    return array[places] if stretch is None else array[slice(*stretch)]


def put(
    array: Shaped[Numbers, "size *rest"],
    places: np.ndarray,
    values: Shaped[Numbers, "places *rest"],
) -> Shaped[Array, "size *rest"]:
    """``array.at[places].set(values)``."""
    stretch = _stretch(places)
    if stretch is None:
        return jnp.asarray(array).at[places].set(values)
    first, end = stretch
    return jnp.concatenate([array[:first], values, array[end:]])


def _stretch(places: np.ndarray) -> tuple[int, int] | None:
    """First place and the one after the last, where all between are there, in order."""
    if not len(places) or (np.diff(places) != 1).any():
        return None
    return int(places[0]), int(places[-1]) + 1
