"""Per-bin parameters ("gammas", as Barlow and Beeston have them) at their best, given all others.

A gamma scales samples in one bin only (shapesys, staterror); all other parameters are global. A
level holds at most one gamma in each bin. A bin has one gamma in closed form; with a second one in
the same bin, this one is found by Newton steps while the first follows, in all bins at once.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab.indexing import put, stretch
from nablab.model.histfactory import Structure

# Up to so many gammas in a second level are fitted with the global parameters instead.
FEW = 16


class Terms(NamedTuple):
    """Constraint terms of one kind: their gammas' places in the level, and those of their numbers
    among the model's terms of the kind and in the auxiliary data."""

    gammas: slice | np.ndarray
    numbers: slice | np.ndarray
    auxdata: slice | np.ndarray
    some: bool


@dataclass(frozen=True, eq=False)
class Level:
    """Gammas, at most one in each bin; ``at`` and ``at_bins`` are places to index with."""

    parameters: np.ndarray
    bins: np.ndarray
    scales: np.ndarray  # [cells]: whether the gamma of the bin scales the cell
    at: slice | np.ndarray
    at_bins: slice | np.ndarray
    poisson: Terms
    normal: Terms


@functools.lru_cache(maxsize=256)
def levels(structure: Structure) -> tuple[Level, ...]:
    """The gammas of a structure: no level, one, or two."""
    s = structure
    constrained = np.concatenate([s.poisson_parameter, s.normal_parameter])
    interpolated = set(s.interpolated.tolist())
    found = [], []
    for term, parameter in enumerate(constrained):
        acts = s.factors == parameter
        bins = set(s.cell_bin[acts.any(axis=0)].tolist())
        alone = len(bins) == 1 and acts.sum(axis=0).max() == 1
        if not alone or parameter in interpolated or parameter == s.poi_index:
            continue
        for level in found:
            if not bins & {taken for _, taken, _ in level}:
                level.append((parameter, *bins, term))
                break
    least = (0, FEW)
    return tuple(
        _level(s, *np.array(level, dtype=int).T)
        for level, few in zip(found, least, strict=True)
        if len(level) > few
    )


def _level(s, parameters, bins, terms) -> Level:
    normal = terms - len(s.poisson_parameter)
    is_poisson = normal < 0

    def of(which, numbers, auxdata):
        places = np.flatnonzero(which), numbers[which], auxdata[numbers[which]]
        return Terms(*map(stretch, places), bool(which.any()))

    return Level(
        parameters,
        bins,
        np.isin(s.factors, parameters).any(axis=0),
        stretch(parameters),
        stretch(bins),
        of(is_poisson, terms, s.poisson_auxdata),
        of(~is_poisson, normal, s.normal_auxdata),
    )


class AtBest(NamedTuple):
    """The gammas at their best.

    ``sums`` are the events of each bin, an axis of 2 for each level: those that it leaves alone,
    and scales; the axis of the last level comes first. By level and bin, there are the ``gammas``
    (1 where there is none) and the ``constraints``: the curvature of their constraint terms,
    infinite where they cannot move.
    """

    parameters: Float[Array, "parameters"]
    sums: Float[Array, "... bins"]
    gammas: list[Float[Array, "bins"]]
    constraints: list[Float[Array, "bins"]]


def by_level(model, levels, cells) -> Float[Array, "... bins"]:
    """The ``sums`` of :class:`AtBest`."""
    parts = [cells]
    for level in levels:
        parts = [
            jnp.where(level.scales == scaled, part, 0.0) for scaled in (0, 1) for part in parts
        ]
    sums = jnp.stack([model.main_from_cells(part) for part in parts])
    return sums.reshape(*(2 for _ in levels), -1)


def scaled(sums, gammas, slopes=()):
    """Events with the gammas of each level, [bins] each.

    ``slopes`` tells levels in whose gamma the derivative is taken.
    """
    for level in reversed(range(len(gammas))):
        sums = sums[1] if level in slopes else sums[0] + gammas[level] * sums[1]
    return sums


def best(model, data, levels, parameters, cells) -> AtBest:
    """The gammas of the ``levels`` at their best; ``cells`` are the events without gammas."""
    sums = by_level(model, levels, cells)
    if not levels:
        return AtBest(parameters, sums, [], [])
    second = _second(model, data, levels, parameters, sums) if len(levels) == 2 else []
    left = sums[0] + second[0][0] * sums[1] if second else sums
    found = [_first(model, data, levels[0], parameters, left), *second]
    for level, (gamma, _) in zip(levels, found, strict=True):
        parameters = put(parameters, level.at, gamma[level.at_bins])
    return AtBest(parameters, sums, *map(list, zip(*found, strict=True)))


