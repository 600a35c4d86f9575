"""Inverses and determinants without LAPACK, against LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.infer import linalg

SIZES = (1, 3, 8, 40)


def positive(size):
    factor = np.random.default_rng(size).normal(size=(size, size))
    return jnp.array(factor @ factor.T + 0.1 * np.eye(size))


@pytest.mark.parametrize("size", SIZES)
def test_against_lapack(size):
    matrix = positive(size)
    inverse, pivots = jax.jit(linalg.eliminated)(matrix)
    assert pivots.min() > 0
    np.testing.assert_allclose(inverse, np.linalg.inv(matrix), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(linalg.inverse(matrix), inverse, rtol=1e-12)
    sign, logarithm = np.linalg.slogdet(matrix)
    assert sign == 1
    assert float(linalg.log_determinant(matrix)) == pytest.approx(logarithm, rel=1e-11)
    lowest, highest = np.linalg.eigvalsh(matrix)[[0, -1]]
    found, direction = linalg.smallest_eigenvalue(matrix)
    assert float(found) == pytest.approx(lowest, abs=1e-3 * highest)
    assert direction @ matrix @ direction == pytest.approx(found * (direction @ direction))


@pytest.mark.parametrize("size", SIZES)
def test_not_positive_definite(size):
    matrix = positive(size)
    indefinite = matrix - 1.5 * np.linalg.eigvalsh(matrix)[-1] * jnp.eye(size)
    assert jax.jit(linalg.eliminated)(indefinite)[1].min() < 0
    for bad in (indefinite, matrix.at[0].set(0.0).at[:, 0].set(0.0)):
        assert jnp.isposinf(linalg.inverse(bad)).all()
        assert jnp.isneginf(linalg.log_determinant(bad))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ours", [linalg.inverse, linalg.log_determinant])
def test_derivatives_against_lapack(ours, size):
    """Forwards, backwards and twice, along a line of matrices."""
    lapack = {
        linalg.inverse: jnp.linalg.inv,
        linalg.log_determinant: lambda matrix: jnp.linalg.slogdet(matrix)[1],
    }[ours]
    start, along = positive(size), 0.1 * positive(size) + 0.01

    def line(function):
        return lambda t: jnp.sum(function(start + t * along) ** 2)

    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f))):
        found, wanted = (jax.jit(derivative(line(f)))(0.3) for f in (ours, lapack))
        np.testing.assert_allclose(found, wanted, rtol=1e-8)


def test_large_matrices(monkeypatch):
    monkeypatch.setattr(linalg, "LARGE", 512)  # on a single processor it is none
    matrix = positive(512)
    inverse, pivots = jax.jit(linalg.eliminated)(matrix)
    np.testing.assert_allclose(inverse @ matrix, np.eye(len(matrix)), atol=1e-9)
    np.testing.assert_allclose(pivots, np.diagonal(np.linalg.cholesky(matrix)) ** 2, rtol=1e-9)
    negative = matrix - 10.0 * jnp.eye(len(matrix))
    assert jax.jit(linalg.eliminated)(negative)[1].min() < 0
    assert np.all(np.isinf(jax.jit(linalg.inverse)(negative)))
    assert np.all(np.isnan(jax.jit(linalg.inverse)(matrix.at[3, 4].set(np.nan))))
    added, factor = jax.jit(linalg.until_positive)(negative)
    assert added > 0
    np.testing.assert_allclose(
        factor @ factor.T, negative + added * np.eye(len(matrix)), atol=1e-9 * np.abs(matrix).max()
    )
    assert jax.jit(linalg.until_positive)(matrix)[0] == 0


def spectra(size):
    """Eigenvalues of which the smallest one is harder or easier to find."""
    rng = np.random.default_rng(size)
    bulk = rng.uniform(0.5, 2.0, size)
    changed = lambda *first: np.concatenate([first, bulk[len(first) :]])  # noqa: E731
    return {
        "all alike": bulk,
        "equal": np.ones(size),
        "nearly singular": changed(1e-11),
        "two small ones": changed(1e-7, 3e-7),
        "singular": changed(0.0),
        "negative": changed(-1e-3),
        "negative and small": changed(-0.1, 1e-9),
        "many negative": bulk - 1.0,
        "few that differ": np.concatenate([rng.uniform(1.5, 9.0, 9), [0.3], np.ones(size)])[:size],
        "many sizes": 10.0 ** rng.uniform(-4.0, 0.0, size),
    }


@pytest.mark.parametrize("case", spectra(50))
def test_smallest_eigenvalue_of_large_matrices(case):
    eigenvalues = spectra(600)[case]
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(600, 600)))[0]
    matrix = jnp.array((rotation * eigenvalues) @ rotation.T)
    found, direction = jax.jit(linalg.smallest_eigenvalue)(matrix)
    # Where hundreds of others are as small, or negative, that is all one needs to know.
    error = {"all alike": 1e-3, "many negative": 2e-3}.get(case, 1e-5)
    assert float(found) == pytest.approx(eigenvalues.min(), abs=error)
    quotient = direction @ matrix @ direction / (direction @ direction)
    assert float(quotient) == pytest.approx(float(found), abs=1e-12)
