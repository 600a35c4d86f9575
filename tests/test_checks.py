"""Bad input is named, with its position; good input and tracers pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab import checks

BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
def test_finite_names_the_first_bad_entry(bad):
    with pytest.raises(ValueError, match=r"^mass\[2\] is -?(nan|inf): not finite$"):
        checks.finite("mass", np.array([1.0, 2.0, bad, bad]))
    with pytest.raises(ValueError, match=r"^matrix\[\(1, 0\)\] is -?(nan|inf)"):
        checks.finite("matrix", jnp.array([[1.0, 2.0], [bad, 4.0]]))
    with pytest.raises(ValueError, match=r"^threshold is -?(nan|inf): not finite$"):
        checks.finite("threshold", bad)


def test_positive_names_the_first_bad_entry():
    with pytest.raises(ValueError, match=r"^bandwidth is 0.0: it must be greater than 0$"):
        checks.positive("bandwidth", 0.0)
    with pytest.raises(ValueError, match=r"^width\[1\] is -3.0: it must be greater than 0$"):
        checks.positive("width", jnp.array([1.0, -3.0, -4.0]))
    with pytest.raises(ValueError, match=r"^yield\[1\] is -1.0: it must be at least 0$"):
        checks.positive("yield", [0.0, -1.0], allow_zero=True)
    for bad in BAD:
        with pytest.raises(ValueError, match=r"^slope is -?(nan|inf): not finite$"):
            checks.positive("slope", bad)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([0.0, 2.0, 2.0, 3.0], r"^cuts must increase: cuts\[1\]=2.0, cuts\[2\]=2.0$"),
        (np.array([0.0, 2.0, 3.0, 1.0]), r"^cuts must increase: cuts\[2\]=3.0, cuts\[3\]=1.0$"),
        (np.array([0.0, np.nan, 1.0]), r"^cuts\[1\] is nan: not finite$"),
        ([0.0, 1.0, np.inf], r"^cuts\[2\] is inf: not finite$"),
        ([0.0], r"^cuts must be a list of at least 2 numbers, got shape \(1,\)$"),
        (np.zeros((2, 2)), r"^cuts must be .* got shape \(2, 2\)$"),
        (1.0, r"^cuts must be .* got shape \(\)$"),
    ],
)
def test_edges_name_what_is_wrong(array, message):
    with pytest.raises(ValueError, match=message):
        checks.edges("cuts", array)


def test_same_shape_names_both_arrays():
    message = r"^mask must have the shape of pt, \(2, 3\); got \(3,\)$"
    with pytest.raises(ValueError, match=message):
        checks.same_shape("mask", np.ones(3), "pt", jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^mask must have the shape of pt, \(\); got \(1,\)"):
        jax.jit(lambda mask: checks.same_shape("mask", mask, "pt", 1.0))(np.ones(1))
    checks.same_shape("mask", [[1, 2]], "pt", jnp.ones((1, 2)))


def test_good_input_passes():
    checks.finite("x", jnp.array([-1e308, 0.0, 1e308]))
    checks.finite("x", [])
    checks.finite("x", 3)
    checks.positive("x", [1e-300, 2.0])
    checks.positive("x", [0.0, 1.0], allow_zero=True)
    checks.edges("x", [-1.0, 1.0])
    checks.edges("x", jnp.array([-1.0, 0.0, 1e-300]))


def test_tracers_pass_and_their_shape_is_still_checked():
    assert not checks.is_traced(1.0, jnp.ones(2))

    @jax.jit
    def checked(array):
        assert checks.is_traced(1.0, array)
        checks.finite("array", array)
        checks.positive("array", array)
        checks.edges("array", array)
        return array

    checked(jnp.array([2.0, jnp.nan, -1.0]))
    with pytest.raises(ValueError, match="at least 2 numbers"):
        checked(jnp.array([2.0]))
