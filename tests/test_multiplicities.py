"""Multiplicities against exact fractions, in logarithms and without, and vetoes."""

import itertools
import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check_derivatives, check_finite_derivatives
from scipy.special import expit

from nablab.relax.cuts import soft_cut
from nablab.relax.objects.multiplicities import (
    at_least,
    gaussian_log_weight,
    log_at_least,
    log_multiplicity,
    multiplicity,
    soft_count,
    veto_log_weight,
)

MASK = np.array([[True, True, False, True, True], [True, False, True, False, False]])
MEMBERSHIPS = np.array([[0.3, 0.9, 0.5, 0.05, 0.6], [0.7, 0.2, 0.4, 0.1, 0.8]])


def exact_multiplicity(memberships) -> list[Fraction]:
    """P(N = n) as fractions of integers, the memberships being the floating-point numbers."""
    polynomial = [Fraction(1)]
    for p in map(Fraction, map(float, memberships)):
        stay = [(1 - p) * c for c in polynomial] + [Fraction(0)]
        move = [Fraction(0)] + [p * c for c in polynomial]
        polynomial = [a + b for a, b in zip(stay, move, strict=True)]
    return polynomial


def log_of(fraction: Fraction) -> float:
    if fraction == 0:
        return -math.inf
    return math.log(fraction.numerator) - math.log(fraction.denominator)


def memberships_of(objects):
    """Five kinds of events, with 0 and 1 among the memberships if there is room for it."""
    generator = np.random.default_rng(objects)
    p = np.stack(
        [
            generator.uniform(size=objects),
            expit(generator.normal(0.0, 3.0, size=objects)),
            expit(generator.normal(0.0, 60.0, size=objects)),
            10 ** generator.uniform(-12, -2, size=objects),
            1 - 10 ** generator.uniform(-12, -2, size=objects),
        ]
    )
    if objects > 3:
        p[:, :2] = 0.0, 1.0
    return p


def log_probabilities(log_odds, mask):
    return log_multiplicity(jax.nn.log_sigmoid(log_odds), jax.nn.log_sigmoid(-log_odds), mask)


