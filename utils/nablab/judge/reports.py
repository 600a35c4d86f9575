"""What may be quoted: the hard analysis, on held-out events, with its uncertainty."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from nablab.judge.calibration import coverage
from nablab.judge.dependence import best_mu, constraints, observed_cls, robustness
from nablab.judge.expectations import expected_interval, positivity
from nablab.judge.resampling import second_sample
from nablab.judge.tables import Table
from nablab.model.histfactory import Model
from nablab.train.stepping import bootstrap, until_interrupted


@dataclass(frozen=True)
class Report:
    """One number of an analysis, soft and hard, on events that the training has not seen.

    Attributes:
        name: what was evaluated.
        soft: the value that the training saw, with relaxed steps.
        hard: the value to quote, with real cuts and histograms.
        low, high: 68 % interval of the hard value, from bootstrap samples of the held-out events.
        events: held-out events in each sample.
        tables: what else a sceptical colleague asks for, if there is a model to ask.
    """

    name: str
    soft: float
    hard: float
    low: float
    high: float
    events: dict[str, int]
    tables: tuple[Table, ...] = ()

    def __str__(self) -> str:
        quoted = (
            f"{self.name}: hard {self.hard:.2g} (68 %: {self.low:.2g} to {self.high:.2g}), "
            f"soft {self.soft:.2g}; {self._sizes()}"
        )
        return "\n\n".join([quoted, *map(str, self.tables)])

    def _repr_html_(self) -> str:
        rows = [
            ("hard, to be quoted", f"{self.hard:.2g}"),
            ("68 % interval", f"{self.low:.2g} to {self.high:.2g}"),
            ("soft, as trained", f"{self.soft:.2g}"),
            ("held-out events", self._sizes()),
        ]
        tables = (Table(self.name, (), rows), *self.tables)
        return "".join(table._repr_html_() for table in tables)

    def _sizes(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.events.items())


def report(
    name: str,
    soft: Callable[[PyTree, PyTree], jax.Array],
    hard: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    held_out: dict[str, PyTree],
    *,
    key: PRNGKeyArray,
    bootstraps: int = 200,
    model: Callable[[PyTree, PyTree], Model] | None = None,
    trained_on: dict[str, PyTree] | None = None,
) -> Report:
    """Evaluate an analysis on held-out events, soft and hard, with a bootstrap interval.

    With ``model`` the report also has tables, of the model of the held-out events:
    :func:`~nablab.judge.expectations.expected_interval`,
    :func:`~nablab.judge.expectations.positivity`,
    :func:`~nablab.judge.dependence.robustness` of CLs without and of the best-fit signal strength
    with signal, :func:`~nablab.judge.dependence.constraints`, and
    :func:`~nablab.judge.calibration.coverage`. With ``trained_on`` also what the same tests say of
    templates from the events of the training, for which the held-out events are a
    :func:`~nablab.judge.resampling.second_sample`.

    Args:
        name: of the number.
        soft, hard: the number as a function of parameters and events; the same code, with relaxed
            and with real cuts and histograms.
        params: the trained parameters.
        held_out: events used neither for training nor for choosing ``params``.
        key: random key of the bootstrap samples.
        bootstraps: how many of them; an interruption keeps those that are done.
        model: the likelihood as a function of parameters and events, with real cuts and histograms,
            scaled to the luminosity. Called twice for each bootstrap sample if there is
            ``trained_on``: what takes long in it should be compiled.
        trained_on: the events that the training has seen.

    Raises:
        ValueError: ``trained_on`` without ``model``, or the hard value is not finite (an empty bin,
            a failed fit) on the held-out events or on a bootstrap sample of them.
    """
    if trained_on is not None and model is None:
        raise ValueError("trained_on needs a model: give the likelihood of the hard analysis too")
    sizes = {sample: jax.tree.leaves(events)[0].shape[0] for sample, events in held_out.items()}
    hard = jax.jit(hard)
    value = float(hard(params, held_out))
    if not np.isfinite(value):
        raise ValueError(f"{name} is {value} with the hard analysis on the held-out events")
    keys = jax.random.split(key, bootstraps)

    def fluctuated(key):
        return float(hard(params, bootstrap(held_out, key=key)))

    low, high = _interval(name, until_interrupted(fluctuated, keys, "bootstrap samples"))
    tables = ()
    if model is not None:
        # The bootstrap samples have the keys of numbers below this one.
        tables_key = jax.random.fold_in(key, bootstraps)
        tables = _tables(model, params, held_out, trained_on, tables_key, bootstraps)
    soft_value = float(soft(params, held_out))
    return Report(name, soft_value, value, low, high, sizes, tables)


def _interval(name, values):
    """The central 68 % of the hard values on bootstrap samples."""
    if not np.isfinite(values).all():
        failed = int(np.sum(~np.isfinite(values)))
        raise ValueError(
            f"{name} is not finite with the hard analysis on {failed} of {len(values)} bootstrap "
            "samples of the held-out events: use fewer bins or more events"
        )
    return tuple(np.quantile(values, [0.16, 0.84]).tolist())


def _tables(model, params, held_out, trained_on, key, bootstraps):
    """What is asked of the model of the held-out events, and of that of the training's."""
    right_key, crossed_key, second_key = jax.random.split(key, 3)
    quoted = model(params, held_out)
    tables = [
        expected_interval(quoted).table,
        positivity(quoted).table,
        robustness(quoted, observed_cls, mu=0.0).table,
        robustness(quoted, best_mu, mu=1.0).table,
        constraints(quoted).table,
        coverage(quoted, quoted, key=right_key).table,
    ]
    if trained_on is None:
        return tuple(tables)
    survival = second_sample(
        observed_cls, model, params, trained_on, held_out, key=second_key, bootstraps=bootstraps
    )
    crossed = coverage(model(params, trained_on), quoted, key=crossed_key)
    for table, which in (
        (survival.table, "first: the events of the training, second: held-out events"),
        (crossed.table, "templates from the events of the training, truth from held-out events"),
    ):
        tables.append(replace(table, title=f"{table.title}; {which}"))
    return tuple(tables)
