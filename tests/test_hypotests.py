"""CLs and p-values against published numbers, against pyhf, and their gradients against pyhf."""

from functools import partial

import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
import scipy.optimize
from jax.scipy.stats import norm
from published import PUBLISHED, VALIDATION

from nablab.infer import hypotests, mle, test_statistics
from nablab.infer.certificates import Status
from nablab.model.histfactory import PYHF_CODES, from_spec

CODES = {"histosys": "code0", "normsys": "code1"}  # those of the published numbers


def load(name):
    workspace = pyhf.Workspace(VALIDATION[name])
    settings = {kind: {"interpcode": code} for kind, code in CODES.items()}
    reference = workspace.model(modifier_settings=settings)
    model = from_spec(reference.spec, poi_name=reference.config.poi_name, codes=CODES)
    return model, jnp.array(workspace.data(reference)), reference.spec


def all_values(result):
    return np.array([result.observed, *result.expected])


@pytest.fixture(scope="module", autouse=True)
def tight_fits():
    """Drive pyhf's fits to convergence (set once: each change recomputes every live model)."""
    pyhf.set_backend("numpy", pyhf.optimize.scipy_optimizer(tolerance=1e-13, maxiter=10_000))
    yield
    pyhf.set_backend("numpy")


def tight_pyhf(spec, data, mu, test_stat, codes=None):
    """pyhf's own values, with its fits driven to convergence."""
    settings = {kind: {"interpcode": code} for kind, code in (codes or PYHF_CODES).items()}
    reference = pyhf.Model(spec, modifier_settings=settings)
    observed, expected = pyhf.infer.hypotest(
        mu, [float(x) for x in data], reference, test_stat=test_stat, return_expected_set=True
    )
    return np.array([observed, *expected])


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {"1bin_shapesys_q0"}))
def test_cls_of_validation_workspaces(name):
    """The published digits end where pyhf's default fit stops: two checks, each at its precision.

    Equal to pyhf with converged fits to 1e-6, and to the published numbers to the distance
    between those two, at most 2e-4.
    """
    model, data, spec = load(name)
    result = all_values(hypotests.cls(model, data, 1.0, test_statistic="q").require())
    np.testing.assert_allclose(result, tight_pyhf(spec, data, 1.0, "q", CODES), rtol=1e-6)
    np.testing.assert_allclose(result, PUBLISHED[name], rtol=2e-4)


def test_p0_of_validation_workspace():
    model, data, spec = load("1bin_shapesys_q0")
    result = all_values(hypotests.p0(model, data).require())
    np.testing.assert_allclose(result, tight_pyhf(spec, data, 0.0, "q0", CODES), rtol=1e-6)
    np.testing.assert_allclose(result, PUBLISHED["1bin_shapesys_q0"], rtol=5e-4)


def test_the_global_minimum_where_the_published_number_sits_on_a_local_one():
    """2bin_2channel_coupledhistosys: published 0.0797, with global minima by brute force 0.1383."""
    model, data, _ = load("2bin_2channel_coupledhistosys")
    result = hypotests.cls(model, data, 1.0, test_statistic="q").require()
    brute_force = [0.13831, 0.00178, 0.01031, 0.05226, 0.20606, 0.53573]
    np.testing.assert_allclose(all_values(result), brute_force, atol=1e-5)


def test_readme_example_of_pyhf():
    """Published in pyhf's README, from fits of its default precision; qtilde."""
    model = from_spec(models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0]))
    data = jnp.concatenate([jnp.array([51.0, 48.0]), model.auxdata])
    result = hypotests.cls(model, data).require()
    np.testing.assert_allclose(result.observed, 0.05251497423736956, rtol=5e-5)
    np.testing.assert_allclose(result.median, 0.0644532053589, rtol=5e-5)
    fit = mle.best_fit(model, data)
    np.testing.assert_allclose(fit.parameters, [0.0, 1.00305086, 0.96268087], atol=1e-7)
    np.testing.assert_allclose(-2 * model.logpdf(fit.parameters, data), 24.983935200, rtol=1e-9)


EXAMPLES = {
    "shapesys": (models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0]), [55.0, 57.0]),
    "histosys": (
        models.histosys([5.0, 11.0], [50.0, 60.0], [47.0, 63.0], [54.0, 56.0]),
        [53.0, 66.0],
    ),
    "everything": (models.everything(), [137.0, 119.0, 38.0, 47.0, 30.0]),
}