def second_derivatives(best: AtBest, slope, curvature, sum_slopes):
    """Second derivatives, in what has the ``sum_slopes``, of the deviance minimised over the
    gammas: pairs of weights [bins] and slopes [..., bins], the sum of ``weight * slope * slope``.

    ``slope`` and ``curvature`` are those of the deviance in the expected events.
    """
    rate_slopes = scaled(sum_slopes, best.gammas)
    pairs, mixed = [(curvature, rate_slopes)], []
    for level, step in enumerate(eliminated(best, slope, curvature)):
        both = scaled(sum_slopes, best.gammas, {level})
        mixed.append(curvature * step.rate_slope * rate_slopes + slope * both)
        for earlier, factor in enumerate(step.factors):
            mixed[level] = mixed[level] - factor * mixed[earlier]
        # The gammas move with the other parameters, which lowers the curvature.
        pairs.append((-step.inverse_curvature, mixed[level]))
    return pairs


class Elimination(NamedTuple):
    """Slope of the expected events in the gammas of one level, the elimination factors with which
    those of earlier levels follow, and the inverse of the curvature that is left."""

    rate_slope: Float[Array, "bins"]
    factors: list[Float[Array, "bins"]]
    inverse_curvature: Float[Array, "bins"]


def eliminated(best: AtBest, slope, curvature) -> list[Elimination]:
    """Elimination of the gammas of each bin, a level after the other."""
    _, sums, gammas, constraints = best
    steps = []
    for level in range(len(gammas)):
        rate_slope = scaled(sums, gammas, {level})
        left = curvature * rate_slope**2 + constraints[level]
        factors = []
        for earlier, (other_slope, _, inverse) in enumerate(steps):
            both = curvature * rate_slope * other_slope
            both = both + slope * scaled(sums, gammas, {level, earlier})
            factors.append(both * inverse)
            left = left - both * both * inverse
        steps.append(Elimination(rate_slope, factors, 1.0 / left))
    return steps


def _first(model, data, level, parameters, others_and_scaled):
    """Best gammas of the first level, by bin, and the curvature of their constraints."""
    here = [events[level.at_bins] for events in others_and_scaled]
    gamma, constraint = _closed_form(model, data, level, *here)
    lower, upper, fixed = (bound[level.at] for bound in (model.lower, model.upper, model.fixed))
    stuck = (gamma < lower) | (gamma > upper) | fixed
    gamma = jnp.where(fixed, parameters[level.at], jnp.clip(gamma, lower, upper))
    bins, constraint = model.structure.main_bins, jnp.where(stuck, jnp.inf, constraint)
    gamma = put(jnp.ones(bins), level.at_bins, gamma)
    return gamma, put(jnp.full(bins, jnp.inf), level.at_bins, constraint)


def _second(model, data, levels, parameters, sums):
    """The same of the second level, while the first one follows; as a list of one pair."""
    level, ones = levels[1], jnp.ones(model.structure.main_bins)
    fixed, rest = model.fixed[level.at], parameters[level.at]
    lower, upper = (
        put(ones, level.at_bins, jnp.where(fixed, rest, bound[level.at]))
        for bound in (model.lower, model.upper)
    )
    args = model, data, parameters, sums

    def slopes(args, gamma):
        return _slopes_in_second(levels, *args, gamma)

    still = jax.lax.stop_gradient((args, lower, upper))
    gamma = _rising_root(functools.partial(slopes, still[0]), *still[1:])
    stuck = (gamma <= lower) | (gamma >= upper)
    bound = jnp.where(gamma <= lower, lower, upper)

    def polish(gamma, _):
        slope, curvature, constraint = slopes(args, gamma)
        return jnp.where(stuck, bound, gamma - slope / jnp.where(stuck, 1.0, curvature)), constraint

    # Each Newton step at the root gives it another order of derivatives.
    gamma, constraint = jax.lax.scan(polish, gamma, length=2)
    return [(gamma, jnp.where(stuck, jnp.inf, constraint[-1]))]


