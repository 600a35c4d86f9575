"""Histograms with a gradient, and the hard one with the same signature.

Each function maps events to ``Counts``: the weighted number of events per bin and its variance.
An event belongs to bin k with a membership p_k between 0 and 1, so that ::

    counts_k = sum_i w_i p_k(x_i),      variance_k = sum_i (w_i p_k(x_i))^2 .

Events pass in blocks, so that memory does not grow with events x bins; of Gaussian memberships with
many events, not even the time does (``gauss_transform``).

An event that is NaN or infinite belongs to no bin. Outside of ``jit`` it is an error; where values
are unknown, all counts are NaN then, so that nothing that follows from them can be quoted. The same
holds for edges that do not increase and for a bandwidth that is not positive.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nablab import checks
from nablab.checks import Column, Numbers
from nablab.relax import _gauss_transform
from nablab.relax._blocks import sum_in_blocks
from nablab.relax.counts import Counts
from nablab.relax.kernels import KERNELS, named

BLOCK = 8192


def kde_counts(
    x: Column,
    edges: Column,
    *,
    bandwidth: Float[Numbers, ""] | float,
    weights: Column | None = None,
    fold_tails: bool = False,
    kernel: str = "gaussian",
) -> Counts:
    """Integrals over each bin of a kernel density estimate (neos, arXiv:2203.05570).

    Few events are summed one by one, many by a fast Gauss transform whose cost per event does not
    grow with the bins: :func:`kde_method`. The two agree to 1e-14 of the total weight, and their
    gradients to 1e-11 of the largest entry for bandwidths up to ten bin widths. Kernels other than
    the Gaussian are summed one by one.

    Args:
        x: the observable, one value per event: an array, a list, a pandas column or a flat awkward
            array.
        edges: increasing bin edges, one more than bins, in the unit of ``x``. None is infinite:
            with ``fold_tails`` a finite one does the same.
        bandwidth: standard deviation of the kernel, whichever it is, in the unit of ``x``. Far
            below the bin width the counts are those of :func:`hard_counts`, and the gradient is
            zero.
        weights: event weights; 1 where absent.
        fold_tails: count what lies outside the edges in the first and last bin, instead of
            dropping it.
        kernel: "gaussian"; "logistic" (a bin is then the difference of two sigmoid cuts); or
            "epanechnikov" or "biweight", which end 2.2 and 2.6 bandwidths from the event.

    Returns:
        Counts, differentiable in ``x``, ``edges``, ``bandwidth`` and ``weights``.

    Raises:
        ValueError: an entry is not finite, the edges do not increase, the bandwidth is not
            positive, or the kernel is unknown. Under ``jit``, ``grad`` and ``vmap``, where the
            values are not known, the counts and their derivatives are NaN then.
    """
    x, edges, weights = checked_events(x, edges, weights)
    checks.positive("bandwidth", bandwidth)
    if kde_method(x.shape[0], kernel=kernel) == "fast Gauss transform":
        width = jnp.asarray(bandwidth, dtype=float)
        counts = Counts(*_gauss_transform.counts(x, edges, width, weights, fold_tails))
    else:
        counts = direct_kde_counts(
            x, edges, bandwidth=bandwidth, weights=weights, fold_tails=fold_tails, kernel=kernel
        )
    return nan_if_bad(counts, (x, weights), edges=(edges,), bandwidths=(bandwidth,))


@partial(jax.jit, static_argnames=("fold_tails", "kernel"))
def direct_kde_counts(
    x, edges, *, bandwidth, weights=None, fold_tails=False, kernel="gaussian"
) -> Counts:
    """The sum over all events that :func:`kde_counts` takes for few of them; nothing is checked."""

    def memberships(x):
        return kernel_memberships(
            x, edges, bandwidth=bandwidth, fold_tails=fold_tails, kernel=kernel
        )

    return _sum_of_memberships(memberships, x, weights)


def kernel_memberships(x, edges, *, bandwidth, fold_tails, kernel="gaussian"):
    """Area of each event's kernel in each bin, [event, bin]."""
    kernel, distances = KERNELS[kernel], edges - x[:, None]
    # Beyond 500 bandwidths every kernel is 0 to the last digit; in its derivative the ratio of
    # distance and squared bandwidth may be infinite. NaN is not far away, and stays NaN.
    bandwidth = _not_too_narrow(bandwidth)
    finite = jnp.where(jnp.abs(distances) >= 600 * bandwidth, 0.0, distances)
    cumulative = jnp.where(
        jnp.abs(distances) >= 500 * bandwidth,
        distances > 0,
        kernel.cdf(kernel.deviation * finite / bandwidth),
    )
    if fold_tails:
        cumulative = cumulative.at[:, 0].set(0.0).at[:, -1].set(1.0)
    return jnp.diff(cumulative, axis=1)


def kde_method(events: int, *, kernel: str = "gaussian") -> str:
    """How :func:`kde_counts` sums that many events: "direct sum" or "fast Gauss transform"."""
    many = named("kernel", kernel) == "gaussian" and events > BLOCK
    return "fast Gauss transform" if many else "direct sum"


def softmax_counts(
    x: Column,
    edges: Column,
    *,
    bandwidth: Float[Numbers, ""] | float,
    weights: Column | None = None,
    fold_tails: bool = False,
) -> Counts:
    """Soft binning by a softmax over the bins (arXiv:1806.06988).

    The score of a bin is a straight line in ``x``; the lines of neighbouring bins cross at the
    edge between them, and the scores are divided by a temperature, here called ``bandwidth`` and
    in the unit of ``x``. Arguments, result and errors as for :func:`kde_counts`.
    """
    x, edges, weights = checked_events(x, edges, weights)
    checks.positive("bandwidth", bandwidth)
    counts = _softmax_counts(x, edges, bandwidth, weights, fold_tails)
    return nan_if_bad(counts, (x, weights), edges=(edges,), bandwidths=(bandwidth,))