def example(name):
    spec, main = EXAMPLES[name]
    model = from_spec(spec)
    return spec, model, jnp.concatenate([jnp.array(main), model.auxdata])


@pytest.mark.parametrize("name", EXAMPLES)
def test_cls_equals_pyhf_with_default_codes(name):
    spec, model, data = example(name)
    result = all_values(hypotests.cls(model, data).require())
    np.testing.assert_allclose(result, tight_pyhf(spec, data, 1.0, "qtilde"), rtol=2e-6)
    result = all_values(hypotests.p0(model, data).require())
    np.testing.assert_allclose(result, tight_pyhf(spec, data, 0.0, "q0"), rtol=2e-6)


@pytest.mark.parametrize("name", EXAMPLES)
def test_expected_values_are_those_of_the_asimov_data(name):
    spec, model, _ = example(name)
    background = model.expected_data(model.parameters(0.0))
    np.testing.assert_allclose(
        hypotests.expected_cls(model).require().expected,
        tight_pyhf(spec, background, 1.0, "qtilde")[1:],
        rtol=1e-6,
    )
    signal = model.expected_data(model.parameters(1.0))
    np.testing.assert_allclose(
        hypotests.expected_p0(model).require().expected,
        tight_pyhf(spec, signal, 0.0, "q0")[1:],
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["shapesys", "histosys"])
def test_gradient_of_cls_in_every_yield(name):
    """Against differences of pyhf's own CLs, of sixth order because pyhf's fits are noisy."""
    spec, _, data = example(name)
    main = data[:2]

    def ours(spec):
        model = from_spec(spec)
        return hypotests.cls(model, jnp.concatenate([main, model.auxdata])).observed

    def theirs(spec):
        auxdata = pyhf.Model(spec).config.auxdata
        return tight_pyhf(spec, [*main, *auxdata], 1.0, "qtilde")[0]

    leaves, tree = jax.tree.flatten(models.with_arrays(spec), is_leaf=lambda x: x is None)
    arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)]

    def filled(values, convert=jnp.asarray):
        new = list(leaves)
        for i, value in zip(arrays, values, strict=True):
            new[i] = convert(value)
        return jax.tree.unflatten(tree, new)

    values = [leaves[i].astype(float) for i in arrays]
    gradients = jax.jit(jax.grad(lambda v: ours(filled(v))))(values)
    for which, value in enumerate(values):
        for bin_ in range(len(value)):
            step, difference = 0.01 * value[bin_], 0.0
            for offset, weight in {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}.items():
                for sign in (1, -1):
                    moved = [v.copy() for v in values]
                    moved[which][bin_] += sign * offset * step
                    difference += sign * weight * theirs(filled(moved, list)) / step
            np.testing.assert_allclose(gradients[which][bin_], difference, atol=1e-6)


def test_one_parameter_problem():
    """s = 15 + phi, b = 45 - 2 phi, sigma_b = 0.5 + 0.1 phi^2: optima of p0 and CLs in phi."""

    def model(phi):
        background, uncertainty = 45.0 - 2.0 * phi, 0.5 + 0.1 * phi**2
        return from_spec(
            models.shapesys(*(jnp.stack([x]) for x in (15 + phi, background, uncertainty)))
        )

    def p0(phi):
        return hypotests.expected_p0(model(phi)).median

    def cls(phi):
        return hypotests.expected_cls(model(phi)).median

    for function, optimum, value in ((p0, 4.635222, 3.07571505e-3), (cls, 6.30394, 5.926431e-3)):
        slope = jax.jit(jax.grad(function))
        found = scipy.optimize.brentq(slope, 3.0, 8.0, xtol=1e-10)
        np.testing.assert_allclose(found, optimum, atol=1e-5)
        np.testing.assert_allclose(function(found), value, rtol=1e-6)
    np.testing.assert_allclose(p0(0.0), 0.01700460, rtol=1e-6)
    np.testing.assert_allclose(cls(10.0), 9.52033e-3, rtol=1e-6)


