"""The training loop: batches, many steps in one compiled call, a history, early stopping.

Parameters that need different treatment are entries of a dictionary, and the optimizer says what
happens to each: ``optax.partition({"slow": optax.adam(1e-4), "frozen": optax.set_to_zero()},
{"network": "slow", "edges": "frozen"})``. Limits of a parameter: :func:`clamped`.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from nablab.train import checkpoints

Objective = Callable[[PyTree, PyTree], Any]

# Steps run in one compiled call until it takes this long: a click on "stop" waits no longer.
SECONDS_PER_CALL = 0.2
MOST_STEPS_PER_CALL = 1000
SECONDS_BETWEEN_CHECKPOINTS = 10.0
ALL_DONE = "all steps done"
INTERRUPTED = "interrupted"


@dataclass
class Training:
    """What a training leaves behind.

    Attributes:
        params: the best parameters on the validation sample; before the first look at it, or
            without one, the last.
        last_params: the parameters after the last step.
        losses: value of the objective on the batch of each step.
        validation_steps, validation_losses: the same on the whole validation sample.
        snapshots: (step, parameters) for movies, the starting point first.
        stopped: why it ended.
    """

    params: PyTree
    last_params: PyTree
    losses: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    snapshots: list[tuple[int, PyTree]] = field(default_factory=list)
    stopped: str = ALL_DONE

    @property
    def best_step(self) -> int:
        """The step after which the validation objective was lowest."""
        if not self.validation_losses:
            return len(self.losses)
        return self.validation_steps[int(np.argmin(self.validation_losses))]


class State(NamedTuple):
    """Where a training stands. With several seeds every leaf has their axis in front."""

    params: PyTree
    optimizer: PyTree
    step: Int[Array, "*seeds"]
    going: Bool[Array, "*seeds"]


def train(
    objective: Objective,
    params: PyTree,
    events: dict[str, PyTree],
    validation: dict[str, PyTree] | None = None,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: PRNGKeyArray,
    batch_size: int | None = None,
    check_every: int = 10,
    patience: int | None = None,
    snapshot_every: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Training:
    """Minimise ``objective(params, events)`` by stochastic gradient descent.

    Pass the same ``objective`` and ``optimizer`` objects to several trainings: the step is
    compiled once for them.

    Args:
        objective: a pure function of parameters and events. Its yields must be per luminosity, so
            that it means the same for a batch as for the whole sample.
        params: starting point.
        events: samples by name; each is an array, or a tree of arrays, with events first.
        validation: other events of the same form, for early stopping and the choice of ``params``.
        optimizer: from optax.
        steps: the most steps to take.
        key: random key of the batches.
        batch_size: events drawn (with replacement) from each sample in each step; all if absent.
        check_every: steps between looks at the validation sample.
        patience: looks without improvement after which the training stops.
        snapshot_every: steps between stored copies of the parameters.
        checkpoint: a file (``.npz``) to which the training is saved every ten seconds and when it
            ends. Where it exists, the training goes on from there, and ends bit for bit where it
            would have ended without the interruption.
        progress: show a progress bar.

    Returns:
        The training. An interruption (Ctrl-C, the stop button) ends it early and loses nothing; a
        value or gradient that is not finite ends it with a warning, and what was found before
        stays.

    Raises:
        ValueError: a sample is empty, its arrays differ in length, a number of steps, looks or
            events is below 1, or the checkpoint belongs to another training.
    """
    (training,) = _train(
        objective, params, events, validation, None, key,
        optimizer=optimizer, steps=steps, batch_size=batch_size, check_every=check_every,
        patience=patience, snapshot_every=snapshot_every, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    return training


def train_seeds(
    objective: Objective,
    params: Sequence[PyTree],
    events: dict[str, PyTree],
    validation: dict[str, PyTree] | None = None,
    *,
    keys: Key[Array, "seeds"],
    **settings,
) -> list[Training]:
    """Several trainings side by side, in one compiled step.

    Args:
        objective, events, validation: as in :func:`train`; the events are common to all.
        params: a starting point for each training.
        keys: random key of the batches of each training.
        settings: the other arguments of :func:`train`.

    Returns:
        The trainings. Each stops by itself, and agrees with that of :func:`train` up to rounding.

    Raises:
        ValueError: as :func:`train`, or there is not one key for each starting point.
    """
    if not params or keys.shape != (len(params),):
        raise ValueError(f"keys must be one for each of {len(params)} params, got {keys.shape}")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return _train(objective, stacked, events, validation, len(params), keys, **settings)


def clamped(low, high) -> optax.GradientTransformation:
    """The last link of ``optax.chain``: parameters stay between ``low`` and ``high``.

    A parameter that would leave is put on its limit (up to rounding), and can come back at the next
    step.

    Raises:
        ValueError: ``low`` is above ``high``.
    """
    if np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"low must not be above high: low={low}, high={high}")

    def update(updates, state, params):
        inside = jax.tree.map(lambda p, u: jnp.clip(p + u, low, high) - p, params, updates)
        return inside, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def draw(key: PRNGKeyArray, events: dict[str, PyTree], size: int | None = None) -> dict:
    """Draw events with replacement, each sample with its own key.

    Args:
        key: random key.
        events: samples by name.
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
def bootstrap(key: PRNGKeyArray, events: dict[str, PyTree]) -> dict:
    """A bootstrap sample: as many events as there are, drawn with replacement by :func:`draw`."""
    return draw(key, events)


