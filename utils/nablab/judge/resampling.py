"""Does a result survive on a second simulated sample, or was it a fluctuation of the first?"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from nablab import checks
from nablab.judge.calibration import as_measured, same_structure
from nablab.judge.dependence import Number, best_mu, name_of, scalar
from nablab.judge.tables import Shown, Table, digits_that_show, significant
from nablab.model.histfactory import Model
from nablab.train.stepping import bootstrap, until_interrupted

# Quantiles of the bootstrap samples. Where the intervals of two numbers do not overlap, the numbers
# are about 3 standard deviations apart (2 each way, in quadrature).
INTERVAL = 0.025, 0.975
PAIRS = ("first, first", "first, second", "second, second")


@dataclass(frozen=True)
class SecondSample(Shown):
    """A number with templates and data from two samples, and the signal strength across them.

    Attributes:
        name: of the number.
        mu: true signal strength in the data of the number.
        values: of the number: templates and data from the first sample, templates from the first
            and data from the second, both from the second.
        intervals: [3, 2]: their 95 % intervals, from bootstrap samples of both.
        fitted_mu: best fit with templates from the first sample to data from the second that have
            a signal strength of 1.
        mu_interval: its 95 % interval.
        bootstraps: how many bootstrap samples.
        failed: how many of them gave something that is not finite, and are left out.
    """

    name: str
    mu: float
    values: np.ndarray
    intervals: np.ndarray
    fitted_mu: float
    mu_interval: np.ndarray
    bootstraps: int
    failed: int

    @property
    def survives(self) -> bool | None:
        """Whether the intervals of the number from either sample alone overlap; ``None`` where too
        much has failed to say so."""
        return self._verdict(_overlap(*self.intervals[0], *self.intervals[2]))

    @property
    def unbiased(self) -> bool | None:
        """Whether a signal strength of 1 is within the interval of the best fit; ``None`` where too
        much has failed to say so."""
        return self._verdict(_contains_one(*self.mu_interval))

    def _verdict(self, agrees):
        """The failed bootstrap samples may have been beyond either end of an interval: with more of
        them than are left out there anyway it has no end, and nothing is outside."""
        finite = np.isfinite([*self.values, self.fitted_mu]).all()
        tolerated = 0.5 if agrees else INTERVAL[0]
        return bool(agrees) if finite and self.failed < tolerated * self.bootstraps else None

    def require(self) -> "SecondSample":
        """Raise ``RuntimeError`` if a fit or a number failed; return the comparison otherwise."""
        for name, value in zip(
            (*PAIRS, "best-fit mu"), (*self.values, self.fitted_mu), strict=True
        ):
            if not np.isfinite(value):
                raise RuntimeError(f"{self.name}, {name}: {value}, a fit or the number has failed")
        if self.failed:
            raise RuntimeError(f"{self.failed} of {self.bootstraps} bootstrap samples failed")
        return self

    @property
    def table(self) -> Table:
        """A row for each pair of samples, and the verdicts in words."""
        digits = digits_that_show(_overlap, *self.intervals[0], *self.intervals[2])
        rows = [
            (pair, *(significant(x, digits) for x in (value, *interval)))
            for pair, value, interval in zip(PAIRS, self.values, self.intervals, strict=True)
        ]
        digits = max(3, digits_that_show(_contains_one, *self.mu_interval))
        fitted = self.fitted_mu, *self.mu_interval
        rows.append(("best-fit mu of 1", *(significant(x, digits) for x in fitted)))
        return Table(
            f"{self.name}, data with mu = {self.mu:g}, from two simulated samples",
            ("templates, data", "value", "95 % from", "to"),
            rows,
            self._notes(),
        )

    def _notes(self):
        verdict = {
            True: "survives (intervals of first, first and second, second overlap)",
            False: "DOES NOT SURVIVE: probably it was a fluctuation (intervals of first, first and "
            "second, second do not overlap)",
            None: "cannot be judged: too much has failed",
        }
        bias = {
            True: "is unbiased within the fluctuations",
            False: "is BIASED",
            None: "cannot be judged: too much has failed",
        }
        notes = [
            f"On the second sample the value of the first {verdict[self.survives]}.",
            f"Templates from the first, data from the second: best-fit mu {bias[self.unbiased]}.",
        ]
        if self.failed:
            notes.append(f"{self.failed} of {self.bootstraps} bootstrap samples failed: left out.")
        return notes


def _overlap(low, high, other_low, other_high):
    return low <= other_high and other_low <= high


def _contains_one(low, high):
    return low <= 1.0 <= high


def second_sample(
    number: Number,
    build: Callable[[PyTree, PyTree], Model],
    params: PyTree,
    first: dict[str, PyTree],
    second: dict[str, PyTree],
    *,
    key: PRNGKeyArray,
    mu: float | int = 0.0,
    bootstraps: int = 200,
) -> SecondSample:
    """Compare a number between two independent simulated samples.

    Templates of too few events fluctuate, and a training can learn to like the fluctuations: with
    data expected from the same events they look like knowledge. With ``first`` the events of the
    training and ``second`` others this shows as a value that the second sample does not have, and
    as a best-fit signal strength that is not 1.

    Args:
        number: of ``(model, data)``, such as :func:`nablab.judge.dependence.observed_cls`. It is
            called three times for each bootstrap sample: what takes long should be compiled.
        build: the likelihood as a function of parameters and events, with hard histograms, scaled
            to the luminosity whatever the number of events is. Called twice for each bootstrap
            sample: compile what takes long in it, too.
        params: the trained parameters.
        first: the events that the templates are made of.
        second: other events of the same processes.
        key: random key of the bootstrap samples.
        mu: true signal strength in the data of ``number``.
        bootstraps: how many of them; an interruption keeps those that are done.

    Raises:
        ValueError: ``build`` returns no model, or models of different structure, the number is no
            scalar, ``mu`` is not finite, or fewer than 2 bootstrap samples.
    """
    checks.finite("mu", mu)
    if bootstraps < 2:
        raise ValueError(f"bootstraps is {bootstraps}: it must be at least 2")
    samples, mu = (first, second), float(mu)
    nominal = np.array(_compared(number, *_built(build, params, samples), mu), dtype=float)

    def compared(pair):
        drawn = (bootstrap(events, key=key) for key, events in zip(pair, samples, strict=True))
        return _compared(number, *(build(params, events) for events in drawn), mu)

    keys = jax.random.split(key, (bootstraps, 2))
    fluctuated = np.array(until_interrupted(compared, keys, "bootstrap samples"), dtype=float)
    good = np.isfinite(fluctuated).all(axis=1)
    some = fluctuated[good] if good.any() else np.full((1, 4), np.nan)
    intervals = np.quantile(some, INTERVAL, axis=0).T
    return SecondSample(
        name_of(number),
        mu,
        nominal[:3],
        intervals[:3],
        float(nominal[3]),
        intervals[3],
        len(fluctuated),
        int(np.sum(~good)),
    )


def _built(build, params, samples) -> list[Model]:
    """The models of both samples, which must be of one structure."""
    models = [build(params, events) for events in samples]
    for model in models:
        if not isinstance(model, Model):
            raise ValueError(f"build must return a Model, got {type(model).__name__}")
    same_structure("the model of second", models[1], models[0])
    return models


@jax.jit
def _data(own, other, mu):
    """What the two samples expect for the number, and the second for the best-fit mu."""

    def crossed(mu):
        return as_measured(own, other, other.expected_data(other.parameters(mu)))

    first = own.expected_data(own.parameters(mu))
    return first, crossed(mu), other.expected_data(other.parameters(mu)), crossed(1.0)


def _compared(number, own, other, mu):
    """The number of the three pairs, and the best-fit mu across the samples."""
    *data, with_signal = _data(own, other, mu)
    pairs = zip((own, own, other), data, strict=True)
    return [*(scalar(number, *pair) for pair in pairs), best_mu(own, with_signal)]