@pytest.mark.parametrize("up", [-10.0, -5.0, 0.0, 5.0, 10.0])
@pytest.mark.parametrize("down", [-10.0, 0.0, 5.0])
def test_two_bin_landscape_against_brute_force(up, down):
    """Signal (5, 11) on (50, 50), one shape: where up = down, alpha = 0 is a stationary point."""
    model = from_spec(
        models.histosys([5.0, 11.0], [50.0, 50.0], [50 + down, 50 - down], [50 + up, 50 - up])
    )
    asimov = model.expected_data(model.parameters(0.0))
    alphas = jnp.linspace(-5.0, 5.0, 20_001)
    signal = model.parameters(1.0)
    shape = model.parameter_names.index("shape")
    scanned = jax.vmap(lambda alpha: model.deviance(signal.at[shape].set(alpha), asimov))(
        alphas
    ).min()
    fit = mle.best_fit(model, asimov, held={model.poi_index: 1.0})
    fit.certificate.require()
    assert float(fit.value) <= float(scanned) + 1e-12
    np.testing.assert_allclose(fit.value, scanned, rtol=1e-5)


def test_published_landscape():
    """Global profiles at some corners; code4p."""
    for (up, down), cls, p0 in [
        ((0.0, 0.0), 0.107956, 0.048812),
        ((5.0, 5.0), 0.110296, 0.048812),
        ((-5.0, -5.0), 0.107956, 0.051343),
        ((10.0, -10.0), 0.122635, 0.057341),
        ((5.0, -5.0), 0.116074, 0.054206),
    ]:
        model = from_spec(
            models.histosys([5.0, 11.0], [50.0, 50.0], [50 + down, 50 - down], [50 + up, 50 - up])
        )
        np.testing.assert_allclose(hypotests.expected_cls(model).median, cls, atol=1e-6)
        np.testing.assert_allclose(hypotests.expected_p0(model).median, p0, atol=1e-6)


EDGES = {
    "no signal": (models.shapesys, [0.0, 0.0], [50.0, 60.0], [3.0, 7.0]),
    "empty bin": (models.shapesys, [1.0, 2.0], [0.0, 60.0], [0.0, 7.0]),
    "no background": (models.shapesys, [3.0, 1.0], [0.0, 0.0], [0.0, 0.0]),
    "no uncertainty": (models.shapesys, [1.0, 2.0], [50.0, 60.0], [0.0, 0.0]),
    "far out in the tail": (models.shapesys, [900.0, 1.0], [10.0, 10.0], [1.0, 1.0]),
    "shape without effect": (models.histosys, [1.0, 2.0], [50.0, 60.0], [50.0, 60.0], [50.0, 60.0]),
    "one empty shape": (models.histosys, [1.0, 2.0], [0.0, 60.0], [0.0, 55.0], [0.0, 63.0]),
}


@partial(jax.jit, static_argnums=0)
def values_and_slopes(build, yields):
    """Slopes in every yield of expected and observed CLs and p0, the data a deficit; and these."""

    def values(yields):
        model = from_spec(build(*yields))
        main = 0.9 * model.expected_main(model.parameters(0.0))
        data = jnp.concatenate([main, model.auxdata])
        observed = [test(model, data).observed for test in (hypotests.cls, hypotests.p0)]
        expected = [hypotests.expected_cls(model).median, hypotests.expected_p0(model).median]
        return 2 * (jnp.stack(observed + expected),)

    return jax.jacrev(values, has_aux=True)(yields)


@pytest.mark.parametrize("name", EDGES)
def test_values_and_gradients_are_never_nan(name):
    build, *yields = EDGES[name]
    slopes, values = values_and_slopes(build, [jnp.array(y) for y in yields])
    assert jnp.isfinite(values).all()
    assert ((values >= 0) & (values <= 1)).all()
    assert all(jnp.isfinite(slope).all() for slope in slopes)


def test_a_direction_without_effect_is_reported():
    model = from_spec(models.shapesys([0.0, 0.0], [50.0, 60.0], [3.0, 7.0]))
    fit = mle.best_fit(model, model.expected_data(model.init))
    assert fit.certificate.status == Status.NOT_A_MINIMUM
    with pytest.raises(RuntimeError, match="without effect"):
        hypotests.cls(model, model.expected_data(model.init)).require()


