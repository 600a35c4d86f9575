"""The five interpolation codes and their derivatives against pyhf's interpolators."""

import jax
import jax.numpy as jnp
import numpy as np
import pyhf
import pytest

from nablab.model import interpolation

CODES = {**interpolation.ADDITIVE, **interpolation.FACTOR}
# down, nominal, up of some bins: both sides, the same side, no shift at all, one side only
DOWN = np.array([45.0, 57.0, 9.0, 11.0, 60.0, 12.0])
NOMINAL = np.array([50.0, 60.0, 11.0, 11.0, 55.0, 12.0])
UP = np.array([58.0, 61.0, 14.0, 11.0, 59.0, 15.0])
BETWEEN = np.array([-4.2, -3.0, -1.7, -1.05, -0.9, -0.4, 0.3, 0.95, 1.05, 2.2, 4.9])
JOINTS = np.array([-1.0, 0.0, 1.0])


def pyhf_value(code, alphas, down=DOWN, nominal=NOMINAL, up=UP):
    """[alphas, bins], with the jumps of pyhf's code2 taken out."""
    interpolator = getattr(pyhf.interpolators, code)([[[down, nominal, up]]], subscribe=False)
    value = np.array(interpolator(np.atleast_2d(alphas))[0, 0])
    if code == "code2":
        alphas = np.reshape(alphas, (-1, 1))
        value += np.where(alphas > 1, up - nominal, 0.0)
        value -= np.where(alphas < -1, (up + down) / 2 - nominal, 0.0)
    return value


def our_value(code, alphas, down=DOWN, nominal=NOMINAL, up=UP):
    return CODES[code](jnp.reshape(alphas, (-1, 1)), down, nominal, up)


@pytest.mark.parametrize("code", CODES)
def test_values_equal_pyhf(code):
    near = (JOINTS[:, None] + np.array([-1e-9, 0.0, 1e-9])).ravel()
    drawn = np.random.default_rng(1).uniform(-5, 5, 50)
    alphas = np.concatenate([BETWEEN, near, drawn])
    np.testing.assert_allclose(
        our_value(code, alphas), pyhf_value(code, alphas), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize("code", CODES)
def test_derivatives_in_alpha_equal_differences_of_pyhf(code):
    """Of fourth order; no step crosses a joint, where the second derivative may jump."""

    def bins_of_one(alpha):
        return our_value(code, alpha)[0]

    step = 4e-3
    offsets = step * np.arange(-2, 3)
    grid = np.stack([pyhf_value(code, BETWEEN + offset) for offset in offsets])
    first = np.tensordot([1 / 12, -8 / 12, 0, 8 / 12, -1 / 12], grid, 1) / step
    second = np.tensordot([-1 / 12, 16 / 12, -30 / 12, 16 / 12, -1 / 12], grid, 1) / step**2
    slopes = jax.vmap(jax.jacfwd(bins_of_one))(BETWEEN)
    curvatures = jax.vmap(jax.jacfwd(jax.jacrev(bins_of_one)))(BETWEEN)
    np.testing.assert_allclose(slopes, first, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(curvatures, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("code", CODES)
def test_derivatives_in_the_templates_equal_differences_of_pyhf(code):
    templates = [DOWN, NOMINAL, UP]
    alphas = np.concatenate([BETWEEN, [-1.0, 1.0]])
    for which in range(3):
        slopes = jax.jacfwd(lambda x, which=which: our_value(code, alphas, *insert(x, which)))(
            templates[which]
        )
        step = 1e-3 * templates[which]
        for bin_, one in enumerate(np.eye(len(step))):
            up, down = (
                pyhf_value(code, alphas, *insert(templates[which] + sign * step * one, which))
                for sign in (1, -1)
            )
            difference = (up - down) / (2 * step[bin_])
            np.testing.assert_allclose(slopes[:, :, bin_], difference, rtol=2e-4, atol=1e-8)


def insert(template, which):
    return [template if i == which else other for i, other in enumerate([DOWN, NOMINAL, UP])]


def one_sided(code, joint, order):
    """Value or derivative just below and just above the joint."""

    def derivative(alpha):
        return our_value(code, alpha)[0]

    for _ in range(order):
        derivative = jax.jacfwd(derivative)
    return derivative(joint - 1e-10), derivative(joint + 1e-10)


@pytest.mark.parametrize(
    ("code", "joint", "continuous_derivatives"),
    [
        ("code0", 0.0, 0),
        ("code0", 1.0, 2),
        ("code1", 0.0, 0),
        ("code1", -1.0, 2),
        ("code2", 0.0, 2),
        ("code2", -1.0, 1),
        ("code2", 1.0, 1),
        ("code4", -1.0, 2),
        ("code4", 1.0, 2),
        ("code4p", -1.0, 2),
        ("code4p", 1.0, 2),
    ],
)
def test_how_smooth_a_code_is_at_its_joints(code, joint, continuous_derivatives):
    for order in range(3):
        below, above = one_sided(code, joint, order)
        if order <= continuous_derivatives:
            np.testing.assert_allclose(below, above, rtol=1e-7, atol=1e-7)
            between = one_sided(code, joint + 1e-10, order)[0]  # at the joint itself
            np.testing.assert_allclose(between, above, rtol=1e-7, atol=1e-7)
        elif order == continuous_derivatives + 1:
            assert not np.allclose(below, above, rtol=1e-3)


@pytest.mark.parametrize("code", CODES)
def test_one_sigma_is_the_template(code):
    down, nominal, up = our_value(code, JOINTS)
    base, scale = (NOMINAL, 1.0) if code in interpolation.ADDITIVE else (0.0, NOMINAL)
    np.testing.assert_allclose(base + scale * down, DOWN, rtol=1e-14)
    np.testing.assert_allclose(base + scale * nominal, NOMINAL, rtol=1e-14)
    np.testing.assert_allclose(base + scale * up, UP, rtol=1e-14)


def test_slopes_beyond_one_sigma_tell_the_codes_apart():
    """Of the same templates, with rise r and fall f: r, (3r - f)/2, r; the pull is the same."""
    rise, fall = UP - NOMINAL, NOMINAL - DOWN
    for code, slope in {"code0": rise, "code2": (3 * rise - fall) / 2, "code4p": rise}.items():
        found = our_value(code, 3.0) - our_value(code, 2.0)
        np.testing.assert_allclose(found[0], slope, rtol=1e-12, atol=1e-12)


def test_pyhf_jumps_where_code2_is_joined():
    """The reason why our code2 is not pyhf's beyond 1: once pyhf mends it, this test says so."""
    interpolator = pyhf.interpolators.code2([[[DOWN, NOMINAL, UP]]], subscribe=False)
    below, above = interpolator(np.array([[1.0, 1.0 + 1e-9]]))[0, 0]
    np.testing.assert_allclose(below, UP - NOMINAL)
    np.testing.assert_allclose(above, 0.0, atol=1e-7)


@pytest.mark.parametrize("code", CODES)
def test_far_pulls_keep_finite_derivatives(code):
    slopes = jax.jacrev(lambda alphas: our_value(code, alphas).sum(axis=1))(
        jnp.array([-30.0, 0.0, 30.0])
    )
    assert jnp.isfinite(slopes).all()
