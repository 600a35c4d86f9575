"""Continuous working points against SciPy's monotone cubic, event weights by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check_derivatives, check_finite_derivatives
from scipy.interpolate import PchipInterpolator

from nablab.relax.cuts import soft_cut
from nablab.relax.objects.btagging import btag_log_weight, working_point

CUTS = np.array([0.05, 0.28, 0.66, 0.71, 0.95])
EFFICIENCIES = np.array([[0.94, 0.85, 0.76, 0.70, 0.41], [0.40, 0.15, 0.05, 0.045, 0.004]])
SCALE_FACTORS = np.array([[0.99, 0.96, 0.97, 0.94, 0.91], [1.05, 1.10, 1.13, 1.30, 1.20]])
UNCERTAINTIES = np.array([[0.01, 0.02, 0.025, 0.03, 0.06], [0.05, 0.04, 0.10, 0.20, 0.15]])
TABLES = CUTS, EFFICIENCIES, SCALE_FACTORS, UNCERTAINTIES


@pytest.mark.parametrize("points", [2, 3, 5])
def test_working_point_is_the_monotone_cubic_of_scipy(points):
    cuts, *tables = (table[..., :points] for table in TABLES)
    scan = np.concatenate([cuts, np.linspace(cuts[0], cuts[-1], 37)])
    ours = jax.jit(jax.vmap(lambda cut: working_point(cut, cuts, *tables)))(scan)
    for interpolated, table in zip(ours, tables, strict=True):
        expected = PchipInterpolator(cuts, table, axis=-1)(scan)
        np.testing.assert_allclose(interpolated, expected.T, rtol=1e-12)


def test_working_point_does_not_overshoot_and_is_smooth():
    generator = np.random.default_rng(6)
    cuts = np.sort(generator.uniform(size=6))
    efficiencies = np.sort(generator.uniform(size=6))[::-1]
    curve = jax.value_and_grad(lambda cut: working_point(cut, cuts, *[efficiencies] * 3)[0])
    curve = jax.jit(jax.vmap(curve))
    assert np.all(np.diff(curve(np.linspace(cuts[0], cuts[-1], 501))[0]) <= 0)
    left, right = (curve(cuts[1:-1] + step)[1] for step in (-1e-9, 1e-9))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def test_derivatives_from_the_cut_to_the_event_weight():
    """One gradient through soft tags, interpolated working point and event weight.

    Three calibrated cuts, so that an inner slope and one at the end determine the cubic.
    """
    discriminants = jnp.array([[0.99, 0.30, 0.55], [0.10, 0.71, 0.0]])
    flavours = np.array([[0, 1, 0], [0, 1, 1]])
    mask = jnp.array([[True, True, True], [True, True, False]])

    def log_weight(cut, nuisance, *tables):
        point = working_point(cut, *tables)
        scale_factor = (point.scale_factor + nuisance * point.uncertainty)[flavours]
        tagged = soft_cut(discriminants, cut, slope=20.0)
        return btag_log_weight(tagged, point.efficiency[flavours], scale_factor, mask)

    tables = [table[..., :3] for table in TABLES]
    gradient = check_derivatives(log_weight, 0.6, 0.3, *tables, rtol=1e-5, atol=1e-5)
    assert all(np.any(np.abs(part) > 1e-3) for part in gradient)


def test_flat_tables_have_finite_derivatives():
    """Equal and turning secants, where the harmonic mean has a pole."""
    flat = jnp.array([0.5, 0.5, 0.5, 0.7, 0.5])

    def total(flat, cut):
        return sum(working_point(cut, jnp.array(CUTS), flat, flat, flat))

    check_finite_derivatives(total, flat, [0.06, 0.4, 0.7, 0.9])


def test_working_point_outside_of_the_calibrated_ones():
    for cut in (0.0499, 0.96):
        with pytest.raises(
            ValueError, match=rf"^cut is {cut}: the calibrated cuts reach from 0.05"
        ):
            working_point(cut, *TABLES)
    points = jax.jit(jax.vmap(lambda cut: working_point(cut, *TABLES)))
    at_the_ends = points(np.array([0.0499, 0.05, 0.95, 0.96]))
    for part in at_the_ends:
        np.testing.assert_array_equal(np.isnan(part).any(axis=1), [True, False, False, True])


def test_bad_calibrations_are_named():
    good = dict(zip(["calibrated_cuts", "efficiencies"], TABLES, strict=False))
    good |= {"scale_factors": SCALE_FACTORS, "uncertainties": UNCERTAINTIES}
    bad = np.full((2, 5), 0.5)
    bad[1, 3] = -0.5
    for change, message in [
        ({"calibrated_cuts": CUTS[::-1]}, r"^calibrated_cuts must increase"),
        ({"efficiencies": bad}, r"^efficiencies\[\(1, 3\)\] is -0.5"),
        ({"efficiencies": 1 - bad}, r"^1 - efficiencies\[\(1, 3\)\] is -0.5"),
        ({"scale_factors": np.zeros((2, 5))}, r"^scale_factors\[\(0, 0\)\] is 0.0"),
        ({"uncertainties": bad}, r"^uncertainties\[\(1, 3\)\] is -0.5"),
        ({"cut": np.nan}, "^cut is nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            working_point(**({"cut": 0.5} | good | change))


TAGGED = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
EFFICIENCY = np.array([[0.7, 0.6, 0.1, 0.2], [0.65, 0.02, 0.5, 0.5]])
SCALE_FACTOR = np.array([[0.95, 0.9, 1.2, 1.1], [0.9, 1.4, 1.0, 1.0]])
MASK = np.array([[True, True, True, False], [True, True, False, False]])


def test_event_weight_by_hand():
    expected = [
        0.95 * 1.2 * (1 - 0.9 * 0.6) / (1 - 0.6),
        (1 - 0.9 * 0.65) / (1 - 0.65) * 1.4,
    ]
    log_weight = btag_log_weight(TAGGED, EFFICIENCY, SCALE_FACTOR, MASK)
    np.testing.assert_allclose(np.exp(log_weight), expected, rtol=1e-13)
    # Tags drawn with the efficiency of simulation: the weight moves jets, it does not make any.
    soft = btag_log_weight(EFFICIENCY, EFFICIENCY, SCALE_FACTOR, MASK)
    np.testing.assert_allclose(soft, 0.0, atol=1e-14)


def test_weighted_simulation_has_the_tags_of_data():
    """Summed over all tags of two jets, the weights turn simulated into data probabilities."""
    e, sf, mask = np.array([0.7, 0.2]), np.array([0.9, 1.3]), np.ones(2, dtype=bool)
    for tags in itertools.product([0.0, 1.0], repeat=2):
        tags = np.array(tags)
        in_simulation = np.prod(np.where(tags == 1, e, 1 - e))
        in_data = np.prod(np.where(tags == 1, sf * e, 1 - sf * e))
        weight = np.exp(btag_log_weight(tags, e, sf, mask))
        np.testing.assert_allclose(weight * in_simulation, in_data, rtol=1e-13)


def test_event_weight_derivatives():
    tagged = np.array([[0.9, 0.1, 0.6, 0.3], [0.2, 0.8, 0.5, 0.5]])
    function = partial(btag_log_weight, mask=MASK)
    gradient = check_derivatives(function, tagged, EFFICIENCY, SCALE_FACTOR)
    for part in gradient:
        np.testing.assert_array_equal(part[~MASK], 0.0)
        assert np.all(np.abs(part[MASK]) > 1e-4)
    mapped = jax.jit(jax.vmap(btag_log_weight))(TAGGED, EFFICIENCY, SCALE_FACTOR, MASK)
    expected = btag_log_weight(TAGGED, EFFICIENCY, SCALE_FACTOR, MASK)
    np.testing.assert_allclose(mapped, expected, rtol=1e-13)


def test_event_weight_without_jets():
    for events, jets in ((2, 0), (2, 3), (0, 3)):
        junk, mask = np.full((events, jets), np.nan), np.zeros((events, jets), dtype=bool)
        weight = btag_log_weight(junk, junk, junk, mask)
        np.testing.assert_array_equal(weight, np.zeros(events))


def test_bad_tags_are_named():
    one, mask = np.array([0.5]), np.array([True])
    for change, message in [
        ({"tagged": -one}, r"^tagged\[0\] is -0.5"),
        ({"tagged": 3 * one}, r"^1 - tagged\[0\] is -0.5"),
        ({"efficiency": -one}, r"^efficiency\[0\] is -0.5"),
        ({"efficiency": 2 * one}, r"^1 - efficiency\[0\] is 0.0"),
        ({"scale_factor": -one}, r"^scale_factor\[0\] is -0.5"),
        ({"scale_factor": 4 * one}, r"^1 - scale_factor \* efficiency\[0\] is 0.0"),
        ({"scale_factor": np.nan * one}, r"^scale_factor\[0\] is nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            arguments = {"tagged": one, "efficiency": one, "scale_factor": one} | change
            btag_log_weight(**arguments, mask=mask)
    compiled = jax.jit(btag_log_weight)
    for efficiency, scale_factor in [(1.0, 0.5), (0.6, 2.0)]:
        weight = compiled(one, efficiency * mask, scale_factor * mask, mask)
        assert np.all(np.isnan(weight))
