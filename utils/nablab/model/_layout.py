"""Where the numbers of a model stand among those of its specification, and how to fetch them.

All numbers of a specification form one vector (:func:`entries.flat`). Which of them goes where in
a model depends on the structure only, so it is worked out once; building a model is then a few
operations on whole arrays, in NumPy as long as nothing is traced.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nablab import checks
from nablab.model import _forms, named_numbers

TINY = float(np.finfo(float).tiny)  # stands for "greater than 0"
# The smallest number allowed in each kind of entry of modifiers and parameters; the other kinds may
# have either sign, and so may yields, as only the sum over the samples is a rate.
SMALLEST = {"data": 0.0, "lo": TINY, "hi": TINY, "sigmas": TINY, "factors": TINY}


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions of numbers in the "pool", where these follow one another:

    all numbers of the specification, ``constants`` (0, then pyhf's defaults), the Poisson scale of
    each shapesys bin, the relative uncertainty of each staterror bin.
    """

    names: tuple[str, ...]
    starts: np.ndarray  # of each named entry
    bounded: np.ndarray  # positions of numbers with a smallest value
    smallest: np.ndarray  # and these values
    constants: np.ndarray
    shapesys: np.ndarray  # [2, bins]: positions of yield and uncertainty
    staterror: np.ndarray  # [2, bins, samples]: the same, of every sample in the bin
    fields: dict[str, np.ndarray]  # field of the model: positions
    tables: dict[str, np.ndarray]  # field: position of the first number, [rows, samples]
    widths: tuple[int, ...]  # bins of each sample
    fixed: np.ndarray  # [parameters]: by the specification
    maskable: np.ndarray  # [parameters]: 0, or 1 + the shapesys or staterror bin it belongs to
    parameter_names: tuple[str, ...]


def samples(spec):
    """(channel, sample) pairs, channels in pyhf's alphabetic order."""
    for channel in sorted(spec["channels"], key=lambda channel: channel["name"]):
        for sample in channel["samples"]:
            yield channel, sample


def padded(rows_by_sample, fillers) -> np.ndarray:
    """One table of all samples; a sample with fewer rows is filled up with its filler."""
    height = max(len(rows) for rows in rows_by_sample)
    tables = [
        np.array(rows + [filler] * (height - len(rows)), dtype=int).reshape(height, len(filler))
        for rows, filler in zip(rows_by_sample, fillers, strict=True)
    ]
    return np.concatenate(tables, axis=1)


def build(form, sets, structure, staterror_start) -> Layout:
    """The layout of a specification without numbers, as pyhf reads it.

    ``staterror_start`` is the first parameter of each staterror in each channel.
    """
    named = list(named_numbers.entries(form))
    sizes = [_forms.size(entry.holder[entry.key]) for entry in named]
    starts = np.cumsum([0, *sizes])
    # By the place in the document, never by the joined names, which may be the same twice.
    position = {
        (id(entry.holder), entry.key): range(first, first + size)
        for entry, first, size in zip(named, starts[:-1].tolist(), sizes, strict=True)
    }

    rows = _rows(form, sets, staterror_start, position)
    nominal, shapesys, staterror = rows.nominal, rows.shapesys, rows.staterror
    constants = {
        "zero": [0.0],
        "init": sets.init,
        "lower": sets.bounds[:, 0],
        "upper": sets.bounds[:, 1],
        "normal_width": sets.width,
        "auxdata": sets.auxdata,
    }
    block, maskable = _blocks(form, sets, structure, constants, shapesys, staterror, position)
    bounded, smallest = _bounded(named, position, block["auxdata"][structure.poisson_auxdata])

    most = max((len(pairs) for pairs in staterror.values()), default=0)
    stat_pairs = [pairs + [(starts[-1],) * 2] * (most - len(pairs)) for pairs in staterror.values()]
    fillers = [[yields.start] for yields in nominal]  # without a variation: the nominal yields
    return Layout(
        names=tuple(entry.name for entry in named),
        starts=starts,
        bounded=bounded,
        smallest=smallest,
        constants=np.concatenate([np.asarray(c, dtype=float) for c in constants.values()]),
        shapesys=np.array(list(shapesys.values()), dtype=int).reshape(-1, 2).T,
        staterror=np.moveaxis(
            np.array(stat_pairs, dtype=int).reshape(len(stat_pairs), most, 2), -1, 0
        ),
        fields={
            "nominal": np.concatenate(nominal),
            "normsys_down": np.array(rows.normsys_down, dtype=int),
            "normsys_up": np.array(rows.normsys_up, dtype=int),
            "poisson_scale": block["poisson_scale"][structure.poisson_parameter],
            "normal_width": block["normal_width"][structure.normal_parameter],
            "auxdata": block["auxdata"],
            "init": block["init"],
            "lower": block["lower"],
            "upper": block["upper"],
        },
        tables={s: padded(getattr(rows, s), fillers) for s in ("shift_down", "shift_up")},
        widths=tuple(map(len, nominal)),
        fixed=sets.fixed,
        maskable=maskable,
        parameter_names=structure.parameter_names,
    )


