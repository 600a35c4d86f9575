"""Every number of a pyhf specification or workspace, by a name that one can read.

``numbers`` collects them and ``with_numbers`` puts them back, so that the derivative of anything in
every number of a likelihood is one line::

    numbers = entries.numbers(spec)
    slopes = jax.grad(lambda n: cls(from_spec(with_numbers(spec, n)), data).observed)(numbers)
    slopes["SR/ttbar: histosys JES hi_data"]
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nablab.checks import is_traced
from nablab.model import _forms
from nablab.model._forms import Part
from nablab.pytrees import pytree

_CONFIGURED = ("inits", "bounds", "auxdata", "sigmas", "factors")


class Entry(NamedTuple):
    """A number or list of numbers: ``holder[key]``."""

    name: str
    holder: dict
    key: str


@pytree(static=("names", "shapes"), eq=False)
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


def _configured(prefix, parameter):
    for key in _CONFIGURED:
        if key in parameter:
            yield Entry(f"{prefix}{parameter['name']}: {key}", parameter, key)


def _validate(spec):
    """pyhf's own message for a specification or workspace of the wrong form."""
    import pyhf

    is_workspace = isinstance(spec, Mapping) and {"observations", "measurements"} & set(spec)
    with _forms.explained(spec):
        # Some numbers of each list are enough to judge the form.
        some = _forms.spread(_forms.form(spec), most=4)
        pyhf.schema.validate(some, "workspace.json" if is_workspace else "model.json")


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


def _shape(value) -> tuple[int, ...]:
    if isinstance(value, (np.ndarray, jax.Array, Part)):
        return tuple(value.shape)
    return np.shape(_forms.spread(_forms.form(value)))


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
