"""Profile likelihood scans: the best description of the data with some parameters held.

The difference of -2 log L to the best fit is, in the asymptotic limit, distributed as chi-squared
with as many degrees of freedom as parameters are held (Wilks): 1 and 4 bound the intervals of one
and two standard deviations of one parameter, 2.30 and 5.99 the 68.3 % and 95 % contours of two.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablab import checks
from nablab.checks import Numbers
from nablab.infer import boxes
from nablab.infer.boxes import outside, refused
from nablab.infer.certificates import Certificate, Fit, all_converged, beaten_by
from nablab.infer.histfactory import Model
from nablab.infer.hypotests import _each, _fits, best_fit


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["difference", "parameters", "best_fit", "certificate"],
    meta_fields=[],
)
@dataclass(frozen=True)
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
    return _profile(model, data, (values,), (index,))


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
    return _profile(model, data, values, indices)


def _index(model: Model, parameter: str | int) -> int:
    index = model.index(parameter)
    if not checks.is_traced(model.fixed) and np.asarray(model.fixed)[index]:
        raise ValueError(f"parameter is {model.parameter_names[index]!r}: the model holds it fixed")
    return index


def _check_values(model, index, name, values) -> None:
    if np.ndim(values) != 1:
        raise ValueError(f"{name} has shape {np.shape(values)}: give a list of numbers")
    checks.finite(name, values)
    boxes.check(model, index, name, values)


def _profile(model, data, values, indices) -> Profile:
    best = best_fit(model, data)
    held = _held_fits(model, jnp.asarray(data, dtype=float), values, indices)
    best = beaten_by(best, held.value.reshape(-1))
    return Profile(held.value - best.value, held.parameters, best, held.certificate)


@partial(jax.jit, static_argnames="indices")
def _held_fits(model, data, values, indices) -> Fit:
    """Fits with the parameters at ``indices`` held at every combination of ``values``."""
    *others, last = indices
    axes = jnp.meshgrid(*(jnp.asarray(axis, dtype=float) for axis in values), indexing="ij")
    points = jnp.stack(axes, axis=-1)
    # The fits hold what they take for the parameter of interest.
    in_its_place = replace(model, structure=replace(model.structure, poi_index=last))

    def fit(point):
        held = replace(
            in_its_place,
            init=model.init.at[jnp.array(others, int)].set(point[:-1]),
            fixed=model.fixed.at[jnp.array(others, int)].set(True),
        )
        wrong = [outside(model, index, value) for index, value in zip(indices, point, strict=True)]
        return refused(_fits(held, data, point[-1])[0], jnp.stack(wrong).any())

    fits = _each(model, fit, points.reshape(-1, len(indices)))
    return jax.tree.map(lambda x: x.reshape(*points.shape[:-1], *x.shape[1:]), fits)
