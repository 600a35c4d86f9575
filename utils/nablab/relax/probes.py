"""How wrong is a soft gradient, and which bandwidth or slope makes it least wrong?

The gradient of a soft count is a sum over events, so one sample tells its variance. Its bias is the
difference to the flow of events over the boundaries, the gradient of the *expected* hard count
(:func:`nablab.relax.estimators.boundary_gradient`). A wide kernel is biased, a narrow one noisy:
:func:`choose_bandwidth` and :func:`choose_slope` weigh one against the other.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Column, Numbers
from nablab.relax._blocks import sum_in_blocks
from nablab.relax.cuts import PROFILES, spread
from nablab.relax.histograms import checked_observable
from nablab.relax.kernels import KERNELS, named

#: Events looked at by the rules: enough to know the shape of the distribution.
ENOUGH = 10_000
#: Thresholds between the ends of the range of a cut, at which its gradient is judged.
THRESHOLDS = 21
BLOCK = 512


class Probe(NamedTuple):
    """The gradient of soft counts with respect to one parameter, and what is wrong with it."""

    gradient: Float[Array, "bins"]
    bias: Float[Array, "bins"]
    """Gradient minus reference: in one sample the bias plus a fluctuation, on average the bias."""
    variance: Float[Array, "bins"]
    """Of the gradient, from the scatter of the events in this sample."""
    relative_error: Float[Array, ""]
    """Length of ``bias`` divided by the length of the reference, both as vectors over the bins."""
    carrying: Float[Array, ""]
    """Fraction of the events that carries the gradient: ``(sum |c|)² / (N sum |c|²)``, between 1/N
    and 1, for the contributions c of the events, as vectors over the bins; 0 without a gradient."""


def probe(
    relaxation: Callable,
    x: Column,
    reference: Float[Numbers, "bins"],
    *,
    weights: Column | None = None,
    velocity: Float[Numbers, "events"] | float = 1.0,
) -> Probe:
    """Compare the gradient of a relaxation, event by event, with the flow over the boundaries.

    Under ``vmap`` over samples the mean of ``bias`` is the bias, and the mean of ``variance`` the
    variance over samples. Call it under ``jit``: outside, it compiles at each call.

    Args:
        relaxation: soft counts as a function of ``x`` and ``weights``, such as
            ``lambda x, w: kde_counts(x, edges, bandwidth=0.1, weights=w).values``. It must be a
            sum over the events; it is called with one event at a time, in blocks.
        x: the observable, one value per event.
        reference: derivative of the expected hard counts, from ``boundary_gradient`` where the
            density is known, or from a much larger sample.
        weights: event weights; 1 where absent.
        velocity: dx/d(parameter) of each event; 1 for a shift of all events.

    Raises:
        ValueError: an entry is not finite, or ``weights`` has another shape than ``x``.
    """
    checks.finite("reference", reference)
    x, weights, velocity = _events(x, weights, velocity)

    def contribution(x, weight, velocity):
        def counts(x):
            return relaxation(x, weight[None])

        return jax.jvp(counts, (x[None],), (velocity[None],))[1]

    def of_block(events):
        c = jax.vmap(contribution)(*events)
        squares = (c**2).sum(axis=1)
        return c.sum(0), (c**2).sum(0), jnp.sqrt(squares).sum(), squares.sum()

    sums = sum_in_blocks(of_block, (x, weights, velocity), size=BLOCK)
    gradient, squares, lengths, square = sums
    bias = gradient - reference
    return Probe(
        gradient,
        bias,
        _variance(gradient, squares, x.shape[0]),
        jnp.linalg.norm(bias) / jnp.linalg.norm(reference),
        _or_zero(lengths**2, x.shape[0] * square),
    )


class Choice(NamedTuple):
    """A bandwidth or a slope, and the estimated error of the gradient for all that were tried."""

    best: float
    """The tried one with the smallest error, in the unit of ``x`` or its inverse."""
    tried: Float[Array, "tried"]
    bias: Float[Array, "tried"]
    """Length of the bias as a vector over the bins, divided by that of the gradient."""
    noise: Float[Array, "tried"]
    """Standard deviation of the gradient, added up over the bins likewise."""

    @property
    def error(self) -> Float[Array, "tried"]:
        """Bias and noise together: the root of the mean squared error."""
        return jnp.hypot(self.bias, self.noise)


def choose_bandwidth(
    x: Column,
    edges: Column,
    *,
    weights: Column | None = None,
    velocity: Float[Numbers, "events"] | float = 1.0,
    kernel: str = "gaussian",
) -> Choice:
    """The bandwidth of ``kde_counts`` with the smallest estimated error of the gradient.

    The error is the mean squared one, added up over the bins. Its variance comes from the scatter
    of the events. Its bias is what smoothing by the bandwidth does to a pilot estimate, less what
    the fluctuations of the sample pretend: a smoothed bootstrap (Faraway and Jhun,
    doi:10.1080/01621459.1990.10474983) without drawing anything. The pilot's bandwidth is half the
    one found before times n^(4/45), the ratio of the best bandwidths for a curvature and for a
    density (Sheather and Jones, doi:10.1111/j.2517-6161.1991.tb01857.x), found in two steps.

    Of normal events it is about sigma N^(-1/5) for bins wider than that, and about
    sigma N^(-1/7) for narrower ones, which ask for the slope of the density. To be chosen once,
    before a training, or again now and then; never trained against the objective, which does not
    know whether its gradient is right. Not for use under ``jit``.

    Args:
        x: the observable, one value per event, in any order that does not depend on ``x``; of more
            than ``ENOUGH`` events, that many are looked at.
        edges: increasing bin edges.
        weights: event weights; 1 where absent.
        velocity: dx/d(parameter) of each event, as for :func:`probe`.
        kernel: as for ``kde_counts``.

    Raises:
        ValueError: an entry is not finite, the edges do not increase, all events are equal, or
            none lies near the edges.
    """
    edges = checks.array("edges", edges)
    checks.edges("edges", edges)
    return _choose(x, edges, weights, velocity, named("kernel", kernel), binned=True)


def choose_slope(
    x: Column,
    low: float,
    high: float,
    *,
    weights: Column | None = None,
    profile: str = "sigmoid",
) -> Choice:
    """The slope of ``soft_cut`` with the smallest estimated error of d(count)/d(threshold).

    The rule is that of :func:`choose_bandwidth`: the gradient of a cut is a density estimate at the
    threshold. The error is added up over thresholds from ``low`` to ``high``, between which the cut
    may move: at a single one, biases can cancel by accident.

    Raises:
        ValueError: as there; or ``low`` is not below ``high``, or the profile is unknown.
    """
    checks.finite("low", low)
    checks.finite("high", high)
    if not low < high:
        raise ValueError(f"low must be below high: low={low}, high={high}")
    kernel = PROFILES[named("profile", profile, tuple(PROFILES))]
    choice = _choose(x, np.linspace(low, high, THRESHOLDS), weights, 1.0, kernel, binned=False)
    # The slopes whose kernels have these bandwidths as standard deviations.
    scale = 4 * KERNELS[kernel].peak * KERNELS[kernel].deviation
    return choice._replace(best=scale / choice.best, tried=scale / choice.tried)


def _choose(x, points, weights, velocity, kernel, binned) -> Choice:
    x, weights, velocity = _events(x, weights, velocity)
    spread_of_x = spread(x)
    some = np.linspace(0, len(x) - 1, min(len(x), ENOUGH)).astype(int)
    tried, squared_bias, variance, squared_gradient = _errors(
        x[some],
        weights[some] * velocity[some],
        jnp.asarray(points, dtype=float),
        spread_of_x,
        kernel,
        binned,
    )
    if not squared_gradient > 0:
        raise ValueError("x has no events near the edges or thresholds: there is no gradient")
    variance = variance * len(some) / len(x)  # the bias stays, relative to the gradient
    best = float(tried[jnp.argmin(squared_bias + variance)])
    bias, noise = (jnp.sqrt(part / squared_gradient) for part in (squared_bias, variance))
    return Choice(best, tried, bias, noise)


@partial(jax.jit, static_argnames=("kernel", "binned"))
def _errors(x, weights, points, spread_of_x, kernel, binned):
    """Squared bias and variance of the gradient for all bandwidths, with its own squared length."""
    tried = spread_of_x * np.geomspace(0.005, 3.0, 40)
    effective_events = weights.sum() ** 2 / (weights**2).sum()

    def moments(density):
        c = weights[:, None] * density
        c = c[:, :-1] - c[:, 1:] if binned else c
        gradient = c.sum(axis=0)
        return gradient, _variance(gradient, (c**2).sum(axis=0), x.shape[0])

    def smoothed(bandwidth, kernel="gaussian"):
        u = KERNELS[kernel].deviation * (points - x[:, None]) / bandwidth
        density = jax.jvp(KERNELS[kernel].cdf, (u,), (jnp.ones_like(u),))[1]
        return KERNELS[kernel].deviation * density / bandwidth

    def squared_length(density):
        gradient, variance = moments(density)
        return jnp.maximum((gradient**2 - variance).sum(), 0.0)  # less what fluctuations add

    def squared_bias(pilot):
        before = smoothed(pilot)
        return jax.lax.map(lambda h: squared_length(smoothed(jnp.hypot(h, pilot)) - before), tried)

    variance = jax.lax.map(lambda h: moments(smoothed(h, kernel))[1].sum(), tried)
    # It rises at least like 1 / bandwidth. Where it does not, few events are near any boundary.
    variance = jax.lax.cummax(variance * tried, reverse=True) / tried

    def better(_, pilot):
        best = tried[jnp.argmin(squared_bias(pilot) + variance)]
        # A much narrower pilot would be noisier, and ask for an even narrower one.
        return jnp.maximum(0.5 * best * effective_events ** (4 / 45), 0.6 * pilot)

    first = 0.3 * spread_of_x * effective_events ** (-1 / 9)
    pilot = jax.lax.fori_loop(0, 2, better, first)
    density = smoothed(pilot)
    known = squared_length(density)
    squared_gradient = jnp.where(known > 0, known, (moments(density)[0] ** 2).sum())
    return tried, squared_bias(pilot), variance, squared_gradient


def _variance(total, squares, events):
    """Variance of a sum of that many independent terms, from the sum of their squares."""
    return (squares - total**2 / max(events, 1)) * events / max(events - 1, 1)


def _or_zero(numerator, denominator):
    possible = denominator > 0
    return jnp.where(possible, numerator / jnp.where(possible, denominator, 1.0), 0.0)


def _events(x, weights, velocity):
    x = jnp.asarray(checked_observable("x", x), dtype=float)
    checks.finite("velocity", velocity)
    weights = jnp.ones(x.shape) if weights is None else checks.array("weights", weights)
    weights = jnp.asarray(weights, dtype=float)
    checks.same_shape("weights", weights, "x", x)
    checks.finite("weights", weights)
    return x, weights, jnp.broadcast_to(jnp.asarray(velocity, dtype=float), x.shape)
