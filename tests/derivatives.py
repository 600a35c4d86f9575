"""Derivatives of a function of several arrays, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def check_derivatives(function, *arguments, step=1e-5, rtol=1e-6, atol=1e-8):
    """Gradient in reverse and forward mode, and forward over reverse; returns the gradient.

    Compiled once: value and derivatives come from the same function, at the shifted points too.
    """
    flat, unravel = ravel_pytree([jnp.asarray(a, dtype=float) for a in arguments])
    direction = jnp.cos(1 + jnp.arange(len(flat)))

    def one_number(flat):
        """Depends on every entry of the result in its own way."""
        result = ravel_pytree(function(*unravel(flat)))[0]
        return jnp.sum(jnp.cos(jnp.arange(len(result))) * result)

    @jax.jit
    def derivatives(flat):
        value, forward = jax.jvp(one_number, (flat,), (direction,))
        reverse, second = jax.jvp(jax.grad(one_number), (flat,), (direction,))
        return value, forward, reverse, second

    def differences(number, shift):
        return (derivatives(flat + shift)[number] - derivatives(flat - shift)[number]) / (2 * step)

    _, forward, reverse, second = derivatives(flat)
    first = [differences(0, shift) for shift in step * np.eye(len(flat))]
    np.testing.assert_allclose(reverse, first, rtol=rtol, atol=atol)
    np.testing.assert_allclose(forward, reverse @ direction, rtol=1e-10, atol=1e-12)
    expected = differences(2, step * direction)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(second, expected, rtol=rtol, atol=atol + rtol * scale)
    return unravel(reverse)


def check_finite_derivatives(function, *arguments):
    """Gradient and its forward derivative are finite for each entry of the last argument."""
    *fixed, mapped = arguments

    @jax.jit
    @jax.vmap
    def derivatives(last):
        everything, unravel = ravel_pytree([*fixed, last])
        gradient = jax.grad(lambda flat: function(*unravel(flat)))
        return jax.jvp(gradient, (everything,), (jnp.ones_like(everything),))

    assert all(np.all(np.isfinite(part)) for part in derivatives(jnp.asarray(mapped)))
