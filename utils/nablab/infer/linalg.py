"""Positive definite matrices: curvatures and information. Small ones are inverted without LAPACK.

jaxlib 0.10.2 has LAPACK, but large compilations on a single processor do not find it ("no
registered implementation for untyped custom call", tests/benchmarks/lapack.py; 0.12 does), and
batched loops around it have been seen to hang on two. Fits of more than 500 parameters, which are
not batched, need it.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Up to this size a matrix is inverted in straight-line code, which small fits are faster with.
UNROLLED = 4
# From this size on LAPACK takes over, where it is found.
_processors = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
LARGE = 512 if len(_processors) > 1 else 1_000_000
SMALLEST_SHIFT = 0.1  # of a diagonal of about 1, to make a matrix positive
STEPS = 40  # towards the smallest eigenvalue of a large matrix


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


def eliminated(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, "n"]]:
    """Inverse by Gauss-Jordan elimination without pivoting, and the pivots.

    Without pivoting this is stable for positive definite matrices, which a minimum has, and the
    sign of the smallest pivot tells whether the matrix is one.
    """
    size = matrix.shape[0]
    if size >= LARGE:
        factor = cholesky(matrix)
        pivots = jnp.diagonal(factor) ** 2
        pivots = jnp.where(jnp.isnan(pivots[-1]), -1.0, pivots)
        inverse = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(size))
        return inverse, jnp.where(jnp.isfinite(matrix).all(), pivots, jnp.nan)
    index = np.arange(size)

    def eliminate(k, state):
        matrix, pivots = state
        pivot = matrix[k, k]
        safe = jnp.where(jnp.abs(pivot) > 1e-300, pivot, 1.0)
        return pivoted(matrix, k, safe), jnp.where(index == k, pivot, pivots)

    return in_turn(size, eliminate, (matrix, jnp.zeros(size)))


def without(matrix: Float[Array, "n n"], held: Bool[Array, "n"]) -> Float[Array, "n n"]:
    """The matrix with the rows and columns of what is held replaced by those of the identity."""
    index = jnp.arange(len(matrix))  # not a constant: that of a large matrix would take memory
    return jnp.where(held[:, None] | held, (index[:, None] == index) & held, matrix)


def raised(matrix: Float[Array, "n n"], added: Float[Array, ""]) -> Float[Array, "n n"]:
    """With something added to the diagonal; the identity of a large matrix takes memory, too."""
    return matrix.at[jnp.diag_indices(len(matrix))].add(added)


def cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """LAPACK's factor of a matrix that is symmetric as it comes; NaN where it is not positive."""
    return jax.lax.linalg.cholesky(matrix.T, symmetrize_input=False)


def until_positive(matrix: Float[Array, "n n"]) -> tuple[Float[Array, ""], Float[Array, "n n"]]:
    """What was added to the diagonal for a large matrix to be positive definite, 0 where it is; and
    the Cholesky factor."""

    def more(state):
        added = jnp.maximum(4.0 * state[0], SMALLEST_SHIFT)
        return added, cholesky(raised(matrix, added))

    def negative(state):
        return jnp.isnan(state[1][-1, -1]) & (state[0] < 1e9)

    return jax.lax.while_loop(negative, more, (jnp.zeros(()), cholesky(matrix)))


def in_turn(size: int, step: Callable, state):
    """``step(k, state)`` for each row k of a matrix, one after the other."""
    if size <= UNROLLED:
        return functools.reduce(lambda state, k: step(k, state), range(size), state)
    return jax.lax.fori_loop(0, size, step, state)


def pivoted(
    tableau: Float[Array, "n n"], k: int | Int[Array, ""], pivot: Float[Array, ""]
) -> Float[Array, "n n"]:
    """One step of Gauss-Jordan elimination in place; a second one takes it back."""
    here = np.arange(tableau.shape[0]) == k
    row = jnp.where(here, 1.0, tableau[k]) / pivot
    column = jnp.where(here, 0.0, tableau[:, k])
    cleared = jnp.where(here, 0.0, tableau) - column[:, None] * row
    return jnp.where(here[:, None], row, cleared)


def smallest_eigenvalue(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, ""], Float[Array, "n"]]:
    """Smallest eigenvalue of a symmetric matrix, and its direction; infinite where it is empty.

    It is the largest one of (bound - matrix), which takes over when that is squared repeatedly. A
    large matrix is made a small one first.
    """
    size = matrix.shape[0]
    if not size:
        return jnp.full((), jnp.inf), jnp.zeros(0)
    if size >= LARGE:
        basis = _directions_of_extremes(matrix)
        projected = basis.T @ (matrix @ basis)
        empty = jnp.diagonal(basis.T @ basis) < 0.5
        projected = projected + jnp.diag(empty * jnp.abs(matrix).sum(axis=0).max())
        vector = basis @ smallest_eigenvalue(projected)[1]
    else:
        bound = 1.5 * jnp.abs(matrix).sum(axis=0).max()

        def square(_, power):
            return power @ (power / jnp.abs(power).max())

        power = jax.lax.fori_loop(0, 20, square, bound * np.eye(size) - matrix)
        vector = power[:, jnp.argmax(jnp.diagonal(power))]
    vector = vector / jnp.abs(vector).max()
    return vector @ matrix @ vector / (vector @ vector), vector


def _directions_of_extremes(matrix):
    """Orthogonal directions among which that of the smallest eigenvalue is, [n, 2 STEPS].

    The extended Krylov space (Druskin and Knizhnerman, SIAM J. Matrix Anal. Appl. 19 (1998) 755):
    what repeated products with the matrix, and with its inverse, make of two directions at random.
    Where these make nothing new any more, columns of zeros are left.
    """
    _, factor = until_positive(matrix)

    def orthogonal(vector, basis):
        # Where nothing is left but rounding errors they are no direction: once more, as long as 1.
        for _ in range(3):
            length = jnp.sqrt(vector @ vector)
            vector = vector / jnp.where(length > 0, length, 1.0)
            vector = vector - basis @ (vector @ basis)
        length = jnp.sqrt(vector @ vector)
        return jnp.where(length > 0.5, vector / length, 0.0)

    def enlarge(k, basis):
        before = basis[:, 2 * k - 2]
        basis = basis.at[:, 2 * k].set(orthogonal(matrix @ before, basis))
        before = basis[:, 2 * k - 1]
        solved = jax.scipy.linalg.cho_solve((factor, True), before)
        return basis.at[:, 2 * k + 1].set(orthogonal(solved, basis))

    start = np.linalg.qr(np.random.default_rng(0).normal(size=(len(matrix), 2)))[0]
    basis = jnp.zeros((len(matrix), 2 * STEPS)).at[:, :2].set(start)
    return jax.lax.fori_loop(1, STEPS, enlarge, basis)
