"""The soft cut has the value, the gradient and the limit it should have, at any slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from nablab.relax.cuts import (
    PROFILES,
    hard_cut,
    hard_ellipse,
    log_soft_cut,
    soft_cut,
    soft_ellipse,
    spread,
    warn_of_preselection,
)

X = jnp.array([-1e308, -1e300, -800.0, -3.0, 0.4999, 0.5, 0.5001, 2.0, 700.0, 1e300, 1e308])


def soft_weights(x, above, slope):
    return soft_cut(x, above, slope=slope)


FORWARD, REVERSE = (
    jax.jit(jacobian(soft_weights, argnums=(0, 1, 2))) for jacobian in (jax.jacfwd, jax.jacrev)
)


def test_values():
    x = np.linspace(-5.0, 7.0, 41)
    np.testing.assert_allclose(
        soft_cut(jnp.array(x), 0.5, slope=2.0), expit(2.0 * (x - 0.5)), rtol=1e-13
    )
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
    assert np.all(np.isfinite(soft_cut(x, 0.5, slope=slope)))
    for jacobian in (FORWARD, REVERSE):
        for derivative in jacobian(x, 0.5, slope):
            assert np.all(np.isfinite(derivative))


def test_textbook_formula_would_be_noticed():
    def textbook(x, threshold, slope):
        return 1.0 / (1.0 + jnp.exp(-slope * (x - threshold)))

    assert np.isnan(jax.grad(textbook)(-20.0, 0.5, 50.0))


def test_steep_soft_cut_is_the_hard_cut_away_from_the_threshold():
    away = X[np.abs(X - 0.5) > 1e-3]
    np.testing.assert_array_equal(np.round(soft_cut(away, 0.5, slope=1e6), 12), hard_cut(away, 0.5))
    assert 0 < hard_cut(away, 0.5).sum() < len(away)


def test_hard_cut():
    x = jnp.array([0.0, 0.5, jnp.nextafter(0.5, 1.0), 3.0])
    np.testing.assert_array_equal(hard_cut(x, 0.5, slope=7.0), [0, 0, 1, 1])
    assert hard_cut(x, 0.5).dtype == jnp.float64
    assert jax.grad(lambda threshold: hard_cut(x, threshold).sum())(0.5) == 0.0


def test_compiled_and_mapped():
    thresholds = jnp.array([-1.0, 0.0, 2.5])
    rows = jnp.stack([soft_cut(X, threshold, slope=3.0) for threshold in thresholds])
    mapped = jax.jit(jax.vmap(lambda threshold: soft_cut(X, threshold, slope=3.0)))(thresholds)
    np.testing.assert_allclose(mapped, rows, rtol=1e-14)


@pytest.mark.parametrize("cut", [soft_cut, hard_cut])
def test_bad_input_is_named(cut):
    with pytest.raises(ValueError, match=r"x\[1\] is nan"):
        cut(jnp.array([1.0, jnp.nan]), 0.0)
    with pytest.raises(ValueError, match="above is inf"):
        cut(X, float("inf"))


def test_slope_must_be_positive():
    for slope in (0.0, -2.0):
        with pytest.raises(ValueError, match=f"slope is {slope}"):
            soft_cut(X, 0.0, slope=slope)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_have_the_same_slope_at_the_threshold(profile):
    def weight(x, above=None, below=None):
        return soft_cut(x, above, slope=2.0, below=below, profile=profile)

    rise = jax.grad(lambda x: weight(x, 3.0))(jnp.array(3.0))
    assert rise == pytest.approx(2.0 / 4, rel=1e-14)
    x = jnp.linspace(0.0, 6.0, 61)
    np.testing.assert_allclose(weight(x, 3.0) + weight(x, below=3.0), 1.0, rtol=1e-13)
    assert np.all(np.diff(weight(x, 3.0)) >= 0)
    away = x[x != 3.0]
    steep = soft_cut(away, 3.0, slope=1e6, profile=profile)
    np.testing.assert_allclose(steep, hard_cut(away, 3.0), atol=1e-15)


def test_profiles_have_their_formulas():
    x = jnp.linspace(-4.0, 4.0, 33)
    erf = norm.cdf(x * np.sqrt(2 * np.pi) / 4)
    np.testing.assert_allclose(soft_cut(x, 0.0, profile="erf"), erf, rtol=1e-12)
    compact = soft_cut(x, 0.0, profile="compact")
    np.testing.assert_array_equal(compact == 0, x <= -3.75)
    np.testing.assert_array_equal(compact == 1, x >= 3.75)
    v = 0.5 + 1.0 / 7.5
    assert soft_cut(jnp.array(1.0), 0.0, profile="compact") == pytest.approx(
        6 * v**5 - 15 * v**4 + 10 * v**3
    )


def test_window_is_the_product_of_both_sides():
    x = jnp.linspace(0.0, 10.0, 21)
    window = soft_cut(x, above=3.0, below=7.0, slope=2.0)
    np.testing.assert_allclose(window, expit(2 * (x - 3)) * expit(2 * (7 - x)), rtol=1e-13)
    hard = hard_cut(x, above=3.0, below=7.0)
    np.testing.assert_array_equal(hard, (x > 3) & (x < 7))
    np.testing.assert_array_equal(hard_cut(x, below=7.0), x < 7)


@pytest.mark.parametrize("profile", PROFILES)
def test_log_weight_is_the_logarithm(profile):
    x = jnp.linspace(-1.0, 8.0, 46)
    arguments = dict(above=1.3, below=6.0, slope=4.0, profile=profile)
    weight, log_weight = soft_cut(x, **arguments), log_soft_cut(x, **arguments)
    np.testing.assert_allclose(jnp.exp(log_weight), weight, rtol=1e-12, atol=1e-300)
    slopes = jax.vmap(jax.grad(lambda x: log_soft_cut(x, **arguments)))(x)
    rises = jax.vmap(jax.grad(lambda x: soft_cut(x, **arguments)))(x)
    possible = weight > 0
    np.testing.assert_allclose(slopes[possible], (rises / weight)[possible], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(slopes[~possible], 0.0)


@pytest.mark.parametrize("profile", ["sigmoid", "erf"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_weight_far_outside_keeps_its_gradient(profile, dtype):
    """The weight itself has underflowed to 0 here, and its gradient with it."""
    gradient = jax.jit(jax.grad(lambda x: log_soft_cut(x, 0.0, slope=1.0, profile=profile)))
    for x in np.array([-30.0, -1e3, -1e6, -1e10], dtype):
        expected = 1.0 if profile == "sigmoid" else -x * 2 * np.pi / 16
        assert gradient(x) == pytest.approx(expected, rel=1e-2 if x == -30 else 1e-5)
    for x in np.array([-1e37, -1e30, 1e37], dtype):
        assert np.isfinite(gradient(x))


def test_several_cuts_at_once():
    x = jax.random.normal(jax.random.key(0), (50, 3))
    cuts, slopes = jnp.array([-0.5, 0.0, 0.3]), jnp.array([1.0, 5.0, 20.0])

    def total(cuts):
        return jnp.exp(log_soft_cut(x, above=cuts, slope=slopes).sum(axis=-1)).sum()

    one_by_one = np.prod([soft_cut(x[:, i], cuts[i], slope=slopes[i]) for i in range(3)], axis=0)
    assert total(cuts) == pytest.approx(one_by_one.sum(), rel=1e-13)
    step = 1e-6 * np.eye(3)
    differences = [(total(cuts + e) - total(cuts - e)) / 2e-6 for e in step]
    np.testing.assert_allclose(jax.grad(total)(cuts), differences, rtol=1e-7)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("slope", [2.0, 50.0])
def test_ellipse(profile, slope):
    on = jnp.linspace(0, 6.28, 7)
    u, v = 2.0 * jnp.cos(on), 0.5 * jnp.sin(on)
    x, y = 1 + u * np.cos(0.4) - v * np.sin(0.4), 2 + u * np.sin(0.4) + v * np.cos(0.4)
    where = (1.0, 2.0), (2.0, 0.5)
    how = {"angle": 0.4, "slope": slope, "profile": profile}
    np.testing.assert_allclose(soft_ellipse(x, y, *where, **how), 0.5, atol=1e-13)
    inside, outside = (
        hard_ellipse(1 + (x - 1) * f, 2 + (y - 2) * f, *where, **how) for f in (0.999, 1.001)
    )
    assert np.all(inside == 1) and np.all(outside == 0)

    def along(r):  # the first radius, turned by 0.4
        return soft_ellipse(1 + 2 * r * jnp.cos(0.4), 2 + 2 * r * jnp.sin(0.4), *where, **how)

    assert jax.grad(along)(1.0) == pytest.approx(-slope / 4, rel=1e-12)
    centre = jax.grad(lambda x, y: soft_ellipse(x, y, *where, **how), argnums=(0, 1))(1.0, 2.0)
    np.testing.assert_allclose(centre, 0.0, atol=1e-12)


def test_spread():
    x = np.column_stack([norm.ppf((np.arange(1000) + 0.5) / 1000), np.linspace(0, 1, 1000)])
    np.testing.assert_allclose(spread(x), [1.0, 0.34134], rtol=2e-3)
    x[-1] = 1e9  # one outlier
    np.testing.assert_allclose(spread(x), [1.0, 0.34134], rtol=5e-3)
    with pytest.raises(ValueError, match=r"spread of x\[1\] is 0.0"):
        spread(np.array([[1.0, 5.0], [2.0, 5.0], [7.0, 5.0]]))
    with pytest.raises(ValueError, match="no events"):
        spread(np.zeros(0))


EXPONENTIAL = np.random.default_rng(3).exponential(20.0, 4000)
GAUSSIAN = np.random.default_rng(4).normal(50.0, 10.0, 4000)


@pytest.mark.parametrize("sample", [EXPONENTIAL, GAUSSIAN])
def test_preselection_is_noticed_where_the_cut_acts(sample):
    selected = sample[sample > 40]
    with pytest.warns(UserWarning, match=r"sharply at x = 40.0.* above=42 still weighs 0.27"):
        warn_of_preselection(selected, above=42.0, slope=0.5)
    with pytest.warns(UserWarning, match=r"sharply at x = -40.0.* below=-42 still weighs 0.27"):
        warn_of_preselection(-selected, below=-42.0, slope=0.5)
    warn_of_preselection(selected, above=52.0, slope=0.5)  # weighs 0.002 there: too far away


def test_no_warning_without_a_preselection():
    warn_of_preselection(GAUSSIAN, above=GAUSSIAN.min() + 1, slope=0.5)
    warn_of_preselection(GAUSSIAN, below=GAUSSIAN.max() - 1, slope=0.5)
    warn_of_preselection(GAUSSIAN[:20], above=50.0)  # too few events to tell
    warn_of_preselection(np.zeros(0), above=50.0)


def test_bad_arguments_are_named():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="above, below, or both"):
        soft_cut(x)
    with pytest.raises(ValueError, match="above, below, or both"):
        hard_cut(x)
    with pytest.raises(ValueError, match="profile is 'tanh': it must be one of sigmoid"):
        soft_cut(x, 1.0, profile="tanh")
    with pytest.raises(ValueError, match=r"radii is 0\.0"):
        soft_ellipse(x, x, (0.0, 0.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="centre must have 2 entries"):
        soft_ellipse(x, x, (0.0, 0.0, 1.0), (1.0, 1.0))
