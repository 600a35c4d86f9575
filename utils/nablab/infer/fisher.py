"""How well the parameters can be measured, without a fit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Numbers
from nablab.infer import matrices
from nablab.infer.histfactory import Model


@jax.jit
def information(
    model: Model, parameters: Float[Numbers, "parameters"]
) -> Float[Array, "parameters parameters"]:
    """Expected Fisher information: the mean Hessian of -log L at ``parameters``.

    For Poisson terms of rate nu it is the sum of (d nu / d theta) (d nu / d theta)^T / nu, and a
    normal constraint of width sigma adds 1 / sigma^2. Fixed parameters have rows of zeros. NaN if
    the expectation of a bin is negative or NaN.
    """
    s = model.structure
    rates = model.poisson_rates(parameters)
    slopes = jax.jacfwd(model.poisson_rates)(parameters)
    # A bin without expectation holds no information.
    filled = rates > 0
    weights = jnp.where(filled, 1.0 / jnp.where(filled, rates, 1.0), 0.0)
    weights *= checks.one_if(rates >= 0)
    poisson = slopes.T @ (weights[:, None] * slopes)
    normal = jnp.zeros(parameters.shape).at[s.normal_parameter].add(model.normal_width**-2)
    free = ~model.fixed
    return jnp.where(free[:, None] & free, poisson + jnp.diag(normal), 0.0)


@jax.jit
def covariance(
    model: Model, parameters: Float[Numbers, "parameters"]
) -> Float[Array, "parameters parameters"]:
    """Inverse of the Fisher information (the Cramer-Rao bound); zeros for fixed parameters.

    Infinite where the model does not determine all its parameters.
    """
    fixed = jnp.diag(model.fixed * 1.0)
    return matrices.inverse(information(model, parameters) + fixed) - fixed


@jax.jit
def poi_uncertainty(model: Model, mu: Float[Numbers, ""] | float = 1.0) -> Float[Array, ""]:
    """Expected standard deviation of the parameter of interest, nuisances profiled, at ``mu``."""
    return jnp.sqrt(covariance(model, model.parameters(mu))[model.poi_index, model.poi_index])
