"""Where a fit that has arrived should look for a lower minimum.

Interpolated templates give a likelihood several minima: mostly one on either side of a nuisance
parameter. From the minimum that was found one looks along each such parameter, the others
staying or following as the curvature there tells: between two places where the slope changes from
downhill to uphill is a valley. And where a fit of the same function within other bounds has ended
is a place to look at, too. A fit of one parameter looks along its line before it starts.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nablab.infer import _newton, linalg
from nablab.infer.certificates import clearly_lower

# Where to look, on both sides. Templates are curved between -1 and 1, and two minima are mostly
# close to 0, at least 0.2 from each other.
ONE_SIDE = np.array([0.1, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0, 1.4, 2.0, 3.0])
PLACES = np.concatenate([-ONE_SIDE[::-1], [0.0], ONE_SIDE])
SCATTERED = 8
# Where one slope is so much smaller than the other, that is a wall, in front of which to start.
WALL = 1e-6
# How far from one of the places rounding errors may tell uphill from downhill wrongly.
SAME = 1e-6
# As many points are evaluated side by side: with more, a large model leaves the processor's cache.
SIDE_BY_SIDE = 16


def around(start, along, look):
    """Points on either side of the start in all the parameters together, [2, fits, size]."""
    sides = np.zeros((2, 1, start.shape[-1]))
    sides[:, 0, along] = np.array([[1.0], [-1.0]])
    return jnp.where(look, start + sides, jnp.nan)


def scattered(start, along, tries, count):
    """Points anywhere around the start in each parameter, others for each count, [tries, ...]."""
    moved = np.zeros((SCATTERED, tries, 1, start.shape[-1]))
    moved[..., along] = np.random.default_rng(0).normal(0.0, 1.5, (*moved.shape[:-1], len(along)))
    return start + jnp.asarray(moved)[count % SCATTERED]


def deepest(expansion, args, start, lower, upper, look):
    """Bottoms of the two deepest valleys of a function of one parameter, [2, fits, 1]; the start,
    and NaN, where there are not so many."""

    def bottoms(start, lower, upper):
        places = jnp.clip(PLACES, lower, upper)
        values, slopes = jax.lax.map(lambda x: expansion(x[None], *args)[:2], places)
        slopes = slopes[:, 0]
        inside, heights = _valleys(jnp.full(1, jnp.nan), values[None], slopes[None])
        # Beyond the last places, where templates are straight lines, there is at most one.
        outwards = jnp.stack([slopes[0] >= 0, slopes[-1] <= 0])
        ends = np.array([0, -1])
        found = jnp.concatenate([inside[0], places[ends]])
        heights = jnp.concatenate([heights[0], jnp.where(outwards, values[ends], jnp.inf)])
        first = jnp.argmin(heights)
        second = jnp.argmin(jnp.where(np.arange(len(heights)) == first, jnp.inf, heights))
        lowest, otherwise = jnp.stack([first, second]), jnp.append(start, jnp.nan)
        return jnp.where(look & jnp.isfinite(heights[lowest]), found[lowest], otherwise)[:, None]

    return jnp.moveaxis(jax.vmap(bottoms)(start, lower[:, 0], upper[:, 0]), 0, 1)


def candidates(function, args, ends, lower, upper, along, tries):
    """Points to start from, [tries, fits, size], the most promising first; NaN where there is none.

    Args:
        function: ``function(x, *args)``.
        ends: the :class:`~nablab.infer._newton.Iteration` of each fit, which has ended.
        lower, upper: bounds of each fit, [fits, size].
        along: the parameters to look along.
        tries: how many points.
    """
    fits, size = ends.x.shape
    others = fits * (fits > 1)
    lines = np.tile(along, 2)
    table = (len(lines), len(PLACES))
    row = others + len(lines) * len(PLACES)

    def places(end, lines_of, lower, upper):
        """Where to evaluate, and in which direction."""
        directions = jnp.broadcast_to(lines_of[:, None], (*table, size))
        points = end.x + (PLACES - end.x[lines, None])[..., None] * directions
        directions = jnp.where((points > lower) & (points < upper), directions, 0.0)
        points, directions = (array.reshape(row - others, size) for array in (points, directions))
        points = jnp.clip(jnp.concatenate([ends.x[:others], points]), lower, upper)
        return points, jnp.concatenate([jnp.zeros((others, size)), directions])

    def starts(end, lines_of, points, values, slopes, lower, upper):
        """Points to start from, and how low they promise to be: infinite where it is of no use."""
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        deeper = clearly_lower(values[:others], end.value)
        here = end.x[lines]
        arrived = jnp.where(end.done, here, jnp.nan)  # a fit that got stuck looks nearby, too
        bottoms, heights = _valleys(
            arrived, values[others:].reshape(table), slopes[others:].reshape(table)
        )
        heights = jnp.where((lower < upper)[lines, None], heights, jnp.inf)
        moved = (bottoms - here[:, None])[..., None] * lines_of[:, None]
        found = jnp.concatenate([points[:others], (end.x + moved).reshape(heights.size, size)])
        deeper = jnp.where(deeper, values[:others], jnp.inf)
        return jnp.clip(found, lower, upper), jnp.concatenate([deeper, heights.reshape(-1)])

    def value_and_slope(point_and_direction):
        point, direction = point_and_direction
        if not len(lines):  # only the ends of other fits, where the value is enough
            return function(point, *args), jnp.zeros(())
        return jax.jvp(lambda x: function(x, *args), (point,), (direction,))

    lines_of_fits = jax.vmap(lambda end: _directions(end, along))(ends)
    points, directions = jax.vmap(places)(ends, lines_of_fits, lower, upper)
    lanes = points.reshape(fits * row, size), directions.reshape(fits * row, size)
    values, slopes = (lane.reshape(fits, row) for lane in _of_each(value_and_slope, lanes))
    points, promise = jax.vmap(starts)(ends, lines_of_fits, points, values, slopes, lower, upper)

    missing = max(0, tries - promise.shape[1])
    promise = jnp.pad(promise, ((0, 0), (0, missing)), constant_values=jnp.inf)
    best = jnp.argsort(promise)[:, :tries] if tries > 1 else jnp.argmin(promise, axis=1)[:, None]
    fit = np.arange(fits)[:, None]
    useful = jnp.isfinite(promise[fit, best])[..., None]
    chosen = jnp.where(useful, points[fit, jnp.minimum(best, points.shape[1] - 1)], jnp.nan)
    return jnp.moveaxis(chosen, 1, 0)


def _of_each(function, lanes):
    """The function of each lane."""
    number = len(lanes[0])
    width = min(number, SIDE_BY_SIDE)
    filled = [jnp.pad(lane, ((0, -number % width), (0, 0))) for lane in lanes]
    ends = jax.lax.map(function, filled, batch_size=width)
    return [end[:number] for end in ends]


def _directions(end, along):
    """How all parameters move with each of those, [lines, size]: as far as the curvature knows what
    is best then, and not at all."""
    unit = 1.0 / jnp.sqrt(_newton.curvatures(end.hessian))
    inverse = linalg.eliminated(_newton.in_units(end.hessian, end.active, unit))[0]
    follow = unit[:, None] * inverse[:, along] / (jnp.diagonal(inverse) * unit)[along]
    stay = np.eye(len(unit))[along]
    return jnp.concatenate([follow.T, stay])


def _valleys(arrived, values, slopes):
    """Bottoms of the valleys between neighbouring places, and how low they are by the parabolas
    from both ends: infinite where there is none, and where the fit has ``arrived``,
    [along, places - 1]."""
    left, right = PLACES[:-1], PLACES[1:]
    down, up = -slopes[:, :-1], slopes[:, 1:]
    # A fit that ends at one of the places is at the bottom of both valleys that meet there.
    known = (left - SAME <= arrived[:, None]) & (arrived[:, None] <= right + SAME)
    valley = (down > 0) & (up >= 0) & ~known
    share = jnp.where(valley, down, 1.0) / jnp.where(valley, down + up, 2.0)
    share = jnp.where(share < WALL, 0.0, jnp.where(share > 1.0 - WALL, 1.0, share))
    from_left = values[:, :-1] - down * share * (right - left) / 2
    from_right = values[:, 1:] - up * (1.0 - share) * (right - left) / 2
    height = (1.0 - share) * from_left + share * from_right  # the nearer end knows best
    return left + share * (right - left), jnp.where(valley, height, jnp.inf)
