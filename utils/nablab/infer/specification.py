"""Reading a pyhf specification: pyhf decides the structure, the numbers are read around it."""

import functools
import json
import weakref
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyhf

from nablab.infer import entries, layout


@dataclass(frozen=True, eq=False)
class Structure:
    """What does not depend on the numbers. Compared by identity: one object per structure.

    The names of samples do not count, so that all signal hypotheses of an analysis are compiled
    once.

    A "cell" is one sample in one bin; ``rows x cells`` tables say which parameter acts on it.
    """

    poi_index: int | None
    parameter_names: tuple[str, ...]
    main_bins: int
    channel_shapes: tuple[tuple[int, int], ...]  # (samples, bins) of each channel
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

    # Copies, and what another process made of the same specification, are the same object here:
    # nothing is compiled again for them.
    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return _restored, tuple(vars(self).values())


def read(spec: dict, poi_name: str | None, histosys_code: str, normsys_code: str):
    """Structure (one object for all specifications of the same form) and numbers of a model."""
    key = json.dumps(entries.form(spec))
    structure, where = _structure(key, poi_name, histosys_code, normsys_code)
    return structure, layout.fetch(spec, where)


@functools.lru_cache(maxsize=256)
def _structure(key: str, poi_name: str | None, histosys_code: str, normsys_code: str):
    """Structure, and where its numbers are, for a specification without numbers."""
    spec = json.loads(key)
    settings = {"histosys": {"interpcode": histosys_code}, "normsys": {"interpcode": normsys_code}}
    config = _config(spec, poi_name, settings)

    start = {name: config.par_slice(name).start for name in config.par_order}
    staterror_start = _staterror_starts(spec, start)
    shifts, factors, cell_bin, normsys, interpolated = [], [], [], [], set()
    for channel, sample in layout.samples(spec):
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
        channel_shapes=tuple(
            (len(channel["samples"]), len(channel["samples"][0]["data"]))
            for channel in sorted(spec["channels"], key=lambda channel: channel["name"])
        ),
        cell_bin=np.concatenate(cell_bin),
        shifts=layout.padded(shifts, [np.zeros_like(bins) for bins in cell_bin]),
        factors=layout.padded(factors, [np.full_like(bins, one) for bins in cell_bin]),
        normsys_parameter=np.array(normsys, dtype=int),
        poisson_parameter=poisson[:, 0],
        poisson_auxdata=poisson[:, 1],
        normal_parameter=normal[:, 0],
        normal_auxdata=normal[:, 1],
        codes=(histosys_code, normsys_code),
        interpolated=np.array(sorted(interpolated), dtype=int),
    )
    return _one_object(structure), layout.build(spec, config, structure, start, staterror_start)


_structures = weakref.WeakValueDictionary()


def _one_object(structure: Structure) -> Structure:
    """The first structure that was equal to this one."""
    content = tuple(
        (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for value in vars(structure).values()
    )
    return _structures.setdefault(content, structure)


def _restored(*fields) -> Structure:
    return _one_object(Structure(*fields))


def _config(spec, poi_name, settings):
    """What pyhf makes of the specification: its own messages, and some where it has none."""
    try:
        with entries.explained(spec):
            config = pyhf.Model(spec, poi_name=None, modifier_settings=settings).config
    except KeyError as error:
        slashed = [
            modifier["name"]
            for _, sample in layout.samples(spec)
            for modifier in sample["modifiers"]
            if modifier["type"] == "staterror" and "/" in modifier["name"]
        ]
        if not slashed:
            raise
        raise ValueError(
            f"staterror {slashed[0]!r} has a '/' in its name, which pyhf cannot read: rename it"
        ) from error
    except AssertionError as error:
        raise ValueError(
            "a staterror is missing on a sample: all samples that share a staterror must have it "
            "in the same channels"
        ) from error
    except TypeError:
        needed = {"inits", "bounds", "auxdata"}
        if any(p["name"] == "lumi" and needed <= set(p) for p in spec.get("parameters", [])):
            raise
        raise ValueError("lumi needs inits, bounds and auxdata among the parameters") from None
    try:
        config.set_poi(poi_name or None)
    except pyhf.exceptions.InvalidModel as error:
        if poi_name in config.par_order:
            raise
        raise pyhf.exceptions.InvalidModel(
            f"{error} Does it hold the background only? Then add a signal patch. A model without "
            "parameter of interest has poi_name=''"
        ) from None
    unique("channels", [channel["name"] for channel in spec["channels"]])
    for channel in spec["channels"]:
        samples = [sample["name"] for sample in channel["samples"]]
        unique(f"samples in channel {channel['name']}", samples)
    for channel, sample in layout.samples(spec):
        place = f"{channel['name']}/{sample['name']}"
        unique(f"modifiers of {place}", [(m["type"], m["name"]) for m in sample["modifiers"]])
        for modifier in sample["modifiers"]:
            parameters = config.param_set(modifier["name"]).n_parameters
            if modifier["type"] == "shapefactor" and parameters < len(sample["data"]):
                raise ValueError(
                    f"{place}: shapefactor {modifier['name']} has {parameters} parameters, from "
                    f"another channel, but the sample has {len(sample['data'])} bins"
                )
    return config


def unique(what, names):
    """pyhf silently takes the last of two channels, samples or modifiers of the same name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{count} {what} are named {name!r}")


def _staterror_starts(spec, start):
    """First parameter of each staterror in each channel: they count on across channels."""
    starts, used = {}, dict(start)
    for channel, sample in layout.samples(spec):
        for modifier in sample["modifiers"]:
            place = (modifier["name"], channel["name"])
            if modifier["type"] == "staterror" and place not in starts:
                starts[place] = used[modifier["name"]]
                used[modifier["name"]] += len(sample["data"])
    return starts
