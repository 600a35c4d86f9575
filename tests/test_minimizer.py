"""Minima, their certificates, and their derivatives."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nablab.infer import _valleys, minimizer
from nablab.infer.certificates import Status


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def tilted(x, theta):
    """A convex function of three parameters, not quadratic, moved by theta."""
    matrix = jnp.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 3.0]])
    y = x - jnp.array([theta, theta**2, 1.0])
    return 0.5 * y @ matrix @ y + jnp.sum(jnp.cosh(0.5 * x))


@jax.jit
def minimum(theta, lower=-jnp.inf):
    return minimizer.minimize(lambda x: tilted(x, theta), jnp.zeros(3), lower=lower).parameters


@pytest.mark.parametrize("size", [2, 12])
def test_rosenbrock(size):
    fit = minimizer.minimize(rosenbrock, jnp.full(size, -0.5), lower=-2.0, upper=3.0)
    fit.certificate.require()
    np.testing.assert_allclose(fit.parameters, 1.0, atol=1e-8)


def test_box_against_scipy():
    lower, upper = jnp.array([-2.0, 0.7, -2.0]), jnp.array([0.2, 2.0, 2.0])
    fit = minimizer.minimize(rosenbrock, jnp.array([-1.0, 1.5, 1.0]), lower, upper)
    fit.certificate.require()
    reference = scipy.optimize.minimize(
        lambda x: float(rosenbrock(x)),
        [-1.0, 1.5, 1.0],
        jac=lambda x: np.array(jax.grad(rosenbrock)(x)),
        bounds=list(zip(lower, upper, strict=True)),
        options={"ftol": 1e-15, "gtol": 1e-12},
    )
    np.testing.assert_allclose(fit.value, reference.fun, rtol=1e-9)
    np.testing.assert_allclose(fit.parameters, reference.x, atol=1e-5)
    np.testing.assert_array_equal(fit.certificate.at_bound, [False, True, False])


@pytest.mark.parametrize("lower", [[-np.inf] * 3, [-np.inf, 0.4, -np.inf]])
@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_first_and_second_derivative(lower, derivative):
    """Free, and with the second parameter resting on its bound at this theta."""
    theta, step, lower = 0.6, 1e-4, jnp.array(lower)

    def central(function):
        return (function(theta + step) - function(theta - step)) / (2 * step)

    slope = jax.jit(derivative(lambda t: minimum(t, lower)))

    np.testing.assert_allclose(slope(theta), central(lambda t: minimum(t, lower)), atol=1e-7)
    np.testing.assert_allclose(jax.jit(derivative(slope))(theta), central(slope), atol=1e-6)
    if lower[1] > 0:
        assert slope(theta)[1] == 0.0  # the bound holds it, and the others feel that


def test_derivative_in_the_value_of_a_fixed_parameter():
    @jax.jit
    def others(held):
        init, fixed = jnp.array([held, 0.0, 0.0]), jnp.array([True, False, False])
        return minimizer.minimize(lambda x: tilted(x, 0.5), init, fixed=fixed).parameters

    difference = (others(0.3 + 1e-5) - others(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jacrev(others)(0.3), difference, atol=1e-8)
    assert difference[0] == pytest.approx(1.0)


def test_batches():
    thetas = jnp.linspace(-2.0, 2.0, 7)
    together = jax.jit(jax.vmap(minimum))(thetas)
    np.testing.assert_allclose(together, jnp.stack([minimum(t) for t in thetas]), atol=1e-8)
    slopes = jax.jit(jax.vmap(jax.jacfwd(minimum)))(thetas)
    assert jnp.isfinite(slopes).all()


@pytest.mark.parametrize(
    ("function", "status"),
    [
        (lambda x: -jnp.sum(x**2), Status.NOT_A_MINIMUM),  # a maximum at the start
        (lambda x: (x[0] - 1.0) ** 2 + 0.0 * x[1], Status.NOT_A_MINIMUM),  # no effect of x[1]
        (lambda x: jnp.sum(jnp.log(x - 1.0)), Status.NOT_FINITE),
        (lambda x: jnp.exp(-x[0]) + x[1] ** 2, Status.NOT_CONVERGED),  # the minimum is far away
    ],
)
def test_what_is_no_minimum_says_so(function, status):
    # Few steps: with more of them exp(-x) is flat to double precision, and no minimum either.
    with pytest.warns(UserWarning, match="minimize: fit failed"):
        fit = minimizer.minimize(function, jnp.zeros(2), max_iterations=3)
    assert fit.certificate.status == status
    with pytest.raises(RuntimeError, match="fit failed"):
        fit.certificate.require()


def test_more_starts_find_the_deeper_of_two_minima():
    def double_well(x):
        return jnp.sum((x**2 - 1.0) ** 2 + 0.3 * x)

    fit = minimizer.minimize(double_well, jnp.array([0.9]), starts=jnp.array([[-0.8], [0.8]]))
    assert fit.parameters[0] < -1.0
    stuck = minimizer.minimize(double_well, jnp.array([0.9]))
    assert stuck.parameters[0] > 0.9


@pytest.mark.parametrize("extrema", [3, 5])
def test_along_a_line_the_deepest_valley_is_found(extrema):
    """A thousand polynomials with two or three minima, no two extrema closer than 0.2: a fine
    scan finds none that is lower."""
    rng = np.random.default_rng(extrema)
    coefficients, lowest = [], []
    while len(coefficients) < 1000:
        places = np.sort(rng.uniform(-1.2, 1.2, extrema))
        if np.diff(places).min() > 0.2:
            function = np.poly1d(places, r=True).integ()
            coefficients.append(function.coeffs)
            lowest.append(function(np.linspace(-1.2, 1.2, 20_001)).min())

    def minimum(coefficients):
        return minimizer.minimize(
            lambda x: jnp.polyval(coefficients, x[0]), jnp.zeros(1), along=[0]
        )

    found = jax.jit(jax.vmap(minimum))(jnp.array(coefficients))
    assert np.all(found.certificate.converged)
    missed = np.sum(found.value > np.array(lowest) + 1e-12)
    assert missed <= (extrema > 3)  # of three minima the two that promise most are tried


@pytest.mark.parametrize("place", [0.0, 0.1, -2.0])
@pytest.mark.parametrize("off", [-1e-9, 1e-67, 1e-9])
def test_where_a_fit_has_arrived_is_no_other_valley(place, off):
    """Its end may be at one of the places, with slopes there that are rounding errors."""
    slopes = _valleys.PLACES - place
    nothing = jnp.where(slopes == 0, off, slopes)[None]
    _, heights = _valleys._valleys(jnp.full(1, place + off), nothing**2 / 2, nothing)
    assert not np.isfinite(heights).any()


def test_a_valley_beyond_the_places_is_found_and_a_bound_kept():
    """Minima at -1 (0) and 8 (-2): only the slope at 3 tells of the second."""

    def two(x):
        return jnp.minimum((x[0] + 1.0) ** 2, (x[0] - 8.0) ** 2 / 4 - 2.0)

    fit = minimizer.minimize(two, jnp.zeros(1), along=[0])
    np.testing.assert_allclose([fit.parameters[0], fit.value], [8.0, -2.0], atol=1e-9)
    held = minimizer.minimize(two, jnp.zeros(1), upper=2.0, along=[0])
    np.testing.assert_allclose([held.parameters[0], held.value], [-1.0, 0.0], atol=1e-9)
    fixed = minimizer.minimize(two, jnp.full(1, 0.5), fixed=True, along=[0])
    assert fixed.parameters[0] == 0.5 and fixed.certificate.converged


def test_minima_without_number_are_told():
    """3**20 minima: each start finds one of its own, and none the lowest."""

    def egg_box(x):
        return jnp.sum(0.3 * (x - 0.2) ** 2 + jnp.cos(5.0 * x) + 0.3 * jnp.cos(3.0 * x + 1.0))

    with pytest.warns(UserWarning, match="most starts ended in a minimum of their own"):
        fit = minimizer.minimize(egg_box, jnp.full(20, 0.1), -5.0, 5.0, along=range(20))
    assert fit.certificate.status == Status.NOT_LOWEST


def test_certificate_in_units_of_the_uncertainties():
    correlation = 0.6
    covariance = jnp.array([[4.0, 2.0 * correlation], [2.0 * correlation, 1.0]])
    precision = jnp.linalg.inv(covariance)
    fit = minimizer.minimize(lambda x: 0.5 * x @ precision @ x, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(fit.certificate.smallest_eigenvalue, 1 - correlation, rtol=1e-9)
    assert fit.certificate.gradient_norm < 1e-10
    assert fit.certificate.iterations <= 3


def test_derivatives_of_many_parameters(monkeypatch):
    """With and without the expansion in between, at bounds and off them."""
    size = 130
    monkeypatch.setattr(minimizer.linalg, "LARGE", size)
    rng = np.random.default_rng(4)
    pull, weights = jnp.asarray(rng.normal(size=(2, size)))

    def function(x, t):
        return jnp.sum((x - t * pull) ** 2 + 0.1 * x**4) + 0.01 * jnp.sum(weights * x * t) ** 2

    def ends(t):
        fit = minimizer.minimize(function, jnp.zeros(size), lower=-0.5, args=(t,))
        return jnp.stack([weights @ fit.parameters, fit.value]), fit.certificate

    def derivatives():
        return jax.jit(jax.jacrev(lambda t: ends(t), has_aux=True))(0.7)

    found, certificate = derivatives()
    assert certificate.converged and certificate.at_bound.any()
    monkeypatch.setattr(minimizer.linalg, "LARGE", size + 1)
    expected, _ = derivatives()
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_large_fit_on_a_single_processor():
    """There jaxlib 0.10 does not find LAPACK in a program of that size."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("processors can be chosen on Linux only")
    script = Path(__file__).parent / "benchmarks" / "lapack.py"
    command = [sys.executable, str(script), "without"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    assert float(said.stdout) == pytest.approx(1.3, abs=1e-6)
