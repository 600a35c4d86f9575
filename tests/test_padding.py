"""Padding of jagged events."""

import sys

import awkward
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from nablab.relax.objects import btagging, multiplicities, pairing
from nablab.relax.objects.padding import PADDING, pad_objects

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
        (multiplicities.multiplicity, (a, b[0]), "mask must have the shape of memberships"),
        (multiplicities.veto_log_weight, (logs, b), "mask must have the shape of log_fail"),
        (pairing.pair_masses, (a, a, a, a), "pt must have 4 jets per event"),
        (btagging.btag_log_weight, (a, a[0], a, mask), "efficiency must have the shape of mask"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
