"""Reading a pyhf specification: pyhf decides the structure, the numbers are read around it."""

import functools
import hashlib
import json
import weakref
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from nablab.indexing import stretch
from nablab.model import _forms, _layout, _parameter_sets


class Places(NamedTuple):
    """Places of a :class:`Structure` to index with: slices where they follow one another."""

    normsys_parameter: slice | np.ndarray
    poisson_parameter: slice | np.ndarray
    poisson_auxdata: slice | np.ndarray
    normal_parameter: slice | np.ndarray
    normal_auxdata: slice | np.ndarray
    data: slice | np.ndarray  # among all counts, followed by the normal measurements


@dataclass(frozen=True, eq=False)
class Structure:
    """What does not depend on the numbers. Compared by identity: one object per structure.

    The names of samples do not count, so that all signal hypotheses of an analysis are compiled
    once.

    A "cell" is one sample in one bin; ``rows x cells`` tables say which parameter acts on it. An
    additive modifier has one parameter for all bins of a sample.
    """

    poi_index: int | None
    parameter_names: tuple[str, ...]
    main_bins: int
    channel_shapes: tuple[tuple[int, int], ...]  # (samples, bins) of each channel
    cell_bin: np.ndarray
    cell_sample: np.ndarray
    shift_parameters: np.ndarray  # [rows, samples]: parameter of each additive modifier, -1: none
    factors: np.ndarray  # [rows, cells]: index into (parameters, normsys factors, 1)
    normsys_parameter: np.ndarray
    poisson_parameter: np.ndarray
    poisson_auxdata: np.ndarray
    normal_parameter: np.ndarray
    normal_auxdata: np.ndarray
    codes: tuple[str, str]
    interpolated: np.ndarray = field(repr=False)  # parameters of histosys and normsys

    @functools.cached_property
    def at(self) -> Places:
        """Where the numbers of interpolated factors and constraint terms are, to index with."""
        auxiliary = np.concatenate([self.poisson_auxdata, self.normal_auxdata])
        order = np.concatenate([np.arange(self.main_bins), self.main_bins + np.argsort(auxiliary)])
        names = Places._fields[:-1]
        return Places(*(stretch(getattr(self, name)) for name in names), stretch(order))

    # Copies, and what another process made of the same specification, are the same object here:
    # nothing is compiled again for them.
    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return _restored, self._content()

    def _content(self) -> tuple:
        return tuple(getattr(self, field.name) for field in fields(self))


def read(spec: dict, poi_name: str | None, histosys_code: str, normsys_code: str):
    """Structure (one object for all specifications of the same form) and numbers of a model."""
    key = json.dumps(_forms.form(spec))
    structure, where = _structure(key, poi_name, histosys_code, normsys_code)
    return structure, _layout.fetch(spec, where)


@functools.lru_cache(maxsize=256)
def _structure(key: str, poi_name: str | None, histosys_code: str, normsys_code: str):
    """Structure, and where its numbers are, for a specification without numbers."""
    form = json.loads(key)
    settings = {"histosys": {"interpcode": histosys_code}, "normsys": {"interpcode": normsys_code}}
    sets = _parameter_sets.read(form, poi_name, settings)
    parameters = len(sets.names)

    staterror_start = _staterror_starts(form, sets)
    shifts, factors, cell_bin, normsys, interpolated = [], [], [], [], set()
    for channel, sample, first in _placed(form):
        bins = np.arange(_forms.length(sample["data"]))
        cell_bin.append(first + bins)
        shift_rows, factor_rows = [], []
        for modifier in sample["modifiers"]:
            kind, parameter = modifier["type"], sets.start[modifier["name"]]
            if kind == "histosys":
                shift_rows.append([parameter])
            elif kind == "normsys":
                factor_rows.append(np.full(bins.shape, parameters + len(normsys)))
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

    poisson, normal = _constraint_terms(sets)
    one = parameters + len(normsys)
    sizes = [len(bins) for bins in cell_bin]
    structure = Structure(
        poi_index=sets.poi_index,
        parameter_names=sets.names,
        main_bins=int(max(bins[-1] for bins in cell_bin)) + 1,
        channel_shapes=tuple(
            (len(channel["samples"]), _forms.length(channel["samples"][0]["data"]))
            for channel in sorted(form["channels"], key=lambda channel: channel["name"])
        ),
        cell_bin=np.concatenate(cell_bin),
        cell_sample=np.repeat(np.arange(len(sizes)), sizes),
        shift_parameters=_layout.padded(shifts, [[-1] for _ in sizes]),
        factors=_layout.padded(factors, [np.full_like(bins, one) for bins in cell_bin]),
        normsys_parameter=np.array(normsys, dtype=int),
        poisson_parameter=poisson[:, 0],
        poisson_auxdata=poisson[:, 1],
        normal_parameter=normal[:, 0],
        normal_auxdata=normal[:, 1],
        codes=(histosys_code, normsys_code),
        interpolated=np.array(sorted(interpolated), dtype=int),
    )
    return _one_object(structure), _layout.build(form, sets, structure, staterror_start)


def _constraint_terms(sets):
    """Parameter and place of the auxiliary measurement of each Poisson, and each normal, term."""
    poisson, normal, auxiliary = [], [], 0
    for name in sets.constrained:
        those = sets.place(name)
        kind = poisson if sets.constraint[name] == "poisson" else normal
        measured = range(auxiliary, auxiliary + sets.size[name])
        kind.extend(zip(range(those.start, those.stop), measured, strict=True))
        auxiliary = measured.stop
    return (np.array(terms, dtype=int).reshape(-1, 2) for terms in (poisson, normal))


def _placed(form):
    """(channel, sample, first bin of the channel), channels in pyhf's order."""
    first, before = 0, None
    for channel, sample in _layout.samples(form):
        if before is not None and channel is not before:
            first += _forms.length(before["samples"][0]["data"])
        before = channel
        yield channel, sample, first


_structures = weakref.WeakValueDictionary()


def _one_object(structure: Structure) -> Structure:
    """The first structure that was equal to this one."""
    content = tuple(
        (value.shape, hashlib.sha256(value.tobytes()).digest())
        if isinstance(value, np.ndarray)
        else value
        for value in structure._content()
    )
    return _structures.setdefault(content, structure)


def _restored(*content) -> Structure:
    return _one_object(Structure(*content))


def _staterror_starts(form, sets):
    """First parameter of each staterror in each channel: they count on across channels."""
    starts, used = {}, dict(sets.start)
    for channel, sample in _layout.samples(form):
        for modifier in sample["modifiers"]:
            place = (modifier["name"], channel["name"])
            if modifier["type"] == "staterror" and place not in starts:
                starts[place] = used[modifier["name"]]
                used[modifier["name"]] += _forms.length(sample["data"])
    return starts