def _train(
    objective, params, events, validation, seeds, key, *, optimizer, steps, batch_size=None,
    check_every=10, patience=None, snapshot_every=None, checkpoint=None, progress=True,
):  # fmt: skip
    """One training, or several where ``seeds`` is a number."""
    numbers = {
        "batch_size": batch_size,
        "check_every": check_every,
        "patience": patience,
        "snapshot_every": snapshot_every,
    }
    _check(numbers | {"steps": steps}, events, validation)
    axis = () if seeds is None else (seeds,)
    start = optimizer.init if seeds is None else jax.vmap(optimizer.init)
    state = State(params, start(params), jnp.zeros(axis, int), jnp.ones(axis, bool))
    of_seed = [_picker(seeds, seed) for seed in range(seeds or 1)]
    starts = [pick(params) for pick in of_seed]
    trainings = [Training(p, p, snapshots=[(0, p)] if snapshot_every else []) for p in starts]
    if checkpoint is not None:
        identity = checkpoints.identity(
            params=params, key=key, events=events, validation=validation, **numbers
        )
        state, trainings = checkpoints.load(checkpoint, identity, state, trainings, of_seed)
        for training in trainings:
            if training.stopped == INTERRUPTED:
                training.stopped = ALL_DONE  # unless something stops it again

    pauses = [every for every in (validation is not None and check_every, snapshot_every) if every]
    saved, at_once = time.monotonic(), 1
    bar = tqdm(total=steps, disable=not progress, leave=False)
    try:
        while state.going.any() and (now := int(state.step[state.going].max())) < steps:
            bar.update(now - bar.n)
            until = min([now + at_once, steps, *(now - now % every + every for every in pauses)])
            began = time.monotonic()
            after, losses, refused = _advance(
                objective, optimizer, batch_size, seeds, state, key, events, until
            )
            jax.block_until_ready(after)
            at_once = _more_or_fewer(until - now, time.monotonic() - began)
            looks = None
            if validation is not None and (until % check_every == 0 or until == steps):
                looks = _evaluate(objective, seeds, after.params, validation)
            # The history needs nothing of the optimizer, and of the rest only numbers in NumPy: a
            # slice of an array of JAX for each seed and leaf takes longer than a small step.
            before, losses, refused = jax.device_get(
                (state._replace(params=None, optimizer=None), losses, refused)
            )
            reached = after._replace(optimizer=None)
            grown = []
            for pick, training in zip(of_seed, trainings, strict=True):
                look = None if looks is None else float(pick(looks))
                new = pick((before, reached, losses, refused))
                grown.append(_grown(training, *new, look, patience, snapshot_every))
            ended = jnp.reshape(jnp.array([t.stopped != ALL_DONE for t in grown]), axis)
            # Both at once: an interruption finds the state and its history together.
            state, trainings = after._replace(going=after.going & ~ended), grown
            if checkpoint is not None and time.monotonic() > saved + SECONDS_BETWEEN_CHECKPOINTS:
                checkpoints.save(checkpoint, identity, state, trainings)
                saved = time.monotonic()
    except KeyboardInterrupt:
        for pick, training in zip(of_seed, trainings, strict=True):
            if pick(state.going):
                training.stopped = INTERRUPTED
    bar.close()
    if checkpoint is not None:
        checkpoints.save(checkpoint, identity, state, trainings)
    return trainings


