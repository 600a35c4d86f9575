"""The best values of the parameters that scale samples in one bin only, given all others.

A bin has one in closed form. With a second one in the same bin, this one is found by Newton steps
while the first follows, in all bins at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab.indexing import put, take
from nablab.infer._plan import plan


def by_layer(model, cells) -> Float[Array, "... bins"]:
    """Events in each bin, an axis of 2 for each layer: those that it leaves alone, and scales.

    The axis of the last layer comes first.
    """
    parts = [cells]
    for layer in plan(model.structure).layers:
        parts = [
            jnp.where(layer.scales == scaled, part, 0.0) for scaled in (0, 1) for part in parts
        ]
    sums = jnp.stack([model.main_from_cells(part) for part in parts])
    return sums.reshape(*(2 for _ in plan(model.structure).layers), -1)


def scaled(sums, gammas, slopes=()):
    """Events with the private parameters ``gammas`` of each layer, [bins] each.

    ``slopes`` tells layers in whose parameter the derivative is taken.
    """
    for layer in reversed(range(len(gammas))):
        sums = sums[1] if layer in slopes else sums[0] + gammas[layer] * sums[1]
    return sums


def eliminate(sums, gammas, slope, bend, stiffness):
    """Elimination of the private parameters of each bin, a layer after the other.

    For each layer: the slope of the expected events in its parameter, the factors with which the
    earlier ones follow, and the inverse of what is then left of its curvature.
    """
    eliminated = []
    for layer in range(len(gammas)):
        rate_slope = scaled(sums, gammas, {layer})
        curvature = bend * rate_slope**2 + stiffness[layer]
        coupling = []
        for earlier, (other_slope, _, softness) in enumerate(eliminated):
            both = bend * rate_slope * other_slope + slope * scaled(sums, gammas, {layer, earlier})
            coupling.append(both * softness)
            curvature = curvature - both * both * softness
        eliminated.append((rate_slope, coupling, 1.0 / curvature))
    return eliminated


def with_private(model, data, parameters, sums):
    """Parameters with the private ones at their best; and by layer and bin, these (1 where there
    is none) and the curvature of their constraints (infinite where they cannot move)."""
    layers = plan(model.structure).layers
    if not layers:
        return parameters, [], []
    second = [_best_of_second(model, data, parameters, sums)] if len(layers) == 2 else []
    for gamma, _ in second:
        sums = sums[0] + gamma * sums[1]
    found = [_best_of_first(model, data, parameters, sums), *second]
    for layer, (gamma, _) in zip(layers, found, strict=True):
        parameters = put(parameters, layer.parameters, take(gamma, layer.bins))
    return parameters, *map(list, zip(*found, strict=True))


def _best_of_first(model, data, parameters, others_and_scaled):
    """Of the first layer, by bin: its best parameters, and the curvature of their constraints."""
    layer = plan(model.structure).layers[0]
    here = [take(events, layer.bins) for events in others_and_scaled]
    best, curvature = _closed_form(model, data, layer, *here)
    lower, upper = take(model.lower, layer.parameters), take(model.upper, layer.parameters)
    fixed = take(model.fixed, layer.parameters)
    stuck = (best < lower) | (best > upper) | fixed
    best = jnp.where(fixed, take(parameters, layer.parameters), jnp.clip(best, lower, upper))
    bins = model.structure.main_bins
    gamma = put(jnp.ones(bins), layer.bins, best)
    return gamma, put(jnp.full(bins, jnp.inf), layer.bins, jnp.where(stuck, jnp.inf, curvature))


def _best_of_second(model, data, parameters, sums):
    """The same of the second layer, while the first one follows."""
    layer, ones = plan(model.structure).layers[1], jnp.ones(model.structure.main_bins)
    fixed = take(model.fixed, layer.parameters)
    rest = take(parameters, layer.parameters)
    lower, upper = (
        put(ones, layer.bins, jnp.where(fixed, rest, take(bound, layer.parameters)))
        for bound in (model.lower, model.upper)
    )
    args = model, data, parameters, sums
    still = jax.lax.stop_gradient((args, lower, upper))
    gamma = _rising_root(partial(_slopes_of_second, *still[0]), *still[1:])
    stuck = (gamma <= lower) | (gamma >= upper)
    bound = jnp.where(gamma <= lower, lower, upper)

    def polish(gamma, _):
        slope, curvature, constraint = _slopes_of_second(*args, gamma)
        return jnp.where(stuck, bound, gamma - slope / jnp.where(stuck, 1.0, curvature)), constraint

    # Each Newton step at the root gives it another order of derivatives.
    gamma, constraint = jax.lax.scan(polish, gamma, length=2)
    return gamma, jnp.where(stuck, jnp.inf, constraint[-1])


def _slopes_of_second(model, data, parameters, sums, gamma):
    """Of the deviance in the second layer's parameters while the first one follows: the slope and
    the curvature, of which the constraint gives the last."""
    layer = plan(model.structure).layers[1]
    first, stiffness = _best_of_first(model, data, parameters, sums[0] + gamma * sums[1])
    gammas = [first, gamma]
    slope, bend = model.rate_slopes(scaled(sums, gammas), data)
    parameters = put(parameters, layer.parameters, take(gamma, layer.bins))
    pull, constraint = (
        put(elsewhere, layer.bins, take(derivative, layer.parameters))
        for elsewhere, derivative in zip(
            (jnp.zeros_like(gamma), jnp.ones_like(gamma)),
            model.constraint_slopes(parameters, data),
            strict=True,
        )
    )
    _, (rate_slope, _, softness) = eliminate(sums, gammas, slope, bend, [stiffness, constraint])
    return slope * rate_slope + pull, 1.0 / softness, constraint


def _rising_root(function, lower, upper):
    """Elementwise, where a function rises through 0, to some six digits: Newton steps within a
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