class _Rows(NamedTuple):
    """Positions of the numbers of each sample and modifier, samples in pyhf's order."""

    nominal: list
    shift_down: list
    shift_up: list
    normsys_down: list
    normsys_up: list
    shapesys: dict  # parameter: (yield, uncertainty) of each sample
    staterror: dict  # the same


def _rows(form, sets, staterror_start, position) -> _Rows:
    found = _Rows([], [], [], [], [], {}, {})
    for channel, sample in samples(form):
        place = f"{channel['name']}/{sample['name']}"
        yields = position[id(sample), "data"]
        shifts = {"lo_data": [], "hi_data": []}
        for modifier in sample["modifiers"]:
            kind, name, data = modifier["type"], modifier["name"], id(modifier.get("data"))
            entry = f"{place}: {kind} {name}"
            if kind == "histosys":
                for side, rows in shifts.items():
                    varied = position[data, side]
                    _same_length(f"{entry} {side}", varied, yields)
                    rows.append([varied.start])
            elif kind == "normsys":
                found.normsys_down.extend(position[data, "lo"])
                found.normsys_up.extend(position[data, "hi"])
            elif kind in ("shapesys", "staterror"):
                errors = position[id(modifier), "data"]
                _same_length(entry, errors, yields)
                is_shapesys = kind == "shapesys"
                table = found.shapesys if is_shapesys else found.staterror
                first = sets.start[name] if is_shapesys else staterror_start[name, channel["name"]]
                for i, pair in enumerate(zip(yields, errors, strict=True)):
                    table.setdefault(first + i, []).append(pair)
        found.nominal.append(yields)
        found.shift_down.append(shifts["lo_data"])
        found.shift_up.append(shifts["hi_data"])
    return found


def _blocks(form, sets, structure, constants, shapesys, staterror, position):
    """Positions of what each parameter has, and :attr:`Layout.maskable`."""
    block, stop = {}, max(numbers.stop for numbers in position.values())
    derived = {"shapesys": shapesys, "staterror": staterror}
    for name, numbers in (constants | derived).items():
        block[name] = stop + np.arange(len(numbers))
        stop += len(numbers)
    # Some defaults follow from the yields, and what the specification says comes before both.
    parameters = len(sets.names)
    block["poisson_scale"] = np.zeros(parameters, dtype=int)
    block["poisson_scale"][list(shapesys)] = block["shapesys"]
    block["normal_width"][list(staterror)] = block["staterror"]
    block["auxdata"][structure.poisson_auxdata] = block["poisson_scale"][
        structure.poisson_parameter
    ]
    maskable = np.zeros(parameters, dtype=int)
    maskable[[*shapesys, *staterror]] = 1 + np.arange(len(shapesys) + len(staterror))
    auxiliary = _auxiliary_slices(sets)
    for parameter in form.get("parameters", []):
        name = parameter["name"]
        if name not in sets.start:
            continue
        here = sets.place(name)
        if "bounds" in parameter:
            block["lower"][here] = position[id(parameter), "bounds"][0::2]
            block["upper"][here] = position[id(parameter), "bounds"][1::2]
        for key, field, where in (
            ("inits", "init", here),
            ("factors", "poisson_scale", here),
            ("sigmas", "normal_width", here),
            ("auxdata", "auxdata", auxiliary.get(name)),
        ):
            if key in parameter:
                block[field][where] = position[id(parameter), key]
        if "fixed" in parameter:
            maskable[here] = 0
    return block, maskable


def _bounded(named, position, poisson_auxdata):
    """Positions of the numbers that have a smallest value, and these values."""
    bounded, smallest = [np.zeros(0, dtype=int)], [np.zeros(0)]
    for entry in named:
        is_yield, those = "modifiers" in entry.holder, position[id(entry.holder), entry.key]
        least = -np.inf if is_yield else SMALLEST.get(entry.key, -np.inf)
        if least > -np.inf:
            bounded.append(np.asarray(those, dtype=int))
            smallest.append(np.full(len(those), least))
    last = max(numbers.stop for numbers in position.values())
    counts = poisson_auxdata[poisson_auxdata < last]
    return (
        np.concatenate([*bounded, counts]),
        np.concatenate([*smallest, np.zeros(len(counts))]),
    )


def _same_length(name, positions, yields):
    if len(positions) != len(yields):
        raise ValueError(f"{name} has {len(positions)} numbers, but the sample has {len(yields)}")


def _auxiliary_slices(sets):
    """Where the auxiliary data of each parameter name are."""
    slices, start = {}, 0
    for name in sets.constrained:
        slices[name] = slice(start, start + sets.size[name])
        start = slices[name].stop
    return slices


