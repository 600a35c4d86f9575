"""Does a model expect less than nothing between its simulated points?

A polynomial through the down, nominal and up yields of a bin (codes 2 and 4p) can fall below zero
where these are positive: 0.2 events that become 57 and 0 have a parabola with a deep valley. There
the Poisson likelihood does not exist. A fit meets a wall at the edge of the valley, and takes the
wall for a measurement of the nuisance parameter.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nablab.checks import Numbers, is_traced
from nablab.model.histfactory import Model
from nablab.pytrees import pytree

POINTS = 81  # from -1 to 1


class NegativeRates(UserWarning):
    """A model expects less than nothing within one standard deviation of a parameter."""


@pytree
class LowestRates:
    """The fewest events that a model expects in a bin while one parameter is varied.

    Attributes:
        parameters: indices of the interpolated parameters (histosys, normsys).
        rates: the fewest expected events of any bin.
        bins: in which bin, counted through all channels.
        values: and at which value of the parameter.
    """

    parameters: Int[Array, "varied"]
    rates: Float[Array, "varied"]
    bins: Int[Array, "varied"]
    values: Float[Array, "varied"]


def varied_rates(
    model: Model,
    values: Float[Numbers, "values"],
    *,
    mu: Float[Numbers, ""] | float = 0.0,
) -> Float[Array, "varied values bins"]:
    """Expected events with one interpolated parameter at each of the values, the others nominal.

    Args:
        model: the likelihood.
        values: of the parameter, in pre-fit standard deviations.
        mu: of the parameter of interest, which is not varied.
    """
    which = _varied(model)
    return jax.vmap(lambda index: _rates_along(model, index, jnp.asarray(values), mu))(which)


@jax.jit
def lowest_rates(model: Model, *, mu: Float[Numbers, ""] | float = 0.0) -> LowestRates:
    """Where the model expects fewest events, within one standard deviation of each parameter.

    One parameter is varied at a time, in steps of 1/40. Where two that are varied together make a
    rate negative, this does not see it.
    """
    return _lowest(model, _varied(model), mu)


def _varied(model):
    s = model.structure
    return jnp.asarray(np.setdiff1d(s.interpolated, [] if s.poi_index is None else s.poi_index))


def _rates_along(model, index, values, mu):
    nominal = model.init if model.structure.poi_index is None else model.parameters(mu)
    return jax.vmap(lambda value: model.expected_main(nominal.at[index].set(value)))(values)


def _lowest(model, which, mu):
    values = jnp.linspace(-1.0, 1.0, POINTS)

    def along(index):
        rates = _rates_along(model, index, values, mu)
        point, place = jnp.unravel_index(jnp.argmin(rates), rates.shape)
        return rates[point, place], place, values[point]

    return LowestRates(which, *jax.lax.map(along, which))


_lowest_of = jax.jit(_lowest)


def warn_of_negative(model: Model) -> None:
    """Warn where a model, if its numbers are known, expects less than nothing; see above."""
    s = model.structure
    if not s.shift_parameters.size or is_traced(*jax.tree.leaves(model)):
        return
    nominal, down, up = map(np.asarray, (model.nominal, model.shift_down, model.shift_up))
    # No interpolation moves a cell further inside [-1, 1] than to its sum with the larger side.
    there = s.shift_parameters[:, s.cell_sample]
    deep = np.maximum(abs(up - nominal), abs(nominal - down)) > nominal
    candidates = np.unique(there[deep & (there >= 0)])
    candidates = candidates[~np.asarray(model.fixed)[candidates]]
    if not candidates.size:
        return
    with jax.ensure_compile_time_eval():
        found = _lowest_of(model, jnp.asarray(candidates), 0.0)
    for index, rate, place, value in zip(*map(np.asarray, vars(found).values()), strict=True):
        if rate < -1e-9:
            warnings.warn(
                f"bin {place} expects {rate:.2g} events where {s.parameter_names[index]!r} is "
                f"{value:.2g}, between its simulated points: a fit takes the wall in front of it "
                "for a measurement. Merge bins, or choose codes={'histosys': 'code0'}",
                NegativeRates,
                stacklevel=3,
            )
            return
