"""Profile scans and grids against pyhf's fits with held parameters, and against brute force."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
from derivatives import check_derivatives

from nablab.infer import mle
from nablab.model.histfactory import from_spec


@pytest.fixture(scope="module", autouse=True)
def tight_fits():
    """Drive pyhf's fits to convergence (set once: each change recomputes every live model)."""
    pyhf.set_backend("numpy", pyhf.optimize.scipy_optimizer(tolerance=1e-13, maxiter=10_000))
    yield
    pyhf.set_backend("numpy")


def held_in_pyhf(spec, data, held):
    """2NLL above the best fit and fitted parameters of pyhf, with ``held = {index: value}``."""
    reference = pyhf.Model(spec)
    config, data = reference.config, [float(x) for x in data]
    inits, fixed = config.suggested_init(), config.suggested_fixed()
    best = float(pyhf.infer.mle.fit(data, reference, return_fitted_val=True)[1])
    for index, value in held.items():
        inits[index], fixed[index] = float(value), True
    parameters, value = pyhf.infer.mle.fit(
        data, reference, init_pars=inits, fixed_params=fixed, return_fitted_val=True
    )
    return float(value) - best, parameters


EXAMPLES = {
    "shapesys": (models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0]), [55.0, 57.0]),
    "histosys": (
        models.histosys([5.0, 11.0], [50.0, 60.0], [47.0, 63.0], [54.0, 56.0]),
        [53.0, 66.0],
    ),
}


def example(name):
    spec, main = EXAMPLES[name]
    model = from_spec(spec)
    return spec, model, jnp.concatenate([jnp.array(main), model.auxdata])


@pytest.mark.parametrize(
    ("name", "parameter", "values"),
    [
        ("shapesys", None, [0.0, 0.4, 2.5]),
        ("shapesys", "uncorrelated[1]", [0.8, 1.0, 1.3]),
        ("histosys", 0, [-2.0, 0.0, 1.5]),
    ],
)
def test_scan_equals_held_fits_of_pyhf(name, parameter, values):
    spec, model, data = example(name)
    profile = mle.profile_scan(model, data, jnp.array(values), parameter).require()
    names = dict(zip(model.parameter_names, range(3), strict=False))
    index = names.get(parameter, 0)  # 0: the poi of one model, the shape of the other
    for point, value in enumerate(values):
        difference, parameters = held_in_pyhf(spec, data, {index: value})
        np.testing.assert_allclose(profile.difference[point], difference, atol=1e-9)
        np.testing.assert_allclose(profile.parameters[point], parameters, atol=1e-5)
        assert profile.parameters[point, index] == value
    np.testing.assert_allclose(
        profile.best_fit.parameters, mle.best_fit(model, data).parameters, atol=1e-12
    )


@pytest.mark.parametrize("held", [{"mu": 0.4}, {"uncorrelated[1]": 1.2}, {0: 0.4, 1: 0.9}])
def test_derivatives_in_held_values_equal_differences(held):
    """Of parameters and deviance; also of a parameter that acts in one bin only."""
    _, model, data = example("shapesys")

    def fit(*values):
        found = mle.best_fit(model, data, held=dict(zip(held, values, strict=True)))
        return found.parameters, found.value

    check_derivatives(fit, *held.values(), step=1e-4)


def test_what_may_be_held():
    _, model, data = example("shapesys")
    with pytest.raises(ValueError, match="held names a parameter twice: mu, 0"):
        mle.best_fit(model, data, held={"mu": 0.4, 0: 0.4})
    with pytest.raises(ValueError, match="parameter is 'nu': choose from mu"):
        mle.best_fit(model, data, held={"nu": 0.4})
    with pytest.raises(ValueError, match=r"held\['mu'\] is 99, outside of the bounds"):
        mle.best_fit(model, data, held={"mu": 99.0})
    with pytest.raises(ValueError, match="several fits at once cannot hold"):
        mle.fits(model, data, {}, {1: 1.2})


