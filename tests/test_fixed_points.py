"""Fixed points and their derivatives: two phases, and the unrolled loop."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from jax.scipy.stats import norm

from nablab.infer import minimizer
from nablab.infer.fixed_points import adjoint, two_phase, unrolled
from nablab.train.objectives import asimov_significance

MATRIX = jnp.array([[0.5, -0.3, 0.1], [0.2, 0.4, 0.2], [-0.1, 0.3, 0.2]])  # not symmetric


def bend(x, theta):
    """A contraction of three numbers, not linear, moved by two."""
    return jnp.tanh(MATRIX @ x) + jnp.array([theta[0], theta[1] ** 2, theta[0] * theta[1]])


def solution(theta, **limits):
    return two_phase(lambda x: bend(x, theta), jnp.zeros(3), **limits)


def central(function, x, step=1e-4):
    columns = [
        (function(x + step * e) - function(x - step * e)) / (2 * step) for e in jnp.eye(x.size)
    ]
    return jnp.stack(columns, axis=-1)


THETA = jnp.array([0.7, -0.4])


def test_value_and_certificate():
    end = solution(THETA)
    assert end.converged and end.residual <= 1e-12
    np.testing.assert_allclose(bend(end.value, THETA), end.value, atol=1e-12)
    assert 20 < end.steps < 200


def test_gradient_against_differences_and_the_implicit_function_theorem():
    jacobian = jax.jit(jax.jacrev(lambda theta: solution(theta).value))(THETA)
    np.testing.assert_allclose(
        jacobian, central(jax.jit(lambda t: solution(t).value), THETA), atol=1e-8
    )
    x = solution(THETA).value
    by_x, by_theta = jax.jacrev(bend, (0, 1))(x, THETA)
    np.testing.assert_allclose(jacobian, jnp.linalg.solve(jnp.eye(3) - by_x, by_theta), atol=1e-11)


def test_second_derivative():
    slope = jax.jit(jax.grad(lambda theta: jnp.sum(solution(theta).value ** 2)))
    np.testing.assert_allclose(jax.jit(jax.jacrev(slope))(THETA), central(slope, THETA), atol=1e-7)


def test_closes_over_a_tree_of_inputs_and_ignores_its_start():
    def total(inputs, start):
        end = two_phase(lambda x: 0.5 * x + inputs["shift"] * inputs["more"][0], start)
        return jnp.sum(end.value)

    inputs = {"shift": jnp.array([1.0, 2.0]), "more": (3.0,)}
    by_inputs, by_start = jax.grad(total, (0, 1))(inputs, jnp.ones(2))
    np.testing.assert_allclose(by_inputs["shift"], 6.0, rtol=1e-10)
    np.testing.assert_allclose(by_inputs["more"][0], 6.0, rtol=1e-10)
    np.testing.assert_array_equal(by_start, 0.0)


def test_batches():
    thetas = jnp.stack([THETA, -THETA, 2.0 * THETA])
    together = jax.jit(jax.vmap(solution))(thetas)
    assert together.converged.shape == (3,) and together.converged.all()
    assert jnp.unique(together.steps).size > 1  # each stops on its own
    slopes = jax.jit(jax.vmap(jax.jacrev(lambda theta: solution(theta).value)))(thetas)
    for theta, value, slope in zip(thetas, together.value, slopes, strict=True):
        np.testing.assert_allclose(value, solution(theta).value, atol=1e-15)
        alone = jax.jacrev(lambda theta: solution(theta).value)(theta)
        np.testing.assert_allclose(slope, alone, atol=1e-11)


def test_agrees_with_optimistix():
    def other(theta):
        solver = optimistix.FixedPointIteration(rtol=1e-13, atol=1e-13)
        return optimistix.fixed_point(bend, solver, jnp.zeros(3), args=theta).value

    ours = jax.jacrev(lambda theta: solution(theta).value)(THETA)
    np.testing.assert_allclose(ours, jax.jit(jax.jacrev(other))(THETA), atol=1e-10)


def test_christianson_gradient_error_follows_the_forward_error():
    """Per step the errors of value and gradient fall alike, and stay of the same size."""
    truth, slope = solution(THETA).value, jax.jacrev(lambda t: solution(t).value)(THETA)

    def errors(steps):
        x = unrolled(lambda x: bend(x, THETA), jnp.zeros(3), steps).value
        rows = [_terms(x, jnp.eye(3)[k], steps) @ jax.jacrev(bend, 1)(x, THETA) for k in range(3)]
        return jnp.linalg.norm(x - truth), jnp.linalg.norm(jnp.stack(rows) - slope)

    (value_early, slope_early), (value_late, slope_late) = errors(12), errors(24)
    rates = [(value_late / value_early) ** (1 / 12), (slope_late / slope_early) ** (1 / 12)]
    np.testing.assert_allclose(rates[1], rates[0], atol=0.04)
    assert 0.05 < slope_early / value_early < 20 and 0.05 < slope_late / value_late < 20


def _terms(x, cotangent, steps):
    """The second phase stopped after a number of steps."""
    return adjoint(lambda x: bend(x, THETA), x, cotangent, 1e-300, steps).value


def test_stopped_early_says_so_and_is_off_by_about_as_much():
    end, exact = solution(THETA, tolerance=1e-4), solution(THETA)
    assert end.converged and end.steps < exact.steps
    short = solution(THETA, max_steps=5)
    assert not short.converged and short.steps == 5 and short.residual > 1e-3
    rough = jax.jacrev(lambda t: solution(t, tolerance=1e-4).value)(THETA)
    right = jax.jacrev(lambda t: solution(t).value)(THETA)
    off = jnp.max(jnp.abs(rough - right)) / jnp.max(jnp.abs(end.value - exact.value))
    assert 0.1 < off < 10


def test_second_phase_out_of_steps_gives_nan():
    def total(t, max_steps):
        # Newton's square root of t is done after few steps; the slow component starts at its end.
        end = two_phase(
            lambda x: jnp.stack([0.5 * (x[0] + t / x[0]), 0.99 * x[1] + 0.01 * t]),
            jnp.array([1.0, 2.0]),
            max_steps=max_steps,
        )
        return jnp.sum(end.value), end.converged

    (_, converged), slope = jax.value_and_grad(total, has_aux=True)(2.0, 100)
    assert converged and jnp.isnan(slope)
    slope = jax.grad(lambda t: total(t, 5000)[0])(2.0)
    np.testing.assert_allclose(slope, 1.0 + 0.5 / np.sqrt(2.0), rtol=1e-9)


def test_direction_without_effect_gives_nan():
    def total(theta):
        end = two_phase(lambda x: x - jnp.array([0.5, 0.0]) * (x - theta), jnp.ones(2))
        return jnp.sum(end.value), end.converged

    (_, converged), slope = jax.value_and_grad(total, has_aux=True)(3.0)
    assert converged and jnp.isnan(slope)


@pytest.mark.parametrize(
    "update", [lambda x: jnp.log(x - 1.0), lambda x: 2.0 * x + 1.0, lambda x: x * jnp.nan]
)
@pytest.mark.parametrize("find", [two_phase, partial(unrolled, steps=2000)])
def test_nan_and_divergence_do_not_converge(update, find):
    end = jax.jit(lambda: find(update, 1.5))()
    assert not end.converged and not end.residual <= 1e-12
    assert jnp.isnan(jax.grad(lambda t: two_phase(lambda x: t * update(x), 1.5).value)(1.0))


def test_nan_that_comes_from_behind():
    slope = jax.grad(lambda t: jnp.sqrt(-jnp.sum(solution(t).value ** 2)))(THETA)
    assert jnp.isnan(slope).all()


def test_adjoint_is_the_solution_of_its_equation_at_any_scale():
    x, cotangent = solution(THETA).value, jnp.array([1e-9, -3e-9, 2e-9])
    second = adjoint(lambda x: bend(x, THETA), x, cotangent)
    assert second.converged
    by_x = jax.jacrev(bend)(x, THETA)
    expected = jnp.linalg.solve(jnp.eye(3) - by_x.T, cotangent)
    np.testing.assert_allclose(second.value, expected, rtol=1e-10)
    nothing = adjoint(lambda x: bend(x, THETA), x, jnp.zeros(3))
    assert nothing.converged
    np.testing.assert_array_equal(nothing.value, 0.0)


def test_adjoint_costs_the_same_for_any_number_of_inputs():
    @jax.jit
    def steps(inputs):
        def update(x):
            return 0.5 * jnp.cos(x) + jnp.mean(inputs)

        return adjoint(update, two_phase(update, 1.0).value, 1.0).steps

    assert steps(jnp.ones(1)) == steps(jnp.ones(1000))


def kept(function, x):
    """How many numbers reverse mode stores."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(function, x)[1]))


