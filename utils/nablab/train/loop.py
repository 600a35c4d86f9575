"""The training loop: batches, one compiled step, a history, early stopping."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree
from tqdm.auto import tqdm

Objective = Callable[[PyTree, PyTree], Any]


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
    stopped: str = "all steps done"

    @property
    def best_step(self) -> int:
        """The step after which the validation objective was lowest."""
        if not self.validation_losses:
            return len(self.losses)
        return self.validation_steps[int(np.argmin(self.validation_losses))]


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
        progress: show a progress bar.

    Returns:
        The training. An interruption (Ctrl-C, the stop button) ends it early and loses nothing; a
        value or gradient that is not finite ends it with a warning, and what was found before
        stays.

    Raises:
        ValueError: a sample is empty, its arrays differ in length, or a number of steps, looks or
            events is below 1.
    """
    numbers = {
        "steps": steps,
        "batch_size": batch_size,
        "check_every": check_every,
        "patience": patience,
        "snapshot_every": snapshot_every,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: it must be at least 1")
    if patience is not None and validation is None:
        raise ValueError("patience needs a validation sample to look at")
    _check_samples("events", events)
    if validation is not None:
        _check_samples("validation", validation)
    state = optimizer.init(params)
    training = Training(params, params, snapshots=[(0, params)] if snapshot_every else [])
    best, waited = np.inf, 0
    try:
        for step in tqdm(range(1, steps + 1), disable=not progress, leave=False):
            step_key = jax.random.fold_in(key, step)
            proposal, state, loss, usable = _step(
                objective, optimizer, batch_size, params, state, events, step_key
            )
            if not usable:
                what = "gradient" if np.isfinite(loss) else f"value, {loss},"
                training.stopped = f"the objective's {what} is not finite at step {step}"
                warnings.warn(f"training stopped: {training.stopped}", stacklevel=2)
                break
            params = training.last_params = proposal
            training.losses.append(float(loss))
            if snapshot_every and step % snapshot_every == 0:
                training.snapshots.append((step, params))
            if not training.validation_losses:
                training.params = params  # nothing to choose by
            if validation is not None and (step % check_every == 0 or step == steps):
                value = float(_evaluate(objective, params, validation))
                if not np.isfinite(value):
                    training.stopped = f"the validation objective is {value} at step {step}"
                    warnings.warn(f"training stopped: {training.stopped}", stacklevel=2)
                    break
                training.validation_steps.append(step)
                training.validation_losses.append(value)
                waited += 1
                if value < best:
                    best, waited, training.params = value, 0, params
                if patience is not None and waited >= patience:
                    training.stopped = (
                        f"no improvement in {patience} looks at the validation sample"
                    )
                    break
    except KeyboardInterrupt:
        training.stopped = "interrupted"
    return training


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step(objective, optimizer, batch_size, params, state, events, key):
    batch = events if batch_size is None else draw(key, events, batch_size)
    loss, gradient = jax.value_and_grad(objective)(params, batch)
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    usable = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, params))]
    return params, state, loss, jnp.stack(usable).all()


@partial(jax.jit, static_argnums=0)
def _evaluate(objective, params, events):
    return objective(params, events)


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


def _check_samples(argument, events):
    for name, sample in events.items():
        lengths = {len(array) if jnp.ndim(array) else 0 for array in jax.tree.leaves(sample)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"{argument}[{name!r}] must have arrays of one length, at least 1; got {lengths}"
            )
