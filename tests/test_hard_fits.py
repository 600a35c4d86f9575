"""Fits that version 0.1.0 did not finish: valleys along bounds, walls that are not there, traps."""

from dataclasses import replace

import hard_models
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from nablab.infer import hypotests, minimizer, mle
from nablab.infer.certificates import Status, beaten_by
from nablab.model.histfactory import from_spec


def most_above(x, templates, bounds, counts):
    """How far above its minimum -2 log L can be at ``x``: it is convex, thus above its tangent."""
    gradient = 2.0 * templates @ (1.0 - counts / (x @ templates))
    return np.maximum(gradient * (x - bounds[:, 0]), gradient * (x - bounds[:, 1])).sum()


@pytest.mark.parametrize("normalisations", [2, 3, 4, 5, 6])
def test_valleys_along_bounds(normalisations):
    rng = np.random.default_rng(20261129 + normalisations)
    cases = [hard_models.valley(normalisations, 6, rng) for _ in range(200)]

    @jax.jit
    @jax.vmap
    def fit(templates, bounds, counts):
        model = from_spec(hard_models.normalisations(templates, bounds))
        return mle.best_fit(model, counts)

    found = fit(*(np.stack(part) for part in zip(*cases, strict=True)))
    assert (found.certificate.status == Status.CONVERGED).all()
    assert np.median(found.certificate.iterations) <= 15
    ends = list(zip(np.asarray(found.parameters), cases, strict=True))
    assert max(most_above(x, *case) for x, case in ends) < 1e-6
    assert min(most_above(x + 0.01, *case) for x, case in ends) > 1.0


def test_the_valley_along_a_bound_that_took_3387_iterations():
    templates, bounds, counts = map(np.array, hard_models.ALONG_A_BOUND)
    model = from_spec(hard_models.normalisations(templates, bounds))
    for poi, twice in ((None, 28.89898265924785), (0.0, 3542.708178282484), (1.0, 30.490015824690)):
        if poi is None:
            fit = mle.best_fit(model, counts)
        else:
            fit = mle.best_fit(model, counts, held={model.poi_index: poi})
        fit.certificate.require()
        assert -2.0 * model.logpdf(fit.parameters, counts) == pytest.approx(twice, abs=1e-9)
        assert fit.certificate.iterations <= 10


def test_a_negative_factor_is_no_wall():
    model = from_spec(hard_models.ENORMOUS)
    data = jnp.concatenate([jnp.array([66.0]), model.auxdata])
    free, none, nominal = (
        mle.best_fit(model, data),
        mle.best_fit(model, data, held={model.poi_index: 0.0}),
        mle.best_fit(model, data, held={model.poi_index: 1.0}),
    )
    for fit, twice in ((free, 7.917307556868), (none, 7.917307556868), (nominal, 8.298591069870)):
        fit.certificate.require()
        assert -2.0 * model.logpdf(fit.parameters, data) == pytest.approx(twice, abs=1e-9)
    alpha = nominal.parameters[model.parameter_names.index("jer")]
    assert model.expected_by_cell(nominal.parameters)[2] < 0.0  # the sample itself is negative
    slopes = jax.grad(model.deviance)(nominal.parameters, data)
    assert abs(slopes[model.parameter_names.index("jer")]) < 1e-8
    assert -1.0 < alpha < 0.0


def test_rounding_errors_of_huge_auxiliary_counts_are_recognised():
    tau = 1e13

    def function(x):
        count = tau * x[0]
        return 2.0 * (count - tau - tau * jnp.log(x[0])) + (x[1] - x[0]) ** 2

    fit = minimizer.minimize(function, jnp.array([1.0 + 1e-9, 0.0]), lower=1e-3)
    fit.certificate.require()
    assert fit.certificate.iterations < 20
    np.testing.assert_allclose(fit.parameters, 1.0, atol=1e-12)


def test_messages_name_the_parameters():
    flat = jax.jit(
        lambda: minimizer.minimize(lambda x: (x[0] + x[1]) ** 2 + x[2] ** 2, jnp.ones(3))
    )()
    assert flat.certificate.status == Status.NOT_A_MINIMUM
    with pytest.raises(RuntimeError, match="flat along parameters 0, 1 together: constrain"):
        flat.require()
    resting = jax.jit(
        lambda: minimizer.minimize(
            lambda x: jnp.sum(jnp.exp(-x[:1])) + x[1], jnp.ones(2), lower=-1.0, max_iterations=3
        )
    )()
    with pytest.raises(RuntimeError, match="at a bound: parameters 1"):
        resting.require()