def test_best_fit_at_the_bound_is_one_sided():
    """With a deficit mu-hat = 0, and q0 = 0 with zero slope, not NaN."""
    model = from_spec(models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0]))
    data = jnp.concatenate([jnp.array([45.0, 46.0]), model.auxdata])
    fit = mle.best_fit(model, data)
    fit.certificate.require()
    assert fit.parameters[0] == 0.0
    assert fit.certificate.at_bound[0]
    value, slope = jax.jit(jax.value_and_grad(lambda d: test_statistics.q0(model, d).value))(data)
    assert value == 0.0
    np.testing.assert_array_equal(slope, 0.0)


def test_upper_tails_far_out():
    """At 20 sigma the p-value is 1e-89, and its logarithm still has a slope."""
    model = from_spec(models.shapesys([300.0], [100.0], [0.0]))
    p_value = hypotests.expected_p0(model).median
    assert 0.0 < p_value < 1e-60


@jax.jit
@jax.vmap
def discovery(background):
    """One event, two expected from the signal: p0 and its slope."""

    def p0(background):
        samples = {"signal": ([2.0], [models.MU]), "background": (background[None], [])}
        model = from_spec({"channels": [models.channel("c", **samples)]})
        result = hypotests.p0(model, jnp.array([1.0]))
        return result.observed, result

    slope, result = jax.grad(p0, has_aux=True)(background)
    return result, slope


def test_discovery_where_next_to_nothing_is_expected():
    """Closed form, q0 = 2 (b - 1 - log b), down to an expectation of nothing, where p0 is 0."""
    background = np.array([1e-3, 1e-9, 1e-12, 1e-40, 1e-69, 1e-80, 0.0])
    found, slopes = discovery(background)
    exact = scipy.stats.norm.sf(np.sqrt(2 * (background[:5] - 1 - np.log(background[:5]))))
    np.testing.assert_allclose(found.observed[:5], exact, rtol=1e-11)
    np.testing.assert_allclose(found.observed[2], 1.459463e-13, rtol=1e-6)
    assert found.observed[6] == 0.0 and (found.expected[6] == 0.0).all()
    # Below the smallest rate the number is none of the likelihood's, and says so.
    np.testing.assert_array_equal(found.converged, [True] * 5 + [False, True])
    with pytest.raises(RuntimeError, match=r"1 of 7 failed; .*\[5\]: .*where nothing is expected"):
        found.require()
    assert jnp.isfinite(slopes).all()


def test_cls_of_data_far_below_the_background():
    """Fifty standard deviations: the ratio of two tails that are both zero in double precision."""
    model = from_spec(models.shapesys([3000.0, 100.0], [10_000.0, 10.0], [0.0, 0.0]))
    data = jnp.concatenate([jnp.array([5_000.0, 10.0]), model.auxdata])
    value, slope = jax.jit(jax.value_and_grad(lambda d: hypotests.cls(model, d).observed))(data)
    assert 0.0 <= value < 1e-100
    assert jnp.isfinite(slope).all()


def test_two_sided_statistics_equal_pyhf():
    """Data below the background: the best fit is negative for tmu and 0 for tmu-tilde."""
    spec = models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
    spec["parameters"] = [{"name": "mu", "inits": [1.0], "bounds": [[-5.0, 10.0]]}]
    reference, model = pyhf.Model(spec), from_spec(spec)
    data = [44.0, 43.0, *reference.config.auxdata]
    inits, fixed = reference.config.suggested_init(), reference.config.suggested_fixed()
    bounds = reference.config.suggested_bounds()
    theirs = pyhf.infer.test_statistics.tmu(0.7, data, reference, inits, bounds, fixed)
    ours = test_statistics.tmu(model, jnp.array(data), 0.7)
    np.testing.assert_allclose(ours.value, theirs, rtol=1e-7)
    assert ours.best_fit.parameters[model.poi_index] < -0.1
    bounds[reference.config.poi_index] = (0.0, 10.0)
    theirs = pyhf.infer.test_statistics.tmu_tilde(0.7, data, reference, inits, bounds, fixed)
    tilde = test_statistics.tmu_tilde(model, jnp.array(data), 0.7)
    np.testing.assert_allclose(tilde.value, theirs, rtol=1e-7)
    assert tilde.best_fit.parameters[model.poi_index] == 0.0
    assert tilde.value < ours.value


