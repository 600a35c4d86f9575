"""What a training leaves behind, and how it grows."""

import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import PyTree

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


def continued(training, before, after, losses, refused, look, patience, snapshot_every) -> Training:
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
    warnings.warn(f"training stopped: {reason}", stacklevel=7)
    return replace(training, stopped=reason)
