"""Counts in and out of ``hist`` histograms, and histograms of a gradient.

Any library that speaks the unified histogram interface (UHI, https://uhi.readthedocs.io) can be
read: hist, boost-histogram, uproot. A derivative of counts is additive over bins like the counts
are; so once it is a histogram too, slicing, rebinning and summing it gives the derivative of the
sliced, rebinned and summed counts. None of the conversions works under ``jit``.
"""

from collections.abc import Callable, Sequence

import hist
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from nablab import checks
from nablab.checks import Numbers
from nablab.relax.histograms import Counts

BLOCK = 256  # events at a time in gradient_counts, where each has its own bins x parameters


def to_hist(
    counts: Counts,
    edges: Float[Numbers, "edges"] | Sequence[Float[Numbers, "_"]],
    name: str | Sequence[str] = "",
    label: str = "",
) -> hist.Hist:
    """A histogram with ``Weight`` storage: values of either sign, and variances.

    Args:
        counts: values and variances, one per bin; in two dimensions of shape (x bins, y bins).
        edges: the bin edges; in two dimensions a pair, those along x and those along y.
        name: name of the observable, which labels the axis; in two dimensions a pair.
        label: what was counted.

    Returns:
        The histogram, without underflow and overflow: what lies outside the edges is not known.
        So a slice drops the other bins, and ``rebin(2)`` of an odd number of bins the last one.

    Raises:
        ValueError: the edges do not increase, or do not belong to the counts.
    """
    edges = _per_axis(edges)
    names = [name] * len(edges) if isinstance(name, str) else list(name)
    if len(edges) == 2 and isinstance(name, str):
        names = [name and f"{name}_{axis}" for axis in "xy"]
    if len(names) != len(edges):
        raise ValueError(f"name must be one for each of the {len(edges)} axes, got {names}")
    for i, axis_edges in enumerate(edges):
        checks.edges(f"edges[{i}]" if len(edges) > 1 else "edges", axis_edges)
    bins = tuple(len(axis_edges) - 1 for axis_edges in edges)
    for part, array in counts._asdict().items():
        if jnp.shape(array) != bins:
            raise ValueError(
                f"counts.{part} must have the shape {bins} of the bins, got {jnp.shape(array)}"
            )
    axes = [
        hist.axis.Variable(np.asarray(axis_edges), name=axis_name, label=axis_name, flow=False)
        for axis_edges, axis_name in zip(edges, names, strict=True)
    ]
    histogram = hist.Hist(*axes, storage=hist.storage.Weight(), label=label or None)
    histogram.view().value = np.asarray(counts.values)
    histogram.view().variance = np.asarray(counts.variances)
    return histogram


def from_hist(
    histogram, fold_tails: bool = False
) -> tuple[Counts, Float[Array, "edges"] | tuple[Float[Array, "_"], ...]]:
    """Values and variances of a histogram that speaks UHI, and its edges (one array per axis).

    Args:
        histogram: anything with ``axes``, ``values()`` and ``variances()``.
        fold_tails: add underflow and overflow to the outermost bins. Otherwise they must be
            empty, lest events get lost unseen.

    Raises:
        ValueError: there are no variances, an entry is not finite, or there is something in
            underflow or overflow.
    """
    edges = [axis.edges() if callable(axis.edges) else axis.edges for axis in histogram.axes]
    edges = [np.asarray(axis_edges, dtype=float) for axis_edges in edges]
    parts = []
    for name, part in (("values", histogram.values), ("variances", histogram.variances)):
        inside = part()
        if inside is None:
            raise ValueError("histogram has no variances: fill it with Weight storage")
        everything = np.asarray(part(flow=True), dtype=float)
        checks.finite(name, everything)
        if fold_tails:
            for i, axis in enumerate(histogram.axes):
                everything = _folded(everything, i, np.shape(inside)[i], axis)
        elif np.count_nonzero(everything) > np.count_nonzero(inside):
            raise ValueError(
                f"histogram has {name} in underflow or overflow, which would be lost: "
                "fold_tails=True adds them to the outermost bins"
            )
        parts.append(jnp.asarray(everything if fold_tails else inside, dtype=float))
    edges = tuple(jnp.asarray(axis_edges) for axis_edges in edges)
    return Counts(*parts), edges[0] if len(edges) == 1 else edges


def gradient_counts(
    counts: Callable[[PyTree, PyTree], Counts], parameters: PyTree, events: PyTree
) -> PyTree:
    """Derivatives of the counts with respect to parameters, and the variances of these.

    The derivative of a count is a sum over events like the count itself, so that its variance is
    the sum of the squares of what each event adds to it. Events are taken one by one, in blocks:
    time grows with events x bins x parameters, memory does not.

    Args:
        counts: function of parameters and events that returns Counts which are sums over events;
            edges taken from the same events, say, are not allowed to depend on them.
        parameters: any tree of floating-point numbers or arrays, such as ``{"mean": 0.0}``.
        events: array, or tree of arrays, whose first axis counts the events.

    Returns:
        The tree of ``parameters`` with Counts for each leaf: ``values`` are the derivatives
        (signed), in the shape of the counts, behind the shape of the leaf. ``to_hist`` makes a
        histogram of each. Works under ``jit``, ``grad`` and ``vmap``.
    """
    parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=float), parameters)
    events = jax.tree.map(jnp.asarray, events)
    leaves, structure = jax.tree.flatten(parameters)

    def of_one_event(event):
        alone = jax.tree.map(lambda array: array[None], event)
        jacobian = jax.jacfwd(lambda parameters: counts(parameters, alone).values)(parameters)
        return [
            # jacfwd puts the axes of the leaf last
            jnp.moveaxis(part, range(-leaf.ndim, 0), range(leaf.ndim))
            for part, leaf in zip(jax.tree.leaves(jacobian), leaves, strict=True)
        ]

    @jax.checkpoint
    def sums(block):
        parts = jax.vmap(of_one_event)(block)
        return [Counts(part.sum(axis=0), (part**2).sum(axis=0)) for part in parts]

    number = len(jax.tree.leaves(events)[0])
    split = number - number % BLOCK
    blocks = jax.tree.map(lambda array: array[:split].reshape(-1, BLOCK, *array.shape[1:]), events)
    total = sums(jax.tree.map(lambda array: array[split:], events))

    def add(total, block):
        return jax.tree.map(jnp.add, total, sums(block)), None

    total, _ = jax.lax.scan(add, total, blocks)
    return jax.tree.unflatten(structure, total)


def _per_axis(edges) -> list:
    """A list of the edges along each axis; edges of one axis are a list of numbers."""
    return [edges] if np.ndim(edges[0]) == 0 else list(edges)


def _folded(array, axis_number, bins, axis):
    """Add underflow and overflow along one axis to the outermost bins."""
    array = np.moveaxis(array, axis_number, 0)
    extra = len(array) - bins
    underflow = extra == 2 or (extra == 1 and axis.traits.underflow)
    overflow = extra - underflow
    folded = array[underflow : underflow + bins].copy()
    if underflow:
        folded[0] += array[0]
    if overflow:
        folded[-1] += array[-1]
    return np.moveaxis(folded, 0, axis_number)