def test_unrolled_converges_in_both_modes_and_stores_every_step():
    def loop(theta, steps=80):
        return unrolled(lambda x: bend(x, theta), jnp.zeros(3), steps).value

    right = jax.jacrev(lambda theta: solution(theta).value)(THETA)
    np.testing.assert_allclose(jax.jacrev(loop)(THETA), right, atol=1e-10)
    np.testing.assert_allclose(jax.jacfwd(loop)(THETA), right, atol=1e-10)
    stored = [kept(partial(loop, steps=n), THETA) for n in (10, 100)]
    assert stored[1] > 5 * stored[0]
    tight, loose = (
        kept(lambda t, tol=tol: solution(t, tolerance=tol).value, THETA) for tol in (1e-12, 1e-2)
    )
    assert tight == loose < stored[0]


def test_unrolled_reports():
    end = unrolled(lambda x: bend(x, THETA), jnp.zeros(3), 7)
    assert end.steps == 7 and not end.converged
    last = unrolled(lambda x: bend(x, THETA), jnp.zeros(3), 6).value
    relative = jnp.max(jnp.abs(end.value - last) / (1 + jnp.abs(end.value)))
    np.testing.assert_allclose(end.residual, relative)
    assert unrolled(lambda x: bend(x, THETA), jnp.zeros(3), 7, tolerance=0.5).converged


