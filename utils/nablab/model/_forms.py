"""The form of a specification or workspace: what is left of it without its numbers.

It decides the structure of a model, is what pyhf is shown, and is the key of what is kept.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from nablab.checks import is_traced

# What a model is made of, and what only says how large: the first must be known before tracing.
_STRUCTURE = ("name", "type", "fixed", "poi", "version")
_HS3 = {"distributions", "domains", "likelihoods", "parameter_points", "analyses"}
_LIST = "#numbers"


@dataclass(frozen=True, eq=False)
class Part:
    """Some entries of a vector, in a specification: cut out only when someone looks at them."""

    vector: Any
    where: slice
    shape: tuple[int, ...]

    def __jax_array__(self):
        return self.vector[self.where].reshape(self.shape)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.__jax_array__(), dtype=dtype)


def form(value, place: str = "specification"):
    """What does not depend on the numbers, as plain JSON.

    1.0 stands for every number, and ``{"#numbers": n}`` for a list of n: see :func:`spread`.
    """
    if isinstance(value, dict):
        for key in _STRUCTURE:
            if key in value and is_traced(value[key]):
                raise ValueError(
                    f"the structure of the model cannot be decided: {place}.{key} is a traced "
                    "value, which is only known when the compiled function runs; pass a plain one"
                )
        _check_data(value, place)
        return {key: form(entry, f"{place}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        if value and {float, int}.issuperset(map(type, value)):
            return {_LIST: len(value)}
        return _shortened([form(entry, f"{place}[{i}]") for i, entry in enumerate(value)])
    if value is None or isinstance(value, (bool, str)):
        return value
    try:
        return _compact(value)
    except TypeError:
        raise ValueError(
            f"{place} is a {type(value).__name__}: a specification holds dicts, lists, texts and "
            "numbers or arrays of numbers"
        ) from None


def _check_data(holder, place):
    """Histograms of other kinds are tuples, which look like lists of lists."""
    data, name = holder.get("data"), holder.get("name")
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        raise ValueError(
            f"{place}.data, of {name!r}, is {type(data).__name__}({', '.join(data._fields)}): pass "
            f"one of its parts, such as .{data._fields[0]}"
        )
    if isinstance(data, tuple) and any(np.ndim(entry) for entry in data):
        raise ValueError(
            f"{place}.data, of {name!r}, is a tuple of arrays, such as to_numpy() of a histogram "
            "returns: pass the counts alone"
        )


def spread(form, most: int | None = None):
    """A :func:`form` with lists of 1.0, of at most ``most`` numbers."""
    if isinstance(form, dict):
        if _LIST in form:
            return [1.0] * min(form[_LIST], most or form[_LIST])
        return {key: spread(entry, most) for key, entry in form.items()}
    return [spread(entry, most) for entry in form] if isinstance(form, list) else form


def length(form) -> int:
    """How many entries a list in a :func:`form` has."""
    return form[_LIST] if isinstance(form, dict) else len(form)


def size(form) -> int:
    """How many numbers there are in a number, or a list of lists or numbers, in a form."""
    if isinstance(form, list):
        return sum(map(size, form))
    return form[_LIST] if isinstance(form, dict) else 1


def _compact(value):
    """The form of a number, an array or a list with traced numbers in it."""
    if isinstance(value, (list, tuple)):
        return _shortened([_compact(entry) for entry in value])
    if isinstance(value, Part) or is_traced(value):
        return _of_shape(value.shape)
    array = np.asarray(value)
    if array.dtype.kind == "b":
        return array.tolist()
    if array.dtype.kind not in "iuf":
        raise TypeError(f"not a number: {value!r}")
    return _of_shape(array.shape)


def _shortened(parts):
    """The form of a list, from those of its entries."""
    return {_LIST: len(parts)} if parts and set(map(type, parts)) == {float} else parts


def _of_shape(shape):
    if not shape:
        return 1.0
    if len(shape) == 1 and shape[0]:
        return {_LIST: int(shape[0])}
    return [_of_shape(shape[1:])] * shape[0]


@contextmanager
def explained(document):
    """Turn pyhf's message for a document of another kind into a sentence that says which."""
    import pyhf

    try:
        yield document
    except pyhf.exceptions.InvalidSpecification:
        hs3 = _HS3 & set(document) if isinstance(document, Mapping) else set()
        if hs3:
            raise ValueError(
                f"{sorted(hs3)[0]!r} is part of an HS3 document, which is not supported: give a "
                "pyhf workspace"
            ) from None
        place = _extended(document, "")
        if place:
            raise ValueError(
                f"{place} is not supported: the constraint terms are those of pyhf (normal for "
                "normsys, histosys, staterror and lumi, Poisson for shapesys)"
            ) from None
        raise


def _extended(value, place):
    """Where in a document another constraint term is asked for, if it is."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if str(key).lower().startswith("constraint"):
                return f"{place}.{key}".lstrip(".")
            found = _extended(entry, f"{place}.{key}")
            if found:
                return found
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            found = _extended(entry, f"{place}[{i}]")
            if found:
                return found
    return None
