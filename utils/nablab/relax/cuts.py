"""Cuts as event weights: the soft one has a gradient, the hard one is what gets published.

Several cuts are one array of thresholds, and their product is a sum of logarithms::

    weights = jnp.exp(log_soft_cut(features, above=cuts, slope=5 / spread(features)).sum(axis=-1))

The gradient with respect to a threshold is an estimate of the density of events there, as wide as
the cut is soft. :mod:`nablab.relax.probes` measures its error; :mod:`nablab.relax.estimators` has
gradients without that bias.
"""

import math
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Column, Numbers
from nablab.relax.kernels import KERNELS, named

#: How the weight rises from 0 to 1. A sigmoid has exponential tails, an erf Gaussian ones; compact
#: is exactly 0 and 1 from 3.75 / slope away from the threshold.
PROFILES = {"sigmoid": "logistic", "erf": "gaussian", "compact": "biweight"}

Threshold = Float[Numbers, "*#events"] | float


def soft_cut(
    x: Column,
    above: Threshold | None = None,
    *,
    slope: Threshold = 1.0,
    below: Threshold | None = None,
    profile: str = "sigmoid",
) -> Float[Array, "*events"]:
    """Weight between 0 and 1 of each event for ``x > above``, ``x < below``, or a window of both.

    Args:
        x: the feature, in its own unit; or several features in the last axis, with one threshold
            (and slope) for each. A list, a pandas column or a flat awkward array will do; jagged
            objects are padded first (:func:`nablab.relax.objects.padding.pad_objects`).
        above: where the weight is 1/2 on the way up, in the unit of ``x``.
        slope: steepness, in 1/(unit of ``x``): the inverse of a softness, as in the literature of
            cuts. For each profile the derivative at the threshold is ``slope / 4``; a sigmoid is as
            soft as a logistic kernel with ``bandwidth = 1.81 / slope``. In units of the feature:
            ``5 / spread(x)``.
        below: where the weight is 1/2 on the way down. A window is the product of both weights.
        profile: "sigmoid", "erf" or "compact".

    Returns:
        Weights, finite with a finite gradient for any slope. Both are 0 far outside, where
        :func:`log_soft_cut` still tells events apart.

    Raises:
        ValueError: an entry of ``x`` or of a threshold is not finite, a slope is not positive, no
            threshold is given, or the profile is unknown. Under ``jit``, ``grad`` and ``vmap``,
            where values are not known, the weight of such an event is NaN, and with such a
            threshold or slope that of all.
    """
    kernel, distances = _distances(x, above, slope, below, profile)
    return math.prod(kernel.cdf(d) for d in distances)


def log_soft_cut(
    x: Column,
    above: Threshold | None = None,
    *,
    slope: Threshold = 1.0,
    below: Threshold | None = None,
    profile: str = "sigmoid",
) -> Float[Array, "*events"]:
    """Logarithm of :func:`soft_cut`, which neither underflows nor loses its gradient far outside.

    With the compact profile it is minus infinity, with derivative 0, where the weight is 0.
    """
    kernel, distances = _distances(x, above, slope, below, profile)
    return sum(kernel.log_cdf(d) for d in distances)


def hard_cut(
    x: Column,
    above: Threshold | None = None,
    *,
    slope: Threshold | None = None,
    below: Threshold | None = None,
    profile: str | None = None,
) -> Float[Array, "*events"]:
    """Weight 1 for events that pass and 0 otherwise; the derivative is 0 everywhere.

    The signature is that of :func:`soft_cut`, so that evaluation is one switch; ``slope`` and
    ``profile`` are not used.
    """
    x, above, below = _checked(x, above, below)
    passes = [] if above is None else [jnp.asarray(x) > above]
    passes += [] if below is None else [jnp.asarray(x) < below]
    weights = math.prod(passes).astype(float)
    for value in filter(checks.is_traced, (x, above, below)):
        # Not a product: the compiler takes 0 or 1 times anything as a choice, and 0 is 0 then.
        weights = jnp.where(jnp.isfinite(value), weights, jnp.nan)
    return weights


def soft_ellipse(
    x: Column,
    y: Column,
    centre: Float[Numbers, "2"] | tuple,
    radii: Float[Numbers, "2"] | tuple,
    *,
    angle: Float[Numbers, ""] | float = 0.0,
    slope: Float[Numbers, ""] | float = 1.0,
    profile: str = "sigmoid",
) -> Float[Array, "*events"]:
    """Weight of each event for lying in an ellipse: a soft cut on (1 - r²) / 2 > 0.

    Args:
        x, y: two features.
        centre, radii: of the ellipse, in the units of ``x`` and ``y``; r is the distance from the
            centre in units of the radii, 1 on the ellipse.
        angle: by which the first radius is turned away from the x axis, in radians. A turned
            ellipse mixes the features: give both the same unit.
        slope: as for :func:`soft_cut`, along r: at the ellipse the weight falls by ``slope / 4``
            per unit of r.
        profile: as for :func:`soft_cut`.

    Raises:
        ValueError: an entry is not finite, or a radius or the slope is not positive.
    """
    return soft_cut(_inside(x, y, centre, radii, angle), 0.0, slope=slope, profile=profile)