def test_iterations_and_tolerance_can_be_set():
    model = from_spec(hard_models.ENORMOUS)
    data = jnp.concatenate([jnp.array([66.0]), model.auxdata])
    assert not mle.best_fit(model, data, max_iterations=1).converged
    assert not hypotests.cls(model, data, max_iterations=1).converged
    loose, tight = (mle.best_fit(model, data, tolerance=t) for t in (1e3, 1e-10))
    assert tight.certificate.gradient_norm < 1e-8 < 1e-4 < loose.certificate.gradient_norm


def test_many_minima_are_searched_and_told():
    """The lowest of 40 random starts of scipy's L-BFGS-B, of which a third find it."""
    rng = np.random.default_rng(1000)
    spec, counts = hard_models.many_shapes(rng.integers(20, 80), rng.integers(8, 30), rng)
    model = from_spec(spec)
    data = jnp.concatenate([jnp.array(counts), model.auxdata])
    found = jax.jit(
        lambda: mle.fits(model, data, {}, *({model.poi_index: mu} for mu in (0.0, 1.0)))
    )()
    for fit, lowest in zip(found, (85.325492, 96.604357, 85.957998), strict=True):
        fit.require()
        assert fit.value < lowest + 1e-6
        assert jnp.nanmax(fit.certificate.heights) > 0.01  # others ended elsewhere
        assert jnp.nanmin(fit.certificate.heights) == pytest.approx(0.0, abs=1e-9)


def test_a_valley_that_one_start_in_ten_finds():
    """The lowest of 200 random starts of L-BFGS-B (benchmarks/minima.py), among a dozen minima."""
    rng = np.random.default_rng(1007)
    spec, counts = hard_models.many_shapes(rng.integers(20, 80), rng.integers(8, 30), rng)
    model = from_spec(spec)
    data = jnp.concatenate([jnp.array(counts), model.auxdata])
    fit = mle.best_fit(model, data, held={model.poi_index: 0.0})
    assert fit.require().value < 20.2864888 and np.sum(fit.certificate.heights > 1e-3) > 5


def wells(x):
    """Two minima in x[1], the deeper one at -1, and x[0] follows."""
    return (x[1] ** 2 - 1.0) ** 2 + 0.3 * x[1] + 0.1 * (x[0] - x[1]) ** 2


INIT, FIXED = jnp.array([[0.9, 0.9], [0.0, -0.9]]), jnp.array([[False, False], [True, False]])


@jax.jit
def both_wells(look):
    return minimizer.minimize(wells, INIT, fixed=FIXED, look=look)


def test_no_free_fit_is_above_one_that_it_contains():
    """Where the free fit alone would stop short, the end of the conditional one is its start."""
    free, held = both_wells(True).value
    assert free <= held


def test_a_fit_above_one_that_it_contains_has_not_converged():
    fit = both_wells(False)
    assert fit.value[0] > fit.value[1]
    np.testing.assert_array_equal(fit.certificate.status, [Status.NOT_LOWEST, Status.CONVERGED])
    with pytest.raises(RuntimeError, match=r"1 of 2 failed.*found a lower point"):
        fit.require()


def test_a_scan_below_the_best_fit_is_told():
    fit = both_wells(True)
    alone = jax.tree.map(lambda field: field[0], fit)
    assert beaten_by(alone, alone.value + jnp.array([0.0, 1.0])).converged
    beaten = beaten_by(alone, alone.value - jnp.array([0.0, 1e-3]))
    assert beaten.certificate.status == Status.NOT_LOWEST
    failed = replace(alone.certificate, status=jnp.array(Status.NOT_FINITE))
    still = beaten_by(replace(alone, certificate=failed), alone.value[None] - 1.0)
    assert still.certificate.status == Status.NOT_FINITE


