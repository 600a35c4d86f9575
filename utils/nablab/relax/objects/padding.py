"""The jets and leptons of an event in padded arrays.

Events have different numbers of objects, arrays do not: every event has room for the same number
of objects, and a mask tells objects from padding. The last axis is that of the objects; leading
axes, such as that of the events, are free.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablab import checks

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
