"""Maximum-likelihood fits, with all parameters free or with some of them held.

A conditional fit, the fits of a scan and a repeated fit with one parameter moved are the same
call: :func:`best_fit` with ``held={parameter: value}``.

The difference of -2 log L to the best fit is, in the asymptotic limit, distributed as chi-squared
with as many degrees of freedom as parameters are held (Wilks): 1 and 4 bound the intervals of one
and two standard deviations of one parameter, 2.30 and 5.99 the 68.3 % and 95 % contours of two.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nablab import checks
from nablab.checks import Numbers
from nablab.indexing import put
from nablab.infer import _profile, bounds
from nablab.infer._plan import global_parameters
from nablab.infer.bounds import outside, refused
from nablab.infer.certificates import Certificate, Fit, Status, all_converged, beaten_by
from nablab.infer.minimizer import SIDE_BY_SIDE, lowest, minimize
from nablab.model.histfactory import SMALLEST_RATE, Model
from nablab.model.positivity import warn_of_negative
from nablab.pytrees import pytree


def best_fit(
    model: Model,
    data: Float[Numbers, "data"],
    *,
    held: Mapping[str | int, Float[Numbers, ""] | float] | None = None,
    tolerance: Float[Numbers, ""] | float = 1e-10,
    max_iterations: Int[Numbers, ""] | int = 500,
) -> Fit:
    """Maximum-likelihood fit; ``value`` is the deviance.

    Args:
        model: the likelihood.
        data: main and auxiliary measurements, in pyhf's order.
        held: parameters that are not fitted, by name or index, and where they are held.
        tolerance, max_iterations: see :func:`nablab.infer.minimizer.minimize`.

    Raises:
        ValueError: unknown parameter, a value outside of its bounds, or data that do not fit the
            model. Where a value is traced and outside, the fit is NaN with the status
            OUTSIDE_BOUNDS.
    """
    model.check_data(data)
    warn_of_negative(model)
    held = {} if held is None else held
    by_index = {model.index(parameter): value for parameter, value in held.items()}
    if len(by_index) < len(held):
        raise ValueError(f"held names a parameter twice: {', '.join(map(str, held))}")
    for index, value in by_index.items():
        bounds.check(model, index, f"held[{model.parameter_names[index]!r}]", value)
    settings = {"tolerance": tolerance, "max_iterations": max_iterations}
    return _best_fit(model, jnp.asarray(data, dtype=float), by_index, settings)


@jax.jit
def _best_fit(model, data, held, settings):
    return fits(model, data, held, **settings)[0]


def fits(
    model: Model,
    data: Float[Array, "data"],
    *held: Mapping[int, Float[Numbers, ""] | float],
    near: Float[Array, "parameters"] | None = None,
    anywhere: Bool[Numbers, ""] | bool = True,
    **settings,
) -> list[Fit]:
    """Fits to the same data, side by side, with the parameters of each ``held`` at its values.

    They start at the starting values of the model, or at the parameters ``near``, and look for
    lower minima from where they end; fits of a large model, which take long, only do so if
    ``anywhere`` (which may be traced). ``settings`` are those of :func:`minimize`. Several fits
    may hold nothing but parameters that act in more than one bin, such as that of interest.
    """
    start = model.init if near is None else near
    inits = [_with(start, values) for values in held]
    fixed = [_with(model.fixed, dict.fromkeys(values, True)) for values in held]
    one = len(held) == 1
    if one:  # fewer parameters
        start, inits, fixed = inits[0], inits[0], fixed[0]
    else:
        inits, fixed = jnp.stack(inits), jnp.stack(fixed)
    within = replace(model, fixed=fixed) if one else model
    likelihood = _profile.profile_likelihood(within, data, start, held=held[0] if one else ())
    at = likelihood.plan.at
    if not one and not set().union(*held) <= set(likelihood.plan.fitted.tolist()):
        raise ValueError("several fits at once cannot hold parameters that act in one bin only")
    starts, along = _other_starts(model, likelihood.plan.fitted, inits[..., at])
    result = minimize(
        _profile.value,
        inits[..., at],
        model.lower[at],
        model.upper[at],
        fixed[..., at],
        starts,
        along=along,
        look=anywhere | is_small(model),
        args=(likelihood,),
        expansion=_profile.expansion,
        **settings,
    )
    completed = partial(_completed, likelihood)
    if one:
        ends = [completed(inits, fixed, result)]
    else:
        ends = jax.vmap(completed)(inits, fixed, result)
        ends = [jax.tree.map(lambda field, k=k: field[k], ends) for k in range(len(held))]
    return [
        refused(end, sum(outside(model, *item) for item in values.items()) > 0) if values else end
        for end, values in zip(ends, held, strict=True)
    ]


def _with(array, values):
    for index, value in values.items():
        array = array.at[index].set(value)
    return array


def _other_starts(model, fitted, x):
    """Where else a fit starts, and the parameters along which it looks for other minima."""
    alphas = np.isin(fitted, model.structure.interpolated)
    if not (is_small(model) and len(fitted) > 1 and alphas.any()):
        return None, np.flatnonzero(alphas)
    # Two minima need not be on a line along one parameter: one on each side, half a standard
    # deviation apart, or one with signal and one without.
    poi = np.isin(fitted, [] if model.structure.poi_index is None else model.structure.poi_index)
    moves = [(1.0, 1.0), (-1.0, 1.0), (0.5, 0.0), (-0.5, 0.0)]  # of alphas; a factor for poi
    return jnp.stack([x * np.where(poi, factor, 1.0) + move * alphas for move, factor in moves]), ()


def _completed(likelihood, init, fixed, result):
    """The fit of all parameters, of that of the fitted ones."""
    model, data, at = likelihood.model, likelihood.data, likelihood.plan.at
    best = replace(likelihood, start=init).complete(result.parameters)
    at_bound = (best <= model.lower) | (best >= model.upper)
    at_bound = put(at_bound, at, result.certificate.at_bound) & ~fixed
    # Data in a bin where none are expected have no likelihood. One signal strength may make
    # them impossible, which is a result; where all do, or where the fit has only gone to the wrong
    # side of a kink, something is wrong.
    impossible = data[: model.structure.main_bins] > 0
    impossible &= model.expected_main(best) <= SMALLEST_RATE
    poi = model.structure.poi_index  # None where the model has none
    a_result = (False if poi is None else fixed[poi]) & ~_can_be_filled(model, best, fixed)
    nothing_fits = (impossible & ~a_result).any()
    status = jnp.where(nothing_fits, Status.NOT_FINITE, result.certificate.status)
    flattest = put(jnp.zeros(best.shape), at, result.certificate.flattest)
    certificate = replace(result.certificate, at_bound=at_bound, status=status, flattest=flattest)
    return Fit(best, result.value, certificate)


def _can_be_filled(model, parameters, fixed):
    """Bins that expect events at a simulated point of a variation that is free, the rest held."""
    s = model.structure
    if not s.shift_parameters.size:
        return jnp.zeros(s.main_bins, bool)
    moved_by = s.shift_parameters[:, s.cell_sample]  # -1: by none
    sides = jnp.maximum(model.shift_up, model.shift_down)
    sides = jnp.where((moved_by >= 0) & ~fixed[moved_by], sides, 0.0)
    most = replace(model, nominal=jnp.maximum(model.nominal, sides.max(axis=0)))
    at = s.interpolated
    at_zero = parameters.at[at].set(jnp.where(fixed[at], parameters[at], 0.0))
    return most.expected_main(at_zero) > SMALLEST_RATE


def lowest_deviance(
    model: Model,
    data: Float[Array, "data"],
    held: Mapping[int, Float[Numbers, ""]],
    fit: Fit,
) -> Float[Array, ""]:
    """The value of ``fit``, a minimum with parameters ``held``, as a function of the model, the
    data and the values to hold. How it was found does not count."""
    start = _with(model.init, held)
    model = replace(model, fixed=_with(model.fixed, dict.fromkeys(held, True)))
    likelihood = _profile.profile_likelihood(model, data, start, held=held)
    end, at = jax.lax.stop_gradient(fit), likelihood.plan.at
    x, fixed, upper = end.parameters[at], model.fixed[at], model.upper[at]
    rest = jnp.where(fixed, model.init[at], jnp.where(x >= upper, upper, model.lower[at]))
    active = fixed | end.certificate.at_bound[at]
    given = end.value, x, active, rest, (likelihood,)
    return lowest(_profile.value, _profile.expansion, *given)


def each(model: Model, function, arguments):
    """``function``, which makes a fit, of each of the arguments: side by side where the model is
    small; otherwise in turn, as all would wait for the slowest."""
    return jax.vmap(function)(arguments) if is_small(model) else jax.lax.map(function, arguments)


def is_small(model: Model) -> bool:
    """Whether fits of the model are so short that many run side by side."""
    return len(global_parameters(model.structure)) <= SIDE_BY_SIDE


@pytree
class Profile:
    """A likelihood scan, one entry per point; a grid has two axes of points.

    Attributes:
        difference: -2 log L with the scanned parameters held, less that of the best fit. If it is
            negative, the best fit is not the best, and has the status NOT_LOWEST.
        parameters: all parameters at each point, the others fitted.
        best_fit: the fit with the scanned parameters free.
        certificate: of the fits at the points.
    """

    difference: Float[Array, "*points"]
    parameters: Float[Array, "*points parameters"]
    best_fit: Fit
    certificate: Certificate

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether the best fit and those at all points found a minimum."""
        certificates = self.best_fit.certificate, self.certificate
        return all_converged(certificates, self.best_fit.value)

    def require(self) -> "Profile":
        """Raise ``RuntimeError`` if a fit failed; return the scan otherwise."""
        self.best_fit.require()
        self.certificate.require()
        return self


