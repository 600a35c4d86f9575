"""Every number of a pyhf specification or workspace, by a name that one can read.

``numbers`` collects them and ``with_numbers`` puts them back, so that the derivative of anything in
every number of a likelihood is one line::

    numbers = entries.numbers(spec)
    slopes = jax.grad(lambda n: cls(Model.from_spec(with_numbers(spec, n)), data).observed)(numbers)
    slopes["SR/ttbar: histosys JES hi_data"]
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyhf

from nablab.checks import is_traced

# What a model is made of, and what only says how large: the first must be known before tracing.
_STRUCTURE = ("name", "type", "fixed", "poi", "version")
_HS3 = {"distributions", "domains", "likelihoods", "parameter_points", "analyses"}
_LIST = "#numbers"
_CONFIGURED = ("inits", "bounds", "auxdata", "sigmas", "factors")


class Entry(NamedTuple):
    """A number or list of numbers: ``holder[key]``."""

    name: str
    holder: dict
    key: str


@partial(jax.tree_util.register_dataclass, data_fields=["vector"], meta_fields=["names", "shapes"])
@dataclass(frozen=True, eq=False)
class NamedNumbers(Mapping):
    """All numbers of a specification: a mapping from names to arrays, held in one vector.

    One vector, because a compiler that is handed thousands of small arrays takes minutes. It is
    a pytree with this vector as its only leaf, so a gradient has the same names.
    """

    vector: Any  # [numbers]; not checked, because jax also puts markers in place of leaves
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...] = field(repr=False)

    @cached_property
    def _slices(self) -> dict[str, slice]:
        stops = np.cumsum([int(np.prod(shape)) for shape in self.shapes], dtype=int)
        starts = [0, *stops[:-1]]
        return {
            name: slice(int(start), int(stop))
            for name, start, stop in zip(self.names, starts, stops, strict=True)
        }

    @cached_property
    def _shape(self) -> dict[str, tuple[int, ...]]:
        return dict(zip(self.names, self.shapes, strict=True))

    def __getitem__(self, name):
        return self.vector[self._slices[name]].reshape(self._shape[name])

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)

    def __repr__(self):
        return f"NamedNumbers({len(self)} entries: {', '.join(self.names[:3])}, ...)"

    def part(self, name) -> "Part":
        """``self[name]``, cut out when it is used."""
        return Part(self.vector, self._slices[name], self._shape[name])


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


def numbers(spec: dict) -> NamedNumbers:
    """All numbers of a pyhf specification or workspace, by name; they may be traced.

    The names are ``"channel/sample: data"``, ``"channel/sample: histosys JES hi_data"``,
    ``"channel/sample: normsys JES hi"``, ``"channel/sample: staterror mc"``, ``"lumi: sigmas"``;
    in a workspace also ``"channel: observed"`` and ``"measurement/lumi: sigmas"``.

    Raises:
        ValueError: two numbers have the same name (a channel ``"SR/0b"`` with a sample ``"top"``,
            and a channel ``"SR"`` with a sample ``"0b/top"``), or one is not a number.
        pyhf.exceptions.InvalidSpecification: pyhf's own message for a wrong form.
    """
    _validate(spec)
    found = list(entries(spec))
    names = tuple(entry.name for entry in found)
    _one_each(names)
    values = [entry.holder[entry.key] for entry in found]
    known, traced, vector = flat(values)
    return NamedNumbers(
        jnp.asarray(vector if traced.any() else known),
        names,
        tuple(map(_shape, values)),
    )


def with_numbers(spec: dict, numbers: Mapping) -> dict:
    """A copy of a specification or workspace with the numbers of those names in it.

    Args:
        spec: is not changed, and may share parts with the result.
        numbers: what :func:`numbers` returns, or a dict of some of its entries. They may be traced.

    Raises:
        ValueError: a name that the specification does not have, or has twice, or another shape.
    """
    copy = skeleton(spec)
    try:
        found = list(entries(copy))
    except (KeyError, TypeError, AttributeError):
        _validate(spec)
        raise
    missing = set(numbers)
    _one_each(entry.name for entry in found if entry.name in missing)
    for entry in found:
        if entry.name not in missing:
            continue
        missing.remove(entry.name)
        one_vector = isinstance(numbers, NamedNumbers)
        new = numbers.part(entry.name) if one_vector else numbers[entry.name]
        shape, old = _shape(new), _shape(entry.holder[entry.key])
        if shape != old:
            raise ValueError(f"{entry.name} has shape {shape}, but the specification's has {old}")
        entry.holder[entry.key] = new
    if missing:
        name = sorted(missing)[0]
        near = difflib.get_close_matches(name, [entry.name for entry in found], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"the specification has no number named {name!r}{hint}")
    return copy


def entries(spec: dict) -> Iterator[Entry]:
    """Where the numbers of a specification or workspace are, in the order of the document."""
    for channel in spec["channels"]:
        for sample in channel["samples"]:
            place = f"{channel['name']}/{sample['name']}"
            yield Entry(f"{place}: data", sample, "data")
            for modifier in sample["modifiers"]:
                kind, data = modifier["type"], modifier.get("data")
                name = f"{place}: {kind} {modifier['name']}"
                if kind in ("histosys", "normsys"):
                    for key in ("lo_data", "hi_data") if kind == "histosys" else ("lo", "hi"):
                        yield Entry(f"{name} {key}", data, key)
                elif kind in ("shapesys", "staterror"):
                    yield Entry(name, modifier, "data")
    for observation in spec.get("observations", []):
        yield Entry(f"{observation['name']}: observed", observation, "data")
    for measurement in spec.get("measurements", []):
        for parameter in measurement["config"]["parameters"]:
            yield from _configured(f"{measurement['name']}/", parameter)
    for parameter in spec.get("parameters", []):
        yield from _configured("", parameter)


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


def _configured(prefix, parameter):
    for key in _CONFIGURED:
        if key in parameter:
            yield Entry(f"{prefix}{parameter['name']}: {key}", parameter, key)


def _validate(spec):
    """pyhf's own message for a specification or workspace of the wrong form."""
    is_workspace = isinstance(spec, Mapping) and {"observations", "measurements"} & set(spec)
    with explained(spec):
        # Some numbers of each list are enough to judge the form.
        some = spread(form(spec), most=4)
        pyhf.schema.validate(some, "workspace.json" if is_workspace else "model.json")