def _closed_form(model, data, layer, others, scaled):
    """Minimum over gamma of the deviance of a bin with ``others + gamma * scaled`` events, and
    the curvature of the constraint there.

    Where the derivative is zero gamma solves a quadratic equation; the deviance is convex where
    the rate is positive, which is beyond the smaller root.
    """
    s, constraint = model.structure, layer.constraint
    counts = take(data, layer.bins)
    auxiliary = data[s.main_bins :]
    poisson = constraint < len(s.poisson_parameter)
    here, there = constraint[poisson], constraint[~poisson] - len(s.poisson_parameter)

    def from_poisson(others, scaled, counts):
        rate = take(model.poisson_scale, here)
        measured = take(auxiliary, s.poisson_auxdata[here])
        a = (scaled + rate) * scaled
        b = (scaled + rate) * others - (counts + measured) * scaled
        square = b**2 + 4.0 * a * measured * others
        # Without events to scale, the auxiliary measurement alone decides.
        best = _larger_root(a, b, -measured * others, square, measured / rate)
        return best, 2.0 * measured / jnp.where(best > 0, best, 1.0) ** 2

    def from_normal(others, scaled, counts):
        variance = take(model.normal_width, there) ** 2
        measured = take(auxiliary, s.normal_auxdata[there])
        b = others - measured * scaled + variance * scaled**2
        c = variance * scaled * (others - counts) - measured * others
        square = (others + measured * scaled - variance * scaled**2) ** 2
        square = square + 4.0 * variance * counts * scaled**2
        return _larger_root(scaled, b, c, square, measured), 2.0 / variance

    best, curvature = jnp.zeros((2, len(layer.bins)))
    for which, closed_form in ((poisson, from_poisson), (~poisson, from_normal)):
        if which.any():
            which = np.flatnonzero(which)
            roots, curvatures = closed_form(*(take(v, which) for v in (others, scaled, counts)))
            best, curvature = put(best, which, roots), put(curvature, which, curvatures)
    return best, curvature


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