@partial(jax.jit, static_argnames="fold_tails")
def _softmax_counts(x, edges, bandwidth, weights, fold_tails) -> Counts:
    # Bins 0 and -1 of this ladder are the tails; the slopes count up from one bin to the next.
    slopes = jnp.arange(edges.shape[0] + 1)
    bandwidth = _not_too_narrow(bandwidth)
    # Measuring from the middle edge keeps the scores, and their rounding errors, small.
    middle = edges[edges.shape[0] // 2]
    offsets = jnp.concatenate([jnp.zeros(1), -jnp.cumsum(edges - middle)])

    def memberships(block):
        scores = slopes * (block[:, None] - middle) + offsets
        scores -= jax.lax.stop_gradient(scores.max(axis=1, keepdims=True))  # a shift of no effect
        # Beyond 800 the exponential is 0; the derivative of the ratio may be infinite.
        finite = jnp.where(scores <= -900 * bandwidth, 0.0, scores)
        scores = jnp.where(scores <= -800 * bandwidth, -jnp.inf, finite / bandwidth)
        p = jax.nn.softmax(scores, axis=1)
        inside = p[:, 1:-1]
        return inside.at[:, 0].add(p[:, 0]).at[:, -1].add(p[:, -1]) if fold_tails else inside

    return _sum_of_memberships(memberships, x, weights)


def hard_counts(
    x: Column,
    edges: Column,
    *,
    bandwidth: Float[Numbers, ""] | float | None = None,
    weights: Column | None = None,
    fold_tails: bool = False,
) -> Counts:
    """The ordinary histogram, with the bin convention of ``numpy.histogram``.

    Arguments, result and errors as for :func:`kde_counts`; ``bandwidth`` is not used. There is a
    gradient in ``weights`` only: the one in ``x`` and ``edges`` is zero almost everywhere.
    """
    x, edges, weights = checked_events(x, edges, weights)
    index, inside = bin_of(x, edges, fold_tails=fold_tails)
    w, zeros = jnp.where(inside, _or_ones(weights, x), 0.0), jnp.zeros(edges.shape[0] - 1)
    counts = Counts(zeros.at[index].add(w), zeros.at[index].add(w**2))
    return nan_if_bad(counts, (x, weights), edges=(edges,))


def bin_of(x, edges, *, fold_tails):
    """The bin of each event, and whether it counts there; outside, the nearest one."""
    bins = edges.shape[0] - 1
    index = jnp.searchsorted(edges, x, side="right") - 1
    index = jnp.where(x == edges[-1], bins - 1, index)  # the last bin includes its right edge
    inside = (index >= 0) & (index < bins)
    return jnp.clip(index, 0, bins - 1), inside | fold_tails


def checked_events(x, edges, weights):
    """Observable, edges and weights (or None) as arrays, or an error that says what is wrong.

    NumPy arrays stay what they are: under ``jit`` a converted one counts as traced.
    """
    x = checked_observable("x", x)
    if weights is not None:
        weights = checks.array("weights", weights)
        checks.same_shape("weights", weights, "x", x)
        checks.finite("weights", weights)
    return x, checked_edges("edges", edges), weights


def checked_observable(name, x):
    """One finite floating-point number per event."""
    x = checks.array(name, x)
    if jnp.ndim(x) != 1:
        raise ValueError(f"{name} must have one value per event, got shape {jnp.shape(x)}")
    checks.finite(name, x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def checked_edges(name, edges):
    """Finite, increasing edges in double precision."""
    edges = checks.array(name, edges)
    if not checks.is_traced(edges) and np.isinf(edges).any():
        raise ValueError(
            f"{name} must be finite, got {np.asarray(edges)}: put the outer edge anywhere beyond "
            "its neighbour, and count what lies further out with fold_tails=True"
        )
    checks.edges(name, edges)
    return edges.astype(float)


def nan_if_bad(counts: Counts, events, *, edges, bandwidths=()) -> Counts:
    """The counts with their edges, NaN if something is traced that is an error elsewhere.

    Args:
        counts: of all bins.
        events: arrays that must be finite, or None.
        edges: arrays that must increase, too, one for each axis.
        bandwidths: numbers that must be positive, too.
    """
    good = [checks.all_finite(a) for a in (*events, *edges, *bandwidths) if checks.is_traced(a)]
    good += [checks.one_if(jnp.all(jnp.diff(e) > 0)) for e in edges if checks.is_traced(e)]
    good += [checks.one_if(h > 0) for h in bandwidths if checks.is_traced(h)]
    values, variances, _ = counts
    if good:
        values, variances = (part * math.prod(good) for part in (values, variances))
    return Counts(values, variances, edges[0] if len(edges) == 1 else edges)


def _not_too_narrow(bandwidth):
    """A bandwidth whose inverse square is finite."""
    return jnp.maximum(bandwidth, jnp.finfo(jnp.result_type(bandwidth, float)).tiny ** 0.5)


def _or_ones(weights, x):
    ones = jnp.ones(jnp.shape(x))
    return ones if weights is None else jnp.asarray(weights) * ones


def _sum_of_memberships(memberships, x, weights) -> Counts:
    def of_block(events):
        x, weights = events
        weighted = weights[:, None] * memberships(x)
        return weighted.sum(axis=0), (weighted**2).sum(axis=0)

    events = jnp.asarray(x, dtype=float), _or_ones(weights, x)
    return Counts(*sum_in_blocks(of_block, events, size=BLOCK))