def profile_scan(
    model: Model,
    data: Float[Numbers, "data"],
    values: Float[Numbers, "points"],
    parameter: str | int | None = None,
) -> Profile:
    """Scan one parameter, the parameter of interest unless another is named.

    Works under jit, grad and vmap; the fits at all points run side by side.

    Args:
        model: the likelihood.
        data: main and auxiliary measurements, in pyhf's order.
        values: where to hold the parameter.
        parameter: one of ``model.parameter_names``, or an index into them.

    Raises:
        ValueError: unknown parameter or one that the model holds fixed, values that are not finite
            or outside of its bounds, or data that do not fit the model. Where a value is traced
            and outside, its point is NaN, and the status of its fit OUTSIDE_BOUNDS.
    """
    index = _index(model, model.poi_index if parameter is None else parameter)
    _check_values(model, index, "values", values)
    return _profile_of(model, data, (values,), (index,))


def profile_grid(
    model: Model,
    data: Float[Numbers, "data"],
    values: tuple[Float[Numbers, "first"], Float[Numbers, "second"]],
    parameters: tuple[str | int, str | int],
) -> Profile:
    """Scan two parameters on a grid ``[first, second]``, for instance to draw contours of.

    ``matplotlib`` wants rows along y: ``ax.contour(first, second, profile.difference.T, levels)``.

    Raises:
        ValueError: as :func:`profile_scan`, or twice the same parameter.
    """
    indices = tuple(_index(model, parameter) for parameter in parameters)
    if len(indices) != 2 or len(values) != 2 or indices[0] == indices[1]:
        raise ValueError(f"parameters is {parameters!r}: give two different ones, and two values")
    for index, name, axis in zip(indices, ("values[0]", "values[1]"), values, strict=True):
        _check_values(model, index, name, axis)
    return _profile_of(model, data, values, indices)


