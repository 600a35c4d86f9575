"""The training loop: batches, many steps in one compiled call, a history, early stopping.

Parameters that need different treatment are entries of a dictionary, and the optimizer says what
happens to each: ``optax.partition({"slow": optax.adam(1e-4), "frozen": optax.set_to_zero()},
{"network": "slow", "edges": "frozen"})``. Limits of a parameter: :func:`clamped`.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from nablab import checks
from nablab.train import checkpoints, stepping
from nablab.train.checkpoints import Probe, Reached
from nablab.train.histories import ALL_DONE, INTERRUPTED, Training, continued

Objective = Callable[[PyTree, PyTree], Any]

# Steps run in one compiled call until it takes this long: an interruption waits no longer.
SECONDS_PER_CALL = 0.2
SECONDS_BETWEEN_CHECKPOINTS = 10.0


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
            ends. Where it exists, the training goes on from there, says so, and ends bit for bit
            where it would have ended without the interruption (on another machine: up to its
            rounding). Two steps are repeated to see that objective and optimizer are the same.
        progress: show a progress bar.

    Returns:
        The training. An interruption (Ctrl-C, the stop button) ends it early and loses nothing; a
        value or gradient that is not finite ends it with a warning, and what was found before
        stays.

    Raises:
        ValueError: a sample is empty, its arrays differ in length, a number of steps, looks or
            events is below 1, or the checkpoint is damaged or belongs to another training (it says
            which input differs).
        OSError: the checkpoint cannot be written: found out before the first step. Later it is a
            warning.
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


def annealed(first: float, last: float, *, steps: int) -> optax.Schedule:
    """A slope (or bandwidth) for each step: geometric from ``first`` to ``last``, then constant.

    Raises:
        ValueError: one of them is not positive.
    """
    checks.positive("first", first)
    checks.positive("last", last)
    checks.positive("steps", steps)
    return optax.exponential_decay(first, steps, last / first, end_value=last)


@dataclass(frozen=True)
class _Task:
    """What is asked of some trainings."""

    objective: Objective
    events: dict[str, PyTree]
    validation: dict[str, PyTree] | None
    seeds: int | None
    key: Array
    optimizer: Any
    steps: int
    batch_size: int | None = None
    check_every: int = 10
    patience: int | None = None
    snapshot_every: int | None = None
    checkpoint: str | Path | None = None
    progress: bool = True

    @property
    def numbers(self) -> dict[str, int | None]:
        """Those that change the result; with more steps a training goes on."""
        names = "batch_size", "check_every", "patience", "snapshot_every"
        return {name: getattr(self, name) for name in names}

    def advance(self, state, until) -> stepping.Steps:
        return stepping.advance(
            self.objective, self.optimizer, self.batch_size, self.seeds,
            state, self.events, until, key=self.key,
        )  # fmt: skip

    def updates(self, state, gradient) -> PyTree:
        return stepping.updates(self.optimizer, self.seeds, state, gradient)

    def until(self, now, at_once):
        """The next step at which to stop and look."""
        pauses = [self.validation is not None and self.check_every, self.snapshot_every]
        stops = [now - now % every + every for every in pauses if every]
        return min([now + at_once, self.steps, *stops])


def _train(objective, params, events, validation, seeds, key, **settings):
    """One training, or several where ``seeds`` is a number."""
    task = _Task(objective, events, validation, seeds, key, **settings)
    _check(task.numbers | {"steps": task.steps}, events, validation)
    of_seed = [_picker(seeds, seed) for seed in range(seeds or 1)]
    axis = () if seeds is None else (seeds,)
    init = task.optimizer.init if seeds is None else jax.vmap(task.optimizer.init)
    state = stepping.State(params, init(params), jnp.zeros(axis, int), jnp.ones(axis, bool))
    starts = [pick(params) for pick in of_seed]
    snapshots = task.snapshot_every is not None
    trainings = [Training(p, p, snapshots=[(0, p)] if snapshots else []) for p in starts]
    reached = Reached(state, trainings, [])
    if task.checkpoint is None:
        return _run(task, reached, of_seed)
    identity = checkpoints.identity(
        params=params, key=key, events=events, validation=validation, **task.numbers
    )
    file = checkpoints.File(task.checkpoint, identity)
    reached, same_machine = file.load(reached, of_seed)
    if reached.probes:
        _resume(task, file, reached, same_machine)
    if reached.step == task.steps or not reached.state.going.any():
        return reached.trainings
    file.try_out(reached)
    return _run(task, reached, of_seed, file)


def _resume(task, file, reached, same_machine) -> None:
    """Say where, unless the file belongs to another training."""
    from tqdm.auto import tqdm

    if reached.step > task.steps:
        raise ValueError(
            f"checkpoint {file.path} is at step {reached.step} already, but steps is {task.steps}: "
            "ask for more steps, or name another file"
        )
    again = []
    for probe in reached.probes:
        found = task.advance(probe.state, probe.step)
        updates = task.updates(probe.state, probe.gradient)
        again.append(Probe(probe.state, found.last_loss, found.last_gradient, updates))
    file.compare(reached.probes, again, same_machine)
    where = f"checkpoint {file.path}: going on from step {reached.step} of {task.steps}"
    if not reached.state.going.any():
        reasons = "; ".join(dict.fromkeys(training.stopped for training in reached.trainings))
        where = f"checkpoint {file.path}: ended at step {reached.step} ({reasons}), nothing to do"
    elif reached.step == task.steps:
        where = f"checkpoint {file.path}: all {task.steps} steps are done, nothing to do"
    tqdm.write(where, file=sys.stderr)
    for training in reached.trainings:
        if training.stopped == INTERRUPTED:
            training.stopped = ALL_DONE  # unless something stops it again


def _run(task, reached, of_seed, file=None) -> list[Training]:
    from tqdm.auto import tqdm

    saved, at_once, probing = time.monotonic(), 1, file is not None
    bar = tqdm(total=task.steps, disable=not task.progress, leave=False)
    try:
        while reached.state.going.any() and (now := reached.step) < task.steps:
            bar.update(now - bar.n)
            until = task.until(now, at_once)
            began = time.monotonic()
            found = jax.block_until_ready(task.advance(reached.state, until))
            at_once = _more_or_fewer(until - now, time.monotonic() - began)
            # All at once: an interruption finds the state and its history together.
            reached = _followed(task, reached, found, until, probing, of_seed)
            probing = False
            if file is not None and time.monotonic() > saved + SECONDS_BETWEEN_CHECKPOINTS:
                file.save(reached)
                saved, at_once, probing = time.monotonic(), 1, True
    except KeyboardInterrupt:
        for pick, training in zip(of_seed, reached.trainings, strict=True):
            if pick(reached.state.going):
                training.stopped = INTERRUPTED
    finally:  # an objective can fail in any way, too
        bar.close()
        if file is not None:
            file.save(reached)
    return reached.trainings


def _followed(task, reached, found, until, probing, of_seed) -> Reached:
    """Some steps further."""
    looks = None
    if task.validation is not None and (until % task.check_every == 0 or until == task.steps):
        params = found.after.params
        looks = stepping.evaluate(task.objective, task.seeds, params, task.validation)
    # The history needs nothing of the optimizer, and of the rest only numbers in NumPy: a slice of
    # an array of JAX for each seed and leaf takes longer than a small step.
    before, losses, refused = jax.device_get(
        (reached.state._replace(params=None, optimizer=None), found.losses, found.last_loss)
    )
    after = found.after._replace(optimizer=None)
    grown = []
    for pick, training in zip(of_seed, reached.trainings, strict=True):
        look = None if looks is None else float(pick(looks))
        new = pick((before, after, losses, refused))
        grown.append(continued(training, *new, look, task.patience, task.snapshot_every))
    going = found.after.going
    ended = jnp.reshape(jnp.array([t.stopped != ALL_DONE for t in grown]), going.shape)
    probes = reached.probes
    if probing:
        updates = task.updates(reached.state, found.last_gradient)
        new = Probe(reached.state, found.last_loss, found.last_gradient, updates)
        probes = [*probes[:1], new]
    return Reached(found.after._replace(going=going & ~ended), grown, probes)


def _picker(seeds, seed):
    """What belongs to one of the trainings."""
    if seeds is None:
        return lambda tree: tree
    return lambda tree: jax.tree.map(lambda leaf: leaf[seed], tree)


def _more_or_fewer(steps, seconds) -> int:
    """Steps for the next call: at most twice as many, of the length that was asked for."""
    return int(np.clip(steps * min(2.0, SECONDS_PER_CALL / seconds), 1, stepping.MOST_STEPS))


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
