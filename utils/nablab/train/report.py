"""What may be quoted: the hard analysis, on held-out events, with its uncertainty."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from nablab.train.loop import draw


@dataclass(frozen=True)
class Report:
    """One number of an analysis, soft and hard, on events that the training has not seen.

    Attributes:
        name: what was evaluated.
        soft: the value that the training saw, with relaxed steps.
        hard: the value to quote, with real cuts and histograms.
        low, high: 68 % interval of the hard value, from bootstrap samples of the held-out events.
        events: held-out events in each sample.
    """

    name: str
    soft: float
    hard: float
    low: float
    high: float
    events: dict[str, int]

    def __str__(self) -> str:
        return (
            f"{self.name}: hard {self.hard:.2g} (68 %: {self.low:.2g} to {self.high:.2g}), "
            f"soft {self.soft:.2g}; {self._sizes()}"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("hard, to be quoted", f"{self.hard:.2g}"),
            ("68 % interval", f"{self.low:.2g} to {self.high:.2g}"),
            ("soft, as trained", f"{self.soft:.2g}"),
            ("held-out events", self._sizes()),
        ]
        cells = "".join(f"<tr><td>{what}</td><td>{value}</td></tr>" for what, value in rows)
        return f"<table><caption>{html.escape(self.name)}</caption>{cells}</table>"

    def _sizes(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.events.items())


def report(
    name: str,
    soft: Callable[[PyTree, PyTree], jax.Array],
    hard: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    held_out: dict[str, PyTree],
    key: PRNGKeyArray,
    bootstraps: int = 200,
) -> Report:
    """Evaluate an analysis on held-out events, soft and hard, with a bootstrap interval.

    Args:
        name: of the number.
        soft, hard: the number as a function of parameters and events; the same code, with relaxed
            and with real cuts and histograms.
        params: the trained parameters.
        held_out: events used neither for training nor for choosing ``params``.
        key: random key of the bootstrap samples.
        bootstraps: how many of them.

    Raises:
        ValueError: the hard value is not finite (an empty bin, a failed fit) on the held-out
            events or on a bootstrap sample of them.
    """
    sizes = {sample: jax.tree.leaves(events)[0].shape[0] for sample, events in held_out.items()}
    value = float(hard(params, held_out))
    if not np.isfinite(value):
        raise ValueError(f"{name} is {value} with the hard analysis on the held-out events")
    values = _bootstrapped(hard, params, held_out, jax.random.split(key, bootstraps))
    if not np.isfinite(values).all():
        failed = int(np.sum(~np.isfinite(values)))
        raise ValueError(
            f"{name} is not finite with the hard analysis on {failed} of {bootstraps} bootstrap "
            "samples of the held-out events: use fewer bins or more events"
        )
    low, high = np.quantile(values, [0.16, 0.84])
    return Report(name, float(soft(params, held_out)), value, float(low), float(high), sizes)


@partial(jax.jit, static_argnums=0)
def _bootstrapped(hard, params, held_out, keys):
    return jax.lax.map(lambda key: hard(params, draw(key, held_out)), keys)
