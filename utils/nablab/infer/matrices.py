"""Small positive definite matrices: curvatures and information, inverted without LAPACK.

jaxlib 0.10.2 has LAPACK, but some large compilations do not find it ("no registered implementation
for untyped custom call"), and batched loops around it have been seen to hang on two cores.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Up to this size a matrix is inverted in straight-line code, which small fits are faster with.
UNROLLED = 4


@jax.custom_jvp
def inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Inverse of a positive definite matrix; infinite if it is not positive definite, or NaN."""
    found, pivots = eliminated(matrix)
    smallest = pivots.min(initial=jnp.inf)
    return jnp.where(smallest > 0, found, jnp.where(jnp.isnan(smallest), jnp.nan, jnp.inf))


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    found = inverse(*primals)
    return found, -found @ tangents[0] @ found


@jax.custom_jvp
def log_determinant(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """Logarithm of the determinant; minus infinite if it is not positive definite, or NaN."""
    _, pivots = eliminated(matrix)
    impossible = pivots.min(initial=jnp.inf) <= 0
    return jnp.where(impossible, -jnp.inf, jnp.log(jnp.where(impossible, 1.0, pivots)).sum())


@log_determinant.defjvp
def _log_determinant_jvp(primals, tangents):
    return log_determinant(*primals), jnp.sum(inverse(*primals).T * tangents[0])


def eliminated(
    matrix: Float[Array, "n n"], make_positive: bool = False
) -> tuple[Float[Array, "n n"], Float[Array, "n"]]:
    """Inverse by Gauss-Jordan elimination without pivoting, and the pivots.

    Without pivoting this is stable for positive definite matrices, which a minimum has, and the
    sign of the smallest pivot tells whether the matrix is one.

    ``make_positive`` turns negative pivots around and raises small ones, so that no number grows:
    the result is the inverse of a positive definite matrix that differs from the given one on the
    diagonal only (Gill, Murray and Wright, Practical Optimization, 4.4.2.2).
    """
    size = matrix.shape[0]
    index = np.arange(size)
    largest = jnp.diagonal(matrix).max(initial=1.0)

    def eliminate(k, state):
        matrix, pivots = state
        here = index == k
        pivot = matrix[k, k]
        if make_positive:
            below = jnp.abs(jnp.where(index > k, matrix[:, k], 0.0)).max()
            positive = jnp.where(pivot > 0, pivot, jnp.maximum(-pivot, 1e-3))
            safe = jnp.maximum(positive, below**2 / largest)
        else:
            safe = jnp.where(jnp.abs(pivot) > 1e-300, pivot, 1.0)
        row = jnp.where(here, 1.0, matrix[k]) / safe
        column = jnp.where(here, 0.0, matrix[:, k])
        cleared = jnp.where(here, 0.0, matrix) - column[:, None] * row
        return jnp.where(here[:, None], row, cleared), jnp.where(here, pivot, pivots)

    start = (matrix, jnp.zeros(size))
    if size <= UNROLLED:
        return functools.reduce(lambda state, k: eliminate(k, state), range(size), start)
    return jax.lax.fori_loop(0, size, eliminate, start)


def smallest_eigenvalue(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, ""], Float[Array, "n"]]:
    """Of a symmetric matrix, and its direction; infinite where the matrix is empty.

    It is the largest one of (bound - matrix), which takes over when that is squared repeatedly.
    """
    size = matrix.shape[0]
    if not size:
        return jnp.full((), jnp.inf), jnp.zeros(0)
    bound = 1.5 * jnp.abs(matrix).sum(axis=0).max()

    def square(_, power):
        return power @ (power / jnp.abs(power).max())

    power = jax.lax.fori_loop(0, 20, square, bound * np.eye(size) - matrix)
    vector = power[:, jnp.argmax(jnp.diagonal(power))]
    vector = vector / jnp.abs(vector).max()
    return vector @ matrix @ vector / (vector @ vector), vector
