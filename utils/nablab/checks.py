"""Checks at the border of the package: bad input is named before it becomes a silent NaN.

Inside ``jax.jit`` the values of an array are unknown, so every check lets tracers pass.
"""

import jax
import numpy as np

#: Functions take NumPy arrays as well as JAX arrays, and return JAX arrays.
Numbers = jax.Array | np.ndarray


def is_traced(*arrays) -> bool:
    """Whether any of the arrays is a JAX tracer, whose values cannot be looked at."""
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def _first(mask: np.ndarray):
    """Index of the first true entry, as a plain number or tuple."""
    index = tuple(int(i) for i in np.argwhere(mask)[0])
    return index[0] if len(index) == 1 else index


def finite(name: str, array) -> None:
    """Raise ``ValueError`` naming the first entry of ``array`` that is NaN or infinite."""
    if is_traced(array):
        return
    array = np.asarray(array, dtype=float)
    if not np.isfinite(array).all():
        where = _first(~np.isfinite(array)) if array.ndim else ()
        entry = f"{name}[{where}]" if array.ndim else name
        raise ValueError(f"{entry} is {array[where]}: not finite")


def positive(name: str, value, allow_zero: bool = False) -> None:
    """Raise ``ValueError`` naming the first entry that is not positive (or is negative)."""
    if is_traced(value):
        return
    finite(name, value)
    value = np.asarray(value, dtype=float)
    bad = value < 0 if allow_zero else value <= 0
    if bad.any():
        entry = f"{name}[{_first(bad)}]" if value.ndim else name
        needed = "at least 0" if allow_zero else "greater than 0"
        raise ValueError(f"{entry} is {value[bad].flat[0]}: it must be {needed}")


def fraction(name: str, value) -> None:
    """Raise ``ValueError`` unless ``value`` is between 0 and 1."""
    if not is_traced(value) and not 0 < value < 1:
        raise ValueError(f"{name} is {value}: it must be between 0 and 1")


def edges(name: str, array) -> None:
    """Raise ``ValueError`` unless ``array`` is one-dimensional and strictly increasing."""
    if np.ndim(array) != 1 or np.shape(array)[0] < 2:
        raise ValueError(
            f"{name} must be a list of at least 2 numbers, got shape {np.shape(array)}"
        )
    finite(name, array)
    increasing(name, array)


def increasing(name: str, array) -> None:
    """Raise ``ValueError`` naming the first two entries that do not increase, or are NaN."""
    if is_traced(array):
        return
    steps_up = np.diff(np.asarray(array, dtype=float)) > 0
    if not steps_up.all():
        i = _first(~steps_up)
        raise ValueError(
            f"{name} must increase: {name}[{i}]={array[i]}, {name}[{i + 1}]={array[i + 1]}"
        )


def same_shape(name: str, array, like: str, other) -> None:
    """Raise ``ValueError`` unless ``array`` has the shape of ``other``, called ``like``."""
    if np.shape(array) != np.shape(other):
        raise ValueError(
            f"{name} must have the shape of {like}, {np.shape(other)}; got {np.shape(array)}"
        )
