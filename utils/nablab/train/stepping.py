"""One step of a training, and many in one compiled call."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from nablab import memory

# The most steps of one compiled call: as many losses are handed back.
MOST_STEPS = 1000


class State(NamedTuple):
    """Where a training stands. With several seeds every leaf has their axis in front."""

    params: PyTree
    optimizer: PyTree
    step: Int[Array, "*seeds"]
    going: Bool[Array, "*seeds"]


class Steps(NamedTuple):
    """What some steps found.

    Attributes:
        after: where they led.
        losses: of the steps taken, those of the others are zero.
        last_loss, last_gradient: of the last step, taken or refused.
    """

    after: State
    losses: Float[Array, "*seeds most_steps"]
    last_loss: Float[Array, "*seeds"]
    last_gradient: PyTree


def draw(events: dict[str, PyTree], *, key: PRNGKeyArray, size: int | None = None) -> dict:
    """Draw events with replacement, each sample with its own key.

    Args:
        events: samples by name.
        key: random key.
        size: events to draw from each sample; as many as it has if absent (a bootstrap sample).
    """
    keys = jax.random.split(key, len(events))
    drawn = {}
    for sample_key, (name, sample) in zip(keys, sorted(events.items()), strict=True):
        length = jax.tree.leaves(sample)[0].shape[0]
        rows = jax.random.randint(sample_key, (size or length,), 0, length)
        drawn[name] = jax.tree.map(lambda array, rows=rows: array[rows], sample)
    return drawn


@jax.jit
def bootstrap(events: dict[str, PyTree], *, key: PRNGKeyArray) -> dict:
    """A bootstrap sample: as many events as there are, drawn with replacement by :func:`draw`."""
    return draw(events, key=key)


def until_interrupted(function, items, name, fewest=20) -> list:
    """The function of all items; of those done, with a warning, where Ctrl-C ends it early.

    Fewer than ``fewest`` are worth nothing: then the interruption goes on.
    """
    done = []
    try:
        for item in items:
            done.append(function(item))
    except KeyboardInterrupt:
        if len(done) < fewest:
            raise
        warnings.warn(
            f"interrupted: {len(done)} of {len(items)} {name} are done, and kept", stacklevel=3
        )
    return done


def advance(objective, optimizer, batch_size, seeds, state, events, until, *, key) -> Steps:
    """Steps up to the number ``until``, at most 1,000; a step that is not finite is refused."""
    run = memory.compiled(_advancing, (objective, optimizer.update), batch_size, seeds)
    return run(state, key, events, until)


def evaluate(objective, seeds, params, events) -> Float[Array, "*seeds"]:
    """The objective on whole samples."""
    return memory.compiled(_evaluating, (objective,), seeds)(params, events)


def updates(optimizer, seeds, state, gradient) -> PyTree:
    """What the optimizer adds to the parameters for this gradient."""
    return memory.compiled(_updating, (optimizer.update,), seeds)(state, gradient)


def _advancing(objective, update, batch_size, seeds):
    def step(key, events, carry):
        state, losses, _, _, taken = carry
        step_key = jax.random.fold_in(key, state.step + 1)
        batch = events if batch_size is None else draw(events, key=step_key, size=batch_size)
        loss, gradient = jax.value_and_grad(objective())(state.params, batch)
        moves, optimizer_state = update()(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, moves)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, params))]
        usable = jnp.stack(finite).all()
        proposal = State(params, optimizer_state, state.step + 1, state.going)
        kept = jax.tree.map(partial(jnp.where, usable), proposal, state)
        loss = loss.astype(float)
        losses = losses.at[taken].set(loss)
        return kept._replace(going=usable), losses, loss, gradient, taken + 1

    def advance(state, key, events, until):
        def one(state, key):
            def goes_on(carry):
                return carry[0].going & (carry[0].step < until)

            none = jax.tree.map(jnp.zeros_like, state.params)
            start = state, jnp.zeros(MOST_STEPS), jnp.zeros(()), none, 0
            *found, _ = jax.lax.while_loop(goes_on, partial(step, key, events), start)
            return Steps(*found)

        return _for_each(seeds, one, state, key)

    return advance


def _evaluating(objective, seeds):
    def evaluate(params, events):
        return _for_each(seeds, lambda params: objective()(params, events), params)

    return evaluate


def _updating(update, seeds):
    def one(state, gradient):
        return update()(gradient, state.optimizer, state.params)[0]

    return partial(_for_each, seeds, one)


def _for_each(seeds, function, *arguments):
    """The function of one training, for all of them."""
    return function(*arguments) if seeds is None else jax.vmap(function)(*arguments)
