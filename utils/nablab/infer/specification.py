"""Reading a pyhf specification: pyhf decides the structure, the numbers are read around it."""

import functools
import json
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
import pyhf

from nablab import checks


@dataclass(frozen=True, eq=False)
class Structure:
    """What does not depend on the numbers. Compared by identity: one object per structure.

    A "cell" is one sample in one bin; ``rows x cells`` tables say which parameter acts on it.
    """

    poi_index: int
    parameter_names: tuple[str, ...]
    main_bins: int
    cell_bin: np.ndarray
    shifts: np.ndarray  # [rows, cells]: parameter of each additive modifier
    factors: np.ndarray  # [rows, cells]: index into (parameters, normsys factors, 1)
    normsys_parameter: np.ndarray
    poisson_parameter: np.ndarray
    poisson_auxdata: np.ndarray
    normal_parameter: np.ndarray
    normal_auxdata: np.ndarray
    codes: tuple[str, str]
    interpolated: np.ndarray = field(repr=False)  # parameters of histosys and normsys


def read(spec: dict, poi_name: str, histosys_code: str, normsys_code: str):
    """Structure (one object for all specifications of the same form) and numbers of a model."""
    key = json.dumps(_without_numbers(spec), sort_keys=True)
    structure, static = _structure(key, poi_name, histosys_code, normsys_code)
    return structure, _numbers(spec, structure, static)


def _without_numbers(spec: dict) -> dict:
    """The specification with 1.0 for every yield: what decides the structure, as plain JSON."""

    def ones(data):
        if isinstance(data, dict):
            return {name: ones(entry) for name, entry in data.items()}
        if data is None:
            return None
        # Not np.ndim: a list may hold tracers.
        is_row = isinstance(data, (list, tuple)) or jnp.ndim(data) > 0
        return [1.0] * len(data) if is_row else 1.0

    def stripped(entry, names):
        return {name: ones(value) if name in names else value for name, value in entry.items()}

    channels = []
    for channel in spec.get("channels", []):
        samples = []
        for sample in channel.get("samples", []):
            sample = stripped(sample, ["data"])
            sample["modifiers"] = [stripped(m, ["data"]) for m in sample.get("modifiers", [])]
            samples.append(sample)
        channels.append({**channel, "samples": samples})
    return {**spec, "channels": channels}


@functools.lru_cache(maxsize=256)
def _structure(key: str, poi_name: str, histosys_code: str, normsys_code: str):
    """Structure, and the numbers that only pyhf decides, for a specification without numbers."""
    spec = json.loads(key)
    settings = {"histosys": {"interpcode": histosys_code}, "normsys": {"interpcode": normsys_code}}
    config = pyhf.Model(spec, poi_name=poi_name, modifier_settings=settings).config

    start = {name: config.par_slice(name).start for name in config.par_order}
    staterror_start = _staterror_starts(spec, start)
    shifts, factors, cell_bin, normsys, interpolated = [], [], [], [], set()
    for channel, sample in _samples(spec):
        bins = np.arange(len(sample["data"]))
        cell_bin.append(config.channel_slices[channel["name"]].start + bins)
        shift_rows, factor_rows = [], []
        for modifier in sample["modifiers"]:
            kind, parameter = modifier["type"], start[modifier["name"]]
            if kind == "histosys":
                shift_rows.append(np.full(bins.shape, parameter))
            elif kind == "normsys":
                factor_rows.append(np.full(bins.shape, config.npars + len(normsys)))
                normsys.append(parameter)
            elif kind in ("normfactor", "lumi"):
                factor_rows.append(np.full(bins.shape, parameter))
            elif kind == "staterror":
                factor_rows.append(staterror_start[modifier["name"], channel["name"]] + bins)
            else:  # shapesys and shapefactor: one parameter per bin
                factor_rows.append(parameter + bins)
            if kind in ("histosys", "normsys"):
                interpolated.add(parameter)
        shifts.append(shift_rows)
        factors.append(factor_rows)

    poisson, normal, auxiliary = [], [], 0
    for name in config.auxdata_order:
        parameters = np.arange(start[name], start[name] + config.param_set(name).n_parameters)
        kind = poisson if config.param_set(name).pdf_type == "poisson" else normal
        kind.extend(zip(parameters, auxiliary + np.arange(len(parameters)), strict=True))
        auxiliary += len(parameters)
    poisson = np.array(poisson, dtype=int).reshape(-1, 2)
    normal = np.array(normal, dtype=int).reshape(-1, 2)

    one = config.npars + len(normsys)
    structure = Structure(
        poi_index=config.poi_index,
        parameter_names=tuple(config.par_names),
        main_bins=config.nmaindata,
        cell_bin=np.concatenate(cell_bin),
        shifts=_padded(shifts, cell_bin, 0),
        factors=_padded(factors, cell_bin, one),
        normsys_parameter=np.array(normsys, dtype=int),
        poisson_parameter=poisson[:, 0],
        poisson_auxdata=poisson[:, 1],
        normal_parameter=normal[:, 0],
        normal_auxdata=normal[:, 1],
        codes=(histosys_code, normsys_code),
        interpolated=np.array(sorted(interpolated), dtype=int),
    )
    lower, upper = np.array(config.suggested_bounds(), dtype=float).T
    widths = np.ones(config.npars)
    for name in config.auxdata_order:
        widths[config.par_slice(name)] = config.param_set(name).width()
    static = {
        "start": start,
        "staterror_start": staterror_start,
        "init": np.array(config.suggested_init(), dtype=float),
        "lower": lower,
        "upper": upper,
        "fixed": np.array(config.suggested_fixed()),
        "auxdata": np.array(config.auxdata, dtype=float),
        "widths": widths,
    }
    return structure, static


