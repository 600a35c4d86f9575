"""Pairings of four jets against four-vectors, one event after the other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import check_derivatives, check_finite_derivatives
from scipy.special import expit

from nablab.relax.objects.padding import PADDING
from nablab.relax.objects.pairing import PAIRINGS, hard_pairing, pair_masses, soft_pairing


def jets_of(events, seed=4):
    generator = np.random.default_rng(seed)
    pt = generator.exponential(60.0, size=(events, 4)) + 25.0
    return (
        pt,
        generator.normal(0.0, 1.3, size=(events, 4)),
        generator.uniform(-np.pi, np.pi, size=(events, 4)),
        0.12 * pt * generator.uniform(0.3, 1.0, size=(events, 4)),
    )


JETS = jets_of(100)


def four_vectors(pt, eta, phi, mass):
    momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=-1)
    energy = np.sqrt(mass**2 + (momentum**2).sum(axis=-1))
    return np.concatenate([energy[..., None], momentum], axis=-1)


def mass_of(vector):
    return np.sqrt(vector[0] ** 2 - (vector[1:] ** 2).sum())


def by_hand(jets, expected_masses, temperature):
    """Distance and both masses of each pairing of one event, the order of the pairs soft."""
    pt, vectors, ratio = jets[0], four_vectors(*jets), expected_masses[0] / expected_masses[1]
    rows = []
    for first, second in PAIRINGS:
        a, b = (mass_of(vectors[pair].sum(axis=0)) for pair in (first, second))
        s = expit((pt[first].sum() - pt[second].sum()) / temperature)
        distance = s * abs(a - ratio * b) + (1 - s) * abs(b - ratio * a)
        rows.append((distance / np.hypot(1, ratio), s * a + (1 - s) * b, s * b + (1 - s) * a))
    return np.array(rows).T


def test_pair_masses_are_those_of_the_four_vectors():
    masses, vectors = pair_masses(*JETS), four_vectors(*JETS)
    assert {frozenset(map(frozenset, pairing.tolist())) for pairing in PAIRINGS} == {
        frozenset({frozenset({0, i}), frozenset({1, 2, 3} - {i})}) for i in (1, 2, 3)
    }
    expected = [
        mass_of(vectors[event, PAIRINGS[pairing, pair]].sum(axis=0))
        for event, pairing, pair in np.ndindex(100, 3, 2)
    ]
    np.testing.assert_allclose(masses.ravel(), expected, rtol=1e-10)


def test_masses_of_collinear_light_and_forward_jets():
    """Where E² - p² has no digits left; small angles: m² = m1² + m2² + pt1 pt2 ΔR² + ..."""
    pt, zero = np.array([1e3, 500.0, 50.0, 50.0]), np.zeros(4)
    eta, phi = np.array([0.0, 1e-7, 9.0, -9.0]), np.array([0.0, 1e-7, 3 * np.pi, 0.0])
    masses = pair_masses(pt, eta, phi, zero)
    np.testing.assert_allclose(masses[0, 0], np.sqrt(1e3 * 500 * 2e-14), rtol=1e-6)
    np.testing.assert_allclose(masses[0, 1], 2 * 50 * np.cosh(9.0), rtol=1e-12)
    # Parallel: E1 E2 - p1 p2 is all there is, and parallel jets of equal velocity just add up.
    pt, mass = np.array([400.0, 800.0, 50.0, 50.0]), np.array([1e-3, 2e-3, 0.0, 0.0])
    masses = pair_masses(pt, zero, zero, mass)
    np.testing.assert_allclose(masses[0], [3e-3, 0.0], rtol=1e-12)


@pytest.mark.parametrize("expected_masses", [(125.0, 120.0), (120.0, 110.0)])
def test_hard_pairing_is_the_brute_force_one_and_the_limit_of_the_soft_one(expected_masses):
    weights, masses = jax.jit(hard_pairing)(*JETS, expected_masses=jnp.array(expected_masses))
    for event in range(100):
        one = tuple(quantity[event] for quantity in JETS)
        with np.errstate(over="ignore"):
            distances, lead, sub = by_hand(one, expected_masses, 1e-9)
        best = distances.argmin()
        np.testing.assert_array_equal(weights[event], np.eye(3)[best])
        np.testing.assert_allclose(masses[event], [lead[best], sub[best]], rtol=1e-9)
    soft_at = jax.jit(
        lambda temperature: soft_pairing(
            *JETS, temperature=temperature, expected_masses=expected_masses
        )
    )
    for temperature in (1e-6, 1e-100):
        soft = soft_at(temperature)
        np.testing.assert_allclose(soft.weights, weights, atol=1e-9)
        np.testing.assert_allclose(soft.masses, masses, rtol=1e-9)


def test_soft_pairing_by_its_formula():
    soft = soft_pairing(*JETS, temperature=9.0)
    for event in range(100):
        one = tuple(quantity[event] for quantity in JETS)
        distances, lead, sub = by_hand(one, (125.0, 120.0), 9.0)
        weights = np.exp(-distances / 9.0)
        weights /= weights.sum()
        np.testing.assert_allclose(soft.weights[event], weights, rtol=1e-9)
        np.testing.assert_allclose(soft.masses[event], [weights @ lead, weights @ sub], rtol=1e-9)


def test_invariances():
    """Turning or boosting all jets, or numbering them in another way, changes no mass."""
    pt, eta, phi, mass = JETS
    masses = pair_masses(*JETS)
    np.testing.assert_allclose(pair_masses(pt, eta, phi + 17.3, mass), masses, rtol=1e-10)
    light = np.zeros_like(mass)
    boosted = pair_masses(pt, eta + 2.1, phi, light)
    np.testing.assert_allclose(boosted, pair_masses(pt, eta, phi, light), rtol=1e-10)
    masses = soft_pairing(*JETS, temperature=10.0).masses
    for order in itertools.permutations(range(4)):
        other = soft_pairing(*(x[:, list(order)] for x in JETS), temperature=10.0).masses
        np.testing.assert_allclose(other, masses, rtol=1e-10)


def test_derivatives():
    jets, expected = jets_of(2, seed=8), np.array([125.0, 120.0])

    def paired(*arguments):
        return soft_pairing(*arguments[:4], temperature=arguments[4], expected_masses=arguments[5])

    gradient = check_derivatives(paired, *jets, 15.0, expected, rtol=1e-5, atol=1e-6)
    assert all(np.all(np.abs(part) > 1e-7) for part in gradient)


def test_hard_pairing_keeps_the_gradient_of_the_masses():
    mass = jax.jit(jax.value_and_grad(lambda pt: hard_pairing(pt, *JETS[1:]).masses[:, 0].sum()))
    direction = np.cos(np.arange(400.0)).reshape(100, 4)
    up, down = (mass(JETS[0] + step * direction)[0] for step in (1e-5, -1e-5))
    gradient = mass(JETS[0])[1]
    np.testing.assert_allclose((gradient * direction).sum(), (up - down) / 2e-5, rtol=1e-6)


def test_derivatives_are_finite_for_padding_equal_and_parallel_jets():
    pt = jnp.array([[60.0, 60.0, PADDING, PADDING], [PADDING] * 4])
    angles, mass = jnp.full((2, 4), PADDING), jnp.array([[0.0] * 4, [PADDING] * 4])

    def total(jets, temperature):
        pairing = soft_pairing(*jets, temperature=temperature)
        return jnp.sum(jnp.arange(6).reshape(2, 3) * pairing.weights) + pairing.masses.sum()

    check_finite_derivatives(total, jnp.stack([pt, angles, angles, mass]), [1e-30, 1e-9, 1e9])


def test_compiled_and_mapped():
    whole = soft_pairing(*JETS, temperature=10.0)
    mapped = jax.jit(jax.vmap(lambda *jets: soft_pairing(*jets, temperature=10.0)))(*JETS)
    np.testing.assert_allclose(mapped.weights, whole.weights, rtol=1e-11)
    np.testing.assert_allclose(mapped.masses, whole.masses, rtol=1e-11)
    empty = soft_pairing(*(np.zeros((0, 4)) for _ in range(4)), temperature=10.0)
    assert empty.weights.shape == (0, 3)
    assert empty.masses.shape == (0, 2)


def test_bad_jets_are_named():
    for position, bad, message in [
        (0, 0.0, r"^pt\[\(2, 1\)\] is 0.0: it must be greater than 0"),
        (1, np.nan, r"^eta\[\(2, 1\)\] is nan"),
        (2, np.inf, r"^phi\[\(2, 1\)\] is inf"),
        (3, -0.1, r"^mass\[\(2, 1\)\] is -0.1: it must be at least 0"),
    ]:
        jets = [quantity.copy() for quantity in JETS]
        jets[position][2, 1] = bad
        for pairing in (soft_pairing, hard_pairing):
            with pytest.raises(ValueError, match=message):
                pairing(*jets, temperature=10.0)
    with pytest.raises(ValueError, match=r"expected_masses\[1\] is 0.0"):
        hard_pairing(*JETS, temperature=10.0, expected_masses=(125.0, 0.0))
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        soft_pairing(*JETS, temperature=0.0)