def _slopes_in_second(levels, model, data, parameters, sums, gamma):
    """Slope and curvature of the deviance in the gammas of the second level while those of the
    first follow; and what their constraints add to the curvature."""
    first, level = levels
    other, other_constraint = _first(model, data, first, parameters, sums[0] + gamma * sums[1])
    parameters = put(parameters, level.at, gamma[level.at_bins])
    slope, curvature = model.rate_slopes(scaled(sums, [other, gamma]), data)
    pull, constraint = (own[level.at] for own in model.constraint_slopes(parameters, data))
    pull = put(jnp.zeros_like(gamma), level.at_bins, pull)
    constraint = put(jnp.ones_like(gamma), level.at_bins, constraint)
    here = AtBest(parameters, sums, [other, gamma], [other_constraint, constraint])
    _, (rate_slope, _, inverse_curvature) = eliminated(here, slope, curvature)
    return slope * rate_slope + pull, 1.0 / inverse_curvature, constraint


def _rising_root(
    function, lower: Float[Array, "bins"], upper: Float[Array, "bins"]
) -> Float[Array, "bins"]:
    """Where a function rises through 0, elementwise, to some six digits: Newton steps within a
    bracket that they narrow. The bound where it does not."""

    def step(state):
        x, low, high, count, _ = state
        value, slope, _ = function(x)
        low, high = jnp.where(value < 0, x, low), jnp.where(value < 0, high, x)
        trial = jnp.where(slope > 0, x - value / slope, jnp.where(value < 0, jnp.inf, -jnp.inf))
        trial = jnp.clip(trial, lower, upper)
        halve = (trial <= low) | (trial >= high) | ((count > 10) & (count % 2 == 0))
        trial = jnp.where(halve & jnp.isfinite(high - low), (low + high) / 2, trial)
        trial = jnp.where(value == 0, x, trial)
        return trial, low, high, count + 1, jnp.abs(trial - x) <= 1e-6 * jnp.abs(x)

    def unfinished(state):
        *_, count, done = state
        return ~done.all() & (count < 100)

    start = jnp.clip(jnp.ones_like(lower), lower, upper)
    nowhere = jnp.full_like(lower, jnp.inf)
    state = (start, -nowhere, nowhere, 0, jnp.zeros(lower.shape, bool))
    return jax.lax.while_loop(unfinished, step, state)[0]


def _closed_form(model, data, level, others, scaled):
    """Minimum over gamma of the deviance of a bin with ``others + gamma * scaled`` events, and
    the curvature of the constraint there.

    Where the derivative is zero gamma solves a quadratic equation; the deviance is convex where
    the rate is positive, which is beyond the smaller root.
    """
    counts, auxiliary = data[level.at_bins], data[model.structure.main_bins :]

    def poisson(others, scaled, counts, measured):
        rate = model.poisson_scale[level.poisson.numbers]
        a = (scaled + rate) * scaled
        b = (scaled + rate) * others - (counts + measured) * scaled
        square = b**2 + 4.0 * a * measured * others
        # Without events to scale, the auxiliary measurement alone decides.
        gamma = _larger_root(a, b, -measured * others, square, measured / rate)
        return gamma, 2.0 * measured / jnp.where(gamma > 0, gamma, 1.0) ** 2

    def normal(others, scaled, counts, measured):
        variance = model.normal_width[level.normal.numbers] ** 2
        b = others - measured * scaled + variance * scaled**2
        c = variance * scaled * (others - counts) - measured * others
        square = (others + measured * scaled - variance * scaled**2) ** 2
        square = square + 4.0 * variance * counts * scaled**2
        return _larger_root(scaled, b, c, square, measured), 2.0 / variance

    gamma, curvature = jnp.zeros((2, len(level.bins)))
    for terms, closed_form in ((level.poisson, poisson), (level.normal, normal)):
        if terms.some:
            here = (events[terms.gammas] for events in (others, scaled, counts))
            roots, curvatures = closed_form(*here, auxiliary[terms.auxdata])
            gamma = put(gamma, terms.gammas, roots)
            curvature = put(curvature, terms.gammas, curvatures)
    return gamma, curvature


def _larger_root(a, b, c, discriminant, without):
    """Larger root of a x^2 + b x + c, or ``without`` where a is 0; no digits are lost."""
    some = a > 0
    real = discriminant > 0
    root = jnp.where(real, jnp.sqrt(jnp.where(real, discriminant, 1e-300)), 0.0)
    # Where b is 0 but for its last digits, as with the statistics of a sample of unit weights, a
    # compiler may find it positive here and negative there: there both forms have to be right.
    both = b + root
    small = -2.0 * c / jnp.where(both > 0.5 * root, both, 1.0)
    large = (root - b) / (2.0 * jnp.where(some, a, 1.0))
    return jnp.where(some, jnp.where(b > 0, small, large), without)