def test_grid_equals_held_fits_of_pyhf():
    spec, model, data = example("shapesys")
    axes = jnp.array([0.2, 1.5]), jnp.array([0.9, 1.0, 1.2])
    profile = mle.profile_grid(model, data, axes, ("mu", "uncorrelated[0]")).require()
    assert profile.difference.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        difference, parameters = held_in_pyhf(spec, data, {0: axes[0][i], 1: axes[1][j]})
        np.testing.assert_allclose(profile.difference[i, j], difference, atol=1e-9)
        np.testing.assert_allclose(profile.parameters[i, j], parameters, atol=1e-5)


def test_scan_finds_the_lower_of_two_minima():
    """Up and down move the first bin alike: alpha = 0 is stationary. Brute force over alpha."""
    model = from_spec(models.histosys([5.0, 11.0], [50.0, 50.0], [60.0, 40.0], [60.0, 40.0]))
    data = jnp.array([52.0, 49.0, 0.0])
    mus, alphas = jnp.linspace(0.0, 3.0, 3), jnp.linspace(-5.0, 5.0, 20_001)
    profile = mle.profile_scan(model, data, mus).require()
    grid = jnp.stack(jnp.meshgrid(mus, alphas, indexing="ij")[::-1], axis=-1)
    brute_force = jax.vmap(jax.vmap(lambda p: model.deviance(p, data)))(grid).min(axis=1)
    value = profile.difference + profile.best_fit.value
    assert (value <= brute_force + 1e-12).all()
    np.testing.assert_allclose(value, brute_force, atol=1e-5)


def test_derivatives_and_batches():
    """A scan may be differentiated in the yields and the values, and mapped over data sets."""
    _, model, data = example("shapesys")

    def difference(yields, values, data):
        scaled = models.shapesys(*yields, jnp.array([3.0, 7.0]))
        profile = mle.profile_scan(from_spec(scaled), data, values)
        return profile.difference, profile.difference

    slopes = jax.jit(jax.jacrev(difference, argnums=(0, 1), has_aux=True))
    yields, values = jnp.array([[12.0, 11.0], [50.0, 52.0]]), jnp.array([0.3, 1.0, 2.0])
    found, expected = slopes(yields, values, data)
    np.testing.assert_allclose(
        expected, mle.profile_scan(model, data, values).difference, rtol=1e-9
    )
    for which, start in enumerate((yields, values)):
        for entry in np.ndindex(start.shape):
            up, down = (
                slopes(*(x.at[entry].add(h) if x is start else x for x in (yields, values)), data)[
                    1
                ]
                for h in (1e-4, -1e-4)
            )
            np.testing.assert_allclose(
                found[which][:, *entry], (up - down) / 2e-4, rtol=1e-6, atol=1e-9
            )
    sets = jnp.stack([data, data.at[0].set(40.0)])
    batch = jax.vmap(lambda d: mle.profile_scan(model, d, values).difference)(sets)
    for row, one in zip(batch, sets, strict=True):
        np.testing.assert_allclose(row, mle.profile_scan(model, one, values).difference, rtol=1e-9)


def test_a_direction_without_effect_is_reported():
    _, _, data = example("shapesys")
    model = from_spec(models.shapesys([0.0, 0.0], [50.0, 52.0], [3.0, 7.0]))
    profile = mle.profile_scan(model, data, jnp.array([0.8, 0.9, 1.0]), 2)
    assert not profile.converged
    with pytest.raises(RuntimeError, match="without effect"):
        profile.require()


def test_bad_arguments_are_named():
    _, model, data = example("shapesys")
    values = jnp.array([0.0, 1.0])
    with pytest.raises(ValueError, match="parameter is 'nu': choose from mu, uncorrelated"):
        mle.profile_scan(model, data, values, "nu")
    with pytest.raises(ValueError, match="parameter is 3: the model has 3 parameters"):
        mle.profile_scan(model, data, values, 3)
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        mle.profile_scan(model, data, values.at[1].set(jnp.nan))
    with pytest.raises(ValueError, match="the model has 2 bins"):
        mle.profile_scan(model, data[:3], values)
    with pytest.raises(ValueError, match="give two different ones"):
        mle.profile_grid(model, data, (values, values), ("mu", 0))
    spec = models.everything()
    spec["parameters"][0]["fixed"] = True
    fixed = from_spec(spec)
    with pytest.raises(ValueError, match="holds it fixed"):
        mle.profile_scan(fixed, data, values, "lumi")