@pytest.mark.parametrize("counts", [-3.0, np.nan])
def test_data_that_are_no_counts_are_not_no_events(counts):
    model = from_spec(hard_models.normalisations([[5.0, 7.0]], [[0.0, 10.0]]))
    data = jnp.array([4.0, counts])
    parameters = jnp.ones(1)
    assert jnp.isnan(model.deviance(parameters, data))
    assert jnp.isnan(jax.grad(model.deviance)(parameters, data)).all()
    assert jax.jit(mle.best_fit)(model, data).certificate.status == Status.NOT_FINITE
    assert not jax.jit(hypotests.p0)(model, data).converged


def test_a_fit_that_starts_where_nothing_is_expected():
    """A bin with 0.0008 events that only a nuisance parameter below 0 can explain: at its starting
    value, which is 0, the likelihood has no slope to follow."""
    shape = {"lo_data": [5.868, 3.34, 4.35, 86.442], "hi_data": [0.0, 0.0, 0.0, 100.0]}
    background = ([0.0, 0.0, 0.002, 99.998], [models.modifier("histosys", "alpha", shape)])
    signal = ([0.0, 0.0008, 0.0, 19.9992], [models.MU])
    model = from_spec({"channels": [models.channel("c", s=signal, b=background)]})
    found = hypotests.expected_p0(model).require()

    def deviance(alpha):
        parameters = model.parameters(0.0).at[1 - model.poi_index].set(alpha)
        return float(model.deviance(parameters, model.expected_data(model.parameters(1.0))))

    lowest = scipy.optimize.minimize_scalar(deviance, bounds=(-1e-3, -1e-6), method="bounded")
    expected = scipy.stats.norm.sf(np.sqrt(lowest.fun))
    assert float(found.median) == pytest.approx(expected, rel=1e-6)


UNFILLED = {  # background of three bins, down, up; signal: of trainings that emptied their bins
    "down": ([0.0, 0.0, 0.002], [5.868, 3.34, 4.35], [0.0, 0.0, 0.0], [0.0, 0.0008, 0.0]),
    "up": ([0.0, 0.0, 0.002], [0.0, 0.0, 0.0], [13.268, 5.426, 6.49], [0.0004, 0.0008, 0.0004]),
}


@pytest.mark.parametrize("side", UNFILLED)
@pytest.mark.parametrize("code", ["code0", "code2", "code4p"])
def test_a_kink_beside_a_wall_is_no_arrival(side, code):
    """With straight lines one side of 0 has no likelihood: the right number, or one not sure."""
    nominal, down, up, signal = ([*v, 100 - sum(v)] for v in UNFILLED[side])
    signal = [*signal[:3], 20 - sum(signal[:3])]
    shape = {"lo_data": down, "hi_data": up}
    background = (nominal, [models.modifier("histosys", "alpha", shape)])
    channel = models.channel("c", s=(signal, [models.MU]), b=background)
    model = from_spec({"channels": [channel]}, codes={"histosys": code})
    found = jax.jit(hypotests.expected_p0)(model)
    alphas = np.concatenate([-np.geomspace(1e-8, 1, 4001), np.geomspace(1e-8, 1, 4001)])
    at = np.tile(model.parameters(0.0), (len(alphas), 1))
    at[:, 1 - model.poi_index] = alphas
    data = model.expected_data(model.parameters(1.0))
    expected = scipy.stats.norm.sf(np.sqrt(jax.vmap(model.deviance, (0, None))(at, data).min()))
    assert not found.converged or float(found.median) == pytest.approx(expected, rel=1e-4)
    assert found.converged or (side, code) == ("down", "code0")


@pytest.mark.parametrize("held", [{"mu": 0.0}, {"mu": 0.0, "alpha": 0.5}])
def test_what_is_held_cannot_fill_a_bin(held):
    """With alpha held on the side without background, mu = 0 is impossible: that is a result."""
    shape = {"lo_data": [5.0, 95.0], "hi_data": [0.0, 100.0]}
    background = ([0.0, 100.0], [models.modifier("histosys", "alpha", shape)])
    channel = models.channel("c", s=([1.0, 9.0], [models.MU]), b=background)
    model = from_spec({"channels": [channel]}, codes={"histosys": "code0"})
    data = model.expected_data(model.parameters(1.0))
    fit = mle.best_fit(model, data, held=held)
    filled = float(model.expected_main(fit.parameters)[0]) > 0
    assert filled == ("alpha" not in held)
    assert fit.certificate.status == Status.CONVERGED
