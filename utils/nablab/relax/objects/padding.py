"""The jets and leptons of an event: padded arrays and soft ordering.

Events have different numbers of objects, arrays do not: every event has room for the same number
of objects, and a mask tells objects from padding. The last axis is that of the objects; leading
axes, such as that of the events, are free.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablab import checks
from nablab.checks import Numbers

#: What fills up the arrays. At 1 square roots, logarithms, inverses and their derivatives are
#: finite: a gradient through padding is a finite number times 0, where 1/0 times 0 would be NaN.
PADDING = 1.0

_FLAT = "one number per event needs no padding; lists come from awkward.unflatten(values, counts)"


def pad_objects(
    jagged, *, max_objects: int | None = None
) -> tuple[Float[Array, "events objects"], Bool[Array, "events objects"]]:
    """Values of the objects in a rectangular array, and the mask that is true for objects.

    For input data, outside of ``jit`` and ``grad``. Each property (pt, eta, ...) is padded alone;
    their masks are the same.

    Args:
        jagged: one list of numbers per event: an awkward Array, or any sequence of sequences.
        max_objects: room for objects per event; as many as the longest event has where absent.

    Raises:
        ValueError: an entry is not a finite number, or an event has more than ``max_objects``
            objects. None is dropped silently: which ones to keep is a choice of physics, to be
            made before (``jets[:, :8]`` of awkward jets in descending pt, say).
        ImportError: ``jagged`` is an awkward Array, but awkward cannot be imported.
    """
    counts, values = _counts_and_values(jagged)
    longest = int(counts.max(initial=0))
    room = longest if max_objects is None else max_objects
    if longest > room:
        raise ValueError(
            f"event {np.argmax(counts > room)} has {counts[counts > room][0]} objects, more than "
            f"max_objects={room}: choose which ones to keep before padding"
        )
    mask = np.arange(room) < counts[:, None]
    padded = np.full(mask.shape, PADDING)
    padded[mask] = values
    checks.finite("jagged", padded)
    return jnp.asarray(padded), jnp.asarray(mask)


def _counts_and_values(jagged):
    """Number of objects of each event, and the values of all of them one after the other."""
    if hasattr(jagged, "layout"):
        try:
            import awkward
        except ImportError as error:
            raise ImportError("padding an awkward Array needs the package awkward") from error
        if awkward.fields(jagged):
            raise ValueError(f"jagged has fields, {awkward.fields(jagged)}: pad one at a time")
        if len(jagged) == 0:
            return np.zeros(0, dtype=int), np.zeros(0)
        if jagged.ndim != 2:
            raise ValueError(
                f"jagged must hold one list of numbers per event, got {awkward.type(jagged)}: "
                + (_FLAT if jagged.ndim < 2 else "reduce it to one number per object")
            )
        if awkward.any(awkward.is_none(jagged, axis=0)) or awkward.any(
            awkward.is_none(jagged, axis=1), axis=None
        ):
            raise ValueError(
                "jagged has missing entries (None): drop them with awkward.drop_none, or fill "
                "them with awkward.fill_none, before padding"
            )
        jagged = awkward.drop_none(awkward.drop_none(jagged, axis=0), axis=1)
        counts = awkward.to_numpy(awkward.num(jagged, axis=1), allow_missing=False)
        values = awkward.to_numpy(awkward.flatten(jagged, axis=1), allow_missing=False)
        return np.asarray(counts, dtype=int), np.asarray(values, dtype=float)
    events = []
    for i, event in enumerate(jagged):
        try:
            event = np.asarray(event, dtype=float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"jagged[{i}] must be a list of numbers: {error}") from error
        if event.ndim != 1:
            hint = f": {_FLAT}" if event.ndim == 0 else ""
            raise ValueError(
                f"jagged[{i}] must be a list of numbers, got shape {event.shape}{hint}"
            )
        events.append(event)
    counts = np.array([len(event) for event in events], dtype=int)
    return counts, np.concatenate([np.zeros(0), *events])


def soft_top_k(
    values: Float[Numbers, "*events objects"],
    mask: Bool[Numbers, "*events objects"],
    k: int,
    *,
    temperature: Float[Numbers, ""] | float,
) -> Float[Array, "*events k objects"]:
    """Weight of each object in the places 1 to k, in descending order of the values (SoftSort).

    Place i is shared by the objects with values close to the i-th largest one (arXiv:2006.16038)::

        weight of object j in place i = exp(-|values_(i) - values_j| / temperature) / sum over j

    ``(weights * eta[..., None, :]).sum(-1)`` is the soft eta of the k leading objects. With k as
    large as the arrays this is a soft sort.

    Args:
        values: what to order by, e.g. pt.
        mask: true for objects, false for padding.
        k: number of places.
        temperature: in the unit of the values; objects within it are mixed. Far below the
            differences of the values the weights are those of :func:`hard_top_k`, and the
            gradient of the weights is zero.

    Returns:
        Weights that add up to 1 in each place; all zero in the places that an event with fewer
        than k objects leaves empty, and for padding.

    Raises:
        ValueError: a value is not finite, the temperature is not positive, a shape differs, or
            k is not between 1 and the number of objects that the arrays have room for. Under
            ``jit`` the weights of an event with such a value are NaN.
    """
    checks.positive("temperature", temperature)
    values, places, taken = _ordered(values, mask, k)
    leading = jnp.take_along_axis(values, places, axis=-1)
    if checks.is_traced(temperature):
        temperature *= checks.one_if(temperature > 0)
    distances = jnp.abs(leading[..., :, None] - values[..., None, :]) / temperature
    weights = jnp.where(mask[..., None, :], jnp.exp(-distances), 0.0)
    # The object in its own place contributes 1, so that the sum over the objects is safe.
    total = jnp.where(taken[..., None], weights.sum(axis=-1, keepdims=True), 1.0)
    return jnp.where(taken[..., None], weights / total, 0.0) * _known(values)


def hard_top_k(
    values: Float[Numbers, "*events objects"],
    mask: Bool[Numbers, "*events objects"],
    k: int,
    *,
    temperature: Float[Numbers, ""] | float | None = None,
) -> Float[Array, "*events k objects"]:
    """Weight 1 for the object in each of the places 1 to k, and 0 otherwise.

    Arguments, result and errors as for :func:`soft_top_k`; ``temperature`` is not used. Objects
    with equal values keep their order.
    """
    values, places, taken = _ordered(values, mask, k)
    weights = jnp.where(taken[..., None], jax.nn.one_hot(places, values.shape[-1]), 0.0)
    return jnp.where(jnp.isnan(_known(values)), jnp.nan, weights)


def _known(values):
    """1, or NaN for an event with a value that cannot be ordered: [event, place, object]."""
    return checks.one_if(jnp.isfinite(values).all(axis=-1))[..., None, None]


def _ordered(values, mask, k):
    """The values without padding, the indices of the k largest, and which of these exist."""
    checks.same_shape("mask", mask, "values", values)
    room = jnp.shape(values)[-1]
    if not 1 <= operator.index(k) <= room:
        raise ValueError(f"k is {k}: it must be between 1 and {room}, the room for objects")
    values = jnp.where(mask, values, 0.0)
    checks.finite("values", values)
    places = jnp.argsort(jnp.where(mask, -values, jnp.inf), axis=-1, stable=True)[..., :k]
    return values, places, jnp.take_along_axis(jnp.asarray(mask), places, axis=-1)
