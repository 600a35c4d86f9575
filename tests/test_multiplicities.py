"""Multiplicities against exact fractions, and vetoes."""

import itertools
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check_derivatives
from scipy.special import expit

from nablab.relax.objects.multiplicities import (
    at_least,
    multiplicity,
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


@pytest.mark.parametrize("objects", [1, 50])
def test_multiplicity_is_that_of_exact_fractions(objects):
    p = memberships_of(objects)
    everyone = np.ones(p.shape, dtype=bool)
    exact = [exact_multiplicity(event) for event in p]
    # Relative, so that the tails are tested as well; below 1e-300 floating point ends.
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-300)
    probabilities = multiplicity(p, everyone)
    close(probabilities, [[float(e) for e in event] for event in exact])

    for n in (0, objects // 2 + 1, objects + 1):
        tails = [sum(event[n:], Fraction(0)) for event in exact]
        close(at_least(probabilities, n), [float(tail) for tail in tails])


def test_multiplicity_is_the_sum_over_all_subsets():
    """The definition, without the recurrence."""
    p = memberships_of(8)[1]
    brute_force = np.zeros(9)
    for outcome in itertools.product([0, 1], repeat=8):
        brute_force[sum(outcome)] += np.prod(np.where(outcome, p, 1 - p))
    np.testing.assert_allclose(multiplicity(p, np.ones(8, dtype=bool)), brute_force, rtol=1e-13)


def test_derivatives():
    """Of everything that weighs an event, in the log odds of its objects."""

    def weights(log_odds):
        probabilities = multiplicity(jax.nn.sigmoid(log_odds), MASK)
        return (
            probabilities,
            at_least(probabilities, 2),
            veto_log_weight(jax.nn.log_sigmoid(-log_odds), MASK),
        )

    log_odds = np.log(MEMBERSHIPS) - np.log1p(-MEMBERSHIPS)
    gradient = check_derivatives(weights, log_odds)[0]
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


def test_veto():
    """The probability that no lepton passes: those of padding do not count."""
    log_odds = jnp.array([[-2.0, 1.0, 5.0], [3.0, np.inf, -np.inf], [np.inf, 0.0, 0.0]])
    mask = jnp.array([[True, True, False], [False, False, False], [True, True, True]])
    expected = [np.log(expit(2.0) * expit(-1.0)), 0.0, -np.inf]
    weight = veto_log_weight(jax.nn.log_sigmoid(-log_odds), mask)
    np.testing.assert_allclose(weight, expected, rtol=1e-13)
    nobody = multiplicity(jax.nn.sigmoid(log_odds), mask)[:, 0]
    np.testing.assert_allclose(nobody, np.exp(expected), rtol=1e-13)


@pytest.mark.parametrize("events", [2, 1, 0])
@pytest.mark.parametrize("objects", [0, 3])
def test_events_without_objects(objects, events):
    """No room for objects at all, or all of them masked: nobody passes, whatever the values."""
    mask = np.zeros((events, objects), dtype=bool)
    junk = np.full((events, objects), np.nan)
    nobody = np.eye(objects + 1)[np.zeros(events, dtype=int)]
    probabilities = multiplicity(junk, mask)
    np.testing.assert_array_equal(probabilities, nobody)
    np.testing.assert_array_equal(veto_log_weight(junk, mask), np.zeros(events))
    np.testing.assert_array_equal(at_least(probabilities, 1), np.zeros(events))


def test_compiled_and_mapped():
    rows = multiplicity(MEMBERSHIPS, MASK)
    mapped = jax.jit(jax.vmap(multiplicity))(MEMBERSHIPS, MASK)
    np.testing.assert_allclose(mapped, rows, rtol=1e-14)
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
    for bad in (0.2, np.nan):
        with pytest.raises(ValueError, match=r"^1 - exp\(log_fail\)\[\(0, 1\)\]"):
            veto_log_weight(np.array([[-1.0, bad, -2.0]]), mask)
    with pytest.raises(ValueError, match="n is -1"):
        at_least(np.ones(3), -1)


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
