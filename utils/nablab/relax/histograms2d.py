"""Soft and hard histograms in two observables, with the axes of ``numpy.histogram2d``.

The membership of an event is the product of its memberships along x and along y. So the sums over
events are products of two matrices, events x bins of one axis each, taken for a block of events
after the other::

    counts = (w p_x)^T p_y,      variances = (w^2 p_x^2)^T p_y^2 .
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from nablab import checks
from nablab.checks import Numbers
from nablab.relax.histograms import Counts, bin_of, kernel_memberships, sum_in_blocks


def kde_counts_2d(
    x: Float[Numbers, "events"],
    y: Float[Numbers, "events"],
    x_edges: Float[Numbers, "x_edges"],
    y_edges: Float[Numbers, "y_edges"],
    bandwidths: Float[Numbers, "2"] | Sequence,
    weights: Float[Numbers, "events"] | None = None,
    fold_tails: bool = False,
) -> Counts:
    """Integrals over each cell of a density estimate with a product of two Gaussian kernels.

    Args:
        x: the first observable, one value per event.
        y: the second one.
        x_edges: increasing bin edges along x, in the unit of ``x``.
        y_edges: increasing bin edges along y, in the unit of ``y``.
        bandwidths: standard deviations of the kernel along x and y, in their units.
        weights: event weights; 1 where absent.
        fold_tails: count what lies outside the edges in the outermost bins, instead of dropping
            it.

    Returns:
        Counts with arrays of shape (bins of x, bins of y), differentiable in everything but
        ``fold_tails``.

    Raises:
        ValueError: an entry is not finite, edges do not increase, a bandwidth is not positive, or
            ``y`` or ``weights`` has another shape than ``x``.
    """
    if len(bandwidths) != 2:
        raise ValueError(f"bandwidths must be two, for x and for y; got {len(bandwidths)}")
    for i, bandwidth in enumerate(bandwidths):
        checks.positive(f"bandwidths[{i}]", bandwidth)
    x, y, x_edges, y_edges, weights = _checked(x, y, x_edges, y_edges, weights)

    return _counts(x, y, x_edges, y_edges, bandwidths, weights, fold_tails)


@partial(jax.jit, static_argnames="fold_tails")
def _counts(x, y, x_edges, y_edges, bandwidths, weights, fold_tails) -> Counts:
    def block_counts(x, y, weights):
        p_x = weights[:, None] * kernel_memberships(x, x_edges, bandwidths[0], fold_tails)
        p_y = kernel_memberships(y, y_edges, bandwidths[1], fold_tails)
        return Counts(p_x.T @ p_y, (p_x**2).T @ p_y**2)

    return sum_in_blocks(block_counts, x, y, weights)


def hard_counts_2d(
    x: Float[Numbers, "events"],
    y: Float[Numbers, "events"],
    x_edges: Float[Numbers, "x_edges"],
    y_edges: Float[Numbers, "y_edges"],
    bandwidths: Float[Numbers, "2"] | Sequence | None = None,
    weights: Float[Numbers, "events"] | None = None,
    fold_tails: bool = False,
) -> Counts:
    """The ordinary histogram, with the bin convention of ``numpy.histogram2d``.

    Arguments, result and errors as for :func:`kde_counts_2d`; ``bandwidths`` is not used. There is
    a gradient in ``weights`` only.
    """
    x, y, x_edges, y_edges, weights = _checked(x, y, x_edges, y_edges, weights)
    row, inside_x = bin_of(x, x_edges, fold_tails)
    column, inside_y = bin_of(y, y_edges, fold_tails)
    weights = jnp.where(inside_x & inside_y, weights, 0.0)
    zeros = jnp.zeros((x_edges.shape[0] - 1, y_edges.shape[0] - 1))
    return Counts(zeros.at[row, column].add(weights), zeros.at[row, column].add(weights**2))


def _checked(x, y, x_edges, y_edges, weights):
    if jnp.ndim(x) != 1:
        raise ValueError(f"x must have one value per event, got shape {jnp.shape(x)}")
    weights = jnp.ones(jnp.shape(x)) if weights is None else weights
    for name, array in (("x", x), ("y", y), ("weights", weights)):
        checks.same_shape(name, array, "x", x)
        checks.finite(name, array)
    checks.edges("x_edges", x_edges)
    checks.edges("y_edges", y_edges)
    return [jnp.asarray(array, dtype=float) for array in (x, y, x_edges, y_edges, weights)]
