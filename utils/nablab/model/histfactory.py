"""HistFactory likelihoods whose numbers may be traced JAX arrays.

pyhf is asked for the structure of a model (parameter order, starting values, bounds, constraint
terms) once per structure, with made-up numbers in place of the yields. The numbers themselves
never pass through pyhf: they flow through the pure functions below, so that the likelihood is
differentiable in its parameters *and* in every yield of the specification.
"""

import operator
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablab import checks
from nablab.checks import Numbers
from nablab.model import _specification, interpolation
from nablab.model._specification import Structure
from nablab.pytrees import pytree

if TYPE_CHECKING:
    import pyhf

PYHF_CODES = {"histosys": "code4p", "normsys": "code4"}
# Below this rate the Poisson log-likelihood goes on as a straight line, so that an empty bin with
# data in it is very unlikely and has a finite gradient, instead of infinity and NaN. It is far
# below any yield, and so large that the square of the curvature there is still a number.
SMALLEST_RATE = 1e-70
# A sum of samples of either sign is 0 if it is smaller than this fraction of their sizes.
ROUNDING = 1e-13


@pytree(static=("structure",))
class Model:
    """A HistFactory model: numbers (all differentiable) and a fixed structure."""

    structure: Structure
    nominal: Float[Array, "cells"]
    shift_down: Float[Array, "rows cells"]
    shift_up: Float[Array, "rows cells"]
    normsys_down: Float[Array, "normsys"]
    normsys_up: Float[Array, "normsys"]
    poisson_scale: Float[Array, "poisson"]
    normal_width: Float[Array, "normal"]
    auxdata: Float[Array, "auxiliary"]
    init: Float[Array, "parameters"]
    lower: Float[Array, "parameters"]
    upper: Float[Array, "parameters"]
    fixed: Bool[Array, "parameters"]

    @property
    def poi_index(self) -> int:
        """Index of the parameter of interest; ``ValueError`` if the model has none."""
        if self.structure.poi_index is None:
            raise ValueError(
                "the model has no parameter of interest: name one with poi_name where it is built"
            )
        return self.structure.poi_index

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names in the order of the parameter vector, as in pyhf."""
        return self.structure.parameter_names

    def index(self, parameter: str | int) -> int:
        """Place of a parameter in the parameter vector; an index is checked.

        Raises:
            ValueError: no parameter has this name or index, or two have this name (the first bin of
                a shapefactor ``a`` and a normfactor ``a[0]``).
        """
        names = self.parameter_names
        if isinstance(parameter, str):
            found = names.count(parameter)
            if found > 1:
                raise ValueError(
                    f"parameter is {parameter!r}: {found} parameters have this name, give the "
                    "index of one"
                )
            if not found:
                raise ValueError(f"parameter is {parameter!r}: choose from {', '.join(names)}")
            return names.index(parameter)
        index = operator.index(parameter)
        if not 0 <= index < len(names):
            raise ValueError(f"parameter is {parameter}: the model has {len(names)} parameters")
        return index

    def parameters(self, poi: Float[Numbers, ""] | float) -> Float[Array, "parameters"]:
        """The starting values with the parameter of interest set to ``poi``."""
        return self.init.at[self.poi_index].set(poi)

    def expected_by_cell(self, parameters: Float[Numbers, "parameters"]) -> Float[Array, "cells"]:
        """Expected events of each sample in each bin."""
        s = self.structure
        additive, factor = (interpolation.ADDITIVE[s.codes[0]], interpolation.FACTOR[s.codes[1]])
        alpha = self.alphas(parameters)[:, s.cell_sample]
        shifts = additive(alpha, self.shift_down, self.nominal, self.shift_up)
        shifted = self.nominal + shifts.sum(axis=0)
        alpha = parameters[s.at.normsys_parameter]
        normsys = factor(alpha, self.normsys_down, 1.0, self.normsys_up)
        all_factors = jnp.concatenate([parameters, normsys, jnp.ones(1)])
        return shifted * jnp.prod(all_factors[s.factors], axis=0)

    def alphas(self, parameters: Float[Numbers, "parameters"]) -> Float[Array, "rows samples"]:
        """Parameter of each additive modifier, 0 in a row that a sample does not have."""
        return jnp.append(parameters, 0.0)[self.structure.shift_parameters]

    def expected_main(self, parameters: Float[Numbers, "parameters"]) -> Float[Array, "bins"]:
        """Expected events in each bin; channels in alphabetic order, as in pyhf."""
        return self.main_from_cells(self.expected_by_cell(parameters))

    def main_from_cells(self, by_cell: Float[Array, "cells"]) -> Float[Array, "bins"]:
        """Sum over the samples of each bin."""
        bins, start = [], 0
        for samples, width in self.structure.channel_shapes:
            stop = start + samples * width
            bins.append(by_cell[start:stop].reshape(samples, width).sum(axis=0))
            start = stop
        return jnp.concatenate(bins)

    def poisson_rates(self, parameters: Float[Numbers, "parameters"]) -> Float[Array, "counts"]:
        """Expected main counts, followed by the expected Poisson auxiliary counts."""
        return self._poisson_rates(self.expected_main(parameters), parameters)

    def _poisson_rates(self, main, parameters):
        auxiliary = parameters[self.structure.at.poisson_parameter] * self.poisson_scale
        return jnp.concatenate([main, auxiliary])

    def expected_data(self, parameters: Float[Numbers, "parameters"]) -> Float[Array, "data"]:
        """Expected main and auxiliary data, in pyhf's order: the Asimov data set."""
        measured = parameters[self.structure.at.normal_parameter]
        return self.joined(self.poisson_rates(parameters), measured)

    def joined(
        self, counts: Float[Numbers, "counts"], measured: Float[Numbers, "normal"]
    ) -> Float[Array, "data"]:
        """Data, in pyhf's order, of main and auxiliary counts and of auxiliary measurements."""
        return jnp.concatenate([counts, measured])[self.structure.at.data]

    def logpdf(
        self, parameters: Float[Numbers, "parameters"], data: Float[Numbers, "data"]
    ) -> Float[Array, ""]:
        """Log-density of main and auxiliary data, equal to pyhf's."""
        self.check_data(data)
        counts, _ = self._split(data)
        normal = jnp.sum(jnp.log(self.normal_width) + 0.5 * jnp.log(2 * jnp.pi))
        return (
            jnp.sum(_log_poisson_at_mean(counts)) - normal - 0.5 * self.deviance(parameters, data)
        )

    def deviance(
        self, parameters: Float[Numbers, "parameters"], data: Float[Numbers, "data"]
    ) -> Float[Array, ""]:
        """Twice the distance of the log-density from that of a perfect description of the data.

        It differs from -2 log L by a constant only, and is 0 at the parameters of an Asimov data
        set, which keeps small differences free of rounding errors.
        """
        return self.deviance_at(self.expected_main(parameters), parameters, data)

    def deviance_at(
        self,
        main: Float[Array, "bins"],
        parameters: Float[Numbers, "parameters"],
        data: Float[Numbers, "data"],
    ) -> Float[Array, ""]:
        """:meth:`deviance` for given expected events ``main``."""
        counts, measured = self._split(data)
        pulls = (parameters[self.structure.at.normal_parameter] - measured) / self.normal_width
        rates = self._poisson_rates(main, parameters)
        return jnp.sum(_poisson_deviance(rates, counts)) + jnp.sum(pulls**2)

    def rate_slopes(
        self, main: Float[Array, "bins"], data: Float[Numbers, "data"]
    ) -> tuple[Float[Array, "bins"], Float[Array, "bins"]]:
        """First and second derivative of the deviance in the expected events of each bin."""
        return _poisson_slopes(main, data[: self.structure.main_bins])

    def constraint_slopes(
        self, parameters: Float[Numbers, "parameters"], data: Float[Numbers, "data"]
    ) -> tuple[Float[Array, "parameters"], Float[Array, "parameters"]]:
        """First and second derivative of the constraint terms in each parameter."""
        s = self.structure
        counts, measured = self._split(data)
        here, scale = s.poisson_parameter, self.poisson_scale
        rates = parameters[s.at.poisson_parameter] * scale
        slope, curvature = _poisson_slopes(rates, counts[s.main_bins :])
        pulls = (parameters[s.at.normal_parameter] - measured) / self.normal_width
        nothing = jnp.zeros(parameters.shape)
        first = nothing.at[here].add(slope * scale)
        second = nothing.at[here].add(curvature * scale**2)
        return (
            first.at[s.normal_parameter].add(2.0 * pulls / self.normal_width),
            second.at[s.normal_parameter].add(2.0 / self.normal_width**2),
        )

    def check_data(self, data) -> None:
        """Raise ``ValueError`` unless ``data`` are main and auxiliary measurements of the model."""
        bins, auxiliary = self.structure.main_bins, self.auxdata.shape[0]
        if jnp.shape(data) != (bins + auxiliary,):
            raise ValueError(
                f"data has shape {jnp.shape(data)}, but the model has {bins} bins followed by "
                f"{auxiliary} auxiliary measurements"
            )
        checks.finite("data", data)
        checks.positive("data", data[:bins], allow_zero=True)

    def _split(self, data):
        """All Poisson counts (main bins, then auxiliary), and the normal measurements."""
        s = self.structure
        data = jnp.asarray(data, dtype=float)
        main, auxiliary = data[: s.main_bins], data[s.main_bins :]
        counts = jnp.concatenate([main, auxiliary[s.at.poisson_auxdata]])
        return counts, auxiliary[s.at.normal_auxdata]