def fetch(spec: dict, layout: Layout) -> dict:
    """The arrays of a model, by the names of its fields."""
    values = [entry.holder[entry.key] for entry in named_numbers.entries(spec)]
    known, traced, vector = named_numbers.flat(values)
    _check(known, layout)
    rest, empty = _rest(known, layout, np)
    with jax.ensure_compile_time_eval():  # what is known stays known inside jit
        found = {
            name: jnp.asarray(_at(known, rest, where, np)) for name, where in layout.fields.items()
        }
        for name, starts in layout.tables.items():
            found[name] = jnp.asarray(_table(known, starts, layout))
        found["fixed"] = jnp.asarray(layout.fixed | empty[layout.maskable])
    if vector is not None:
        # Where raising is impossible a forbidden number becomes NaN, which no fit overlooks.
        smallest = np.full(len(known), -np.inf)
        smallest[layout.bounded] = layout.smallest
        allowed = jnp.isfinite(vector) & (vector >= smallest)
        vector = jnp.where(allowed, vector, jnp.nan)
        rest, empty = _rest(vector, layout, jnp)
        reached, empty_reached = _reached(traced, layout)
        for name, where in layout.fields.items():
            if reached[where].any():
                found[name] = _at(vector, rest, where, jnp)
        for name, starts in layout.tables.items():
            where = _positions(starts, layout)
            if traced[where].any():
                found[name] = jnp.take(vector, where, mode="clip")
        if empty_reached[layout.maskable].any():
            found["fixed"] = layout.fixed | jnp.take(empty, layout.maskable, mode="clip")
    return found | {"init": _inside_bounds(found, layout)}


def _positions(starts, layout):
    """Positions of a table, [rows, cells]."""
    within = np.concatenate([np.arange(width) for width in layout.widths])
    return np.repeat(starts, layout.widths, axis=1) + within


def _table(vector, starts, layout):
    """A table of known numbers, a sample at a time: its positions would need as much memory."""
    table = np.empty((len(starts), sum(layout.widths)))
    stop = 0
    for sample, width in enumerate(layout.widths):
        start, stop = stop, stop + width
        table[:, start:stop] = vector[starts[:, sample, None] + np.arange(width)]
    return table


def _at(vector, rest, where, xp):
    """Entries of the pool, which is the vector followed by the rest; neither is copied."""
    size = len(vector)
    if where.max(initial=-1) < size:
        return xp.take(vector, where, mode="clip")
    return xp.where(
        where < size,
        xp.take(vector, np.minimum(where, size - 1), mode="clip"),
        xp.take(rest, np.maximum(where - size, 0), mode="clip"),
    )


def _rest(vector, layout, xp):
    """The pool beyond the vector, and which shapesys and staterror bins have no uncertainty (the
    first: never).

    Written such that NaN is not mistaken for a bin without uncertainty.
    """
    yields, errors = _at(vector, np.zeros(1), layout.shapesys, xp)
    empty = (yields <= 0) | (errors <= 0)
    scale = (xp.where(empty, 1.0, yields) / xp.where(empty, 1.0, errors)) ** 2
    yields, errors = _at(vector, np.zeros(1), layout.staterror, xp)
    total, square = yields.sum(axis=-1), (errors**2).sum(axis=-1)
    stat_empty = (total <= 0) | (square <= 0)
    relative = xp.sqrt(xp.where(stat_empty, 1.0, square)) / xp.where(stat_empty, 1.0, total)
    rest = xp.concatenate([layout.constants, scale, relative])
    return rest, xp.concatenate([np.zeros(1, dtype=bool), empty, stat_empty])


def _reached(traced, layout):
    """Which entries of the pool, and which flags of empty bins, depend on a traced number."""
    numbers = np.concatenate([traced, [False]])
    bins = np.concatenate(
        [numbers[layout.shapesys].any(axis=0), numbers[layout.staterror].any(axis=(0, -1))]
    )
    constants = np.zeros(layout.constants.shape, dtype=bool)
    return np.concatenate([traced, constants, bins]), np.concatenate([[False], bins])


def _check(known, layout) -> None:
    """Raise ``ValueError`` naming the first number that is not finite or not allowed."""
    bad = ~np.isfinite(known)
    bad[layout.bounded] |= known[layout.bounded] < layout.smallest
    if not bad.any():
        return
    first = int(np.argmax(bad))
    which = int(np.searchsorted(layout.starts, first, side="right")) - 1
    entry = known[layout.starts[which] : layout.starts[which + 1]]
    checks.finite(layout.names[which], entry)
    allow_zero = 0.0 in layout.smallest[layout.bounded == first]
    checks.positive(layout.names[which], entry, allow_zero=allow_zero)


def _inside_bounds(found, layout):
    """The starting values: an error where they are not inside the bounds, NaN if traced."""
    init, lower, upper = found["init"], found["lower"], found["upper"]
    if checks.is_traced(init, lower, upper):
        return jnp.where((lower <= init) & (init <= upper), init, jnp.nan)
    init, lower, upper = np.asarray(init), np.asarray(lower), np.asarray(upper)
    for i in np.flatnonzero(~((lower <= init) & (init <= upper)))[:1]:
        raise ValueError(
            f"parameter {layout.parameter_names[i]} starts at {init[i]}, outside of its bounds "
            f"[{lower[i]}, {upper[i]}]: change its inits or its bounds"
        )
    return found["init"]
