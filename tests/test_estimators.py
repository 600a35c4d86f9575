"""Gradients of hard quantities agree with what is known of their expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from nablab.relax.cuts import hard_cut, soft_cut
from nablab.relax.estimators import boundary_gradient, score_function_gradient, straight_through


def test_straight_through_has_the_hard_value_and_the_soft_derivatives():
    x = jnp.array([-1e308, -1.0, 0.2, 3.0])

    def mixed(c):
        return (straight_through(hard_cut(x, c), soft_cut(x, c, slope=2.0)) * jnp.arange(4)).sum()

    def soft(c):
        return (soft_cut(x, c, slope=2.0) * jnp.arange(4)).sum()

    assert mixed(0.5) == 3.0
    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.grad(f))):
        assert derivative(mixed)(0.5) == pytest.approx(float(derivative(soft)(0.5)), rel=1e-13)


def test_boundary_gradient_of_a_moving_gaussian():
    edges = np.array([-np.inf, -1.0, 0.5, 2.0, np.inf])
    flow = boundary_gradient(lambda x: 50 * norm.pdf(x, 0.3), edges)
    step = 1e-5
    counts = [50 * np.diff(norm.cdf(edges, mu)) for mu in (0.3 - step, 0.3 + step)]
    np.testing.assert_allclose(flow, (counts[1] - counts[0]) / (2 * step), rtol=1e-8)


def test_boundary_gradient_of_a_scale_and_of_a_cut():
    """Events at x move with velocity x / scale; a cut that moves is events that flow back."""
    edges = np.array([0.5, 1.0, 3.0])
    flow = boundary_gradient(lambda x: norm.pdf(x, 0, 2.0), edges, velocity=lambda x: x / 2.0)
    step = 1e-5
    counts = [np.diff(norm.cdf(edges, 0, scale)) for scale in (2 - step, 2 + step)]
    np.testing.assert_allclose(flow, (counts[1] - counts[0]) / (2 * step), rtol=1e-8)
    cut = boundary_gradient(norm.pdf, np.array([1.0, np.inf]), velocity=-1.0)
    assert cut[0] == pytest.approx(-norm.pdf(1.0))
    with pytest.raises(ValueError, match=r"boundaries must increase: boundaries\[0\]"):
        boundary_gradient(norm.pdf, np.array([1.0, 1.0]))


def test_score_function_of_hard_counts():
    """Its expectation is the derivative of the smoothed count, known here; the baseline matters."""
    x = jnp.array([0.1, 0.4, 0.9, 2.0])
    cuts, widths = np.array([0.3, 1.0]), np.array([0.2, 0.5])

    def objective(cuts):
        return 1000 + hard_cut(x, cuts[0]).sum() + 2 * hard_cut(x, cuts[1]).sum()

    truth = np.array(
        [-f * norm.pdf(x, c, w).sum() for f, c, w in zip((1, 2), cuts, widths, strict=True)]
    )
    gradient, error = score_function_gradient(
        objective, cuts, widths=widths, key=jax.random.key(5), samples=20_000
    )
    assert np.all(error < 0.1)  # without the baseline, the 1000 would make it 10
    assert np.all(np.abs(gradient - truth) < 4 * error)
    assert np.all(np.abs(gradient) > 10 * error)


def test_score_function_without_bias_and_with_the_right_error():
    """4000 estimates from 5 samples each: their mean is right, their spread is the error quoted."""

    def objective(c):
        return hard_cut(jnp.linspace(-1, 1, 40), c[0]).sum() + 30.0

    gradients, errors = jax.vmap(
        lambda key: score_function_gradient(objective, jnp.zeros(1), widths=0.3, key=key, samples=5)
    )(jax.random.split(jax.random.key(6), 4000))
    truth = -norm.pdf(np.linspace(-1, 1, 40), 0, 0.3).sum()
    assert gradients.mean() == pytest.approx(truth, abs=4 * float(gradients.std()) / 4000**0.5)
    assert np.sqrt((errors**2).mean()) == pytest.approx(float(gradients.std()), rel=0.15)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"widths": 0.0}, "widths is 0.0"),
        ({"samples": 1}, "samples is 1"),
        ({"parameters": np.array([0.0, np.nan])}, r"parameters\[1\] is nan"),
    ],
)
def test_bad_input_is_named(change, message):
    good = dict(parameters=np.zeros(2), widths=1.0, key=jax.random.key(0), samples=4)
    with pytest.raises(ValueError, match=message):
        score_function_gradient(lambda p: p.sum(), **(good | change))