def from_spec(
    spec: dict, poi_name: str | None = "mu", codes: dict[str, str] | None = None
) -> Model:
    """Build the model of a pyhf specification, whose numbers may be traced.

    Args:
        spec: what ``pyhf.Model`` takes: ``{"channels": [...], "parameters": [...]}``. Every
            ``data`` list may be a NumPy or JAX array.
        poi_name: the parameter of interest; ``None`` or ``""``, as in pyhf, for a model without
            one: it can be fitted, but no signal strength can be tested.
        codes: interpolation codes, ``{"histosys": "code0", "code2" or "code4p", "normsys":
            "code1" or "code4"}``; pyhf's defaults are code4p and code4.

    Raises:
        ValueError: a number is not finite, an uncertainty is negative, the samples of a bin add
            up to less than 0 at the starting values (each of them may be negative), a parameter
            starts outside of its bounds, two entries have the same name, a code is
            unknown, or the form of the specification depends on a traced value. A traced number
            of this kind makes the model NaN instead, and the status of its fits NOT_FINITE.
        pyhf.exceptions.InvalidSpecification, InvalidModel, ...: pyhf's own message for a
            specification of the wrong form.
        RuntimeError: 64-bit floats are switched off.
    """
    import pyhf

    checks.double_precision("a model")
    for kind in set(codes or {}) - set(PYHF_CODES):
        raise ValueError(f"codes has an entry {kind!r}: only {sorted(PYHF_CODES)} have a code")
    codes = {**PYHF_CODES, **(codes or {})}
    known = {"histosys": interpolation.ADDITIVE, "normsys": interpolation.FACTOR}
    for kind, choices in known.items():
        if codes[kind] not in choices:
            raise ValueError(f"codes[{kind!r}] is {codes[kind]!r}: choose from {sorted(choices)}")
    if isinstance(spec, pyhf.Model):
        raise ValueError("spec is a pyhf.Model: use from_pyhf")
    if "measurements" in spec:
        raise ValueError("spec is a workspace: use workspaces.read")
    structure, numbers = _specification.read(spec, poi_name, codes["histosys"], codes["normsys"])
    return _possible(Model(structure=structure, **numbers), spec)


