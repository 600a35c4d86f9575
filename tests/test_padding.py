"""Padding of jagged events, and soft ordering against the hard one."""

import sys
from functools import partial

import awkward
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from derivatives import check_derivatives, check_finite_derivatives

from nablab.relax.objects import btagging, multiplicities, pairing
from nablab.relax.objects.padding import PADDING, hard_top_k, pad_objects, soft_top_k

JAGGED = [[50.0, 30.0, 25.0], [], [70.0], [41.0, 40.0]]


@pytest.mark.parametrize("room", [None, 5])
@pytest.mark.parametrize("as_awkward", [False, True])
def test_padding_keeps_every_object_in_its_place(room, as_awkward):
    values, mask = pad_objects(awkward.Array(JAGGED) if as_awkward else JAGGED, max_objects=room)
    assert values.shape == mask.shape == (4, room or 3)
    kept = [list(row[real]) for row, real in zip(*map(np.array, (values, mask)), strict=True)]
    assert kept == JAGGED
    np.testing.assert_array_equal(values[~mask], PADDING)
    assert values.dtype == jnp.float64
    assert mask.dtype == bool


def test_padding_of_nothing():
    for jagged, shape in (([], (0, 0)), ([[], []], (2, 0)), (np.zeros((2, 0)), (2, 0))):
        values, mask = pad_objects(jagged)
        assert values.shape == mask.shape == shape
    values, mask = pad_objects(awkward.Array([[1.0], []])[1:], max_objects=2)
    np.testing.assert_array_equal(values, np.full((1, 2), PADDING))
    assert not mask.any()


def test_padding_names_what_is_wrong(monkeypatch):
    with pytest.raises(ValueError, match=r"^event 3 has 2 objects, more than max_objects=1: "):
        pad_objects([[], [1.0], [2.0], [1.0, 2.0], [1.0] * 7], max_objects=1)
    with pytest.raises(ValueError, match=r"^jagged\[\(0, 1\)\] is nan"):
        pad_objects([[3.0, np.nan], []])
    for bad in (1.0, [[1.0], [2.0]], [[1.0], [2.0, 3.0]], "jet", ["jet"]):
        with pytest.raises(ValueError, match=r"^jagged\[1\] must be a list of numbers"):
            pad_objects([[1.0], bad])
    with pytest.raises(ValueError, match=r"jagged has fields, \['pt'\]: pad one at a time"):
        pad_objects(awkward.zip({"pt": awkward.Array(JAGGED)}))
    jagged = awkward.Array(JAGGED)
    monkeypatch.setitem(sys.modules, "awkward", None)
    with pytest.raises(ImportError, match="needs the package awkward"):
        pad_objects(jagged)
    pad_objects(JAGGED)


@pytest.mark.parametrize(
    ("jagged", "message"),
    [
        ([1.0, 2.0], r"^jagged\[0\] must be .*one number per event needs no padding"),
        (awkward.Array([1.0, 2.0]), "^jagged must hold one list .*one number per event needs no"),
        (awkward.Array([[[1.0], [2.0]]]), "^jagged must hold one list .*reduce it to one number"),
        (awkward.Array([[1.0, None], [2.0]]), "^jagged has missing entries .*awkward.drop_none"),
        (awkward.Array([[1.0], None]), "^jagged has missing entries .*awkward.drop_none"),
    ],
)
def test_what_cannot_be_padded_says_what_to_do(jagged, message):
    with pytest.raises(ValueError, match=message):
        pad_objects(jagged)


def test_option_types_without_gaps_and_no_events_are_padded():
    full = awkward.mask(awkward.Array(JAGGED), [True] * len(JAGGED))
    for ours, plain in zip(pad_objects(full), pad_objects(JAGGED), strict=True):
        np.testing.assert_array_equal(ours, plain)
    assert pad_objects(awkward.Array([]))[0].shape == pad_objects([])[0].shape == (0, 0)


def test_no_nan_through_padding():
    """1/0, log 0 and the root's slope at 0 would be NaN even where the mask hides the value."""
    values, mask = pad_objects(JAGGED)
    gradient = jax.grad(lambda x: jnp.sum(mask * (jnp.sqrt(x) + jnp.log(x) + 1 / x)))(values)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[~mask], 0.0)


VALUES = np.array([[30.0, 80.0, 999.0, 55.0, 31.0], [20.0, 999.0, 26.0, 999.0, 999.0]])
MASK = np.array([[True, True, False, True, True], [True, False, True, False, False]])


def brute_force_top_k(values, mask, k):
    weights = np.zeros((*values.shape[:-1], k, values.shape[-1]))
    for event, (row, kept) in enumerate(zip(values, mask, strict=True)):
        order = sorted(np.flatnonzero(kept), key=lambda j: -row[j])
        for place, j in enumerate(order[:k]):
            weights[event, place, j] = 1.0
    return weights


def test_soft_top_k_by_hand():
    """Objects at 10, 14 and 13, temperature 2: place i by the distances to its object."""
    values = np.array([10.0, 14.0, 13.0])
    weights = soft_top_k(values, np.ones(3, dtype=bool), 2, temperature=2.0)
    for place, leading in enumerate([14.0, 13.0]):
        odds = np.exp(-np.abs(leading - values) / 2)
        np.testing.assert_allclose(weights[place], odds / odds.sum(), rtol=1e-14)


