"""Minimisation that says whether it worked, and whose result has a derivative.

The minimum x*(theta) of f(x, theta) has a gradient although the iterations that find it are not
differentiated: at the minimum the conditions of Karush, Kuhn and Tucker hold, and the implicit
function theorem turns their derivatives into that of x*. Parameters at a bound stay there.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nablab.checks import Numbers, is_traced
from nablab.infer import _newton, _valleys, linalg
from nablab.infer.certificates import Certificate, Fit, Status, clearly_lower, failure

# Up to this size fits from several starting points run side by side.
SIDE_BY_SIDE = 16
# How often the fits look for lower minima elsewhere, and from how many points each time where the
# parameters are many.
ROUNDS = 4
TRIES = 4
# From so many starts on, their ends tell how many minima have not been seen.
MANY_STARTS = 8
# With more parameters than this one start has to do.
MOST_SEARCHED = 500


def minimize(
    function: Callable[..., Float[Array, ""]],
    init: Float[Numbers, "*fits parameters"],
    lower: Float[Numbers, "*#fits parameters"] | float = -jnp.inf,
    upper: Float[Numbers, "*#fits parameters"] | float = jnp.inf,
    fixed: Bool[Numbers, "*#fits parameters"] | bool = False,
    starts: Float[Numbers, "starts *fits parameters"] | None = None,
    along: Sequence[int] | Int[np.ndarray, "_"] = (),
    look: Bool[Numbers, ""] | bool = True,
    tolerance: Float[Numbers, ""] | float = 1e-10,
    max_iterations: Int[Numbers, ""] | int = 500,
    args: tuple = (),
    expansion: Callable | None = None,
) -> Fit:
    """Minimise a smooth function of a few (up to some thousand) parameters within a box.

    Newton steps to the lowest point of a parabola within the box and a radius in which it is
    trusted; a curvature that is not positive is turned around.

    Args:
        function: what to minimise, ``function(x, *args)``. It may also close over traced values:
            the result is differentiable in those and in ``args``, in forward and reverse mode and
            repeatedly, by the implicit function theorem. At an active bound the derivative is the
            one-sided one that keeps the bound active.
        init: starting point, and value of the fixed parameters; with a leading axis, those of
            several fits of the same function within different boxes.
        lower, upper: bounds.
        fixed: parameters that are not fitted.
        starts: additional starting points; the lowest minimum wins.
        along: parameters, in steps of about 1 of which there may be other minima: these are looked
            for from the one that was found. Several fits look at each other's minima, too, so that
            none ends above another one that its bounds allow.
            Not with more than 500 parameters, where one fit takes long enough.
        look: whether to look for other minima at all; may be traced.
        tolerance: for the gradient norm of the certificate.
        max_iterations: of Newton steps tried.
        args: further arguments of the function, pytrees of arrays.
        expansion: ``expansion(x, *args)`` gives value, gradient and Hessian, where there is a
            faster way than to differentiate the function twice. From 512 parameters on it is also
            given ``curved``, 0.0 far from the minimum, where a Hessian without its negative parts
            leads there sooner. It and the function close over nothing that is traced.

    Returns:
        The fit. Look at ``certificate.converged``, or call ``certificate.require()`` outside jit,
        where a fit that did not converge also gives a warning.
    """
    init = jnp.asarray(init, dtype=float)
    lower, upper = jnp.broadcast_to(lower, init.shape), jnp.broadcast_to(upper, init.shape)
    fixed = jnp.broadcast_to(fixed, init.shape)
    box = jnp.where(fixed, init, lower), jnp.where(fixed, init, upper)
    if expansion is None:
        example = jnp.zeros(init.shape[-1])
        function, hoisted = jax.closure_convert(function, example, *args)
        args, expansion = (*args, *hoisted), partial(_expansion, function)
    starts = init[None] if starts is None else jnp.concatenate([init[None], starts])
    fits = _fits(function, expansion, args, starts, *box, along, look, tolerance, max_iterations)
    if not is_traced(fits.certificate.status) and not fits.converged.all():
        warnings.warn(f"minimize: {failure([fits.certificate], ())}", stacklevel=2)
    return fits


def _fits(function, expansion, args, starts, lower, upper, along, look, tolerance, max_iterations):
    """:func:`minimize` from the ``starts``, [starts, (fits,) parameters]."""
    # Plain arrays: the tangents of a model are not a model.
    args, tree = jax.tree.flatten(args)
    function, expansion = _on_leaves(function, tree), _on_leaves(expansion, tree)
    size, several = starts.shape[-1], starts.ndim > 2
    along = np.asarray(along if size <= MOST_SEARCHED else (), dtype=int)
    still = jax.lax.stop_gradient
    shape = (len(starts), starts.shape[1] if several else 1, size)
    box = lower.reshape(shape[1:]), upper.reshape(shape[1:])
    end, heights, beaten = _search(
        *(function, expansion, still(args), *still((starts.reshape(shape), *box))),
        *(along, look, tolerance, max_iterations),
    )

    def attach(end, heights, beaten, lower, upper):
        rest = jnp.where(end.x >= upper, upper, lower)
        found = end.x, end.active, rest, args
        x = _minimum(function, expansion, *found)
        value = _lowest(function, expansion, end.value, *found)
        return Fit(x, value, _certify(end, heights, beaten, lower < upper, tolerance))

    if several:
        return jax.vmap(attach)(end, heights, beaten, *box)
    return attach(*jax.tree.map(lambda field: field[0], (end, heights, beaten, *box)))


def _on_leaves(function, tree):
    return lambda x, *leaves, **options: function(x, *tree.unflatten(leaves), **options)


def _expansion(function, x, *args, curved=1.0):
    """Value, gradient and Hessian by automatic differentiation."""

    def gradient_twice(x):
        value, gradient = jax.value_and_grad(function)(x, *args)
        return gradient, (value, gradient)

    hessian, value_and_gradient = jax.jacfwd(gradient_twice, has_aux=True)(x)
    return *value_and_gradient, hessian


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _minimum(function, expansion, x, active, rest, args):
    """A minimum that has been found, with all its derivatives in ``args`` (and in the bounds
    ``rest``, where one is active): nothing is searched again."""
    return jnp.where(active, rest, x)


@_minimum.defjvp
def _minimum_jvp(function, expansion, primals, tangents):
    x, active, rest, args = primals
    _, _, rest_dot, args_dot = tangents
    # Once more, so that second derivatives see how the minimum moves.
    x = _minimum(function, expansion, x, active, rest, args)
    moved = jnp.where(active, rest_dot, 0.0)

    def gradient_and_hessian(x, *args):
        return expansion(x, *args)[1:]

    # The gradient of the free parameters stays zero: H dx + d(gradient) = 0.
    point, along = (x, *args), (moved, *args_dot)
    if x.size >= linalg.LARGE:  # without the tables of the expansion, which reversed are kept
        _, change = jax.jvp(jax.grad(function), point, along)
        _, hessian = gradient_and_hessian(*point)
    else:
        _, change, hessian = jax.jvp(gradient_and_hessian, point, along, has_aux=True)
    free = linalg.without(hessian, active)
    change = jnp.where(active, 0.0, change)
    if x.size >= linalg.LARGE:
        step = -jax.scipy.linalg.solve(free, change, assume_a="pos")
    else:
        step = -linalg.eliminated(free)[0] @ change
    return x, jnp.where(active, rest_dot, step)


def lowest(
    function: Callable[..., Float[Array, ""]],
    expansion: Callable,
    value: Float[Array, ""],
    x: Float[Array, "parameters"],
    active: Bool[Array, "parameters"],
    rest: Float[Array, "parameters"],
    args: tuple,
) -> Float[Array, ""]:
    """The value at a minimum that has been found, with all its derivatives: nothing is searched.

    At a minimum the slope in anything else is the same as if the parameters stood still (the
    envelope theorem). How they move is needed for second derivatives only.

    Args:
        function, expansion, args: as for :func:`minimize`.
        value, x: of the minimum.
        active, rest: parameters that stay where they are, and where that is.
    """
    # Plain arrays: the tangents of a model are not a model.
    leaves, tree = jax.tree.flatten(args)
    functions = _on_leaves(function, tree), _on_leaves(expansion, tree)
    return _lowest(*functions, value, x, active, rest, leaves)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _lowest(function, expansion, value, x, active, rest, args):
    return value


@_lowest.defjvp
def _lowest_jvp(function, expansion, primals, tangents):
    _, x, active, rest, args = primals
    _, _, _, rest_dot, args_dot = tangents
    x = _minimum(function, expansion, x, active, rest, args)
    moved = jnp.where(active, rest_dot, 0.0)
    return jax.jvp(function, (x, *args), (moved, *args_dot))


def _search(
    function, expansion, args, starts, lower, upper, along, look, tolerance, max_iterations
):
    """The lowest end of the iterations from all starts, for each of the fits; how much higher each
    of them ended, [fits, starts]; and whether another fit has found a lower point in its box."""
    first, fits, size = starts.shape
    few = size <= SIDE_BY_SIDE
    if size == 1 and len(along) > 0:
        valleys = _valleys.deepest(expansion, args, starts[0], lower, upper, look)
        starts, along, first = jnp.concatenate([valleys, starts[1:]]), (), first + 1
    search = len(along) > 0 or fits > 1
    if not few and len(along) > 0:
        starts = jnp.concatenate([starts, _valleys.around(starts[0], along, look)])
    tries = max(len(starts), 1 if few else TRIES) if search else first
    rounds = 1 + search * ROUNDS

    def run(x, lower, upper):
        return _newton.newton(expansion, args, x, lower, upper, tolerance, max_iterations)

    def one_round(state):
        """Fits from the points, the lowest of which counts; and points for the next round."""
        end, points, values, count = state
        ends = _ends(run, points, lower, upper, few)
        values = values.at[count].set(jnp.where(ends.done, ends.value, jnp.nan))
        lowest = jnp.argmin(jnp.where(jnp.isfinite(ends.value), ends.value, jnp.inf), axis=0)
        new = jax.tree.map(lambda field: field[lowest, np.arange(fits)], ends)
        better = clearly_lower(new.value, end.value) | (count == 0)
        end = jax.tree.map(
            lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
            *(new, end),
        )
        if not search:
            return end, points, values, count + 1
        # Who has looked around from here before would see the same.
        found = _valleys.candidates(function, args, end, lower, upper, along, tries)
        found = jnp.where((better & look)[:, None], found, jnp.nan)
        if not few:
            several = clearly_lower(end.value, jnp.nanmax(values, axis=(0, 1)))
            strained = end.active[:, along] & (lower < upper)[:, along]  # data far from the model
            anywhere = _valleys.scattered(starts[0], along, tries, count)
            more = (several | strained.any(axis=1)) & look
            found = jnp.where(jnp.isnan(found) & more[:, None], anywhere, found)
        return end, found, values, count + 1

    def go_on(state):
        _, points, _, count = state
        return (count == 0) | ((count < rounds) & jnp.isfinite(points).any())

    points = jnp.concatenate([starts, jnp.full((tries - len(starts), fits, size), jnp.nan)])
    end = _newton.beginning(starts[0])
    values = jnp.full((rounds, tries, fits), jnp.nan)
    state = end, points, values, 0
    state = one_round(state) if rounds == 1 else jax.lax.while_loop(go_on, one_round, state)
    end, _, values, _ = state
    allowed = ((lower[:, None] <= end.x) & (end.x <= upper[:, None])).all(axis=-1)
    beaten = (allowed & clearly_lower(end.value, end.value[:, None])).any(axis=1)
    values = values.reshape(-1, fits).T
    return end, values - end.value[:, None], beaten | jax.vmap(_scattered)(values)


def _ends(run, points, lower, upper, side_by_side):
    """Ends from points [tries, fits, size], side by side or, where each takes long, in turn."""
    tries, fits, size = points.shape
    box = jnp.broadcast_to(lower, points.shape), jnp.broadcast_to(upper, points.shape)
    lanes = [array.reshape(tries * fits, size) for array in (jnp.clip(points, *box), *box)]
    if side_by_side:
        ends = run(*lanes)
    else:
        ends = jax.lax.map(lambda lane: run(*lane), [array[:, None] for array in lanes])
        ends = jax.tree.map(lambda field: field[:, 0], ends)
    return jax.tree.map(lambda field: field.reshape(tries, fits, *field.shape[1:]), ends)


def _scattered(values):
    """Whether most of many starts ended in a minimum of their own: then there are many more, and
    hardly is the lowest among those that were found (I. J. Good, Biometrika 40 (1953) 237)."""
    known = jnp.isfinite(values)
    different = clearly_lower(values, values[:, None]) | clearly_lower(values[:, None], values)
    alone = known & ((different | ~known).sum(axis=1) == len(values) - 1)
    return (known.sum() >= MANY_STARTS) & (2 * alone.sum() > known.sum())


def _certify(end, heights, beaten, movable, tolerance) -> Certificate:
    active, scale = end.active, _newton.curvatures(end.hessian)
    norm = _newton.gradient_norm(end.gradient, active, scale)
    in_units = _newton.in_units(end.hessian, active, 1.0 / jnp.sqrt(scale))
    finite = jnp.isfinite(end.value) & jnp.isfinite(norm) & jnp.isfinite(in_units).all()
    in_units = jnp.where(finite, in_units, jnp.eye(len(active)))
    # The smallest pivot tells the sign of the smallest eigenvalue at a fraction of its cost.
    minimum = linalg.eliminated(in_units)[1].min(initial=jnp.inf) > 1e-12
    status = jnp.where(
        ~finite,
        Status.NOT_FINITE,
        jnp.where(
            end.done | (norm <= 100 * tolerance),
            jnp.where(minimum, Status.CONVERGED, Status.NOT_A_MINIMUM),
            Status.NOT_CONVERGED,
        ),
    )
    status = jnp.where(beaten & (status == Status.CONVERGED), Status.NOT_LOWEST, status)
    smallest, flattest = linalg.smallest_eigenvalue(in_units)
    flattest = jnp.where(active, 0.0, flattest)
    return Certificate(status, norm, smallest, flattest, active & movable, end.count, heights)