def from_pyhf(model: "pyhf.Model") -> Model:
    """The same model: specification, parameter of interest and interpolation codes of pyhf's.

    Its auxiliary data are ``.auxdata``; :func:`nablab.model.workspaces.read` takes a
    ``pyhf.Workspace``.

    Raises:
        ValueError: pyhf's model clips its rates; or see :meth:`from_spec`.
    """
    main = model.main_model
    if main.clip_sample_data is not None or main.clip_bin_data is not None:
        raise ValueError("the pyhf.Model clips its rates, which is not supported")
    settings = model.config.modifier_settings
    # What pyhf takes where the settings say nothing of a kind, unlike where there are none.
    silent = {"histosys": "code0", "normsys": "code1"}
    codes = {k: settings.get(k, {}).get("interpcode", code) for k, code in silent.items()}
    return from_spec(model.spec, model.config.poi_name, codes)


def _possible(model: Model, spec: dict) -> Model:
    """The model, unless less than nothing is expected in a bin at the starting values.

    ``ValueError`` where that can be known, otherwise NaN, which no fit overlooks.
    """
    nominal = model.nominal
    if not (checks.is_traced(nominal) or (np.asarray(nominal) < 0).any()):
        return model
    known = not checks.is_traced(*jax.tree.leaves(model))
    with jax.ensure_compile_time_eval() if known else nullcontext():
        total, impossible = _start(jax.lax.stop_gradient(model))
    if not known:
        there = impossible[model.structure.cell_bin]
        return replace(model, nominal=jnp.where(there, jnp.nan, nominal))
    bins = [
        f"{channel['name']}[{i}]"
        for channel in sorted(spec["channels"], key=lambda channel: channel["name"])
        for i in range(np.size(channel["samples"][0]["data"]))
    ]
    for i in np.flatnonzero(impossible)[:1]:
        raise ValueError(
            f"{bins[i]}: the samples add up to {total[i]:.6g} events at the starting values of the "
            "parameters, which must be at least 0: merge bins, or set the negative yields to 0"
        )
    return model


