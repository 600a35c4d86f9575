"""The soft cut has the value, the gradient and the limit it should have, at any slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from nablab.relax.cuts import hard_cut, soft_cut

X = jnp.array([-1e308, -1e300, -800.0, -3.0, 0.4999, 0.5, 0.5001, 2.0, 700.0, 1e300, 1e308])
FORWARD, REVERSE = (
    jax.jit(jacobian(soft_cut, argnums=(0, 1, 2))) for jacobian in (jax.jacfwd, jax.jacrev)
)


def test_values():
    x = np.linspace(-5.0, 7.0, 41)
    np.testing.assert_allclose(soft_cut(jnp.array(x), 0.5, 2.0), expit(2.0 * (x - 0.5)), rtol=1e-13)
    # The default slope is 1, and 1 / slope is the distance from the threshold to 0.27 and 0.73.
    np.testing.assert_allclose(
        soft_cut(jnp.array([2.0, 3.0, 4.0]), 3.0), [0.268941421, 0.5, 0.731058579], atol=1e-9
    )


@pytest.mark.parametrize("slope", [0.3, 3.0, 50.0, 1e4])
def test_gradient_is_that_of_the_formula(slope):
    x = np.array([0.1, 0.4999, 0.5, 0.50001, 0.7, 3.0])
    p = expit(slope * (x - 0.5))
    rise = p * expit(-slope * (x - 0.5))
    in_x, in_threshold, in_slope = REVERSE(jnp.array(x), 0.5, slope)
    np.testing.assert_allclose(jnp.diag(in_x), slope * rise, rtol=1e-12, atol=1e-16 * slope)
    np.testing.assert_allclose(in_x - jnp.diag(jnp.diag(in_x)), 0.0)
    np.testing.assert_allclose(in_threshold, -slope * rise, rtol=1e-12, atol=1e-16 * slope)
    np.testing.assert_allclose(in_slope, (x - 0.5) * rise, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("slope", [1.0, 50.0, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steep_slope_and_extreme_events_stay_finite(slope, dtype):
    """The textbook 1 / (1 + exp(-k (x - c))) has NaN gradients here."""
    x = jnp.clip(X, *((-1e37, 1e37) if dtype == "float32" else (None, None))).astype(dtype)
    assert np.all(np.isfinite(soft_cut(x, 0.5, slope)))
    for jacobian in (FORWARD, REVERSE):
        for derivative in jacobian(x, 0.5, slope):
            assert np.all(np.isfinite(derivative))


def test_textbook_formula_would_be_noticed():
    def textbook(x, threshold, slope):
        return 1.0 / (1.0 + jnp.exp(-slope * (x - threshold)))

    assert np.isnan(jax.grad(textbook)(-20.0, 0.5, 50.0))


def test_steep_soft_cut_is_the_hard_cut_away_from_the_threshold():
    away = X[np.abs(X - 0.5) > 1e-3]
    np.testing.assert_array_equal(np.round(soft_cut(away, 0.5, 1e6), 12), hard_cut(away, 0.5))
    assert 0 < hard_cut(away, 0.5).sum() < len(away)


def test_hard_cut():
    x = jnp.array([0.0, 0.5, jnp.nextafter(0.5, 1.0), 3.0])
    np.testing.assert_array_equal(hard_cut(x, 0.5, slope=7.0), [0, 0, 1, 1])
    assert hard_cut(x, 0.5).dtype == jnp.float64
    assert jax.grad(lambda threshold: hard_cut(x, threshold).sum())(0.5) == 0.0


def test_compiled_and_mapped():
    thresholds = jnp.array([-1.0, 0.0, 2.5])
    rows = jnp.stack([soft_cut(X, threshold, 3.0) for threshold in thresholds])
    mapped = jax.jit(jax.vmap(lambda threshold: soft_cut(X, threshold, 3.0)))(thresholds)
    np.testing.assert_allclose(mapped, rows, rtol=1e-14)


@pytest.mark.parametrize("cut", [soft_cut, hard_cut])
def test_bad_input_is_named(cut):
    with pytest.raises(ValueError, match=r"x\[1\] is nan"):
        cut(jnp.array([1.0, jnp.nan]), 0.0)
    with pytest.raises(ValueError, match="threshold is inf"):
        cut(X, float("inf"))


def test_slope_must_be_positive():
    for slope in (0.0, -2.0):
        with pytest.raises(ValueError, match=f"slope is {slope}"):
            soft_cut(X, 0.0, slope)
