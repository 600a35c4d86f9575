"""Sums over events, a block after the other: memory does not grow with the events."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def sum_in_blocks(function: Callable[[PyTree], PyTree], events: PyTree, *, size: int) -> PyTree:
    """The sum of ``function`` over blocks of ``size`` events, and over those that are left.

    Args:
        function: of a block of events; returns a tree of sums over them. It is computed again in
            the backward pass, so that no block is kept in memory.
        events: array, or tree of arrays, whose first axis counts the events.
        size: events in a block.
    """
    function = jax.checkpoint(function)
    number = len(jax.tree.leaves(events)[0])
    if number <= size:
        return function(events)
    blocks, left = _split(events, size)

    def add(total, block):
        return jax.tree.map(jnp.add, total, function(block)), None

    if number % size:
        start = function(left)
    else:
        shapes = jax.eval_shape(function, jax.tree.map(lambda a: a[0], blocks))
        start = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes)
    return jax.lax.scan(add, start, blocks)[0]


def power_sums(locate: Callable, x, weights, *, orders: tuple[int, int], places: int, chunk: int):
    """Sums of w s^k and of w^2 s^k over the events at each place: two lists, one array a power.

    Args:
        locate: place and offset s there of each event, a function of ``x``.
        x, weights: of the events; without weights (``None``) w and w^2 are 1.
        orders: how many powers of s with w and with w^2, these at least as many as those.
        places: how many there are.
        chunk: about how many events at a time.
    """
    first, second = orders
    kinds = (second,) if weights is None else orders

    @partial(jax.checkpoint, prevent_cse=False)  # recomputed backwards: nothing per event is kept
    def add(sums, events):
        x, weights = events
        place, offset = locate(x.astype(float))
        terms = [jnp.ones_like(offset)]
        if weights is not None:
            terms = [weights.astype(float), weights.astype(float) ** 2]
        updated = []
        for order, term in zip(kinds, terms, strict=True):
            for _ in range(order):
                total = sums[len(updated)]
                updated.append(total.at[place].add(term, mode="promise_in_bounds"))
                term = term * offset
        return updated

    # Chunks that divide the events: none are left over, and the arrays need no copy.
    events = len(x)
    size = next((c for c in range(2 * chunk, chunk // 2, -1) if events % c == 0), chunk)
    chunks, left = _split((x, weights), size)
    sums = [jnp.zeros(places) for _ in range(sum(kinds))]
    sums, _ = jax.lax.scan(lambda sums, events: (add(sums, events), None), sums, chunks)
    if events % size:
        sums = add(sums, left)
    return sums[:first], sums[-second:]


def _split(events, size):
    """Full blocks along a new first axis, and the events that are left."""
    full = len(jax.tree.leaves(events)[0]) // size
    blocks = jax.tree.map(lambda a: a[: full * size].reshape(full, size, *a.shape[1:]), events)
    return blocks, jax.tree.map(lambda a: a[full * size :], events)
