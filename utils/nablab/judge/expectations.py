"""What an analysis expects of itself: the interval it would quote, and the emptiest of its bins."""

from dataclasses import dataclass

import numpy as np

from nablab import checks
from nablab.infer import diagnostics
from nablab.infer.profile_intervals import profile_interval
from nablab.judge.tables import Shown, Table, two_digits
from nablab.model.histfactory import Model
from nablab.model.positivity import lowest_rates


@dataclass(frozen=True)
class ExpectedInterval(Shown):
    """Two uncertainties of the signal strength, expected for Asimov data.

    Attributes:
        mu: the true signal strength.
        fisher: standard deviation from the slopes of the expected events at the truth (the
            Cramer-Rao bound).
        down, up: how far the 68 % interval of the profile likelihood reaches, both positive.
    """

    mu: float
    fisher: float
    down: float
    up: float

    @property
    def table(self) -> Table:
        """Both, and a note where they differ by more than a tenth."""
        rows = [
            ("Cramer-Rao bound", f"± {two_digits(self.fisher)}"),
            ("profile likelihood", f"- {two_digits(self.down)} + {two_digits(self.up)}"),
        ]
        apart = max(abs(self.down / self.fisher - 1.0), abs(self.up / self.fisher - 1.0)) > 0.1
        notes = ["They differ: the likelihood is no parabola. Quote the profile."] if apart else []
        return Table(f"68 % uncertainty of mu, expected for mu = {self.mu:g}", (), rows, notes)


def expected_interval(model: Model, mu: float | int = 1.0) -> ExpectedInterval:
    """The uncertainty of the signal strength, from slopes at the truth and from the likelihood.

    Args:
        model: the likelihood, of hard histograms.
        mu: true signal strength.

    Raises:
        ValueError: ``mu`` is not finite.
        RuntimeError: the profile likelihood has no interval, as a fit failed.
    """
    checks.finite("mu", mu)
    data = model.expected_data(model.parameters(mu))
    found = profile_interval(model, data).require()
    down, up = (abs(float(end) - float(mu)) for end in (found.lower, found.upper))
    return ExpectedInterval(float(mu), float(diagnostics.poi_uncertainty(model, mu)), down, up)


@dataclass(frozen=True)
class Positivity(Shown):
    """The fewest events that any bin expects without signal, each parameter within one sigma.

    Attributes:
        parameters: names of the interpolated ones.
        rates: the fewest expected events.
        bins: in which bin, counted through all channels.
        values: and at which value of the parameter, in standard deviations.
    """

    parameters: tuple[str, ...]
    rates: np.ndarray
    bins: np.ndarray
    values: np.ndarray

    @property
    def table(self) -> Table:
        """A row for each parameter."""
        rows = [
            (name, two_digits(rate), f"{place}", f"{value:+.2g}", "negative" if rate < 0 else "")
            for name, rate, place, value in zip(
                self.parameters, self.rates, self.bins, self.values, strict=True
            )
        ]
        notes = [] if rows else ["No parameter interpolates between simulated points."]
        if (self.rates < 0).any():
            notes.append(
                "Negative: no such data exist, and fits take the edge for a measurement of the "
                "parameter. Numbers that a fit gives there are not to be quoted."
            )
        title = "fewest background events of any bin, one parameter within ± 1 standard deviation"
        return Table(title, ("parameter", "events", "bin", "at", ""), rows, notes)


def positivity(model: Model) -> Positivity:
    """Does the background stay positive between the simulated points of its variations?

    See :func:`nablab.model.positivity.lowest_rates`.
    """
    found = lowest_rates(model)
    names = tuple(model.parameter_names[index] for index in np.asarray(found.parameters))
    return Positivity(names, *map(np.asarray, (found.rates, found.bins, found.values)))
