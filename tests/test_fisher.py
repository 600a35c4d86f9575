"""Fisher information: a name says what it returns, and the numbers are the published ones."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from nablab.infer import diagnostics
from nablab.model.histfactory import from_spec


def landscape(up, down):
    return from_spec(
        models.histosys([5.0, 11.0], [50.0, 50.0], [50 + down, 50 - down], [50 + up, 50 - up])
    )


@pytest.mark.parametrize(
    ("up", "down", "at_one", "at_zero"),
    [
        (0.0, 0.0, 0.64043, 0.58521),
        (5.0, 5.0, 0.64043, 0.58521),
        (10.0, -10.0, 0.66537, 0.61639),
        (5.0, -5.0, 0.65499, 0.60412),
        (10.0, 0.0, 0.65499, 0.60412),
    ],
)
def test_published_uncertainties(up, down, at_one, at_zero):
    """The two-bin landscape of the neos thesis."""
    model = landscape(up, down)
    np.testing.assert_allclose(diagnostics.poi_uncertainty(model), at_one, atol=6e-6)
    np.testing.assert_allclose(diagnostics.poi_uncertainty(model, 0.0), at_zero, atol=6e-6)


@pytest.mark.parametrize("spec", [models.everything(), models.shapesys([1.0], [50.0], [3.0])])
def test_information_is_the_hessian_and_covariance_its_inverse(spec):
    model = from_spec(spec)
    parameters = model.parameters(1.0)
    asimov = model.expected_data(parameters)
    hessian = jax.jit(jax.hessian(lambda p: 0.5 * model.deviance(p, asimov)))(parameters)
    free = np.flatnonzero(~np.asarray(model.fixed))
    information = jax.jit(diagnostics.information)(model, parameters)
    pick = np.ix_(free, free)
    np.testing.assert_allclose(information[pick], hessian[pick], rtol=1e-8, atol=1e-8)
    product = information[pick] @ jax.jit(diagnostics.covariance)(model, parameters)[pick]
    np.testing.assert_allclose(product, np.eye(len(free)), atol=1e-9)


def test_fixed_parameters_have_no_information():
    model = from_spec(models.shapesys([1.0, 2.0], [50.0, 60.0], [3.0, 0.0]))
    covariance = diagnostics.covariance(model, model.init)
    assert model.fixed[2]
    np.testing.assert_array_equal(covariance[2], 0.0)
    np.testing.assert_array_equal(diagnostics.information(model, model.init)[:, 2], 0.0)


def test_uncertainty_has_a_gradient():
    def uncertainty(signal):
        return diagnostics.poi_uncertainty(
            from_spec(models.shapesys(signal, [50.0, 60.0], [3.0, 7.0]))
        )

    signal, step = jnp.array([5.0, 11.0]), 1e-4
    gradient = jax.grad(uncertainty)(signal)
    for bin_ in range(2):
        up, down = signal.at[bin_].add(step), signal.at[bin_].add(-step)
        difference = (uncertainty(up) - uncertainty(down)) / (2 * step)
        np.testing.assert_allclose(gradient[bin_], difference, rtol=1e-6)
