"""Do the intervals of an analysis contain the truth as often as they say? Tried with toys."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import PRNGKeyArray

from nablab import checks
from nablab.infer import bounds, pseudoexperiments, test_statistics
from nablab.judge.tables import Shown, Table, with_error
from nablab.model.histfactory import Model

# A coverage further than this from its confidence level, in binomial errors, is called wrong.
AGREES_WITHIN = 3.0


@dataclass(frozen=True)
class Coverage(Shown):
    """How often intervals contain the truth.

    Attributes:
        mu: the true signal strength.
        confidence: confidence levels of the intervals.
        fractions: of the toys with a fit, those in which the interval contains ``mu``.
        errors: their binomial errors.
        toys: how many were thrown.
        failed: how many of them have a failed fit.
    """

    mu: float
    confidence: tuple[float, ...]
    fractions: np.ndarray
    errors: np.ndarray
    toys: int
    failed: int

    @property
    def verdicts(self) -> tuple[str, ...]:
        """In words, for each confidence: within 3 errors of it, or not.

        The toys with a failed fit could all have been in the interval, or none of them: where the
        word depends on that it is "undecided".
        """
        words = {-1: "too low", 0: "right", 1: "too high"}
        inside = self.fractions * (self.toys - self.failed)
        found = []
        for few, many, confidence, error in zip(
            inside / self.toys, (inside + self.failed) / self.toys, self.confidence, self.errors,
            strict=True,
        ):  # fmt: skip
            distances = (few - confidence) / error, (many - confidence) / error
            if not np.isfinite(distances).all():
                found.append("failed")
                continue
            low, high = (int(np.sign(d)) * (abs(d) > AGREES_WITHIN) for d in distances)
            found.append(words[low] if low == high else "undecided")
        return tuple(found)

    def require(self) -> "Coverage":
        """Raise ``RuntimeError`` if a fit failed; return the coverage otherwise."""
        if self.failed:
            raise RuntimeError(f"{self.failed} of {self.toys} toys have a failed fit")
        return self

    @property
    def table(self) -> Table:
        """A row for each interval, in percent."""
        rows = [
            (f"{100 * level:g} %", f"{with_error(100 * fraction, 100 * error)} %", verdict)
            for level, fraction, error, verdict in zip(
                self.confidence, self.fractions, self.errors, self.verdicts, strict=True
            )
        ]
        notes = []
        if self.failed:
            notes.append(
                f"The fits of {self.failed} toys failed: these are left out, and a verdict that "
                "depends on where they would have been is undecided."
            )
        title = f"coverage of mu = {self.mu:g} in {self.toys} toys"
        return Table(title, ("interval", "contains the truth in", ""), rows, notes)


def coverage(
    model: Model,
    truth: Model,
    *,
    key: PRNGKeyArray,
    toys: int = 1000,
    confidence: Sequence[float | int] = (0.683, 0.954),
    mu: float | int = 1.0,
) -> Coverage:
    """How often the profile-likelihood interval of ``model`` contains the truth.

    The interval of a confidence level is where t_mu (arXiv:1007.1727, eq. 8) is below the quantile
    of a chi-squared distribution with one degree of freedom. Within the bounds of the model: a
    boundary near ``mu`` makes intervals cover more often.

    Args:
        model: what fits the toys.
        truth: what throws them, at its starting values: main counts and auxiliary measurements. Of
            the same structure, for instance from an independent simulated sample. With ``model``
            itself this is a test of the asymptotic formula alone.
        key: random key.
        toys: how many; 1000 measure 68.3 % to 1.5 %.
        confidence: confidence levels.
        mu: true signal strength.

    Returns:
        The coverage; in the toys done so far if interrupted.

    Raises:
        ValueError: ``truth`` has another structure than ``model``, a confidence level is not
            between 0 and 1, fewer than 1 toy, ``mu`` is not finite or outside of the bounds of the
            model, or negative expected counts.
    """
    checks.finite("mu", mu)
    bounds.check(model, model.poi_index, "mu", mu)
    same_structure("truth", truth, model)
    confidence = tuple(float(one) for one in confidence)
    for place, one in enumerate(confidence):
        checks.fraction(f"confidence[{place}]", one)
    truth, parameters = _prepared(model, truth, float(mu))
    pseudoexperiments.check_truth(truth, parameters[None], toys)
    data = _thrown(model, truth, parameters, key, toys)
    values = pseudoexperiments.evaluate(test_statistics.tmu, model, data, mu)
    fractions, errors = _fractions(values, np.array(confidence))
    failed = int(np.isnan(values).sum())
    done = len(values)
    return Coverage(float(mu), confidence, np.asarray(fractions), np.asarray(errors), done, failed)


@jax.jit
def _fractions(values, confidence):
    """Of the toys in the interval of each confidence level: where the test statistic is at most the
    quantile of a chi-squared distribution with one degree of freedom. And their errors."""
    quantiles = norm.ppf((1 + confidence) / 2) ** 2
    return jax.vmap(lambda quantile: pseudoexperiments.p_value(-values, -quantile))(quantiles)


def same_structure(name, truth, model):
    """Raise ``ValueError`` naming ``truth`` unless ``model`` can be fitted to its data."""
    if truth.structure is not model.structure:
        raise ValueError(
            f"{name} has another structure than the model that is fitted: build both from "
            "specifications with the same channels, samples and modifiers"
        )


@jax.jit
def _prepared(model, truth, mu):
    """``truth`` with auxiliary measurements that it fixes, but the model does not, as in the model
    (such as those of a bin that is empty in one simulated sample only), and its parameters."""

    def spread(field, parameters):
        return jnp.where(truth.fixed[parameters], getattr(model, field), getattr(truth, field))

    at = model.structure.at
    truth = replace(
        truth,
        poisson_scale=spread("poisson_scale", at.poisson_parameter),
        normal_width=spread("normal_width", at.normal_parameter),
    )
    return truth, truth.parameters(mu)


@partial(jax.jit, static_argnames="toys")
def _thrown(model, truth, parameters, key, toys):
    return as_measured(
        model, truth, pseudoexperiments.sample(truth, parameters, key=key, toys=toys)
    )


def as_measured(model, truth, data):
    """Data of ``truth`` in the units of ``model``: one auxiliary count can be worth another part
    of the parameter."""
    s = model.structure
    counts = s.main_bins + s.poisson_auxdata
    return data.at[..., counts].multiply(model.poisson_scale / truth.poisson_scale)
