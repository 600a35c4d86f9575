"""Argument checks of the public functions: bad input is named before it becomes a silent NaN.

Inside ``jax.jit`` the values of an array are unknown, so every check lets tracers pass; what
follows from bad ones is multiplied by :func:`one_if`, which is NaN then.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

#: Functions take NumPy arrays as well as JAX arrays, and return JAX arrays.
Numbers = jax.Array | np.ndarray


@runtime_checkable
class _Convertible(Protocol):
    """A pandas column, a flat awkward array: NumPy knows how to make an array of it."""

    def __array__(self, *args, **kwargs): ...


#: One number per event or edge, however it is kept: :func:`array` makes an array of it.
Column = Numbers | Sequence | _Convertible


def is_traced(*arrays) -> bool:
    """Whether any of the arrays is a JAX tracer, whose values cannot be looked at."""
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def array(name: str, value) -> Numbers:
    """``value`` itself if it is an array of numbers, or what a list, table or awkward array holds.

    Raises:
        ValueError: the rows differ in length, something is missing, or it holds other things than
            numbers.
    """
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ma.MaskedArray) or hasattr(value, "layout"):
        value = _without_gaps(name, value)
    try:
        converted = np.asarray(value)
        if converted.dtype.kind in "biuf":
            return converted
        if converted.dtype.kind == "c":
            raise TypeError("they are complex")
        return np.asarray(value, dtype=float)
    except jax.errors.TracerArrayConversionError:  # a list that holds traced numbers
        return jnp.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        if "inhomogeneous" in str(error):
            raise _jagged(name) from None
        raise ValueError(f"{name} must hold numbers only, without gaps: {error}") from None


def _without_gaps(name, value):
    """A masked or awkward array as a plain one: NumPy would forget the mask."""
    if isinstance(value, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(value)
        if masked.any():
            raise ValueError(
                f"{name}[{_first(masked)}] is masked: leave such entries out, or fill them "
                "(numpy.ma.filled) and give the mask to the function that takes one"
            )
        return value.data
    import awkward

    if awkward.fields(value):
        raise ValueError(f"{name} has the fields {awkward.fields(value)}: pass one of them")
    if "var" in str(awkward.type(value)):
        raise _jagged(name)
    missing = awkward.to_numpy(awkward.is_none(value, axis=-1))
    if missing.any():
        raise ValueError(
            f"{name}[{_first(missing)}] is missing (None): drop such entries with "
            "awkward.drop_none, or fill them with awkward.fill_none"
        )
    return awkward.to_numpy(value, allow_missing=False)


def _jagged(name):
    return ValueError(
        f"{name} is jagged, with rows of different lengths: pad it first with "
        "nablab.relax.objects.pad_objects, and multiply by its mask afterwards"
    )


def double_precision(what: str) -> None:
    """Raise ``RuntimeError`` where 64-bit floats are off, by the environment or a context."""
    if jnp.result_type(float) != jnp.float64:
        raise RuntimeError(
            f"{what} needs 64-bit floats, which are switched off: fits in 32 bits end in the wrong "
            'place. Leave JAX_ENABLE_X64=0 out, or jax.config.update("jax_enable_x64", True)'
        )


def all_finite(array) -> jax.Array:
    """:func:`one_if` every entry is finite, by one sum: no slower than reading the array."""
    # 0 times infinity is NaN, as 0 times NaN is.
    return 1.0 + jax.lax.stop_gradient(jnp.sum(0.0 * array))


def one_if(good) -> jax.Array:
    """1 where ``good``, else NaN: a factor for results, which also makes their derivatives NaN.

    ``where(good, result, nan)`` would leave a gradient of 0, with which a training goes on.
    """
    return jnp.where(good, 1.0, jnp.nan)


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
    """Raise ``ValueError`` unless ``array`` is one-dimensional, finite and strictly increasing."""
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


def expected(**yields) -> jax.Array | float:
    """A factor for what follows from expected yields: a negative one has no meaning.

    Raises:
        ValueError: an entry is negative or not finite, where its value is known; elsewhere the
            factor is NaN for it, in the shape of the yields.
    """
    factor = 1.0
    for name, value in yields.items():
        positive(name, value, allow_zero=True)
        if is_traced(value):
            factor *= one_if((value >= 0) & (value < jnp.inf))
    return factor


def same_shape(name: str, array, like: str, other) -> None:
    """Raise ``ValueError`` unless ``array`` has the shape of ``other``, called ``like``."""
    if np.shape(array) != np.shape(other):
        raise ValueError(
            f"{name} must have the shape of {like}, {np.shape(other)}; got {np.shape(array)}"
        )
