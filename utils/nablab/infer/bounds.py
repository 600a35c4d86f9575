"""Where a parameter may be held: a tested value and the best fit have to live in the same box.

A best fit that must stay below a bound describes the data badly where they ask for more. Compared
with a value beyond the bound, it would turn any test into one of the bound.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablab.checks import Numbers, is_traced
from nablab.infer.certificates import Fit, Status
from nablab.model.histfactory import Model


def outside(
    model: Model, index: int, value: Float[Numbers, "*values"] | float
) -> Bool[Array, "*values"]:
    """Whether a value is outside of the bounds of its parameter, or not that at which the model
    fixes it. NaN is not: its fit has its own status."""
    fixed, rest = model.fixed[index], model.init[index]
    low, high = (jnp.where(fixed, rest, bound[index]) for bound in (model.lower, model.upper))
    return (value < low) | (value > high)


def refused(fit: Fit, wrong: Bool[Array, ""]) -> Fit:
    """The fit, without any numbers where its held value is wrong, and without derivatives."""
    nothing = jnp.where(wrong, jnp.nan, 1.0)
    status = jnp.where(wrong, Status.OUTSIDE_BOUNDS, fit.certificate.status)
    return Fit(
        nothing * fit.parameters,
        nothing * fit.value,
        replace(fit.certificate, status=status),
    )


def check_free(model: Model, index: int, purpose: str) -> None:
    """Raise ``ValueError`` where the model fixes a parameter, unless that is only known later."""
    if not is_traced(model.fixed) and np.asarray(model.fixed)[index]:
        raise ValueError(
            f"the model holds {model.parameter_names[index]!r} fixed: free it (`fixed` of the "
            f"model, or of its measurement) to {purpose}"
        )


def check(model: Model, index: int, name: str, values) -> None:
    """Raise ``ValueError`` naming the first of the ``values`` that is outside of the box.

    Traced values pass: their fits are :func:`refused`.
    """
    if is_traced(values, model.fixed, model.init, model.lower, model.upper):
        return
    # Not as JAX arrays: inside jit these become tracers, and cannot be looked at.
    values, fixed = np.asarray(values, dtype=float), np.asarray(model.fixed)[index]
    box = (model.init, model.init) if fixed else (model.lower, model.upper)
    low, high = (float(np.asarray(bound)[index]) for bound in box)
    wrong = (values < low) | (values > high)
    if not wrong.any():
        return
    parameter = model.parameter_names[index]
    entry = f"{name}[{int(np.argmax(wrong))}]" if values.ndim else name
    value = f"{entry} is {float(values[wrong][0]):g}"
    if fixed:
        raise ValueError(
            f"{value}, but the model holds {parameter!r} fixed at {low:g}: free it (`fixed` "
            "of the model, or of its measurement)"
        )
    raise ValueError(
        f"{value}, outside of the bounds [{low:g}, {high:g}] of {parameter!r}, which "
        "the best fit keeps: widen them (`lower` and `upper` of the model, or `bounds` in its "
        "specification), or choose a value within"
    )
