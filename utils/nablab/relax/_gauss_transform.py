"""Fast Gauss transform: sums of Gaussian bin memberships at a cost that no number of bins changes.

A membership p(x) is smooth on the scale of the bandwidth. So a sum over many events can be had from
few weighted points that stand for them, ::

    sum_i w_i p(x_i)  =  sum_n W_n p(node_n),

up to rounding errors, in the manner of Greengard & Strain (doi:10.1137/0912004); but with values of
p at Chebyshev nodes in place of its derivatives, so that p^2, which the variances need, is summed
in the same way. The line is cut into cells of about a bandwidth with ``NODES`` nodes each. Each
event only adds to ``ORDER`` power sums in one of the ``FINE`` parts of its cell; the weights W of
the nodes follow from these sums once all events are in.

Only cells near an edge matter: far from all edges p does not change, and whatever lies there is one
cell. So the number of cells depends on the number of edges and not on the bandwidth.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nablab.relax._blocks import power_sums

NODES = 16
FINE = 16
ORDER = 8
#: Bandwidths from an edge at which its cumulative distribution is taken as constant, to 1e-17.
FAR = 8.5
REACH = 18  # cells kept on each side of an edge; 17 of them are at least FAR bandwidths
#: Most cells kept from one edge to the next: those near the two edges, and one in between.
GAP = 2 * REACH + 1
CHUNK = 4096  # events at a time: small enough for the processor's cache


class Cells(NamedTuple):
    """The cells that are kept, in segments: one before the first edge, one after each edge.

    Cells are numbered from x = 0, in units of ``width``.
    """

    width: Float[Array, ""]  # a power of two, so that numbers and offsets have no rounding errors
    starts: Float[Array, "segments"]  # number of the first cell of the segment
    places: Int[Array, "segments"]  # its place among the cells that are kept
    dropped: Float[Array, "segments"]  # cells left out in the middle of the segment


@partial(jax.jit, static_argnames="fold_tails")
def counts(
    x: Float[Array, "events"],
    edges: Float[Array, "edges"],
    bandwidth: Float[Array, ""],
    weights: Float[Array, "events"] | None,
    fold_tails: bool,
) -> tuple[Float[Array, "bins"], Float[Array, "bins"]]:
    """Sums of w p and (w p)^2 for the memberships p of :func:`histograms.kde_counts`.

    Values are right to about 1e-15 of the summed weight near the bin, variances likewise. A
    bandwidth below the spacing of floating-point numbers at the edges counts as that spacing.
    """
    spacing = jnp.finfo(edges.dtype).eps * jnp.max(jnp.abs(edges))
    bandwidth = jnp.maximum(bandwidth, jax.lax.stop_gradient(128 * spacing))
    cells = _cells(*jax.lax.stop_gradient((edges, bandwidth)))

    # A bin sees the cells from REACH + 1 left of its lower edge to as many right of its upper one.
    steps = jnp.arange(-REACH - 1, GAP + REACH + 2)
    places, next_places = cells.places[1:-1, None], cells.places[2:, None]
    nodes = steps[:, None] + _chebyshev(NODES)
    edge_offsets = edges / cells.width - cells.starts[1:]
    to_lower = edge_offsets[:-1, None, None] - nodes
    to_upper = edge_offsets[1:, None, None] - nodes + (next_places - places)[:, :, None]
    scale = cells.width / bandwidth
    below_lower, below_upper = _normal_cdf(scale * to_lower), _normal_cdf(scale * to_upper)
    if fold_tails:
        below_lower, below_upper = below_lower.at[0].set(0.0), below_upper.at[-1].set(1.0)
    p = below_upper - below_lower

    def total(moments, p):
        node_weights = jnp.einsum("kcf,kfn->cn", moments, _moments_to_nodes())
        near = jnp.take(node_weights, places + steps, axis=0, mode="fill", fill_value=0.0)
        sums = jnp.sum(near * p, axis=(1, 2))
        # Weights of nodes may be negative: rounding must not make a count of nothing negative.
        noise = jnp.finfo(p.dtype).eps * jnp.sum(jnp.abs(near), axis=(1, 2))
        return jnp.where((sums < 0) & (sums > -noise), 0.0, sums)

    first, second = _moments(x, weights, cells)
    return total(first, p), total(second, p**2)


def _normal_cdf(z):
    return 0.5 * jax.lax.erfc(-np.sqrt(0.5) * jnp.clip(z, -FAR, FAR))


def _cells(edges, bandwidth) -> Cells:
    width = jnp.ldexp(jnp.ones(()), jnp.frexp(bandwidth)[1] - 1)  # in (bandwidth / 2, bandwidth]
    numbers = jnp.floor(edges / width)
    gaps = jnp.diff(numbers)
    kept = jnp.minimum(gaps, GAP).astype(jnp.int32)
    first_places = jnp.array([0, REACH + 1], dtype=jnp.int32)
    places = jnp.cumsum(jnp.concatenate([first_places, kept]), dtype=jnp.int32)
    starts = jnp.concatenate([numbers[:1] - (REACH + 1), numbers])
    return Cells(width, starts, places, jnp.pad(jnp.maximum(gaps - GAP, 0.0), 1))


def _place(x, cells: Cells):
    """Place of the part of a cell that each event is in, and its offset there, from -1 to 1."""
    starts, dropped, reach = FINE * cells.starts, FINE * cells.dropped, FINE * REACH
    position = jnp.clip(x * (FINE / cells.width), starts[0], starts[-1] + reach + FINE)
    part = jnp.floor(position)

    def search(part):
        k = jnp.searchsorted(starts, part, side="right", method="scan_unrolled") - 1
        step = part - starts[k]
        after = step - dropped[k]
        far = (after < reach + FINE) & (step >= reach) & (dropped[k] > 0)
        step = jnp.where(step < reach, step, jnp.maximum(after, reach))
        return FINE * cells.places[k] + step.astype(jnp.int32), far

    def all_kept(part):
        return (part - starts[0]).astype(jnp.int32), jnp.zeros(part.shape, bool)

    place, far = jax.lax.cond(jnp.any(dropped > 0), search, all_kept, part)
    # Where p does not change the gradient is to be 0, not a rounding error over the bandwidth.
    return place, jnp.where(far, 0.0, 2.0 * (position - part) - 1.0)


def _moments(x, weights, cells: Cells):
    """Sums of w offset^k and of w^2 offset^k: [order, cell, part of the cell] each."""
    kept = GAP * (cells.starts.shape[0] - 2) + 2 * REACH + 3
    sums = power_sums(
        lambda x: _place(x, cells),
        x,
        weights,
        orders=(ORDER, ORDER),
        places=kept * FINE,
        chunk=CHUNK,
    )
    first, second = (jnp.stack(part).reshape(ORDER, kept, FINE) for part in sums)
    return first, second


def _chebyshev(count: int) -> np.ndarray:
    """Chebyshev points between 0 and 1."""
    return (1.0 - np.cos(np.pi * (np.arange(count) + 0.5) / count)) / 2.0


@cache
def _moments_to_nodes() -> np.ndarray:
    """What each moment adds to the weight of each node of the cell: [order, part of cell, node].

    The weight of a node is the sum of its Lagrange polynomial over the events. On a part of the
    cell that polynomial is interpolated by one of degree ORDER - 1, whose coefficients these are.
    """
    nodes, points = _chebyshev(NODES), _chebyshev(ORDER)
    places = (np.arange(FINE)[:, None] + points) / FINE
    same = np.eye(NODES, dtype=bool)
    factors = (places[..., None, None] - nodes) / np.where(same, 1.0, nodes[:, None] - nodes)
    lagrange = np.where(same, 1.0, factors).prod(axis=-1)
    powers = np.vander(2.0 * points - 1.0, increasing=True)
    return np.linalg.solve(powers, lagrange).transpose(1, 0, 2)