@pytest.mark.parametrize("n", [45.0, 30.0, 22.0])
def test_bound_agrees_with_the_kkt_system(n):
    """One bin with s = 20 and b = 35 +- 3: with n < 35 the signal strength rests at 0."""
    s, b, tau = 20.0, 35.0, (35.0 / 3.0) ** 2
    wall = jnp.array([0.0, 0.1])

    def nll(x, n):
        rate = x[0] * s + x[1] * b
        return rate - n * jnp.log(rate) + tau * (x[1] - jnp.log(x[1]))

    def projected(n):
        def update(x):
            return jnp.maximum(x - 0.5 * jax.grad(nll)(x, n) / jnp.array([11.0, 170.0]), wall)

        return two_phase(update, jnp.ones(2)).value

    def newton(n):
        return minimizer.minimize(lambda x: nll(x, n), jnp.ones(2), wall).parameters

    held = n < b
    expected = [0.0 if held else (n - b) / s, (n + tau) / (b + tau) if held else 1.0]
    np.testing.assert_allclose(projected(n), expected, atol=1e-10)
    slope = jax.jit(jax.jacrev(projected))(n)
    np.testing.assert_allclose(slope, [0.0 if held else 1 / s, held / (b + tau)], atol=1e-10)
    np.testing.assert_allclose(slope, jax.jit(jax.jacrev(newton))(n), atol=1e-9)


def yields(phi):
    return 15 + phi, 45 - 2 * phi, 0.5 + 0.1 * phi**2


def log_p(phi, test, truth):
    """The one-bin problem of the neos thesis."""
    s, b, sigma = yields(phi)
    n, tau = truth * s + b, (b / sigma) ** 2

    def nll(gamma, test=test):
        rate = test * s + gamma * b
        return rate - n * jnp.log(rate) + tau * (gamma - jnp.log(gamma))

    gamma = two_phase(lambda x: x - 0.2 * jax.grad(nll)(x) / tau, 1.0).value
    return norm.logsf(jnp.sqrt(2 * (nll(gamma) - nll(1.0, truth))))


@pytest.mark.parametrize(
    ("test", "best", "p"),
    [(0.0, 4.635222, 3.07571505e-3), (1.0, 6.30394, 5.926431e-3 / 2)],  # CLs is 2 p
)
def test_best_design_of_the_one_bin_problem(test, best, p):
    """A minimum inside a minimum, both as fixed points."""

    @jax.jit
    def design(rate):
        slope = jax.grad(partial(log_p, test=test, truth=1.0 - test))
        return two_phase(lambda phi: phi - rate * slope(phi), 1.0, tolerance=1e-10)

    found = design(1.5)
    assert found.converged
    assert found.value == pytest.approx(best, abs=1e-5)
    assert jnp.exp(log_p(found.value, test, 1.0 - test)) == pytest.approx(p, rel=1e-6)
    if test == 0.0:
        s, b, sigma = yields(7.0)
        closed = norm.logsf(asimov_significance(s, b, background_sigma=sigma))
        np.testing.assert_allclose(log_p(7.0, 0.0, 1.0), closed, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"init": [1.0, np.nan]}, "init[1] is nan"),
        ({"init": [1.0, 2.0], "tolerance": 0.0}, "tolerance is 0.0"),
        ({"init": [1.0, 2.0], "max_steps": 0}, "number of steps is 0"),
        ({"init": [1.0, 2.0], "update": jnp.sum}, "update turns shape (2,) into ()"),
    ],
)
def test_bad_input_is_named(arguments, complaint):
    arguments = {"update": lambda x: 0.5 * x, **arguments}
    arguments["init"] = np.array(arguments["init"])
    with pytest.raises(ValueError, match=re.escape(complaint)):
        two_phase(**arguments)
    arguments["steps"] = arguments.pop("max_steps", 5)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        unrolled(**arguments)


def test_forward_mode_says_that_it_does_not_work():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jacfwd(lambda theta: solution(theta).value)(THETA)
