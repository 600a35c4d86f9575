"""Where a fit that has arrived should look for a lower minimum.

Interpolated templates give a likelihood several minima: mostly one on either side of a nuisance
parameter. From the minimum that was found one looks along each such parameter, the others
following as the curvature there tells, and marks the valleys behind a hill. And where a fit of the
same function within other bounds has ended is a place to look at.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nablab.infer import matrices, newton

# Where to look. Templates are curved between -1 and 1 and straight outside.
PLACES = np.array([-3.0, -2.0, -1.25, -0.8, -0.4, 0.0, 0.4, 0.8, 1.25, 2.0, 3.0])
SCATTERED = 8
# Up to this size all points are evaluated at once.
AT_ONCE = 64


def around(start, along, look):
    """Points on either side of the start in all the parameters together, [2, fits, size]."""
    sides = np.zeros((2, 1, start.shape[-1]))
    sides[:, 0, along] = np.array([[1.0], [-1.0]])
    return jnp.where(look, start + sides, jnp.nan)


def scattered(start, along, tries, count):
    """Points to one side or the other in each parameter, others for each count, [tries, ...]."""
    sides = np.zeros((SCATTERED, tries, 1, start.shape[-1]))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (SCATTERED, tries, 1, len(along)))
    sides[..., along] = signs
    return start + jnp.asarray(sides)[count % SCATTERED]


def candidates(function, args, ends, lower, upper, along, tries):
    """Points to start from, [tries, fits, size], the most promising first; NaN where there is none.

    Args:
        function: ``function(x, *args)``.
        ends: the :class:`~nablab.infer.newton.Iteration` of each fit, which has ended.
        lower, upper: bounds of each fit, [fits, size].
        along: the parameters to look along.
        tries: how many points.
    """
    fits, size = ends.x.shape
    others = fits * (fits > 1)
    row = others + len(along) * len(PLACES)

    def points_of(end, lower, upper):
        moved = _along(end, along).reshape(-1, size)
        return jnp.clip(jnp.concatenate([ends.x[:others], moved]), lower, upper)

    def promise(end, values, lower, upper):
        """The values; infinite where it makes no sense to start."""
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        deeper = values[:others] < end.value - 1e-9 * (1.0 + jnp.abs(end.value))
        moves, values_along = _moves(end, along), values[others:].reshape(len(along), len(PLACES))
        valley = _is_valley(moves, values_along, end.value) & (lower < upper)[along, None]
        return jnp.where(jnp.concatenate([deeper, valley.reshape(-1)]), values, jnp.inf)

    points = jax.vmap(points_of)(ends, lower, upper)
    value = jax.vmap(lambda x: function(x, *args))
    by_fit = points.reshape(fits * row, size)
    values = value(by_fit) if size <= AT_ONCE else jax.lax.map(lambda x: value(x[None])[0], by_fit)
    values = jax.vmap(promise)(ends, values.reshape(fits, row), lower, upper)

    values = jnp.pad(values, ((0, 0), (0, max(0, tries - row))), constant_values=jnp.inf)
    best = jnp.argsort(values)[:, :tries] if tries > 1 else jnp.argmin(values, axis=1)[:, None]
    fit = np.arange(fits)[:, None]
    chosen = jnp.where(jnp.isfinite(values[fit, best])[..., None], points[fit, best], jnp.nan)
    return jnp.moveaxis(chosen, 1, 0)


def _moves(end, along):
    """From where the fit has ended to each of the places, [along, places]."""
    return PLACES - end.x[along, None]


def _along(end, along):
    """Points with one parameter at each of the places, and the others where they are best then, as
    far as the curvature knows, [along, places, size]."""
    unit = 1.0 / jnp.sqrt(newton.curvatures(end.hessian))
    inverse = matrices.eliminated(newton.in_units(end.hessian, end.active, unit))[0]
    follow = unit[:, None] * inverse[:, along] / (jnp.diagonal(inverse) * unit)[along]
    return end.x + _moves(end, along)[..., None] * follow.T[:, None]


def _is_valley(moves, values, value):
    """Which places are lower than their neighbours: the next place, or the end if it is nearer."""
    right, left = moves > 0, moves < 0
    wall = np.full((len(moves), 1), np.inf)
    first_right = right & ~jnp.concatenate([wall < 0, right[:, :-1]], axis=1)
    last_left = left & ~jnp.concatenate([left[:, 1:], wall < 0], axis=1)
    from_left = jnp.where(first_right, value, jnp.concatenate([wall, values[:, :-1]], axis=1))
    from_right = jnp.where(last_left, value, jnp.concatenate([values[:, 1:], wall], axis=1))
    return (moves != 0) & (values < from_left) & (values < from_right)
