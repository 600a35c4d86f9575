"""Upper limits against published numbers, closed forms and pyhf, and their derivatives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
import scipy.optimize
import scipy.stats
from models import MU, channel, modifier
from pyhf.infer.intervals import upper_limits

from nablab.infer import hypotests, limits
from nablab.infer.limits import LimitStatus
from nablab.model.histfactory import from_spec


@pytest.fixture(scope="module", autouse=True)
def tight_fits():
    """Drive pyhf's fits to convergence (set once: each change recomputes every live model)."""
    pyhf.set_backend("numpy", pyhf.optimize.scipy_optimizer(tolerance=1e-13, maxiter=10_000))
    yield
    pyhf.set_backend("numpy")


YIELDS = [[12.0, 11.0], [50.0, 52.0], [3.0, 7.0]]
OBSERVED = [51.0, 48.0]


def example(main=OBSERVED):
    model = from_spec(models.shapesys(*YIELDS))
    return model, jnp.concatenate([jnp.array(main), model.auxdata])


def all_values(limit):
    return np.array([limit.observed, *limit.expected])


def mixed(signal, background, down, up, uncertainty):
    """Shape and statistical uncertainties; the fits start on both sides of the shape's zero."""
    modifiers = [
        modifier("histosys", "shape", {"lo_data": down, "hi_data": up}),
        modifier("staterror", "mc", uncertainty),
    ]
    return {"channels": [channel("c", signal=(signal, [MU]), background=(background, modifiers))]}


MIXED = [[5.0, 11.0], [50.0, 60.0], [47.0, 63.0], [54.0, 56.0], [2.0, 3.0]]
MIXED_OBSERVED = [53.0, 66.0]


@jax.jit
def with_slopes(yields, main, confidence):
    """The six limits of the mixed model with their derivatives in every number."""

    def all_limits(*numbers):
        yields, main, confidence = numbers
        model = from_spec(mixed(*yields))
        data = jnp.concatenate([main, model.auxdata])
        limit = limits.upper_limit(model, data, confidence=confidence)
        found = jnp.array([limit.observed, *limit.expected])
        return found, found

    slopes, found = jax.jacrev(all_limits, argnums=(0, 1, 2), has_aux=True)(
        yields, main, confidence
    )
    return found, slopes


@pytest.mark.parametrize(
    ("yields", "main", "published"),
    [
        # pyhf's README: root finding to 1e-5, with fits of its default precision.
        (
            YIELDS,
            OBSERVED,
            [1.01156939, 0.55988001, 0.75702336, 1.06234693, 1.50116923, 2.05078596],
        ),
        # pyhf's example 2-bin_1-channel.
        (
            ([5.0, 10.0], [50.0, 60.0], [5.0, 12.0]),
            [53.0, 65.0],
            [2.545034, 1.172873, 1.570288, 2.171610, 3.009097, 4.021062],
        ),
    ],
)
def test_published_limits(yields, main, published):
    model = from_spec(models.shapesys(*yields))
    data = jnp.concatenate([jnp.array(main), model.auxdata])
    limit = limits.upper_limit(model, data).require()
    np.testing.assert_allclose(all_values(limit), published, rtol=2e-5)
    assert limit.converged
    assert limit.median == limit.expected[2]


def pyhf_limits(spec, data, test_statistic):
    """pyhf's own limits, with its fits and its root finder driven to convergence."""
    observed, expected = upper_limits.toms748_scan(
        [float(x) for x in data], pyhf.Model(spec), 0.1, 5.0, rtol=1e-10, test_stat=test_statistic
    )
    return np.array([observed, *expected])


def test_limits_by_q_equal_pyhf():
    """The default, qtilde, is compared below, where the gradients are."""
    model, data = example()
    limit = limits.upper_limit(model, data, test_statistic="q").require()
    theirs = pyhf_limits(models.shapesys(*YIELDS), data, "q")
    np.testing.assert_allclose(all_values(limit), theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("signal", "background", "published"),
    [(10.0, 10.0, 0.75393448), (10.0, 100.0, 2.09005008), (20.0, 100.0, 1.04502504)],
)
def test_band_without_nuisance_parameters(signal, background, published):
    """Closed form: q = 2 (s - b log(1 + s/b)) and CLs = sf(n + root q) / sf(n) = 0.05."""
    band = []
    for n in (2.0, 1.0, 0.0, -1.0, -2.0):
        root = scipy.stats.norm.isf(0.05 * scipy.stats.norm.sf(n)) - n
        s = scipy.optimize.brentq(
            lambda s, root=root: 2 * (s - background * np.log1p(s / background)) - root**2,
            1e-3,
            1e4,
            xtol=1e-13,
        )
        band.append(s / signal)
    # The second bin has no signal.
    model = from_spec(models.shapesys([signal, 0.0], [background, 9.0], [0.0, 0.0]))
    limit = limits.expected_upper_limit(model).require()
    np.testing.assert_allclose(limit.expected, band, rtol=1e-9)
    np.testing.assert_allclose(limit.median, published, rtol=1e-8)
    assert jnp.isnan(limit.observed)


def test_before_the_data_as_on_background_only_data():
    model, _ = example()
    before = limits.expected_upper_limit(model, confidence=0.9)
    asimov = model.expected_data(model.parameters(0.0))
    np.testing.assert_allclose(
        before.expected, limits.upper_limit(model, asimov, confidence=0.9).expected, rtol=1e-9
    )


