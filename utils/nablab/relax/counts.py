"""Counts per bin, and their way into ``hist`` histograms and back.

Any library that speaks the unified histogram interface (UHI, https://uhi.readthedocs.io) can be
read: hist, boost-histogram, uproot. A derivative of counts is additive over bins like the counts
are; so once it is a histogram too, slicing, rebinning and summing it gives the derivative of the
sliced, rebinned and summed counts. Variances add up for hard counts only: bins of soft counts and
of derivatives share events, and of merged ones :func:`nablab.relax.covariance` knows the variance.
None of the conversions works under ``jit``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab import checks

if TYPE_CHECKING:
    import hist

# Bin edges of an axis, or the names of its categories.
Edges = Float[Array, "_"] | tuple[str, ...]


class Counts(NamedTuple):
    """Weighted counts per bin, their variances (sums of squared weights), and the bins.

    In two dimensions the shape is (x bins, y bins), and ``edges`` are a pair; of an axis of
    categories they are the names. They are ``None`` where only a histogram asks for them. All three
    are leaves of a pytree: scale the weights of the events, not the whole tree.
    """

    values: Float[Array, "*bins"]
    variances: Float[Array, "*bins"]
    edges: Edges | tuple[Edges, ...] | None = None

    def to_hist(self, *, name: str | Sequence[str] = "", label: str = "") -> "hist.Hist":
        """A histogram with ``Weight`` storage: values of either sign, and variances.

        Mind that ``hist`` adds variances when bins are merged or summed, as if they were
        independent. That is right for hard counts. Neighbouring bins of soft counts share events,
        so that their sum varies by more; those of a gradient share an edge, and what leaves one
        enters the other: by less, the sum of all bins by almost nothing. Rebin the values, and take
        the variances from :func:`nablab.relax.covariance`, or count again with the wider bins.

        Args:
            name: name of the observable, which labels the axis; in two dimensions a pair.
            label: what was counted.

        Returns:
            The histogram, without underflow and overflow: what lies outside the edges is not
            known. So a slice drops the other bins, and ``rebin(2)`` of an odd number of bins the
            last one.

        Raises:
            ValueError: there are no edges, they do not increase, or do not belong to the counts.
        """
        import hist

        axes = _axes(self.edges, name)
        bins = tuple(len(axis) for axis in axes)
        for part in ("values", "variances"):
            if jnp.shape(getattr(self, part)) != bins:
                raise ValueError(
                    f"{part} must have the shape {bins} of the bins, got "
                    f"{jnp.shape(getattr(self, part))}"
                )
        histogram = hist.Hist(*axes, storage=hist.storage.Weight(), label=label or None)
        histogram.view().value = np.asarray(self.values)
        histogram.view().variance = np.asarray(self.variances)
        return histogram

    @classmethod
    def from_hist(cls, histogram, *, fold_tails: bool = False) -> "Counts":
        """Values, variances and edges of a histogram that speaks UHI.

        Args:
            histogram: anything with ``axes``, ``values()`` and ``variances()``.
            fold_tails: add underflow and overflow to the outermost bins. Otherwise they must be
                empty, so that no events are lost silently. What is in no category is never added
                to one. Mind that ``hist`` counts an entry that is NaN as overflow.

        Raises:
            ValueError: it does not count (a profile holds means), there are no variances, an entry
                is not finite, or there is something in underflow or overflow.
        """
        if isinstance(histogram, tuple):
            raise ValueError(
                "histogram is a tuple, such as to_numpy() returns, which has no variances: pass "
                "the histogram itself"
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
            for i, (axis, bins) in enumerate(zip(histogram.axes, np.shape(inside), strict=True)):
                everything = _without_flow(everything, i, bins, axis, fold_tails, name)
            parts.append(jnp.asarray(everything))
        return cls(*parts, edges[0] if len(edges) == 1 else edges)


def _axes(edges, name) -> list:
    """An axis for each of the edges; those of one axis are a list of numbers or names."""
    if edges is None:
        raise ValueError("edges are not known: counts._replace(edges=...) says what they are")
    one = isinstance(edges[0], str) or np.ndim(edges[0]) == 0
    edges = [edges] if one else list(edges)
    names = [name] if isinstance(name, str) else list(name)
    if len(edges) == 2 and isinstance(name, str):
        names = [name and f"{name}_{axis}" for axis in "xy"]
    if len(names) != len(edges):
        raise ValueError(f"name must be one for each of the {len(edges)} axes, got {names}")
    arguments = ["edges"] if one else [f"edges[{i}]" for i in range(len(edges))]
    return [_axis(*axis) for axis in zip(arguments, edges, names, strict=True)]


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
