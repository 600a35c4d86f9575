"""What pyhf makes of a specification: its parameters, in its order, and its error messages.

pyhf keeps a table of every modifier, sample and bin. Of a large specification it is shown two
smaller ones: the modifiers with one parameter, in a single bin, and those with one for each bin.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nablab.model import _forms, _layout

ONE_PARAMETER = {"histosys", "lumi", "normfactor", "normsys"}  # of one parameter; pyhf's first ones
# From so many entries of pyhf's tables on, a specification is shown in two parts.
LARGE = 100_000


@dataclass(frozen=True)
class ParameterSets:
    """pyhf's parameters. Its "sets" have one name and one or more parameters.

    Attributes:
        names: of the parameters, such as ``mc[0]``.
        start, size: first parameter of each set, and how many it has.
        constraint: "poisson", "normal" or None, for each set.
        width: of the constraint term of each parameter, 1 without one.
        auxdata: of the sets with a constraint, one after the other.
        bounds: [parameters, 2].
    """

    names: tuple[str, ...]
    start: Mapping[str, int]
    size: Mapping[str, int]
    constraint: Mapping[str, str | None]
    width: np.ndarray
    auxdata: list
    init: np.ndarray
    bounds: np.ndarray
    fixed: np.ndarray
    poi_index: int | None

    @property
    def constrained(self) -> list[str]:
        """Sets with a constraint term, in the order of their auxiliary data."""
        return [name for name, kind in self.constraint.items() if kind]

    def place(self, name: str) -> slice:
        """Where the parameters of a set are."""
        return slice(self.start[name], self.start[name] + self.size[name])


def read(form: dict, poi_name: str | None, settings: dict) -> ParameterSets:
    """pyhf's parameters for a specification without numbers; its messages, and some of our own."""
    try:
        with _forms.explained(form):
            configs = _configs(form, settings)
    except KeyError as error:
        slashed = [
            modifier["name"]
            for _, sample in _layout.samples(form)
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
        if any(p["name"] == "lumi" and needed <= set(p) for p in form.get("parameters", [])):
            raise
        raise ValueError("lumi needs inits, bounds and auxdata among the parameters") from None
    sets = _joined(configs, _poi_index(configs, poi_name))
    _check(form, sets)
    return sets


def _configs(form, settings) -> list:
    """One configuration of pyhf, or two whose parameters follow one another."""
    import pyhf

    def config(spec, validate=True):
        model = pyhf.Model(spec, validate=validate, poi_name=None, modifier_settings=settings)
        return model.config

    def in_two():
        pyhf.schema.validate(_forms.spread(form, most=1), "model.json")
        ones, many = (_part(form, scalar) for scalar in (True, False))
        if _parameters(ones) & _parameters(many):
            return None
        parts = [part for part in (ones, many) if _parameters(part)]
        return [config(part, validate=False) for part in parts] or None

    return (_is_large(form) and in_two()) or [config(_forms.spread(form))]


def _is_large(form) -> bool:
    """Whether pyhf's tables would be; not for what it will find to be wrong."""
    try:
        names, samples, bins = set(), set(), 0
        for channel in form["channels"]:
            lengths = {_forms.length(sample["data"]) for sample in channel["samples"]}
            if len(lengths) != 1:
                return False
            bins += lengths.pop()
            for sample in channel["samples"]:
                samples.add(sample["name"])
                names |= {(modifier["type"], modifier["name"]) for modifier in sample["modifiers"]}
        configured = [parameter["name"] for parameter in form.get("parameters", [])]
    except (KeyError, TypeError):
        return False
    some = len(names) * len(samples) * bins > LARGE
    return some and len(set(configured)) == len(configured)


def _part(form, scalar: bool) -> dict:
    """The specification with modifiers of one parameter only, in one bin, or with the others."""
    most = 1 if scalar else None
    channels = [
        {
            "name": channel["name"],
            "samples": [
                {
                    "name": sample["name"],
                    "data": _forms.spread(sample["data"], most),
                    "modifiers": [
                        _forms.spread(modifier, most)
                        for modifier in sample["modifiers"]
                        if (modifier["type"] in ONE_PARAMETER) == scalar
                    ],
                }
                for sample in channel["samples"]
            ],
        }
        for channel in form["channels"]
    ]
    part = {"channels": channels}
    here = _parameters(part)
    configured = [_forms.spread(p) for p in form.get("parameters", []) if p["name"] in here]
    return part | {"parameters": configured}


def _parameters(spec) -> set[str]:
    return {m["name"] for _, sample in _layout.samples(spec) for m in sample["modifiers"]}


def _poi_index(configs, poi_name) -> int | None:
    """Index of the parameter of interest: pyhf's message if there is no such single parameter."""
    import pyhf

    if not poi_name:
        return None
    first = 0
    for config in configs:
        if poi_name in config.par_order:
            config.set_poi(poi_name)
            return first + config.poi_index
        first += config.npars
    try:
        configs[0].set_poi(poi_name)
    except pyhf.exceptions.InvalidModel as error:
        raise pyhf.exceptions.InvalidModel(
            f"{error} Does it hold the background only? Then add a signal patch. A model without "
            "parameter of interest has poi_name=''"
        ) from None


def _joined(configs, poi_index) -> ParameterSets:
    sets = [(name, config.param_set(name)) for config in configs for name in config.par_order]
    size = {name: found.n_parameters for name, found in sets}
    starts = np.cumsum([0, *size.values()]).tolist()
    start = dict(zip(size, starts[:-1], strict=True))
    constraint = {name: found.pdf_type if found.constrained else None for name, found in sets}
    width = np.ones(starts[-1])
    for name, found in sets:
        if found.constrained:
            width[start[name] : start[name] + size[name]] = found.width()
    names = [name for config in configs for name in config.par_names]
    bounds = [pair for _, found in sets for pair in found.suggested_bounds]
    for name, pair in zip(names, bounds, strict=True):
        if len(pair) != 2:  # pyhf's schema lets it pass
            raise ValueError(f"{name}: bounds must be a list of pairs [lower, upper]")
    return ParameterSets(
        names=tuple(names),
        start=start,
        size=size,
        constraint=constraint,
        width=width,
        auxdata=[number for config in configs for number in config.auxdata],
        init=np.array([value for _, found in sets for value in found.suggested_init], dtype=float),
        bounds=np.array(bounds, dtype=float),
        fixed=np.array([value for _, found in sets for value in found.suggested_fixed], dtype=bool),
        poi_index=poi_index,
    )


def _check(form, sets) -> None:
    """What pyhf takes in silence."""
    unique("channels", [channel["name"] for channel in form["channels"]])
    for channel in form["channels"]:
        samples = [sample["name"] for sample in channel["samples"]]
        unique(f"samples in channel {channel['name']}", samples)
    for channel, sample in _layout.samples(form):
        place, bins = f"{channel['name']}/{sample['name']}", _forms.length(sample["data"])
        unique(f"modifiers of {place}", [(m["type"], m["name"]) for m in sample["modifiers"]])
        for modifier in sample["modifiers"]:
            parameters = sets.size[modifier["name"]]
            if modifier["type"] == "shapefactor" and parameters < bins:
                raise ValueError(
                    f"{place}: shapefactor {modifier['name']} has {parameters} parameters, from "
                    f"another channel, but the sample has {bins} bins"
                )


def unique(what: str, names: list) -> None:
    """pyhf silently takes the last of two channels, samples or modifiers of the same name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{count} {what} are named {name!r}")