def _samples(spec):
    """(channel, sample) pairs, channels in pyhf's alphabetic order."""
    for channel in sorted(spec["channels"], key=lambda channel: channel["name"]):
        for sample in channel["samples"]:
            yield channel, sample


def _staterror_starts(spec, start):
    """First parameter of each staterror in each channel: they count on across channels."""
    starts, used = {}, dict(start)
    for channel, sample in _samples(spec):
        for modifier in sample["modifiers"]:
            place = (modifier["name"], channel["name"])
            if modifier["type"] == "staterror" and place not in starts:
                starts[place] = used[modifier["name"]]
                used[modifier["name"]] += len(sample["data"])
    return starts


def _padded(rows_by_sample, cell_bin, filler) -> np.ndarray:
    """One table of all samples; a sample with fewer rows is filled up."""
    height = max(len(rows) for rows in rows_by_sample)
    tables = [
        np.array(rows + [np.full(bins.shape, filler)] * (height - len(rows)), dtype=int).reshape(
            height, len(bins)
        )
        for rows, bins in zip(rows_by_sample, cell_bin, strict=True)
    ]
    return np.concatenate(tables, axis=1)


def _numbers(spec, structure, static) -> dict:
    """The arrays of a model, read from a specification whose numbers may be traced."""
    configured = {entry["name"]: entry for entry in spec.get("parameters", [])}
    start, staterror_start = static["start"], static["staterror_start"]
    height = structure.shifts.shape[0]
    nominal, down, up, normsys_down, normsys_up = [], [], [], [], []
    scale = jnp.ones(len(structure.parameter_names))
    masked = jnp.zeros(scale.shape, dtype=bool)
    stat_nominal, stat_squares = jnp.zeros(scale.shape), jnp.zeros(scale.shape)
    shapesys, staterror = [], []
    for channel, sample in _samples(spec):
        place = f"{channel['name']}/{sample['name']}"
        yields = _array(f"{place}: data", sample["data"])
        rows_down, rows_up = [], []
        for modifier in sample["modifiers"]:
            kind, name, data = modifier["type"], modifier["name"], modifier.get("data")
            entry = f"{place}: {kind} {name}"
            if kind == "histosys":
                rows_down.append(_array(f"{entry} lo_data", data["lo_data"], len(yields), True))
                rows_up.append(_array(f"{entry} hi_data", data["hi_data"], len(yields), True))
            elif kind == "normsys":
                normsys_down.append(_array(f"{entry} lo", [data["lo"]]))
                normsys_up.append(_array(f"{entry} hi", [data["hi"]]))
            elif kind == "shapesys":
                error = _array(entry, data, len(yields))
                here = start[name] + np.arange(len(yields))
                valid = (yields > 0) & (error > 0)
                ratio = jnp.where(valid, yields, 1.0) / jnp.where(valid, error, 1.0)
                scale = scale.at[here].set(ratio**2)
                shapesys.append((name, here, ~valid))
            elif kind == "staterror":
                error = _array(entry, data, len(yields))
                here = staterror_start[name, channel["name"]] + np.arange(len(yields))
                stat_nominal = stat_nominal.at[here].add(yields)
                stat_squares = stat_squares.at[here].add(error**2)
                staterror.append((name, here))
        nominal.append(yields)
        filler = [yields] * (height - len(rows_down))
        down.append(jnp.array(rows_down + filler).reshape(height, len(yields)))
        up.append(jnp.array(rows_up + filler).reshape(height, len(yields)))

    widths, auxdata = jnp.asarray(static["widths"]), jnp.asarray(static["auxdata"])
    for name, here in staterror:
        valid = (stat_nominal[here] > 0) & (stat_squares[here] > 0)
        square = jnp.where(valid, stat_squares[here], 1.0)
        relative = jnp.sqrt(square) / jnp.where(valid, stat_nominal[here], 1.0)
        if "sigmas" not in configured.get(name, {}):
            widths = widths.at[here].set(jnp.where(valid, relative, 1.0))
        if "fixed" not in configured.get(name, {}):
            masked = masked.at[here].set(~valid)
    for name, here, invalid in shapesys:
        if "fixed" not in configured.get(name, {}):
            masked = masked.at[here].set(invalid)
    poisson_scale = scale[structure.poisson_parameter]
    own_auxdata = {name for name, entry in configured.items() if "auxdata" in entry}
    free = np.array(
        [
            structure.parameter_names[p].split("[")[0] not in own_auxdata
            for p in structure.poisson_parameter
        ],
        dtype=bool,
    )
    auxdata = auxdata.at[structure.poisson_auxdata[free]].set(poisson_scale[free])
    return {
        "nominal": jnp.concatenate(nominal),
        "shift_down": jnp.concatenate(down, axis=1),
        "shift_up": jnp.concatenate(up, axis=1),
        "normsys_down": jnp.concatenate([jnp.zeros(0), *normsys_down]),
        "normsys_up": jnp.concatenate([jnp.zeros(0), *normsys_up]),
        "poisson_scale": poisson_scale,
        "normal_width": widths[structure.normal_parameter],
        "auxdata": auxdata,
        "init": jnp.asarray(static["init"]),
        "lower": jnp.asarray(static["lower"]),
        "upper": jnp.asarray(static["upper"]),
        "fixed": jnp.asarray(static["fixed"]) | masked,
    }


def _array(name, data, length=None, allow_negative=False):
    """Yields as a float array, checked where they are known."""
    try:
        array = jnp.asarray(data, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: not a list of numbers: {data!r}") from error
    if array.ndim != 1 or length not in (None, array.shape[0]):
        raise ValueError(f"{name} has shape {array.shape}, but the sample has {length} bins")
    if allow_negative:
        checks.finite(name, array)
    else:
        checks.positive(name, array, allow_zero=True)
    return array