def _picker(seeds, seed):
    """What belongs to one of the trainings."""
    if seeds is None:
        return lambda tree: tree
    return lambda tree: jax.tree.map(lambda leaf: leaf[seed], tree)


def _more_or_fewer(steps, seconds) -> int:
    """Steps for the next call: at most twice as many, of the length that was asked for."""
    return int(np.clip(steps * min(2.0, SECONDS_PER_CALL / seconds), 1, MOST_STEPS_PER_CALL))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _advance(objective, optimizer, batch_size, seeds, state, key, events, until):
    """Up to 1,000 steps; the losses of the steps taken, and that of a refused one."""

    def step(key, carry):
        state, losses, _, taken = carry
        step_key = jax.random.fold_in(key, state.step + 1)
        batch = events if batch_size is None else draw(step_key, events, batch_size)
        loss, gradient = jax.value_and_grad(objective)(state.params, batch)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, params))]
        usable = jnp.stack(finite).all()
        proposal = State(params, optimizer_state, state.step + 1, state.going)
        kept = jax.tree.map(partial(jnp.where, usable), proposal, state)
        loss = loss.astype(float)
        return kept._replace(going=usable), losses.at[taken].set(loss), loss, taken + 1

    def one(state, key):
        def goes_on(carry):
            return carry[0].going & (carry[0].step < until)

        start = state, jnp.zeros(MOST_STEPS_PER_CALL), jnp.zeros(()), 0
        return jax.lax.while_loop(goes_on, partial(step, key), start)[:3]

    return _for_each(seeds, one, state, key)


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(objective, seeds, params, events):
    return _for_each(seeds, lambda params: objective(params, events), params)


def _for_each(seeds, function, *arguments):
    """The function of one training, for all of them."""
    return function(*arguments) if seeds is None else jax.vmap(function)(*arguments)


def _grown(training, before, after, losses, refused, look, patience, snapshot_every) -> Training:
    """The history with the steps between two states, and whether it ends there."""
    if not before.going:
        return training
    step = int(after.step)
    taken = step - int(before.step)
    grown = replace(
        training,
        last_params=after.params,
        losses=training.losses + np.asarray(losses)[:taken].tolist(),
    )
    if not grown.validation_losses:
        grown.params = after.params  # nothing to choose by
    if taken and snapshot_every and step % snapshot_every == 0:
        grown.snapshots = [*training.snapshots, (step, after.params)]
    if not after.going:
        what = "gradient" if np.isfinite(refused) else f"value, {refused},"
        return _failed(grown, f"the objective's {what} is not finite at step {step + 1}")
    if look is None:
        return grown
    if not np.isfinite(look):
        return _failed(grown, f"the validation objective is {look} at step {step}")
    if look < min(training.validation_losses, default=np.inf):
        grown.params = after.params
    grown.validation_steps = [*training.validation_steps, step]
    grown.validation_losses = [*training.validation_losses, look]
    waited = len(grown.validation_losses) - 1 - int(np.argmin(grown.validation_losses))
    if patience is not None and waited >= patience:
        grown.stopped = f"no improvement in {patience} looks at the validation sample"
    return grown


def _failed(training, reason) -> Training:
    warnings.warn(f"training stopped: {reason}", stacklevel=5)
    return replace(training, stopped=reason)


def _check(numbers, events, validation) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: it must be at least 1")
    if numbers["patience"] is not None and validation is None:
        raise ValueError("patience needs a validation sample to look at")
    for argument, samples in (("events", events), ("validation", validation or {})):
        for name, sample in samples.items():
            lengths = {len(array) if jnp.ndim(array) else 0 for array in jax.tree.leaves(sample)}
            if len(lengths) != 1 or 0 in lengths:
                raise ValueError(
                    f"{argument}[{name!r}] must have arrays of one length, at least 1; "
                    f"got {lengths}"
                )
