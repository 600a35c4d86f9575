"""Where the numbers of a model stand among those of its specification, and how to fetch them.

All numbers of a specification form one vector (:func:`entries.flat`). Which of them goes where in
a model depends on the structure only, so it is worked out once; building a model is then a few
operations on whole arrays, in NumPy as long as nothing is traced.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from nablab import checks
from nablab.infer import entries

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
    smallest: np.ndarray  # allowed value of each number
    constants: np.ndarray
    shapesys: np.ndarray  # [2, bins]: positions of yield and uncertainty
    staterror: np.ndarray  # [2, bins, samples]: the same, of every sample in the bin
    fields: dict[str, np.ndarray]  # field of the model: positions
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


def build(spec, config, structure, start, staterror_start) -> Layout:
    """The layout of a specification without numbers (1.0 for each), as pyhf reads it.

    ``start`` is the first parameter of each parameter name, ``staterror_start`` that of each
    staterror in each channel.
    """
    named = list(entries.entries(spec))
    sizes = [np.size(entry.holder[entry.key]) for entry in named]
    starts = np.cumsum([0, *sizes])
    smallest = np.repeat([_smallest(entry) for entry in named], sizes)
    # By the place in the document, never by the joined names, which may be the same twice.
    position = {
        (id(entry.holder), entry.key): first + np.arange(size)
        for entry, first, size in zip(named, starts[:-1], sizes, strict=True)
    }

    nominal, down, up, normsys_down, normsys_up = [], [], [], [], []
    shapesys, staterror = {}, {}  # parameter: (yield, uncertainty) of each sample
    for channel, sample in samples(spec):
        place = f"{channel['name']}/{sample['name']}"
        yields = position[id(sample), "data"]
        rows_down, rows_up = [], []
        for modifier in sample["modifiers"]:
            kind, name = modifier["type"], modifier["name"]
            entry = f"{place}: {kind} {name}"
            if kind == "histosys":
                for rows, side in ((rows_down, "lo_data"), (rows_up, "hi_data")):
                    rows.append(position[id(modifier["data"]), side])
                    _same_length(f"{entry} {side}", rows[-1], yields)
            elif kind == "normsys":
                normsys_down.append(position[id(modifier["data"]), "lo"])
                normsys_up.append(position[id(modifier["data"]), "hi"])
            elif kind in ("shapesys", "staterror"):
                errors = position[id(modifier), "data"]
                _same_length(entry, errors, yields)
                is_shapesys = kind == "shapesys"
                table = shapesys if is_shapesys else staterror
                first = start[name] if is_shapesys else staterror_start[name, channel["name"]]
                for i, pair in enumerate(zip(yields, errors, strict=True)):
                    table.setdefault(first + i, []).append(pair)
        nominal.append(yields)
        down.append(rows_down)
        up.append(rows_up)

    widths = np.ones(config.npars)
    for name in config.auxdata_order:
        widths[config.par_slice(name)] = config.param_set(name).width()
    bounds = config.suggested_bounds()
    for name, pair in zip(structure.parameter_names, bounds, strict=True):
        if len(pair) != 2:  # pyhf's schema lets it pass
            raise ValueError(f"{name}: bounds must be a list of pairs [lower, upper]")
    lower, upper = np.array(bounds, dtype=float).T
    constants = {
        "zero": [0.0],
        "init": config.suggested_init(),
        "lower": lower,
        "upper": upper,
        "normal_width": widths,
        "auxdata": config.auxdata,
    }
    block, stop = {}, starts[-1]
    derived = {"shapesys": shapesys, "staterror": staterror}
    for name, numbers in (constants | derived).items():
        block[name] = stop + np.arange(len(numbers))
        stop += len(numbers)
    # Some defaults follow from the yields, and what the specification says comes before both.
    block["poisson_scale"] = np.zeros(config.npars, dtype=int)
    block["poisson_scale"][list(shapesys)] = block["shapesys"]
    block["normal_width"][list(staterror)] = block["staterror"]
    block["auxdata"][structure.poisson_auxdata] = block["poisson_scale"][
        structure.poisson_parameter
    ]
    maskable = np.zeros(config.npars, dtype=int)
    maskable[[*shapesys, *staterror]] = 1 + np.arange(len(shapesys) + len(staterror))
    auxiliary = _auxiliary_slices(config)
    for parameter in spec.get("parameters", []):
        name = parameter["name"]
        if name not in start:
            continue
        here = config.par_slice(name)
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
    poisson_auxdata = block["auxdata"][structure.poisson_auxdata]
    smallest[poisson_auxdata[poisson_auxdata < starts[-1]]] = 0.0

    most = max((len(pairs) for pairs in staterror.values()), default=0)
    nothing = [(starts[-1], starts[-1])]  # the position of the 0
    stat_pairs = [pairs + nothing * (most - len(pairs)) for pairs in staterror.values()]
    fillers = nominal
    return Layout(
        names=tuple(entry.name for entry in named),
        starts=starts,
        smallest=smallest,
        constants=np.concatenate([np.asarray(c, dtype=float) for c in constants.values()]),
        shapesys=np.array(list(shapesys.values()), dtype=int).reshape(-1, 2).T,
        staterror=np.moveaxis(
            np.array(stat_pairs, dtype=int).reshape(len(stat_pairs), most, 2), -1, 0
        ),
        fields={
            "nominal": np.concatenate(nominal),
            "shift_down": padded(down, fillers),
            "shift_up": padded(up, fillers),
            "normsys_down": np.concatenate([*normsys_down, np.zeros(0, int)]),
            "normsys_up": np.concatenate([*normsys_up, np.zeros(0, int)]),
            "poisson_scale": block["poisson_scale"][structure.poisson_parameter],
            "normal_width": block["normal_width"][structure.normal_parameter],
            "auxdata": block["auxdata"],
            "init": block["init"],
            "lower": block["lower"],
            "upper": block["upper"],
        },
        fixed=np.array(config.suggested_fixed(), dtype=bool),
        maskable=maskable,
        parameter_names=structure.parameter_names,
    )


def _smallest(entry):
    is_yield = "modifiers" in entry.holder
    return -np.inf if is_yield else SMALLEST.get(entry.key, -np.inf)


def _same_length(name, positions, yields):
    if len(positions) != len(yields):
        raise ValueError(f"{name} has {len(positions)} numbers, but the sample has {len(yields)}")


def _auxiliary_slices(config):
    """Where the auxiliary data of each parameter name are."""
    slices, start = {}, 0
    for name in config.auxdata_order:
        slices[name] = slice(start, start + config.param_set(name).n_parameters)
        start = slices[name].stop
    return slices


def fetch(spec: dict, layout: Layout) -> dict:
    """The arrays of a model, by the names of its fields."""
    values = [entry.holder[entry.key] for entry in entries.entries(spec)]
    known, traced, vector = entries.flat(values)
    _check(known, layout)
    pool, empty = _pool(known, layout, np)
    with jax.ensure_compile_time_eval():  # what is known stays known inside jit
        found = {name: jnp.asarray(pool[where]) for name, where in layout.fields.items()}
        found["fixed"] = jnp.asarray(layout.fixed | empty[layout.maskable])
    if vector is not None:
        # Where raising is impossible a forbidden number becomes NaN, which no fit overlooks.
        allowed = jnp.isfinite(vector) & (vector >= layout.smallest)
        pool, empty = _pool(jnp.where(allowed, vector, jnp.nan), layout, jnp)
        reached, empty_reached = _reached(traced, layout)
        for name, where in layout.fields.items():
            if reached[where].any():
                found[name] = jnp.take(pool, where, mode="clip")
        if empty_reached[layout.maskable].any():
            found["fixed"] = layout.fixed | jnp.take(empty, layout.maskable, mode="clip")
    return found | {"init": _inside_bounds(found, layout)}


def _pool(vector, layout, xp):
    """The pool, and which shapesys and staterror bins have no uncertainty (the first: never).

    Written such that NaN is not mistaken for a bin without uncertainty.
    """
    numbers = xp.concatenate([vector, np.zeros(1)])
    yields, errors = xp.take(numbers, layout.shapesys, mode="clip")
    empty = (yields <= 0) | (errors <= 0)
    scale = (xp.where(empty, 1.0, yields) / xp.where(empty, 1.0, errors)) ** 2
    yields, errors = xp.take(numbers, layout.staterror, mode="clip")
    total, square = yields.sum(axis=-1), (errors**2).sum(axis=-1)
    stat_empty = (total <= 0) | (square <= 0)
    relative = xp.sqrt(xp.where(stat_empty, 1.0, square)) / xp.where(stat_empty, 1.0, total)
    pool = xp.concatenate([vector, layout.constants, scale, relative])
    return pool, xp.concatenate([np.zeros(1, dtype=bool), empty, stat_empty])


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
    bad = ~np.isfinite(known) | (known < layout.smallest)
    if not bad.any():
        return
    first = int(np.argmax(bad))
    which = int(np.searchsorted(layout.starts, first, side="right")) - 1
    entry = known[layout.starts[which] : layout.starts[which + 1]]
    checks.finite(layout.names[which], entry)
    checks.positive(layout.names[which], entry, allow_zero=bool(layout.smallest[first] == 0.0))


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