def _index(model: Model, parameter: str | int) -> int:
    index = model.index(parameter)
    if not checks.is_traced(model.fixed) and np.asarray(model.fixed)[index]:
        raise ValueError(f"parameter is {model.parameter_names[index]!r}: the model holds it fixed")
    return index


def _check_values(model, index, name, values) -> None:
    if np.ndim(values) != 1:
        raise ValueError(f"{name} has shape {np.shape(values)}: give a list of numbers")
    checks.finite(name, values)
    bounds.check(model, index, name, values)


def _profile_of(model, data, values, indices) -> Profile:
    best = best_fit(model, data)
    held = _held_fits(model, jnp.asarray(data, dtype=float), values, indices)
    best = beaten_by(best, held.value.reshape(-1))
    return Profile(held.value - best.value, held.parameters, best, held.certificate)


@partial(jax.jit, static_argnames="indices")
def _held_fits(model, data, values, indices) -> Fit:
    """Fits with the parameters at ``indices`` held at every combination of ``values``."""
    axes = jnp.meshgrid(*(jnp.asarray(axis, dtype=float) for axis in values), indexing="ij")
    points = jnp.stack(axes, axis=-1)

    def fit(point):
        return fits(model, data, dict(zip(indices, point, strict=True)))[0]

    ends = each(model, fit, points.reshape(-1, len(indices)))
    return jax.tree.map(lambda x: x.reshape(*points.shape[:-1], *x.shape[1:]), ends)