def moved_model(theta):
    background, uncertainty = [50.0 - theta, 52.0 + 2 * theta], [3.0 + theta, 7.0]
    signal = [12.0 + theta, 11.0]
    return from_spec(models.shapesys(*map(jnp.array, (signal, background, uncertainty))))


def test_asimov_data_equal_pyhf():
    model = moved_model(0.0)
    reference = pyhf.Model(models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0]))
    data = [54.0, 61.0, *reference.config.auxdata]
    settings = [getattr(reference.config, f"suggested_{k}")() for k in ("init", "bounds", "fixed")]
    theirs = pyhf.infer.calculators.generate_asimov_data(0.4, data, reference, *settings)
    ours = hypotests.asimov_data(model, 0.4, jnp.array(data))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    before = hypotests.asimov_data(model, 0.4)
    np.testing.assert_allclose(before, model.expected_data(model.parameters(0.4)))
    with pytest.raises(ValueError, match="hold is 'yields'"):
        hypotests.asimov_data(model, 0.4, hold="yields")
    with pytest.raises(ValueError, match=r"data\[1\] is nan"):
        hypotests.asimov_data(model, 0.4, jnp.array(data).at[1].set(jnp.nan))


def test_where_the_gradient_of_asimov_data_stops():
    """Against differences in which only what is not held moves."""
    main = jnp.array([54.0, 61.0])

    def data(model):
        return jnp.concatenate([main, model.auxdata])

    def asimov(of_parameters, of_data):
        fit = mle.best_fit(moved_model(of_parameters), data(moved_model(0.0)), held={"mu": 0.0})
        return moved_model(of_data).expected_data(fit.parameters)

    @jax.jit
    def expectation(of_model, of_parameters, of_data):
        held = asimov(of_parameters, of_data)
        q = test_statistics.qmu_tilde(moved_model(of_model), held, 1.0).value
        return 2.0 * norm.sf(jnp.sqrt(q))

    def expected(theta, hold):
        return hypotests.cls(moved_model(theta), data(moved_model(0.0)), hold=hold).median

    # Of held data the best fit leaves mu = 0 on one side only, hence the small step.
    step, slopes = 1e-6, {}
    for hold, moving in {None: (1, 1, 1), "parameters": (1, 0, 1), "data": (1, 0, 0)}.items():
        up, down = (expectation(*(sign * step * np.array(moving))) for sign in (1, -1))
        slopes[hold] = float(jax.jit(jax.grad(expected), static_argnums=1)(0.0, hold))
        np.testing.assert_allclose(slopes[hold], (up - down) / (2 * step), rtol=2e-6)
    assert np.ptp(list(slopes.values())) > 1e-3


def test_bad_arguments_are_named():
    model = from_spec(models.shapesys([12.0, 11.0], [50.0, 52.0], [3.0, 7.0]))
    data = model.expected_data(model.init)
    with pytest.raises(ValueError, match="test_statistic is 'qq'"):
        hypotests.cls(model, data, 1.0, test_statistic="qq")
    with pytest.raises(ValueError, match=r"data\[0\] is nan"):
        hypotests.cls(model, data.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="the model has 2 bins"):
        test_statistics.q0(model, data[:3])


@pytest.mark.parametrize(
    "result",
    [
        lambda model, data: test_statistics.q0(model, data).value,
        lambda model, data: test_statistics.qmu(model, data, 1.0).value,
        lambda model, data: hypotests.cls(model, data),
        lambda model, data: hypotests.expected_cls(model),
        lambda model, data: hypotests.p0(model, data),
    ],
)
def test_nan_in_a_traced_yield_stays_nan(result):
    """Under jit nothing can be raised: a number that looks like no evidence would be believed."""
    spec = pyhf.simplemodels.uncorrelated_background([5.0, 6.0], [50.0, 60.0], [5.0, 6.0]).spec
    data = hypotests.asimov_data(from_spec(spec), 1.0)

    @jax.jit
    def of_background(background):
        signal, expected = spec["channels"][0]["samples"]
        samples = [signal, expected | {"data": background}]
        model = from_spec({"channels": [spec["channels"][0] | {"samples": samples}]})
        found = result(model, data)
        return (found.observed, found.expected) if isinstance(found, hypotests.PValues) else found

    for part in jax.tree.leaves(of_background(jnp.array([np.nan, 60.0]))):
        assert np.all(np.isnan(part))