@pytest.mark.parametrize("k", [1, 5])
def test_hard_top_k_is_the_limit_of_the_soft_one(k):
    generator = np.random.default_rng(3)
    values, mask = generator.normal(size=(200, 5)), generator.uniform(size=(200, 5)) < 0.6
    expected = brute_force_top_k(values, mask, k)
    np.testing.assert_array_equal(hard_top_k(values, mask, k), expected)
    for temperature in (1e-7, 1e-100):
        limit = soft_top_k(values, mask, k, temperature=temperature)
        np.testing.assert_allclose(limit, expected, atol=1e-9)
    weights = np.array(soft_top_k(values, mask, k, temperature=0.7))
    assert np.abs(weights - expected).max() > 0.1
    filled = np.arange(k) < mask.sum(axis=1)[:, None]
    np.testing.assert_allclose(weights.sum(axis=-1), filled, atol=1e-14)
    np.testing.assert_array_equal(np.swapaxes(weights, 1, 2)[~mask], 0.0)


def test_extremes_of_top_k():
    weights = soft_top_k(VALUES, MASK, 5, temperature=1e12)  # all objects are mixed
    expected = [np.outer(np.arange(5) < kept.sum(), kept) / kept.sum() for kept in MASK]
    np.testing.assert_allclose(weights, expected, atol=1e-9)
    equal, everyone = np.array([7.0, 7.0, 2.0]), np.ones(3, dtype=bool)
    shared = soft_top_k(equal, everyone, 2, temperature=1e-3)
    np.testing.assert_allclose(shared, [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], atol=1e-12)
    np.testing.assert_array_equal(hard_top_k(equal, everyone, 2), [[1, 0, 0], [0, 1, 0]])
    alone = soft_top_k(np.array([3.0]), np.array([True]), 1, temperature=1.0)
    np.testing.assert_array_equal(alone, [[1.0]])
    assert soft_top_k(VALUES[:0], MASK[:0], 2, temperature=1.0).shape == (0, 2, 5)


def test_top_k_derivatives():
    def soft_values(values, temperature):
        weights = soft_top_k(values, MASK, 4, temperature=temperature)
        return weights, (weights * values[..., None, :]).sum(axis=-1)

    in_values, in_temperature = check_derivatives(soft_values, VALUES, 7.0)
    np.testing.assert_array_equal(in_values[~MASK], 0.0)
    assert np.all(np.abs(in_values[MASK]) > 1e-3)
    assert np.abs(in_temperature) > 1e-3


def test_top_k_derivatives_are_finite():
    """Equal values, padding with junk in it, an event without objects."""
    values = jnp.array([[5.0, 5.0, 1e9, np.inf], [np.nan, 0.0, 0.0, 0.0]])
    mask = jnp.array([[True, True, True, False], [False, False, False, False]])

    def total(values, temperature):
        weights = soft_top_k(values, mask, 3, temperature=temperature)
        return jnp.sum(jnp.arange(12).reshape(3, 4) * weights)

    check_finite_derivatives(total, values, [1e-30, 1e-6, 1e6, 1e30])


def test_top_k_compiled_and_mapped():
    for top_k in (soft_top_k, hard_top_k):
        rows = top_k(VALUES, MASK, 3, temperature=5.0)
        mapped = jax.jit(jax.vmap(lambda v, m, top_k=top_k: top_k(v, m, 3, temperature=5.0)))(
            VALUES, MASK
        )
        np.testing.assert_allclose(mapped, rows, rtol=1e-14)


@pytest.mark.parametrize("top_k", [soft_top_k, hard_top_k])
def test_bad_input_of_top_k_is_named(top_k):
    for k in (0, 6, -1):
        with pytest.raises(ValueError, match=f"k is {k}: it must be between 1 and 5"):
            top_k(VALUES, MASK, k, temperature=1.0)
    with pytest.raises(ValueError, match=r"values\[\(1, 2\)\] is nan"):
        top_k(np.where(VALUES == 26.0, np.nan, VALUES), MASK, 2, temperature=1.0)
    with pytest.raises(ValueError, match="k is 1: it must be between 1 and 0"):
        top_k(np.zeros((2, 0)), np.zeros((2, 0), dtype=bool), 1, temperature=1.0)
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        soft_top_k(VALUES, MASK, 2, temperature=0.0)


@pytest.fixture
def without_type_checks():
    """Users have none: the functions themselves must notice a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_wrong_shapes_are_named(without_type_checks):
    a, b, mask = np.full((2, 3), 0.5), np.ones((2, 4), dtype=bool), np.ones((2, 3), dtype=bool)
    logs = np.log(a)
    for function, arguments, message in [
        (multiplicities.soft_count, (a, b), "mask must have the shape of memberships"),
        (multiplicities.multiplicity, (a, b[0]), "mask must have the shape of memberships"),
        (multiplicities.log_multiplicity, (logs, logs, b), "mask must have the shape of log_pass"),
        (multiplicities.log_multiplicity, (logs, logs[0], mask), "log_fail must have the shape of"),
        (multiplicities.veto_log_weight, (logs, b), "mask must have the shape of log_fail"),
        (partial(soft_top_k, temperature=1.0), (a, b, 1), "mask must have the shape of values"),
        (hard_top_k, (a, b, 1), "mask must have the shape of values"),
        (pairing.pair_masses, (a, a, a, a), "pt must have 4 jets per event"),
        (btagging.btag_log_weight, (a, a[0], a, mask), "efficiency must have the shape of mask"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