def hard_ellipse(x, y, centre, radii, *, angle=0.0, slope=None, profile=None):
    """Weight 1 inside of the ellipse and 0 elsewhere; arguments as for :func:`soft_ellipse`."""
    return hard_cut(_inside(x, y, centre, radii, angle), 0.0)


def spread(x: Column) -> Float[Array, "*features"]:
    """Half the width of the interval that holds the central 68 % of the events.

    The standard deviation of a Gaussian; unlike it, a few outliers do not change it.

    Raises:
        ValueError: an entry is not finite, or a feature has no spread (as without events); under
            ``jit`` its spread is NaN then.
    """
    x = checks.array("x", x)
    checks.finite("x", x)
    if len(x) == 0:
        raise ValueError("x has no events, so it has no spread")
    low, high = jnp.quantile(jnp.asarray(x), jnp.array([0.158655, 0.841345]), axis=0)
    checks.positive("spread of x", (high - low) / 2)
    return (high - low) / 2 * checks.one_if(high > low)


def warn_of_preselection(
    x: Column,
    above: float | Float[Numbers, ""] | None = None,
    *,
    slope: float | Float[Numbers, ""] = 1.0,
    below: float | Float[Numbers, ""] | None = None,
    profile: str = "sigmoid",
) -> None:
    """Warn if the events end sharply where a trained cut would still keep some.

    They may have been preselected (by a skim, a trigger). The soft cut then cannot move past
    the end, and its gradient near the end lacks the events beyond. A natural boundary, such as a
    momentum of 0, looks the same: there nothing is lost. Call it with the loosest thresholds that
    the training may try. Not for use under ``jit``: it looks at the events.

    An end is sharp if its outermost events are spread evenly: in a tail they thin out.

    Warns:
        UserWarning: names the end and the weight of the cut there.

    Raises:
        ValueError: as for :func:`soft_cut`.
    """
    x, above, below = _checked(x, above, below)
    x = np.sort(np.asarray(x, dtype=float))
    for side, threshold, inwards in (("above", above, x), ("below", below, x[::-1])):
        if threshold is None or not _ends_sharply(inwards):
            continue
        end = inwards[0]
        weight = float(
            soft_cut(jnp.asarray(end), slope=slope, profile=profile, **{side: threshold})
        )
        if weight > 0.01:
            warnings.warn(
                f"the events end sharply at x = {end:.6g}, where the cut {side}={threshold:.6g} "
                f"still weighs {weight:.2g}: if they were selected by a hard cut, the trained one "
                "cannot move past it, and its gradient lacks the events beyond",
                stacklevel=2,
            )


def _ends_sharply(inwards, outermost=50):
    """Whether the first events are spread evenly: how many lie in the outer half of their range?"""
    distances = np.abs(inwards[:outermost] - inwards[:1])
    if len(distances) < outermost:
        return False  # too few events to tell
    return bool((distances < distances[-1] / 2).sum() > outermost / 3)


def _distances(x, above, slope, below, profile):
    """The kernel of the profile, and how far inside each threshold the events are, in its unit."""
    x, above, below = _checked(x, above, below)
    checks.positive("slope", slope)
    kernel = KERNELS[PROFILES[named("profile", profile, tuple(PROFILES))]]
    x, scale = jnp.asarray(_nan_if_infinite(x)), slope / (4 * kernel.peak)
    if checks.is_traced(slope):
        scale *= checks.one_if(slope > 0)
    distances = [] if above is None else [scale * (x - _nan_if_infinite(above))]
    return kernel, distances + ([] if below is None else [scale * (_nan_if_infinite(below) - x)])


def _inside(x, y, centre, radii, angle):
    x, y = checks.array("x", x), checks.array("y", y)
    for name, value in {"x": x, "y": y, "angle": angle}.items():
        checks.finite(name, value)
    for name, pair in {"centre": centre, "radii": radii}.items():
        if len(pair) != 2:
            raise ValueError(f"{name} must have 2 entries, for x and y; got {len(pair)}")
        for entry in pair:
            checks.finite(name, entry)
    for radius in radii:
        checks.positive("radii", radius)
    x, y = jnp.asarray(x) - centre[0], jnp.asarray(y) - centre[1]
    u = (jnp.cos(angle) * x + jnp.sin(angle) * y) / radii[0]
    v = (jnp.cos(angle) * y - jnp.sin(angle) * x) / radii[1]
    return (1 - u**2 - v**2) / 2 * checks.one_if((radii[0] > 0) & (radii[1] > 0))


def _checked(x, above, below):
    if above is None and below is None:
        raise ValueError("give a threshold: above, below, or both for a window")
    x = checks.array("x", x)
    checks.finite("x", x)
    for name, threshold in (("above", above), ("below", below)):
        if threshold is not None:
            checks.finite(name, threshold)
    return x, above, below


def _nan_if_infinite(value):
    """What is an error outside of ``jit`` is NaN inside, and not a weight of 0 or 1."""
    return value * checks.one_if(jnp.isfinite(value)) if checks.is_traced(value) else value