def test_limits_equal_pyhf_and_have_gradients_in_every_number():
    """Yields, variations, uncertainties, data and confidence, against central differences."""
    numbers = [jnp.array(MIXED), jnp.array(MIXED_OBSERVED), jnp.array(0.95)]
    found, gradients = with_slopes(*numbers)
    spec = mixed(*MIXED)
    data = MIXED_OBSERVED + pyhf.Model(spec).config.auxdata
    np.testing.assert_allclose(found, pyhf_limits(spec, data, "qtilde"), rtol=1e-6)
    for which, start in enumerate(numbers):
        for entry in np.ndindex(start.shape):
            step = 1e-5 * start[entry]
            moved = []
            for sign in (1, -1):
                new = list(numbers)
                new[which] = start.at[entry].add(sign * step)
                moved.append(with_slopes(*new)[0])
            difference = (moved[0] - moved[1]) / (2 * step)
            np.testing.assert_allclose(
                gradients[which][:, *entry], difference, rtol=1e-5, atol=1e-8
            )


def test_derivatives_before_the_data_and_batches():
    """First and second derivative of the median limit along a path: against differences."""
    yields = jnp.array(YIELDS)
    direction = jnp.array([[1.0, -2.0], [3.0, 1.0], [0.5, -1.0]])

    def median(t):
        model = from_spec(models.shapesys(*(yields + t * direction)))
        return limits.expected_upper_limit(model).median

    def with_derivatives(t):
        (value, slope), (_, curvature) = jax.jvp(jax.value_and_grad(median), (t,), (1.0,))
        return value, slope, curvature

    step = 0.02
    grid, slopes, curvatures = jax.jit(jax.vmap(with_derivatives))(step * jnp.arange(-2.0, 3.0))
    first = grid @ jnp.array([1.0, -8.0, 0.0, 8.0, -1.0]) / (12 * step)
    second = grid @ jnp.array([-1.0, 16.0, -30.0, 16.0, -1.0]) / (12 * step**2)
    np.testing.assert_allclose(slopes[2], first, rtol=1e-6)
    np.testing.assert_allclose(curvatures[2], second, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e4, 1e-4, 1e7, 1e-7])
def test_limits_of_any_size(scale):
    """The same model in other units of mu: the limit may be far from the starting value."""
    model, data = example()
    wide = replace(model, upper=model.upper.at[0].set(1e9))
    scaled = replace(wide, nominal=jnp.where(wide.nominal < 20.0, scale, 1.0) * wide.nominal)
    limit = limits.upper_limit(scaled, data).require()
    np.testing.assert_allclose(
        all_values(limit) * scale, all_values(limits.upper_limit(model, data)), rtol=1e-8
    )


@pytest.mark.parametrize("main", [[0.0, 0.0], [40.0, 40.0], [90.0, 55.0], [125.0, 135.0]])
def test_cls_at_the_limit_is_the_level(main):
    """Deficits and excesses up to eight standard deviations."""
    model, data = example(main)
    limit = limits.upper_limit(model, data).require()
    np.testing.assert_allclose(hypotests.cls(model, data, limit.observed).observed, 0.05, rtol=1e-9)
    for k, value in enumerate(limit.expected):
        np.testing.assert_allclose(hypotests.cls(model, data, value).expected[k], 0.05, rtol=1e-9)


@pytest.mark.parametrize("signal", [[0.01, 0.01], [0.0, 0.0]])
def test_no_limit_below_the_bound_is_reported(signal):
    """The parameter of interest ends at 10, pyhf's default: no number, and no silent gradient."""
    model = from_spec(models.shapesys(signal, [50.0, 52.0], [3.0, 7.0]))
    data = jnp.concatenate([jnp.array([51.0, 48.0]), model.auxdata])
    limit = limits.upper_limit(model, data)
    assert (limit.status == LimitStatus.BEYOND_BOUND).all()
    assert not limit.converged
    assert np.isnan(all_values(limit)).all()
    with pytest.raises(RuntimeError, match="raise that bound"):
        limit.require()


def test_some_limits_may_be_beyond_the_bound():
    """These have no derivative; those of the others are as if they were not asked for."""
    yields, main = jnp.array(MIXED).at[0].multiply(0.2), jnp.array(MIXED_OBSERVED)
    found, slopes = with_slopes(yields, main, 0.95)
    np.testing.assert_array_equal(jnp.isnan(found), [False] * 4 + [True] * 2)
    for slope in slopes:
        assert jnp.isfinite(slope[:4]).all()
        assert jnp.isnan(slope[4:]).all()
    # Limits times the signal are the same for every size of the signal.
    in_bounds, slopes_in_bounds = with_slopes(yields.at[0].multiply(5.0), main, 0.95)
    np.testing.assert_allclose(found[:4], 5.0 * in_bounds[:4], rtol=1e-8)
    np.testing.assert_allclose(slopes[1][:4], 5.0 * slopes_in_bounds[1][:4], rtol=1e-7)


def test_bad_arguments_are_named():
    model, data = example()
    with pytest.raises(ValueError, match=r"confidence is 95\.0: it must be between 0 and 1"):
        limits.upper_limit(model, data, confidence=95.0)
    with pytest.raises(ValueError, match=r"confidence is 0\.0: it must be between 0 and 1"):
        limits.expected_upper_limit(model, confidence=0.0)
    with pytest.raises(ValueError, match="test_statistic is 'q0'"):
        limits.upper_limit(model, data, test_statistic="q0")
    with pytest.raises(ValueError, match=r"data\[0\] is nan"):
        limits.upper_limit(model, data.at[0].set(jnp.nan))