@contextmanager
def explained(document):
    """Turn pyhf's message for a document of another kind into a sentence that says which."""
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


def _one_each(names):
    """Raise ``ValueError`` for the first name that comes twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(
                f"two entries of the specification are both {name!r}: rename a channel, sample or "
                "modifier, so that every number can be told by its name"
            )
        seen.add(name)


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


def _shape(value) -> tuple[int, ...]:
    if isinstance(value, (np.ndarray, jax.Array, Part)):
        return tuple(value.shape)
    return np.shape(spread(_compact(value)))


def skeleton(value):
    """A copy of the dicts and lists, which holds the same numbers and arrays."""
    if isinstance(value, dict):
        return {key: skeleton(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [skeleton(entry) for entry in value]
    return value


def flat(values: list) -> tuple[np.ndarray, np.ndarray, Any]:
    """One vector of many numbers and lists.

    Returns:
        The known numbers, with 1.0 for the traced ones; which ones are traced; and the vector with
        the traced ones in it, ``None`` if there are none.
    """
    pieces = []
    for value in values:
        last = pieces[-1] if pieces else None
        if not isinstance(value, Part):
            pieces.append(_vector(value))
        elif (
            isinstance(last, Part)
            and last.vector is value.vector
            and last.where.stop == value.where.start
        ):
            where = slice(last.where.start, value.where.stop)
            pieces[-1] = Part(value.vector, where, (where.stop - where.start,))
        else:
            pieces.append(value)
    pieces = [_vector(piece) if isinstance(piece, Part) else piece for piece in pieces]
    known = [np.ones(piece.shape) if is_traced(piece) else piece for piece in pieces]
    traced = [np.full(piece.shape, is_traced(piece)) for piece in pieces]
    known, traced = (np.concatenate([np.zeros(0), *parts]) for parts in (known, traced))
    if not any(map(is_traced, pieces)):
        return known, traced > 0, None
    # Neighbours that are known are joined at once: the compiler's time grows with the pieces.
    joined, run = [], []
    for piece in pieces:
        if is_traced(piece):
            joined += [np.concatenate(run), piece] if run else [piece]
            run = []
        else:
            run.append(piece)
    return known, traced > 0, jnp.concatenate([*joined, *([np.concatenate(run)] if run else [])])


def _vector(value):
    """A number, list or array as a one-dimensional float array; NumPy unless it is traced."""
    if isinstance(value, Part):
        value = value.__jax_array__()
    if not is_traced(value):
        try:
            return np.asarray(value, dtype=float).reshape(-1)
        except jax.errors.TracerArrayConversionError:  # a list that holds traced numbers
            pass
    return jnp.asarray(value, dtype=float).reshape(-1)