@pytest.mark.parametrize("objects", [1, 50])
def test_multiplicity_is_that_of_exact_fractions(objects):
    p = memberships_of(objects)
    everyone = np.ones(p.shape, dtype=bool)
    exact = [exact_multiplicity(event) for event in p]
    # Relative, so that the tails are tested as well; below 1e-300 floating point ends.
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-300)
    probabilities = multiplicity(p, everyone)
    close(probabilities, [[float(e) for e in event] for event in exact])

    with np.errstate(divide="ignore"):
        log_pass, log_fail = np.log(p), np.log1p(-p)
    logs = log_multiplicity(log_pass, log_fail, everyone)
    close_logs = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    close_logs(logs, [[log_of(fraction) for fraction in event] for event in exact])

    for n in (0, objects // 2 + 1, objects + 1):
        tails = [sum(event[n:], Fraction(0)) for event in exact]
        close(at_least(probabilities, n), [float(tail) for tail in tails])
        close_logs(log_at_least(logs, n), [log_of(tail) for tail in tails])


def test_multiplicity_is_the_sum_over_all_subsets():
    """The definition, without the recurrence."""
    p = memberships_of(8)[1]
    brute_force = np.zeros(9)
    for outcome in itertools.product([0, 1], repeat=8):
        brute_force[sum(outcome)] += np.prod(np.where(outcome, p, 1 - p))
    np.testing.assert_allclose(multiplicity(p, np.ones(8, dtype=bool)), brute_force, rtol=1e-13)


def test_logarithms_do_not_underflow():
    """Six jets, 800 slopes below the threshold: e^-3200 for four of them to pass, 4 out of 6."""

    @jax.jit
    def four_pass(log_odds):
        weight = jax.value_and_grad(lambda x: log_probabilities(x, jnp.ones(6, dtype=bool))[4])
        return weight(log_odds), jax.jacfwd(jax.grad(lambda x: weight(x)[0]))(log_odds)

    (log_weight, gradient), hessian = four_pass(jnp.full(6, -800.0))
    np.testing.assert_allclose(log_weight, np.log(15) - 3200, rtol=1e-15)
    np.testing.assert_allclose(gradient, np.full(6, 4 / 6), rtol=1e-12)
    # Independent log odds: Cov of "i passes" and "j passes" among the subsets of four.
    covariance = np.full((6, 6), 4 * 3 / (6 * 5) - (4 / 6) ** 2)
    np.fill_diagonal(covariance, 4 / 6 - (4 / 6) ** 2)
    np.testing.assert_allclose(hessian, covariance, atol=1e-12)


def test_derivatives():
    """Of everything that weighs an event, in the log odds of its objects."""

    def weights(log_odds, width):
        logs = log_probabilities(log_odds, MASK)
        memberships = jax.nn.sigmoid(log_odds)
        return (
            multiplicity(memberships, MASK),
            gaussian_log_weight(soft_count(memberships, MASK), 2.0, width),
            logs[0, :5],
            logs[1, :3],
            log_at_least(logs, 2),
            veto_log_weight(jax.nn.log_sigmoid(-log_odds), MASK),
        )

    log_odds = np.log(MEMBERSHIPS) - np.log1p(-MEMBERSHIPS)
    gradient = check_derivatives(weights, log_odds, 0.5)[0]
    np.testing.assert_array_equal(gradient[~MASK], 0.0)
    assert np.all(np.abs(gradient[MASK]) > 1e-3)


def test_multiplicity_derivatives_where_memberships_are_0_and_1():
    """d P(N = n) / dp_i is P(N = n - 1) - P(N = n) of the others: a polynomial in closed form."""
    p = np.array([0.0, 1.0, 0.0, 0.3, 1.0])
    jacobian = jax.jit(jax.jacrev(multiplicity))(p, np.ones(5, dtype=bool))
    for i in range(5):
        others = [float(c) for c in exact_multiplicity(np.delete(p, i))]
        expected = np.subtract([0.0, *others], [*others, 0.0])
        np.testing.assert_allclose(jacobian[:, i], expected, atol=1e-15)


def test_derivatives_are_finite():
    """Down to memberships that are 0 and 1 exactly."""
    mask = jnp.array([True, True, True, True, False])
    extremes = jnp.array([0.0, 40.0, 800.0, 1e5, 1e300, jnp.inf])
    signs = jnp.array([1.0, -1.0, 0.0, -1.0, 1.0])
    log_odds = jnp.where(signs == 0, 0.3, signs * jnp.where(signs == 0, 1.0, extremes[:, None]))

    def total(log_odds):
        """Weights and log-weights: the gradient must not be NaN where the weight is 0."""
        logs = log_probabilities(log_odds, mask)
        tail = log_at_least(logs, 2)
        veto = jnp.exp(veto_log_weight(jax.nn.log_sigmoid(-log_odds), mask))
        finite = jnp.where(jnp.isfinite(logs), logs, 0.0).sum()
        return finite + jnp.exp(logs).sum() + jnp.where(jnp.isfinite(tail), tail, 0.0) + veto

    assert not np.any(np.isnan(log_probabilities(log_odds, jnp.broadcast_to(mask, (6, 5)))))
    check_finite_derivatives(total, log_odds)


def test_veto():
    """The probability that no lepton passes: those of padding do not count."""
    log_odds = jnp.array([[-2.0, 1.0, 5.0], [3.0, np.inf, -np.inf], [np.inf, 0.0, 0.0]])
    mask = jnp.array([[True, True, False], [False, False, False], [True, True, True]])
    expected = [np.log(expit(2.0) * expit(-1.0)), 0.0, -np.inf]
    weight = veto_log_weight(jax.nn.log_sigmoid(-log_odds), mask)
    np.testing.assert_allclose(weight, expected, rtol=1e-13)
    nobody = log_probabilities(log_odds, mask)[:, 0]
    np.testing.assert_allclose(nobody, expected, rtol=1e-13)


@pytest.mark.parametrize("events", [2, 1, 0])
@pytest.mark.parametrize("objects", [0, 3])
def test_events_without_objects(objects, events):
    """No room for objects at all, or all of them masked: nobody passes, whatever the values."""
    mask = np.zeros((events, objects), dtype=bool)
    junk = np.full((events, objects), np.nan)
    nobody = np.eye(objects + 1)[np.zeros(events, dtype=int)]
    probabilities, logs = multiplicity(junk, mask), log_multiplicity(junk, junk, mask)
    np.testing.assert_array_equal(probabilities, nobody)
    np.testing.assert_array_equal(np.exp(logs), nobody)
    np.testing.assert_array_equal(soft_count(junk, mask), np.zeros(events))
    np.testing.assert_array_equal(veto_log_weight(junk, mask), np.zeros(events))
    np.testing.assert_array_equal(at_least(probabilities, 1), np.zeros(events))
    np.testing.assert_array_equal(log_at_least(logs, 1), np.full(events, -np.inf))


def test_soft_count_and_its_weight():
    pt, slope, threshold = np.array([[50.0, 30.0], [37.0, 1.0]]), 0.2, 38.0
    mask = np.array([[True, True], [True, False]])
    expected = np.where(mask, expit(slope * (pt - threshold)), 0.0).sum(axis=1)
    count = soft_count(soft_cut(pt, threshold, slope=slope), mask)
    np.testing.assert_allclose(count, expected, rtol=1e-13)
    steep = soft_count(soft_cut(pt, threshold, slope=1e6), mask)
    np.testing.assert_allclose(steep, [1.0, 0.0], atol=1e-12)
    weight = gaussian_log_weight(count, 2.0, 0.5)
    np.testing.assert_allclose(weight, -2 * (expected - 2) ** 2, rtol=1e-13)
    np.testing.assert_array_equal(gaussian_log_weight(np.full(2, 2.0), 2.0, 1e-9), 0.0)


def test_compiled_and_mapped():
    rows = multiplicity(MEMBERSHIPS, MASK)
    mapped = jax.jit(jax.vmap(multiplicity))(MEMBERSHIPS, MASK)
    np.testing.assert_allclose(mapped, rows, rtol=1e-14)
    log_pass, log_fail = np.log(MEMBERSHIPS), np.log1p(-MEMBERSHIPS)
    mapped = jax.jit(jax.vmap(log_multiplicity))(log_pass, log_fail, MASK)
    np.testing.assert_allclose(np.exp(mapped), rows, rtol=1e-13)
    # Inside of compiled code NaN cannot be named, but neither is it hidden.
    assert np.all(np.isnan(jax.jit(jax.vmap(multiplicity))(MEMBERSHIPS * np.nan, MASK)[0, 1:4]))


def test_bad_memberships_are_named():
    mask = np.ones((1, 3), dtype=bool)
    for bad, message in [
        (-0.1, r"^memberships\[\(0, 1\)\] is -0.1"),
        (1.5, r"^1 - memberships\[\(0, 1\)\] is -0.5"),
        (np.nan, r"^memberships\[\(0, 1\)\] is nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            multiplicity(np.array([[0.2, bad, 0.3]]), mask)
    good = np.log([[0.5, 0.2, 0.5]])
    for bad in (np.log(0.2), 0.8, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"exp\(log_fail\) is .* at entry \(0, 1\)"):
            log_multiplicity(good, np.array([[np.log(0.5), bad, np.log(0.5)]]), mask)
    for bad in (0.2, np.nan):
        with pytest.raises(ValueError, match=r"^1 - exp\(log_fail\)\[\(0, 1\)\]"):
            veto_log_weight(np.array([[-1.0, bad, -2.0]]), mask)
    with pytest.raises(ValueError, match=r"width is 0\.0"):
        gaussian_log_weight(np.ones(2), 1.0, 0.0)
    with pytest.raises(ValueError, match=r"count\[1\] is nan"):
        gaussian_log_weight(np.array([1.0, np.nan]), 1.0, 1.0)
    with pytest.raises(ValueError, match="n is -1"):
        at_least(np.ones(3), -1)
    with pytest.raises(ValueError, match="n is -2"):
        log_at_least(np.zeros(3), -2)


def test_the_product_of_two_multiplicities_is_not_the_joint_one():
    """The numbers and the formula of the docstring, against all the ways that four jets can go."""
    passing, tagged, mask = np.full(4, 0.6), np.full(4, 0.3), np.ones(4, dtype=bool)
    exact = 0.0
    for jets in itertools.product([(0, 0, 0.4), (1, 0, 0.6 * 0.7), (1, 1, 0.6 * 0.3)], repeat=4):
        passed, b, probabilities = map(np.array, zip(*jets, strict=True))
        exact += probabilities.prod() * (passed.sum() >= 3 and b.sum() >= 1)
    q = passing * tagged
    no_tag = jnp.where(mask, 1 - q, 1).prod(-1)
    joint = at_least(multiplicity(passing, mask), 3) - no_tag * at_least(
        multiplicity((passing - q) / (1 - q), mask), 3
    )
    assert float(joint) == pytest.approx(exact, rel=1e-13)
    product = at_least(multiplicity(passing, mask), 3) * at_least(multiplicity(q, mask), 1)
    for number, value in (("0.326", joint), ("0.260", product)):
        assert f"{float(value):.3f}" == number and number in multiplicity.__doc__
