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
import numpy as np
from jaxtyping import Float

from nablab import checks
from nablab.checks import Column, Numbers
from nablab.relax import histograms
from nablab.relax._blocks import sum_in_blocks
from nablab.relax.counts import Counts
from nablab.relax.histograms import (
    bin_of,
    checked_edges,
    checked_observable,
    kernel_memberships,
    nan_if_bad,
)


def kde_counts_2d(
    x: Column,
    y: Column,
    x_edges: Column,
    y_edges: Column,
    *,
    bandwidths: Float[Numbers, "2"] | Sequence,
    weights: Column | None = None,
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
            ``y`` or ``weights`` has another shape than ``x``. What is only known under ``jit``
            makes all counts NaN, as for :func:`nablab.relax.histograms.kde_counts`.
    """
    if len(bandwidths) != 2:
        raise ValueError(f"bandwidths must be two, for x and for y; got {len(bandwidths)}")
    for i, bandwidth in enumerate(bandwidths):
        checks.positive(f"bandwidths[{i}]", bandwidth)
    events, edges = _checked(x, y, weights), _checked_edges(x_edges, y_edges)
    counts = _counts(*events, *edges, bandwidths, fold_tails)
    return nan_if_bad(counts, events, edges=edges, bandwidths=bandwidths)


@partial(jax.jit, static_argnames="fold_tails")
def _counts(x, y, weights, x_edges, y_edges, bandwidths, fold_tails) -> Counts:
    def memberships(x, edges, bandwidth):
        return kernel_memberships(x, edges, bandwidth=bandwidth, fold_tails=fold_tails)

    def of_block(events):
        x, y, weights = events
        p_x = weights[:, None] * memberships(x, x_edges, bandwidths[0])
        p_y = memberships(y, y_edges, bandwidths[1])
        return p_x.T @ p_y, (p_x**2).T @ p_y**2

    return Counts(*sum_in_blocks(of_block, (x, y, weights), size=histograms.BLOCK))


def hard_counts_2d(
    x: Column,
    y: Column,
    x_edges: Column,
    y_edges: Column,
    *,
    bandwidths: Float[Numbers, "2"] | Sequence | None = None,
    weights: Column | None = None,
    fold_tails: bool = False,
) -> Counts:
    """The ordinary histogram, with the bin convention of ``numpy.histogram2d``.

    Arguments, result and errors as for :func:`kde_counts_2d`; ``bandwidths`` is not used. There is
    a gradient in ``weights`` only.
    """
    events, edges = _checked(x, y, weights), _checked_edges(x_edges, y_edges)
    (x, y, weights), (x_edges, y_edges) = events, edges
    row, inside_x = bin_of(x, x_edges, fold_tails=fold_tails)
    column, inside_y = bin_of(y, y_edges, fold_tails=fold_tails)
    w = jnp.where(inside_x & inside_y, weights, 0.0)
    zeros = jnp.zeros((x_edges.shape[0] - 1, y_edges.shape[0] - 1))
    counts = Counts(zeros.at[row, column].add(w), zeros.at[row, column].add(w**2))
    return nan_if_bad(counts, events, edges=edges)


def _checked(x, y, weights):
    x = checked_observable("x", x)
    weights = np.ones(x.shape) if weights is None else checks.array("weights", weights)
    y = checks.array("y", y)
    for name, array in (("y", y), ("weights", weights)):
        checks.same_shape(name, array, "x", x)
        checks.finite(name, array)
    return tuple(array.astype(float) for array in (x, y, weights))


def _checked_edges(x_edges, y_edges):
    return checked_edges("x_edges", x_edges), checked_edges("y_edges", y_edges)
