"""How much does a result depend on its nuisance parameters, and on what is assumed about them?

The functions here return tables to be read: they do not work under ``jit``, ``grad`` or ``vmap``,
except for :func:`observed_cls` and :func:`best_mu`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab import checks
from nablab.infer import diagnostics, hypotests, mle
from nablab.judge.tables import Shown, Table, two_digits
from nablab.model.histfactory import Model

Number = Callable[[Model, Array], Array]

# Below it the histogram knows more about a nuisance parameter than the auxiliary measurement: of
# two equally good ones the combination has 1 / sqrt(2) of the uncertainty. CMS's Combine
# (diffNuisances.py) lists parameters below 0.9, and "severely" those below 0.5.
OVER_CONSTRAINED = 0.7


def observed_cls(model: Model, data: Float[Array, "data"]) -> Float[Array, ""]:
    """CLs of signal strength 1; NaN if a fit failed. A number for :func:`robustness`."""
    found = hypotests.cls(model, data)
    return jnp.where(found.converged, found.observed, jnp.nan)


def best_mu(model: Model, data: Float[Array, "data"]) -> Float[Array, ""]:
    """Best-fit signal strength, within the bounds of the model; NaN if the fit failed."""
    fit = mle.best_fit(model, data)
    return jnp.where(fit.certificate.converged, fit.parameters[model.poi_index], jnp.nan)


@dataclass(frozen=True)
class Robustness(Shown):
    """A number where the true nuisance parameters are shifted and the fit does not know.

    Attributes:
        name: of the number.
        mu: true signal strength.
        parameters: names of the shifted ones.
        shifts: in pre-fit standard deviations.
        possible: [parameters, shifts]: whether such data exist, with the parameter inside of its
            bounds and no negative expectation.
        values: [parameters, shifts]: the number; NaN where it failed or is impossible.
        left_out: names of the parameters that have no constraint or are fixed.
    """

    name: str
    mu: float
    parameters: tuple[str, ...]
    shifts: tuple[float, ...]
    possible: np.ndarray
    values: np.ndarray
    left_out: tuple[str, ...]

    def require(self) -> "Robustness":
        """Raise ``RuntimeError`` if the number failed for possible data; return it otherwise."""
        failed = np.argwhere(self.possible & ~np.isfinite(self.values))
        if len(failed):
            parameter, shift = failed[0]
            raise RuntimeError(
                f"{self.name} failed for {len(failed)} of {self.possible.sum()} shifts, the first "
                f"of them {self.parameters[parameter]} by {self.shifts[shift]:+g}"
            )
        return self

    @property
    def table(self) -> Table:
        """A row for each parameter, a column for each shift."""
        rows = [
            (name, *(two_digits(v) if some else "-" for v, some in zip(*pair, strict=True)))
            for name, *pair in zip(self.parameters, self.values, self.possible, strict=True)
        ]
        notes = [] if rows else ["No nuisance parameter has a constraint."]
        if self.left_out:
            notes.append(f"Left out, fixed or without constraint: {', '.join(self.left_out)}.")
        if not self.possible.all():
            notes.append("-: outside of the parameter's bounds, or negative expected events.")
        return Table(
            f"{self.name}, data with mu = {self.mu:g}, true nuisance parameter shifted by "
            "pre-fit standard deviations",
            ("shifted", *(f"{shift:+g}" if shift else "0" for shift in self.shifts)),
            rows,
            notes,
        )


def robustness(
    model: Model,
    number: Number,
    mu: float | int = 0.0,
    *,
    shifts: Sequence[float | int] = (-2, -1, 0, 1, 2),
) -> Robustness:
    """What a number becomes if the truth is not where the auxiliary measurements are.

    The main data are the expected ones with one nuisance parameter shifted; all auxiliary data stay
    nominal, so that the fit does not know. (A shift that the auxiliary data follow would be fitted
    perfectly.)

    Args:
        model: the likelihood, of hard histograms.
        number: of ``(model, data)``, such as :func:`observed_cls` or :func:`best_mu`. It is called
            for each of the data sets: what takes long in it should be compiled.
        mu: true signal strength.
        shifts: in pre-fit standard deviations: of the normal constraint, or ``1 / sqrt(scale)`` of
            a Poisson one (relative uncertainty of a bin of ``shapesys``).

    Raises:
        ValueError: a shift or ``mu`` is not finite, there is no shift, or the number is no scalar.
    """
    shifts = tuple(float(shift) for shift in shifts)
    if not shifts:
        raise ValueError("shifts is empty: give at least one")
    checks.finite("shifts", shifts)
    checks.finite("mu", mu)
    nuisances = _constrained_nuisances(model)
    others = np.setdiff1d(np.arange(len(model.init)), [*nuisances, model.poi_index])
    data, possible = _shifted(model, nuisances, np.array(shifts), float(mu))
    possible, values = np.asarray(possible), np.full(possible.shape, np.nan)
    for place in map(tuple, np.argwhere(possible)):
        values[place] = scalar(number, model, data[place])
    names = model.parameter_names
    return Robustness(
        name_of(number),
        float(mu),
        tuple(names[i] for i in nuisances),
        shifts,
        possible,
        values,
        tuple(names[i] for i in others),
    )


def _constrained_nuisances(model):
    """Parameters with an auxiliary measurement that can move, the poi left out."""
    s = model.structure
    constrained = np.union1d(s.normal_parameter, s.poisson_parameter)
    free = np.flatnonzero(~np.asarray(model.fixed))
    return np.setdiff1d(np.intersect1d(constrained, free), [model.poi_index]).astype(int)


def name_of(number: Number) -> str:
    """What a table calls it."""
    return getattr(number, "__name__", str(number)).replace("_", " ")


@jax.jit
def _shifted(model, nuisances, shifts, mu):
    """Data for each parameter and shift, auxiliary ones nominal, and whether they are possible."""
    nominal = model.parameters(mu)
    moves = shifts[:, None] * jnp.diag(diagnostics.prefit_widths(model))[nuisances][:, None]
    truths = nominal + moves
    main = jax.vmap(jax.vmap(model.expected_main))(truths)
    inside = (truths >= model.lower) & (truths <= model.upper) | (moves == 0)
    asimov = model.expected_data(nominal)
    data = jnp.broadcast_to(asimov, (*main.shape[:2], *asimov.shape))
    data = data.at[..., : model.structure.main_bins].set(main)
    return data, inside.all(axis=-1) & (main >= 0).all(axis=-1)


def scalar(number: Number, model: Model, data: Float[Array, "data"]) -> Float[Array, ""]:
    """The number, or ``ValueError`` if it is none."""
    value = number(model, data)
    if jnp.shape(value) != ():
        raise ValueError(f"number has shape {jnp.shape(value)}: it must be a scalar")
    return value


@dataclass(frozen=True)
class Constraints(Shown):
    """How much better the nuisance parameters are known after the fit.

    Attributes:
        mu: the true signal strength.
        parameters: names of the constrained ones.
        ratios: post-fit over pre-fit standard deviation of each.
        flag_below: ratio below which the constraint needs a defence.
    """

    mu: float
    parameters: tuple[str, ...]
    ratios: np.ndarray
    flag_below: float

    @property
    def over_constrained(self) -> tuple[str, ...]:
        """Names of the parameters with a ratio below the threshold."""
        flagged = self.ratios < self.flag_below
        return tuple(np.array(self.parameters)[flagged].tolist())

    @property
    def table(self) -> Table:
        """A row for each parameter, with the flag in words."""
        rows = [
            (name, two_digits(ratio), "over-constrained" if name in self.over_constrained else "")
            for name, ratio in zip(self.parameters, self.ratios, strict=True)
        ]
        notes = [] if rows else ["No nuisance parameter has a constraint."]
        if self.over_constrained:
            notes.append(
                f"Over-constrained (below {self.flag_below:g}): this histogram measures the "
                "parameter, and relies on its variation having exactly the shape of the template."
            )
        title = f"post-fit over pre-fit standard deviation, expected for mu = {self.mu:g}"
        return Table(title, ("parameter", "ratio", ""), rows, notes)


def constraints(
    model: Model, mu: float | int = 1.0, *, flag_below: float = OVER_CONSTRAINED
) -> Constraints:
    """Post-fit over pre-fit standard deviation of each constrained nuisance parameter.

    Post-fit is the Cramer-Rao bound (:func:`nablab.infer.diagnostics.covariance`) at the starting
    values. A variation to the same side for +1 and -1 has no slope there, and counts as unmeasured.

    Args:
        model: the likelihood, of hard histograms.
        mu: true signal strength.
        flag_below: a parameter with a smaller ratio is called over-constrained. At 0.7 main and
            auxiliary data know it equally well.

    Raises:
        ValueError: ``mu`` is not finite, ``flag_below`` not positive, or a free parameter has no
            effect, so that there is no covariance.
    """
    checks.finite("mu", mu)
    checks.positive("flag_below", flag_below)
    parameters, free = model.parameters(mu), ~np.asarray(model.fixed)
    variances = np.asarray(jnp.diagonal(diagnostics.covariance(model, parameters)))
    if not (np.isfinite(variances) & (variances > 0))[free].all():
        information = np.asarray(jnp.diagonal(diagnostics.information(model, parameters)))
        idle = [model.parameter_names[i] for i in np.flatnonzero(free & ~(information > 0))]
        raise ValueError(
            f"model has no covariance at mu = {mu:g}: "
            + (f"{idle[0]} has no effect" if idle else "some parameters have the same effect")
        )
    nuisances = _constrained_nuisances(model)
    ratios = np.sqrt(variances[nuisances]) / np.asarray(diagnostics.prefit_widths(model))[nuisances]
    names = tuple(model.parameter_names[i] for i in nuisances)
    return Constraints(float(mu), names, ratios, float(flag_below))
