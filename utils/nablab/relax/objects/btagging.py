"""A b-tag working point between the calibrated ones, and the event weight that goes with it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nablab import checks
from nablab.checks import Numbers


class WorkingPoint(NamedTuple):
    """Tagging efficiency in simulation, data/simulation scale factor, and its uncertainty."""

    efficiency: Float[Array, "*jets"]
    scale_factor: Float[Array, "*jets"]
    uncertainty: Float[Array, "*jets"]


def working_point(
    cut: Float[Numbers, ""] | float,
    calibrated_cuts: Float[Numbers, "points"],
    efficiencies: Float[Numbers, "*jets points"],
    scale_factors: Float[Numbers, "*jets points"],
    uncertainties: Float[Numbers, "*jets points"],
) -> WorkingPoint:
    """The working point "discriminant > cut" for any cut between the calibrated ones.

    Efficiency, scale factor and uncertainty are each interpolated by the monotone cubic of Fritsch
    and Butland (doi:10.1137/0905021, also SciPy's ``PchipInterpolator``): it passes through the
    calibrated numbers, does not overshoot between them, and its first derivative is continuous.
    That the uncertainties of neighbouring working points are fully correlated, and that the scale
    factor is smooth between them, is assumed: a calibration at the chosen cut replaces both.

    Args:
        cut: the requirement on the discriminant.
        calibrated_cuts: where calibrations exist, increasing, at least two.
        efficiencies: in simulation, between 0 and 1, at each calibrated cut; with leading axes,
            one set per jet (or per flavour, or per bin of pt).
        scale_factors: efficiency in data over that in simulation, positive.
        uncertainties: absolute ones of the scale factors, at least 0.

    Returns:
        Differentiable in the cut and in all calibrated numbers. Under ``jit``, ``grad`` and
        ``vmap``, where raising is impossible, a cut outside of the calibrated ones gives NaN.

    Raises:
        ValueError: the cut lies outside of the calibrated ones, which do not say anything about
            it; a number is not in its range; or a shape differs.
    """
    checks.finite("cut", cut)
    checks.edges("calibrated_cuts", calibrated_cuts)
    tables = {
        "efficiencies": efficiencies,
        "scale_factors": scale_factors,
        "uncertainties": uncertainties,
    }
    for name, table in tables.items():
        if jnp.shape(table) != jnp.shape(efficiencies) or (
            jnp.shape(table)[-1:] != jnp.shape(calibrated_cuts)
        ):
            raise ValueError(
                f"{name} must have one number per calibrated cut, {jnp.shape(calibrated_cuts)[0]} "
                f"in its last axis, and one shape for all; got shape {jnp.shape(table)}"
            )
        checks.positive(name, table, allow_zero=name != "scale_factors")
    checks.positive("1 - efficiencies", 1.0 - jnp.asarray(efficiencies), allow_zero=True)
    first, last = calibrated_cuts[0], calibrated_cuts[-1]
    if not checks.is_traced(cut, first, last) and not first <= cut <= last:
        raise ValueError(f"cut is {cut}: the calibrated cuts reach from {first} to {last}")
    inside = (cut >= first) & (cut <= last)
    table = jnp.stack([jnp.asarray(table, dtype=float) for table in tables.values()])
    points = _monotone_cubic(cut, jnp.asarray(calibrated_cuts, dtype=float), table)
    return WorkingPoint(*jnp.where(inside, points, jnp.nan))


def btag_log_weight(
    tagged: Float[Numbers, "*events jets"],
    efficiency: Float[Numbers, "*events jets"],
    scale_factor: Float[Numbers, "*events jets"],
    mask: Bool[Numbers, "*events jets"],
) -> Float[Array, "*events"]:
    """Log of P(data) / P(simulation), the weight that corrects the b-tags of each event.

    A tagged jet contributes the factor SF, an untagged one (1 - SF ε) / (1 - ε): "method 1a" of
    the CMS b-tagging group, which measures the efficiencies in arXiv:1712.07158. With a soft tag
    the factor is the mean of the two, as if the jet were tagged with that probability.

    Multiplying this mean by P(N >= n) computed from the same soft tags neglects that the two are
    correlated: where n jets are tagged the factors are those of tagged jets. With hard tags the
    product is exact.

    Args:
        tagged: b-tag of each jet: 0 or 1, or a soft cut on its discriminant.
        efficiency: ε, the tagging efficiency in simulation, at least 0 and below 1.
        scale_factor: SF, positive; SF ε must be below 1.
        mask: true for jets, false for padding, which does not contribute.

    Raises:
        ValueError: a number is not in its range, or a shape differs. Under ``jit``, ``grad`` and
            ``vmap`` an efficiency out of its range in data or simulation gives NaN.
    """
    jets = {"tagged": tagged, "efficiency": efficiency, "scale_factor": scale_factor}
    for name, array in jets.items():
        checks.same_shape(name, array, "mask", mask)
    tagged, efficiency = jnp.where(mask, tagged, 0.0), jnp.where(mask, efficiency, 0.0)
    scale_factor = jnp.where(mask, scale_factor, 1.0)
    checks.positive("tagged", tagged, allow_zero=True)
    checks.positive("1 - tagged", 1.0 - tagged, allow_zero=True)
    checks.positive("efficiency", efficiency, allow_zero=True)
    checks.positive("1 - efficiency", 1.0 - efficiency)
    checks.positive("scale_factor", scale_factor)
    checks.positive("1 - scale_factor * efficiency", 1.0 - scale_factor * efficiency)
    fails, fails_in_data = 1.0 - efficiency, 1.0 - scale_factor * efficiency
    possible = (fails > 0) & (fails_in_data > 0)
    untagged = jnp.where(possible, fails_in_data / jnp.where(possible, fails, 1.0), jnp.nan)
    return jnp.log(tagged * scale_factor + (1.0 - tagged) * untagged).sum(axis=-1)


def _monotone_cubic(x, knots, values):
    """Interpolate along the last axis of ``values``; beyond the knots, the cubics at the ends."""
    widths = jnp.diff(knots)
    secants = jnp.diff(values, axis=-1) / widths
    slopes = _monotone_slopes(widths, secants)
    i = jnp.clip(jnp.searchsorted(knots, x, side="right") - 1, 0, len(widths) - 1)
    t = (x - knots[i]) / widths[i]
    rise = widths[i] * (
        (1 - t) * slopes[..., i] - t * slopes[..., i + 1] + (2 * t - 1) * secants[..., i]
    )
    return values[..., i] + t * widths[i] * secants[..., i] + t * (1 - t) * rise


def _monotone_slopes(widths, secants):
    """Slopes at the knots such that the cubics between them are monotone."""
    if len(widths) == 1:
        return jnp.repeat(secants, 2, axis=-1)
    left, right = secants[..., :-1], secants[..., 1:]
    product, weights = left * right, (2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1])
    # The weighted harmonic mean; 0 at a maximum or minimum, where it may have a pole.
    turns = product <= 0
    mean = weights[0] * right + weights[1] * left
    inner = jnp.where(turns, 0.0, sum(weights) * product / jnp.where(turns, 1.0, mean))
    first = _end_slope(widths[0], widths[1], secants[..., 0], secants[..., 1])
    last = _end_slope(widths[-1], widths[-2], secants[..., -1], secants[..., -2])
    return jnp.concatenate([first[..., None], inner, last[..., None]], axis=-1)


def _end_slope(width, next_width, secant, next_secant):
    """Slope of the parabola through the last three knots, limited to keep the cubic monotone."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    slope = jnp.where(slope * secant <= 0, 0.0, slope)
    too_steep = (secant * next_secant < 0) & (jnp.abs(slope) > 3 * jnp.abs(secant))
    return jnp.where(too_steep, 3 * secant, slope)