@jax.jit
def _start(model):
    """Expected events of each bin at the starting values, and whether they are less than 0."""
    by_cell = model.expected_by_cell(model.init)
    total, size = model.main_from_cells(by_cell), model.main_from_cells(jnp.abs(by_cell))
    return total, total < -ROUNDING * size


def _poisson_deviance(rates, counts):
    """-2 log of Poisson(counts | rates) over its largest value, elementwise."""
    some = ~(counts <= 0)  # NaN is not no event
    lowest = jnp.where(some, SMALLEST_RATE, 0.0)
    reachable = jnp.where(rates < lowest, lowest, rates)
    safe_counts = jnp.where(some, counts, 1.0)
    ratio = jnp.where(some, reachable / safe_counts, 1.0)
    # Near the mean ratio - 1 has no rounding error, and the logarithm there keeps all its digits.
    distance = jnp.where(some, counts * (ratio - 1.0 - jnp.log(ratio)), reachable)
    distance = distance * checks.one_if(~(counts < 0))
    # 0 in the allowed range, below it a steep straight line towards it.
    below = jnp.where(rates < lowest, rates - lowest, 0.0)
    return 2.0 * (distance - safe_counts * below / SMALLEST_RATE)


def _poisson_slopes(rates, counts):
    """First and second derivative of the Poisson deviance in the rates, elementwise."""
    some = ~(counts <= 0)  # NaN is not no event
    lowest = jnp.where(some, SMALLEST_RATE, 0.0)
    below = rates < lowest
    reachable = jnp.where(some & ~below, rates, 1.0)
    steep = jnp.where(some, counts, 1.0) / SMALLEST_RATE
    slope = jnp.where(below, -steep, 1.0 - jnp.where(some, counts / reachable, 0.0))
    slope = slope * checks.one_if(~(counts < 0))
    return 2.0 * slope, jnp.where(below | ~some, 0.0, 2.0 * counts / reachable**2)


def _log_poisson_at_mean(counts):
    """log Poisson(counts | counts), the largest value the density can take."""
    some = jnp.where(counts > 0, counts, 1.0)
    return jnp.where(counts > 0, counts * jnp.log(some) - counts, 0.0) - jax.lax.lgamma(counts + 1)
