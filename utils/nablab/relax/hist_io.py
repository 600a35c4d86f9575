"""Counts in and out of ``hist`` histograms, and histograms of a gradient.

Any library that speaks the unified histogram interface (UHI, https://uhi.readthedocs.io) can be
read: hist, boost-histogram, uproot. A derivative of counts is additive over bins like the counts
are; so once it is a histogram too, slicing, rebinning and summing it gives the derivative of the
sliced, rebinned and summed counts. None of the conversions works under ``jit``.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from nablab import checks
from nablab.checks import Column
from nablab.relax.histograms import Counts

if TYPE_CHECKING:
    import hist

# Bin edges of an axis, or the names of its categories.
Edges = Float[Array, "_"] | tuple[str, ...]
BLOCK = 256  # events at a time in gradient_counts, where each has its own bins x parameters


def to_hist(
    counts: Counts,
    edges: Column,
    *,
    name: str | Sequence[str] = "",
    label: str = "",
) -> "hist.Hist":
    """A histogram with ``Weight`` storage: values of either sign, and variances.

    Args:
        counts: values and variances, one per bin; in two dimensions of shape (x bins, y bins).
        edges: the bin edges, or the names of categories; in two dimensions a pair, those along x
            and those along y.
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
    axes = [
        _axis(f"edges[{i}]" if len(edges) > 1 else "edges", axis_edges, axis_name)
        for i, (axis_edges, axis_name) in enumerate(zip(edges, names, strict=True))
    ]
    bins = tuple(len(axis) for axis in axes)
    for part, array in counts._asdict().items():
        if jnp.shape(array) != bins:
            raise ValueError(
                f"counts.{part} must have the shape {bins} of the bins, got {jnp.shape(array)}"
            )
    import hist

    histogram = hist.Hist(*axes, storage=hist.storage.Weight(), label=label or None)
    histogram.view().value = np.asarray(counts.values)
    histogram.view().variance = np.asarray(counts.variances)
    return histogram


def from_hist(histogram, *, fold_tails: bool = False) -> tuple[Counts, Edges | tuple[Edges, ...]]:
    """Values and variances of a histogram that speaks UHI, and its edges (one array per axis).

    Args:
        histogram: anything with ``axes``, ``values()`` and ``variances()``.
        fold_tails: add underflow and overflow to the outermost bins. Otherwise they must be
            empty, lest events get lost unseen. What is in no category is never added to one. Mind
            that ``hist`` counts an entry that is NaN as overflow.

    Returns:
        The counts, and the edges; of an axis of categories their names, as a tuple.

    Raises:
        ValueError: it does not count (a profile holds means), there are no variances, an entry is
            not finite, or there is something in underflow or overflow.
    """
    if isinstance(histogram, tuple):
        raise ValueError(
            "histogram is a tuple, such as to_numpy() returns, which has no variances: pass the "
            "histogram itself"
        )
    edges = tuple(_edges_or_names(axis) for axis in histogram.axes)
    _check_that_it_counts(histogram, edges)
    parts = []
    for name, part in (("values", histogram.values), ("variances", histogram.variances)):
        inside = part()
        if inside is None:
            raise ValueError("histogram has no variances: fill it with Weight storage")
        everything = np.asarray(part(flow=True), dtype=float)
        checks.finite(name, everything)
        for i, axis in enumerate(histogram.axes):
            everything = _without_flow(everything, i, np.shape(inside)[i], axis, fold_tails, name)
        parts.append(jnp.asarray(everything))
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
    """A list of the edges along each axis; edges of one axis are a list of numbers or names."""
    one = isinstance(edges[0], str) or np.ndim(edges[0]) == 0
    return [edges] if one else list(edges)


def _axis(argument, edges, name):
    """An axis with these edges, or with categories of these names."""
    import hist

    if all(isinstance(edge, str) for edge in edges):
        if len(set(edges)) < len(edges):
            raise ValueError(f"{argument} must be different names, got {edges}")
        return hist.axis.StrCategory(edges, name=name, label=name, flow=False)
    edges = checks.array(argument, edges)
    checks.edges(argument, edges)
    return hist.axis.Variable(np.asarray(edges), name=name, label=name, flow=False)


def _edges_or_names(axis):
    if _is_category(axis):
        return tuple(str(name) for name in axis)
    edges = axis.edges() if callable(axis.edges) else axis.edges
    return jnp.asarray(edges, dtype=float)


def _is_category(axis):
    """Whether its bins have names and no order."""
    ordered = getattr(getattr(axis, "traits", None), "ordered", True)
    named = hasattr(axis, "__len__") and all(isinstance(one, str) for one in axis)
    return not ordered or named


def _check_that_it_counts(histogram, edges):
    kind = str(getattr(histogram, "kind", "COUNT")).rpartition(".")[2]
    bins = tuple(len(one) - (not isinstance(one, tuple)) for one in edges)
    if kind != "COUNT" or np.shape(histogram.values()) != bins:
        storage = getattr(getattr(histogram, "storage_type", None), "__name__", kind)
        raise ValueError(
            f"histogram has {storage} storage, whose values are not the counts of its bins"
            f"{' but means, as in a profile' if kind == 'MEAN' else ''}: fill one with Weight "
            "storage"
        )


def _without_flow(array, axis_number, bins, axis, fold_tails, name):
    """The bins of one axis, with underflow and overflow in the outermost ones or refused."""
    array = np.moveaxis(array, axis_number, 0)
    extra = len(array) - bins
    underflow = extra == 2 or (extra == 1 and axis.traits.underflow)
    overflow = extra - underflow
    inside = array[underflow : underflow + bins].copy()
    nowhere = _is_category(axis) or getattr(getattr(axis, "traits", None), "circular", False)
    outside = np.concatenate([array[:underflow], array[underflow + bins :]])
    if np.any(outside) and (nowhere or not fold_tails):
        raise ValueError(
            f"histogram has {name} in underflow or overflow of axis {axis_number}, which would be "
            "lost: "
            + (
                "they are in none of its bins; fill it without them"
                if nowhere
                else "fold_tails=True adds them to the outermost bins"
            )
        )
    if underflow:
        inside[0] += array[0]
    if overflow:
        inside[-1] += array[-1]
    return np.moveaxis(inside, 0, axis_number)
