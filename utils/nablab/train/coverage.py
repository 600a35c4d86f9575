"""Do the intervals of an analysis contain the truth as often as they say? Tried with toys."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import PRNGKeyArray

from nablab import checks
from nablab.infer import hypotests, toy_tests
from nablab.infer.histfactory import Model
from nablab.infer.indexing import take
from nablab.train.tables import Shown, Table, with_error

# A coverage further than this from its level, in binomial errors, is called wrong.
AGREES_WITHIN = 3.0


@dataclass(frozen=True)
class Coverage(Shown):
    """How often intervals contain the truth.

    Attributes:
        mu: the true signal strength.
        levels: confidence levels of the intervals.
        fractions: of the toys with a fit, those in which the interval contains ``mu``.
        errors: their binomial errors.
        toys: how many were thrown.
        failed: how many of them have a failed fit.
    """

    mu: float
    levels: tuple[float, ...]
    fractions: np.ndarray
    errors: np.ndarray
    toys: int
    failed: int

    @property
    def verdicts(self) -> tuple[str, ...]:
        """In words, for each level: within 3 errors of it, or not."""
        distances = (self.fractions - self.levels) / self.errors
        words = {-1: "too low", 0: "right", 1: "too high"}
        return tuple(
            words[int(np.sign(d)) * (abs(d) > AGREES_WITHIN)] if np.isfinite(d) else "failed"
            for d in distances
        )

    @property
    def table(self) -> Table:
        """A row for each level, in percent."""
        rows = [
            (f"{100 * level:g} %", f"{with_error(100 * fraction, 100 * error)} %", verdict)
            for level, fraction, error, verdict in zip(
                self.levels, self.fractions, self.errors, self.verdicts, strict=True
            )
        ]
        notes = []
        if self.failed:
            notes.append(f"The fits of {self.failed} toys failed: these are left out.")
        title = f"coverage of mu = {self.mu:g} in {self.toys} toys"
        return Table(title, ("interval", "contains the truth in", ""), rows, notes)


def coverage(
    model: Model,
    truth: Model,
    key: PRNGKeyArray,
    toys: int = 1000,
    levels: Sequence[float | int] = (0.683, 0.954),
    mu: float | int = 1.0,
) -> Coverage:
    """How often the profile-likelihood interval of ``model`` contains the truth.

    The interval of a level is where t_mu (arXiv:1007.1727, eq. 8) is below the quantile of a
    chi-squared distribution with one degree of freedom. Within the bounds of the model: a boundary
    near ``mu`` makes intervals cover more often.

    Args:
        model: what fits the toys.
        truth: what throws them, at its starting values: main counts and auxiliary measurements. Of
            the same structure, for instance from an independent simulated sample. With ``model``
            itself this is a test of the asymptotic formula alone.
        key: random key.
        toys: how many; 1000 measure 68.3 % to 1.5 %.
        levels: confidence levels.
        mu: true signal strength.

    Raises:
        ValueError: ``truth`` has another structure than ``model``, a level is not between 0 and 1,
            fewer than 1 toy, ``mu`` is not finite, or negative expected counts.
    """
    checks.finite("mu", mu)
    same_structure("truth", truth, model)
    levels = tuple(float(level) for level in levels)
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"levels has {level}: it must be between 0 and 1")
    truth = _with_missing_spreads(model, truth)
    parameters = truth.parameters(mu)
    toy_tests._check(truth, parameters[None], toys)
    data = as_measured(model, truth, toy_tests.sample(truth, parameters, key, toys))
    values = _two_sided(model, data, jnp.asarray(mu, dtype=float))
    # The interval contains the truth where the test statistic is at most the quantile.
    quantiles = norm.ppf((1 + jnp.asarray(levels)) / 2) ** 2
    fractions, errors = jax.vmap(lambda quantile: toy_tests.p_value(-values, -quantile))(quantiles)
    failed = int(jnp.isnan(values).sum())
    return Coverage(float(mu), levels, np.asarray(fractions), np.asarray(errors), toys, failed)


def same_structure(name, truth, model):
    """Raise ``ValueError`` naming ``truth`` unless ``model`` can be fitted to its data."""
    if truth.structure is not model.structure:
        raise ValueError(
            f"{name} has another structure than the model that is fitted: build both from "
            "specifications with the same channels, samples and modifiers"
        )


def _with_missing_spreads(model, truth):
    """``truth`` with auxiliary measurements that it fixes, but the model does not, as in the model.

    (Such as those of a bin that is empty in one simulated sample only.)
    """

    def spread(field, parameters):
        return jnp.where(
            take(truth.fixed, parameters), getattr(model, field), getattr(truth, field)
        )

    s = model.structure
    return replace(
        truth,
        poisson_scale=spread("poisson_scale", s.poisson_parameter),
        normal_width=spread("normal_width", s.normal_parameter),
    )


def as_measured(model, truth, data):
    """Data of ``truth`` in the units of ``model``: one auxiliary count can be worth another part
    of the parameter."""
    s = model.structure
    counts = s.main_bins + s.poisson_auxdata
    return data.at[..., counts].multiply(model.poisson_scale / truth.poisson_scale)


@jax.jit
def _two_sided(model, data, mu):
    """t_mu of each toy, NaN where a fit failed; some side by side."""
    toys = data.shape[0]
    chunk = min(toys, toy_tests.CHUNK)
    chunks = -(-toys // chunk)
    # The last chunk is filled up with copies of the first toy: one compilation.
    data = jnp.concatenate(
        [data, jnp.broadcast_to(data[0], (chunks * chunk - toys, *data[0].shape))]
    )
    mus = jnp.full(chunk, mu)

    def fit(chunk):
        return toy_tests._fit_chunk(hypotests.tmu, model, chunk, mus)[0]

    return jax.lax.map(fit, data.reshape(chunks, chunk, -1)).ravel()[:toys]
