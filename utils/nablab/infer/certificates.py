"""What is known about a fit: where it ended, how it got there, and whether to believe it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nablab.checks import is_traced
from nablab.pytrees import pytree


class Status(IntEnum):
    """How a fit ended."""

    CONVERGED = 0
    NOT_CONVERGED = 1
    NOT_A_MINIMUM = 2
    NOT_FINITE = 3
    OUTSIDE_BOUNDS = 4
    NOT_LOWEST = 5


MEANING = {
    Status.CONVERGED: "a minimum was found",
    Status.NOT_CONVERGED: "the gradient is not zero: out of iterations, or stuck",
    Status.NOT_A_MINIMUM: "the curvature is not positive: a saddle, or a direction without effect",
    Status.NOT_FINITE: "the function or its gradient is NaN or infinite, as the deviance is of "
    "data in a bin where nothing is expected",
    Status.OUTSIDE_BOUNDS: "the value to hold is outside of the bounds of its parameter, which the "
    "best fit keeps: widen the bounds (lower and upper of the model), or test a value within",
    Status.NOT_LOWEST: "there are more minima than were searched: another fit to the same data "
    "found a lower point, which this one allows, or most starts ended in a minimum of their own",
}
# Minima whose values differ by less than this, relatively, are the same.
SAME = 1e-9


def clearly_lower(one: Float[Array, "..."], other: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether one minimum is lower than another, beyond rounding errors."""
    return one < other - SAME * (1.0 + jnp.abs(other))


@pytree
class Certificate:
    """What is known about the point where a fit ended.

    Attributes:
        status: a :class:`Status`.
        gradient_norm: largest component of the gradient that is free to move, in units of
            (change of f) per (parameter uncertainty, 1 / sqrt of its curvature).
        smallest_eigenvalue: of the Hessian of the free parameters, each in units of its own
            uncertainty; 1 for uncorrelated parameters, 0 for a direction without effect.
        flattest: the direction of that eigenvalue: each parameter in units of its uncertainty.
        at_bound: which parameters rest on a bound.
        iterations: points tried on the way from the start that won, which is included.
        heights: how much higher the fits from each starting point ended: 0 in the same minimum,
            more in another one, NaN where there was nothing to try.
    """

    status: Int[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    smallest_eigenvalue: Float[Array, "*batch"]
    flattest: Float[Array, "*batch parameters"]
    at_bound: Bool[Array, "*batch parameters"]
    iterations: Int[Array, "*batch"]
    heights: Float[Array, "*batch starts"]

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether the fit found a minimum."""
        return self.status == Status.CONVERGED

    def require(self) -> "Certificate":
        """Raise ``RuntimeError`` unless every fit found a minimum; return the certificate.

        Of a batch it says how many failed, and what is wrong with the first of them.
        """
        refuse(~self.converged, lambda place: failure([self], place))
        return self


@pytree
class Fit:
    """Where the minimum is, how deep, and how sure."""

    parameters: Float[Array, "*batch parameters"]
    value: Float[Array, "*batch"]
    certificate: Certificate

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether the fit found a minimum."""
        return self.certificate.converged

    def require(self) -> "Fit":
        """Raise ``RuntimeError`` unless every fit found a minimum; return the fit otherwise."""
        self.certificate.require()
        return self


def beaten_by(fit: Fit, values: Float[Array, "*batch others"]) -> Fit:
    """The fit, no longer converged where one of the ``values`` that it allows is clearly lower."""
    beaten = clearly_lower(values, fit.value[..., None]).any(axis=-1)
    status = jnp.where(beaten & fit.converged, Status.NOT_LOWEST, fit.certificate.status)
    return replace(fit, certificate=replace(fit.certificate, status=status))


def all_converged(
    certificates: Sequence[Certificate], like: Float[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether all fits behind each item of a batch, whose axes come first, found a minimum."""
    good = jnp.ones(like.shape, bool)
    for certificate in certificates:
        axes = tuple(range(like.ndim, certificate.status.ndim))
        good = good & certificate.converged.all(axis=axes)
    return good


def refuse(failed: Bool[Array, "*batch"], reason: Callable[[tuple[int, ...]], str]) -> None:
    """Raise ``RuntimeError`` if an item failed: how many did, and the ``reason`` of the first.

    Raises:
        TypeError: inside ``jit``, ``grad`` or ``vmap``, where nobody knows yet.
    """
    if is_traced(failed):
        raise TypeError(
            "require() was called inside jit, grad or vmap, where it cannot raise: return "
            "`converged` beside the numbers, and look at it outside"
        )
    failed = np.asarray(failed)
    if failed.any():
        first = tuple(int(i) for i in np.argwhere(failed)[0])
        message = reason(first)
        if failed.ndim:
            message = (
                f"{failed.sum()} of {failed.size} failed; the first is {list(first)}: {message}"
            )
        raise RuntimeError(message)


def failure(certificates: Sequence[Certificate], item: tuple[int, ...]) -> str:
    """What is wrong with the first failed fit of an item of a batch."""
    for certificate in certificates:
        status = np.asarray(certificate.status)[item]
        if (status != Status.CONVERGED).any():
            place = (*item, *np.argwhere(status != Status.CONVERGED)[0].tolist())
            return f"fit failed: {_described(certificate, place)}"
    return "all fits found a minimum"


def _described(certificate: Certificate, place: tuple[int, ...]) -> str:
    """What is wrong with a fit, and which parameters have to do with it, by their numbers."""
    fit = {name: np.asarray(field)[place] for name, field in vars(certificate).items()}
    status, at_bound = Status(int(fit["status"])), fit["at_bound"]
    words = [
        f"{MEANING[status]} (gradient norm {float(fit['gradient_norm']):.1e}, smallest eigenvalue "
        f"{float(fit['smallest_eigenvalue']):.1e})"
    ]
    share = np.abs(fit["flattest"])
    if status == Status.NOT_A_MINIMUM and share.max(initial=0.0) > 0:
        flat = ", ".join(str(i) for i in np.flatnonzero(share > 0.1 * share.max()))
        words.append(f"flat along parameters {flat} together: constrain, fix or join them")
    if status != Status.CONVERGED and at_bound.any():
        bound = ", ".join(str(i) for i in np.flatnonzero(at_bound))
        words.append(f"at a bound: parameters {bound}")
    return "; ".join(words)
