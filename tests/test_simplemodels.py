"""The simple models against those of pyhf, and a derivative with respect to a yield."""

import jax
import jax.numpy as jnp
import numpy as np
import pyhf
import pytest

from nablab.infer.hypotests import expected_cls
from nablab.model import simplemodels

YIELDS = {
    "uncorrelated_background": ([12.0, 11.0], [50.0, 52.0], [3.0, 7.0]),
    "correlated_background": ([12.0, 11.0], [50.0, 52.0], [45.0, 57.0], [55.0, 47.0]),
}


@pytest.mark.parametrize("name", YIELDS)
def test_they_are_those_of_pyhf(name):
    ours, theirs = (
        getattr(room, name)(*YIELDS[name]) for room in (simplemodels, pyhf.simplemodels)
    )
    assert list(ours.parameter_names) == theirs.config.par_names
    assert ours.parameter_names[ours.poi_index] == "mu"
    data = [*np.array([65.0, 60.0]), *theirs.config.auxdata]
    point = np.array(theirs.config.suggested_init()) + 0.1
    expected = theirs.logpdf(point, data)[0]
    np.testing.assert_allclose(ours.logpdf(point, jnp.array(data)), expected, rtol=1e-12)


def test_a_traced_yield_has_a_derivative():
    def median(background):
        signal, _, *rest = YIELDS["correlated_background"]
        found = simplemodels.correlated_background(signal, background, *rest)
        return expected_cls(found).median

    slopes = jax.jit(jax.grad(median))(jnp.array([50.0, 52.0]))
    assert np.all(np.isfinite(slopes)) and np.all(np.array(slopes) != 0)


def test_straight_lines_between_the_simulated_points():
    found = simplemodels.correlated_background(
        *YIELDS["correlated_background"], codes={"histosys": "code0"}
    )
    alpha = found.parameter_names.index("correlated_bkg_uncertainty")
    at = found.parameters(0.0).at[alpha].set(-0.5)
    np.testing.assert_allclose(found.expected_main(at), [52.5, 49.5], rtol=1e-12)
