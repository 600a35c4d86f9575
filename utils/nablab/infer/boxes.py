"""Where a parameter may be held: a tested value and the best fit have to live in the same box.

A best fit that must stay below a bound describes the data badly where they ask for more. Compared
with a value beyond the bound, it would turn any test into one of the bound.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nablab.checks import Numbers, is_traced
from nablab.infer.fits import Fit, Status
from nablab.infer.histfactory import Model


def box(model: Model, index: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Lowest and highest value of a parameter: its bounds, or the value at which it is fixed."""
    fixed, rest = model.fixed[index], model.init[index]
    return jnp.where(fixed, rest, model.lower[index]), jnp.where(fixed, rest, model.upper[index])


def outside(
    model: Model, index: int, value: Float[Numbers, "*values"] | float
) -> Bool[Array, "*values"]:
    """Whether a value is outside of the box. NaN is not: it has its own status."""
    low, high = box(model, index)
    return (value < low) | (value > high)


def refused(fit: Fit, wrong: Bool[Array, ""]) -> Fit:
    """The fit, without any numbers where its held value is wrong."""
    status = jnp.where(wrong, Status.OUTSIDE_BOUNDS, fit.certificate.status)
    return Fit(
        jnp.where(wrong, jnp.nan, fit.parameters),
        jnp.where(wrong, jnp.nan, fit.value),
        replace(fit.certificate, status=status),
    )


def check(model: Model, index: int, name: str, values) -> None:
    """Raise ``ValueError`` naming the first of the ``values`` that is outside of the box.

    Traced values pass: their fits are :func:`refused`.
    """
    if is_traced(values, model.fixed, model.init, model.lower, model.upper):
        return
    values = jnp.asarray(values, dtype=float)
    wrong = outside(model, index, values)
    if not wrong.any():
        return
    parameter, (low, high) = model.parameter_names[index], box(model, index)
    entry = f"{name}[{int(jnp.argmax(wrong))}]" if values.ndim else name
    value = f"{entry} is {float(values[wrong][0]):g}"
    if model.fixed[index]:
        raise ValueError(
            f"{value}, but the model holds {parameter!r} fixed at {float(low):g}: free it (`fixed` "
            "of the model, or of its measurement)"
        )
    raise ValueError(
        f"{value}, outside of the bounds [{float(low):g}, {float(high):g}] of {parameter!r}, which "
        "the best fit keeps: widen them (`lower` and `upper` of the model, or `bounds` in its "
        "specification), or choose a value within"
    )
