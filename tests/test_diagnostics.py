"""Pulls, impacts, goodness of fit and sensitivity, against refits, minuit, toys and differences."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import iminuit
import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
import scipy.stats

from nablab.infer import diagnostics, mle
from nablab.model.histfactory import from_spec

COUNTS = np.array([125.0, 118.0, 36.0, 52.0, 31.0])  # for models.everything()


@pytest.fixture(scope="module")
def everything():
    """A model with all modifiers and a masked bin, data with an excess, and the best fit."""
    model = from_spec(models.everything())
    data = jnp.concatenate([COUNTS, model.auxdata])
    return model, data, mle.best_fit(model, data)


def with_bounds(spec, low, high):
    return {**spec, "parameters": [{"name": "mu", "bounds": [[low, high]]}]}


def counting(background=(50.0, 30.0)):
    """A bin with signal and an uncertain background, and a masked one; the fit is closed."""
    spec = models.shapesys([10.0, 0.0], background, [7.0, 0.0])
    return from_spec(with_bounds(spec, -50.0, 50.0))


def refit(model, data, parameter, value):
    """Brute force: hold one parameter, fit the others again, and return the poi."""
    held = replace(
        model,
        init=model.init.at[parameter].set(value),
        fixed=model.fixed.at[parameter].set(True),
    )
    fit = mle.best_fit(held, data)
    fit.certificate.require()
    return fit.parameters[model.poi_index]


@pytest.mark.parametrize("width", ["prefit", "postfit"])
def test_impacts_are_what_refits_measure(everything, width):
    model, data, fit = everything
    found = getattr(diagnostics.impacts(model, data, fit), width)
    pulls = diagnostics.pulls(model, data, fit)
    sigma = getattr(pulls, f"{width}_width")
    poi_sigma = pulls.postfit_width[model.poi_index]
    readable = np.flatnonzero(np.isfinite(found))
    readable = readable[readable != model.poi_index]
    names = {model.parameter_names[p] for p in readable}
    assert {"energy", "lumi", "rate", "mc[0]", "mc[1]", "fakes[0]"} <= names
    for p in readable:
        centre = fit.parameters[p]

        def half_difference(shift, p=p, centre=centre):
            up, down = (refit(model, data, p, centre + sign * shift) for sign in (1, -1))
            return (up - down) / 2

        small = half_difference(1e-3 * sigma[p]) / 1e-3
        np.testing.assert_allclose(found[p], small, rtol=1e-4, atol=1e-6 * poi_sigma)
        # At one standard deviation the third order shows: at most 3 % of the poi's uncertainty.
        np.testing.assert_allclose(found[p], half_difference(sigma[p]), atol=0.03 * poi_sigma)
    assert np.max(np.abs(found[readable])) > 0.3 * poi_sigma, "some impact must be worth testing"


SEEN = np.array([71.0, 37.0, 51.0, 1.0])  # two bins, and their auxiliary counts


def read(background):
    model = counting(background)
    fit = mle.best_fit(model, SEEN)
    mu, gamma = model.poi_index, model.parameter_names.index("uncorrelated[0]")
    pulls, impacts = (f(model, SEEN, fit) for f in (diagnostics.pulls, diagnostics.impacts))
    fits_well = diagnostics.goodness_of_fit(model, SEEN, fit)
    return {
        "mu": fit.parameters[mu],
        "width of mu": pulls.postfit_width[mu],
        "pull": pulls.pull[gamma],
        "constraint": pulls.constraint[gamma],
        "impact before": impacts.prefit[gamma],
        "impact after": impacts.postfit[gamma],
        "impact of mu": impacts.postfit[mu],
        "deviance": fits_well.statistic,
        "p": fits_well.p_value,
    }


def closed_form(background):
    """mu = (n - gamma b) / s with gamma = m / tau; the masked bin is a test of its own."""
    (b, other), (n, n_other, m, _), s, sigma = background, SEEN, 10.0, 7.0
    tau = (b / sigma) ** 2
    gamma, width = m / tau, jnp.sqrt(m) / tau
    width_of_mu = jnp.sqrt(n + (b * width) ** 2) / s
    deviance = 2 * (n_other * jnp.log(n_other / other) - n_other + other)
    return {
        "mu": (n - gamma * b) / s,
        "width of mu": width_of_mu,
        "pull": jnp.zeros(()),
        "constraint": width * jnp.sqrt(tau),
        "impact before": -b / s / jnp.sqrt(tau),
        "impact after": -b / s * width,
        "impact of mu": width_of_mu,
        "deviance": deviance,
        "p": jax.scipy.special.erfc(jnp.sqrt(deviance / 2)),
    }


def test_closed_form_of_a_counting_experiment():
    """Values, and gradients in the yields for many models at once, past the NaN of the mask."""
    backgrounds = jnp.array([[50.0, 30.0], [55.0, 36.0], [45.0, 40.0]])
    slopes, values = jax.jit(jax.vmap(jax.jacrev(lambda b: 2 * (read(b),), has_aux=True)))(
        backgrounds
    )
    expected_slopes = jax.vmap(jax.jacfwd(closed_form))(backgrounds)
    for name, expected in jax.vmap(closed_form)(backgrounds).items():
        tolerance = {"rtol": 1e-7, "atol": 1e-9, "err_msg": name}
        np.testing.assert_allclose(values[name], expected, **tolerance)
        np.testing.assert_allclose(slopes[name], expected_slopes[name], **tolerance)


def test_impacts_are_exact_where_mu_is_linear():
    model = counting()
    fit = mle.best_fit(model, SEEN)
    gamma = model.parameter_names.index("uncorrelated[0]")
    up = refit(model, SEEN, gamma, fit.parameters[gamma] + 7.0 / 50.0)
    shift = up - fit.parameters[model.poi_index]
    np.testing.assert_allclose(
        diagnostics.impacts(model, SEEN, fit).prefit[gamma], shift, rtol=1e-8
    )


def test_pulls_against_pyhf_and_minuit(everything):
    model, data, fit = everything
    pulls = diagnostics.pulls(model, data, fit)
    pyhf.set_backend("numpy")
    reference = pyhf.Model(models.everything(), poi_name="mu")
    # Without limits, whose transformation would spoil minuit's second derivatives.
    minuit = iminuit.Minuit(
        lambda parameters: -2 * reference.logpdf(list(parameters), list(map(float, data)))[0],
        np.array(reference.config.suggested_init()),
    )
    minuit.errordef, minuit.strategy, minuit.tol = 1.0, 2, 1e-4
    for parameter, fixed in enumerate(reference.config.suggested_fixed()):
        minuit.fixed[parameter] = fixed
    minuit.migrad()
    minuit.hesse()
    found, width = np.array(minuit.values), np.array(minuit.errors)
    free = ~np.array(reference.config.suggested_fixed())
    prefit = np.full(len(width), np.nan)
    for name in reference.config.auxdata_order:
        prefit[reference.config.par_slice(name)] = reference.config.param_set(name).width()
    prefit[~free] = np.nan
    pull = (found - np.array(reference.config.suggested_init())) / prefit
    np.testing.assert_allclose(pulls.prefit_width, prefit, rtol=1e-12)
    np.testing.assert_allclose(pulls.pull, pull, atol=2e-4)
    np.testing.assert_allclose(pulls.constraint, width / prefit, rtol=2e-4)
    np.testing.assert_allclose(pulls.postfit_width[free], width[free], rtol=2e-4)


def test_observed_information_is_the_expected_one_for_asimov_data(everything):
    model, data, _ = everything
    truth = model.parameters(1.0)
    asimov = model.expected_data(truth)
    expected = diagnostics.information(model, truth)
    np.testing.assert_allclose(
        diagnostics.observed_information(model, asimov, truth), expected, rtol=1e-9, atol=1e-9
    )
    other = diagnostics.observed_information(model, data, truth)
    assert np.max(np.abs(other - expected)) > 0.1


def test_a_parameter_at_its_bound_is_as_if_fixed(everything):
    model, _, _ = everything
    deficit = jnp.concatenate([COUNTS - jnp.array([0, 0, 6, 14, 12]), model.auxdata])
    fit = mle.best_fit(model, deficit)
    at_bound = np.arange(len(model.init)) == model.poi_index
    np.testing.assert_array_equal(fit.certificate.at_bound, at_bound)
    covariance = diagnostics.observed_covariance(model, deficit, fit)
    information = diagnostics.observed_information(model, deficit, fit.parameters)
    free = np.flatnonzero(~np.asarray(model.fixed) & ~at_bound)
    product = information[np.ix_(free, free)] @ covariance[np.ix_(free, free)]
    np.testing.assert_allclose(product, np.eye(len(free)), atol=1e-9)
    np.testing.assert_array_equal(covariance[model.poi_index], 0.0)
    pulls, impacts = (f(model, deficit, fit) for f in (diagnostics.pulls, diagnostics.impacts))
    assert np.isnan(pulls.postfit_width[model.poi_index])
    np.testing.assert_array_equal(impacts.postfit[~np.asarray(model.fixed) & ~at_bound], 0.0)
    assert not diagnostics.goodness_of_fit(model, deficit, fit).valid


def test_what_is_not_a_minimum_is_not_read(everything):
    model, data, fit = everything
    conditional = replace(fit, parameters=fit.parameters.at[model.poi_index].add(0.1))
    assert np.isnan(diagnostics.impacts(model, data, conditional).prefit).all()
    pulls = diagnostics.pulls(model, data, conditional)
    assert np.isnan(pulls.postfit_width).all() and np.isnan(pulls.constraint).all()


def test_fixed_and_unconstrained_parameters_have_nothing_to_read(everything):
    model, data, fit = everything
    pulls, impacts = diagnostics.pulls(model, data, fit), diagnostics.impacts(model, data, fit)
    for name, nan in {
        "mu": "pull constraint prefit_width",
        "free[0]": "pull constraint prefit_width",
        "fakes[1]": "pull constraint prefit_width postfit_width",
    }.items():
        p = model.parameter_names.index(name)
        for field in ("pull", "constraint", "prefit_width", "postfit_width"):
            assert np.isnan(getattr(pulls, field)[p]) == (field in nan.split()), (name, field)
        assert np.isnan(impacts.prefit[p])
    assert np.isnan(impacts.postfit[model.parameter_names.index("fakes[1]")])


def scaled_background(background):
    """One sample whose rate is free: mu = sum n / sum b, and bins - 1 degrees of freedom."""
    return {"channels": [models.channel("c", background=(background, [models.MU]))]}


def test_goodness_of_fit_closed_form():
    background = np.array([40.0, 70.0, 55.0, 0.0, 90.0])
    counts = np.array([52.0, 61.0, 49.0, 0.0, 118.0])
    model = from_spec(scaled_background(background))
    fit = mle.best_fit(model, counts)
    found = diagnostics.goodness_of_fit(model, counts, fit)
    filled = background > 0
    expected = background * counts.sum() / background.sum()
    deviance = 2 * np.sum(counts[filled] * np.log(counts[filled] / expected[filled]))
    np.testing.assert_allclose(found.statistic, deviance, rtol=1e-10)
    assert found.degrees_of_freedom == 3
    np.testing.assert_allclose(found.p_value, scipy.stats.chi2.sf(deviance, 3), rtol=1e-10)
    assert found.valid
    far = diagnostics.goodness_of_fit(model, counts * np.array([1, 1, 1, 1, 5.0]), fit)
    np.testing.assert_allclose(far.p_value, scipy.stats.chi2.sf(far.statistic, 3), rtol=1e-8)
    assert 0 < far.p_value < 1e-200


def test_goodness_of_fit_of_a_bad_count_is_nan(everything):
    model, data, fit = everything
    found = jax.jit(diagnostics.goodness_of_fit)(model, jnp.asarray(data).at[1].set(jnp.nan), fit)
    assert np.isnan(found.statistic) and np.isnan(found.p_value) and not found.valid


def test_goodness_of_fit_counts_what_is_measured(everything):
    """5 bins, and three rates (mu and two shape factors) without auxiliary measurement."""
    model, data, fit = everything
    found = diagnostics.goodness_of_fit(model, data, fit)
    assert found.degrees_of_freedom == 2
    np.testing.assert_allclose(found.statistic, fit.value, rtol=1e-9)
    # pyhf's log-density, against that of a model that describes each measurement by itself
    reference = pyhf.Model(models.everything(), poi_name="mu")
    saturated = log_poisson_at_mean(COUNTS).sum()
    auxiliary = iter(reference.config.auxdata)
    for name in reference.config.auxdata_order:
        parameter = reference.config.param_set(name)
        for width, measured in zip(parameter.width(), auxiliary, strict=False):
            poisson = parameter.pdf_type == "poisson"
            saturated += log_poisson_at_mean(measured) if poisson else -np.log(width * 2.5066282746)
    logpdf = reference.logpdf(list(map(float, fit.parameters)), list(map(float, data)))[0]
    np.testing.assert_allclose(found.statistic, 2 * (saturated - logpdf), rtol=1e-7)


def log_poisson_at_mean(n):
    return n * np.log(n) - n - scipy.special.gammaln(n + 1)


def test_a_held_parameter_is_no_degree_of_freedom_and_no_measurement(everything):
    model, data, fit = everything
    energy = model.parameter_names.index("energy")
    held = replace(
        model, fixed=model.fixed.at[energy].set(True), init=model.init.at[energy].set(2.0)
    )
    fit = mle.best_fit(held, data)
    found = diagnostics.goodness_of_fit(held, data, fit)
    assert found.degrees_of_freedom == 2
    # The deviance has 2 sigma squared from the auxiliary measurement, which tests nothing.
    np.testing.assert_allclose(found.statistic, fit.value - 4.0, rtol=1e-9)


@jax.jit
def p_values(model, toys):
    def p_value(data):
        return diagnostics.goodness_of_fit(model, data, mle.best_fit(model, data)).p_value

    return jax.lax.map(p_value, toys, batch_size=500)


@pytest.mark.parametrize(("events", "rejected"), [(100.0, 0.05), (5.0, 0.058)])
def test_goodness_of_fit_on_toys(events, rejected):
    """p-values are uniform; at 5 events a bin slightly too many are small."""
    background = events * np.array([1.0, 1.2, 1.1, 1.3])
    signal = events * np.array([0.2, 0.5, 0.5, 0.3])
    spec = models.shapesys(list(signal), list(background), list(0.1 * background))
    model = from_spec(with_bounds(spec, -50.0, 50.0))
    truth = model.expected_data(model.parameters(1.0))
    toys = jax.random.poisson(jax.random.key(1), truth, (2000, len(truth))).astype(float)
    p = p_values(model, toys)
    assert abs(np.mean(p < 0.05) - rejected) < 3 * np.sqrt(rejected / len(p))
    if events == 100.0:
        assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


def test_goodness_of_fit_says_when_it_does_not_hold():
    few = from_spec(scaled_background([40.0, 2.0, 30.0, 30.0, 30.0]))
    counts = np.array([42.0, 1.0, 33.0, 30.0, 30.0])
    assert not diagnostics.goodness_of_fit(few, counts, mle.best_fit(few, counts)).valid
    one = from_spec(scaled_background([40.0]))
    found = diagnostics.goodness_of_fit(one, np.array([42.0]), mle.best_fit(one, np.array([42.0])))
    assert found.degrees_of_freedom == 0 and np.isnan(found.p_value) and not found.valid


def uncertainty(spec):
    return diagnostics.poi_uncertainty(from_spec(spec))


def samples(spec):
    return [sample for channel in spec["channels"] for sample in channel["samples"]]


def with_extra(spec, events, step):
    """Move the yields of each sample, nominal and varied, by ``step`` times ``events``."""
    spec = copy.deepcopy(spec)
    for sample, extra in zip(samples(spec), events, strict=True):
        extra = step * extra
        sample["data"] = sample["data"] + extra
        for modifier in sample["modifiers"]:
            if modifier["type"] == "histosys":
                for name in ("lo_data", "hi_data"):
                    modifier["data"][name] = modifier["data"][name] + extra
    return spec


def test_sensitivity_map_against_differences():
    spec = models.everything()
    found = diagnostics.sensitivity_map(spec, uncertainty)
    assert list(found) == ["signal_region", "control_region"]
    assert list(found["signal_region"]) == ["signal", "top", "other"], "the reader's order"
    rng, step = np.random.default_rng(0), 1e-4
    for _ in range(3):
        # An empty bin stays empty: its yield cannot be lowered.
        events = [
            rng.normal(size=len(s["data"])) * (np.array(s["data"]) > 0) for s in samples(spec)
        ]
        up, down = (uncertainty(with_extra(spec, events, sign * step)) for sign in (1, -1))
        rows = [found[c["name"]][s["name"]] for c in spec["channels"] for s in c["samples"]]
        slope = sum(row @ extra for row, extra in zip(rows, events, strict=True))
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-6)
    assert (found["signal_region"]["signal"] < 0).all(), "more signal is measured better"


def test_sensitivity_map_takes_traced_numbers_and_refuses_bad_ones():
    def steepness(signal):
        spec = models.shapesys(signal, [50.0, 60.0], [3.0, 7.0])
        return diagnostics.sensitivity_map(spec, uncertainty)["c"]["signal"][0]

    signal, direction, step = jnp.array([5.0, 11.0]), jnp.array([1.0, 0.3]), 1e-4
    gradient = jax.grad(steepness)(signal) @ direction
    up, down = steepness(signal + step * direction), steepness(signal - step * direction)
    np.testing.assert_allclose(gradient, (up - down) / (2 * step), rtol=1e-5)
    with pytest.raises(ValueError, match=r"c\[1\]: the samples add up to -60.5"):
        spec = models.shapesys([5.0, 11.0], [50.0, -71.5], [3.0, 7.0])
        diagnostics.sensitivity_map(spec, uncertainty)


def test_data_of_the_wrong_length_are_refused(everything):
    model, data, fit = everything
    with pytest.raises(ValueError, match="auxiliary measurements"):
        diagnostics.pulls(model, data[:-1], fit)


RATE = models.modifier("normsys", "rate", {"lo": 0.9, "hi": 1.1})
HELD = {
    "channels": [
        models.channel("c", s=([5.0, 10.0], [models.MU]), b=([50.0, 40.0], [RATE])),
    ],
    "parameters": [{"name": "mu", "fixed": True, "inits": [0.0]}],
}


def held_by_measurement():
    return from_spec(HELD)


def held_by_replacement():
    model = from_spec({"channels": HELD["channels"]})
    poi = model.poi_index
    return replace(model, init=model.init.at[poi].set(0.0), fixed=model.fixed.at[poi].set(True))


@pytest.mark.parametrize("held", [held_by_measurement, held_by_replacement])
def test_a_parameter_of_interest_that_is_held_is_not_fitted(held):
    """Against a model without signal; alpha is the one that the issue of pyhf's fit gives."""
    model = held()
    data = jnp.array([58.0, 55.0, 0.0])
    fit = mle.best_fit(model, data)
    fit.certificate.require()
    mu, rate = model.poi_index, model.parameter_names.index("rate")
    assert fit.parameters[mu] == 0.0
    np.testing.assert_allclose(fit.parameters[rate], 1.1753352, rtol=1e-6)

    background = from_spec(
        {"channels": [models.channel("c", b=([50.0, 40.0], [RATE]))]}, poi_name=None
    )
    alone = mle.best_fit(background, data)
    expected = diagnostics.pulls(background, data, alone)
    found = diagnostics.pulls(model, data, fit)
    for field in ("pull", "constraint", "prefit_width", "postfit_width"):
        of_rate, of_mu = getattr(found, field)[rate], getattr(found, field)[mu]
        np.testing.assert_allclose(of_rate, getattr(expected, field)[0], rtol=1e-9)
        assert np.isnan(of_mu)
    covariance = diagnostics.observed_covariance(model, data, fit)
    np.testing.assert_allclose(covariance[rate, rate], expected.postfit_width[0] ** 2, rtol=1e-9)
    np.testing.assert_array_equal(covariance[mu], 0.0)
    impacts = diagnostics.impacts(model, data, fit)
    assert np.isnan(impacts.postfit[mu]) and impacts.postfit[rate] == impacts.prefit[rate] == 0.0

    quality = diagnostics.goodness_of_fit(model, data, fit)
    alone_quality = diagnostics.goodness_of_fit(background, data, alone)
    assert quality.degrees_of_freedom == alone_quality.degrees_of_freedom == 2
    np.testing.assert_allclose(quality.statistic, alone_quality.statistic, rtol=1e-9)
    np.testing.assert_allclose(quality.statistic, 3.64783069, rtol=1e-7)
    assert quality.valid


def test_readings_without_a_parameter_of_interest(everything):
    """A fit, and what is read there, does not ask which parameter is of interest."""
    model, data, fit = everything
    without = from_spec(models.everything(), poi_name=None)
    same = mle.best_fit(without, data)
    np.testing.assert_allclose(same.parameters, fit.parameters, rtol=1e-6, atol=1e-8)
    for reading in (
        diagnostics.pulls,
        diagnostics.goodness_of_fit,
        diagnostics.observed_covariance,
    ):
        for ours, theirs in zip(
            jax.tree.leaves(reading(without, data, same)),
            jax.tree.leaves(reading(model, data, fit)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)
    values = np.array([-0.5, 0.5])
    scan = mle.profile_scan(without, data, values, "energy").require()
    reference = mle.profile_scan(model, data, values, "energy")
    np.testing.assert_allclose(scan.difference, reference.difference, rtol=1e-7)


AGC = (
    Path(os.environ.get("NABLAB_DATA", Path(__file__).parents[2] / "shared/data"))
    / "histograms/agc-cms-ttbar/histos_all_file_per_process.json"
)
SINGLE_TOP = ("single_top_s_chan", "single_top_t_chan", "single_top_tW")
EVERY = ("ttbar", "wjets", *SINGLE_TOP)
# Name: (templates up and down, where no down one mirrors the up one, and the samples).
AGC_SHAPES = {
    "ME": (("ME_var", None), ("ttbar",)),
    "PS": (("PS_var", None), ("ttbar",)),
    "ttbar scale": (("scaleup", "scaledown"), ("ttbar",)),
    "JES": (("pt_scale_up", None), EVERY),
    "JER": (("pt_res_up", None), EVERY),
    **{f"b-tag {i}": ((f"btag_var_{i}_up", f"btag_var_{i}_down"), EVERY) for i in range(4)},
    "wjets scale": (("scale_var_up", "scale_var_down"), ("wjets",)),
}


def agc():
    """The ttbar analysis of CMS open data (Analysis Grand Challenge), as cabinetry builds it."""
    histograms = json.loads(AGC.read_text(encoding="utf-8"))

    def template(*parts):
        contents = histograms["_".join(parts)]["contents"]
        return np.array(contents[4:26]).reshape(11, 2).sum(axis=1)  # 110 to 550 GeV in 11 bins

    def shaped(region, sample, name):
        (up, down), _ = AGC_SHAPES[name]
        nominal, up = template(region, sample), template(region, sample, up)
        down = template(region, sample, down) if down else 2 * nominal - up
        rates = {"lo": down.sum() / nominal.sum(), "hi": up.sum() / nominal.sum()}
        shapes = {"lo_data": down / rates["lo"], "hi_data": up / rates["hi"]}
        return [models.modifier("normsys", name, rates), models.modifier("histosys", name, shapes)]

    def modifiers(region, sample):
        names = [name for name, (_, samples) in AGC_SHAPES.items() if sample in samples]
        found = [entry for name in names for entry in shaped(region, sample, name)]
        found.append(models.modifier("normsys", "lumi", {"lo": 0.97, "hi": 1.03}))
        errors = np.sqrt(template(region, sample))
        found.append(models.modifier("staterror", f"staterror_{region}", errors))
        return found + [models.MU] * (sample == "ttbar")

    channels = [
        models.channel(region, **{s: (template(region, s), modifiers(region, s)) for s in EVERY})
        for region in ("4j1b", "4j2b")
    ]
    model = from_spec({"channels": channels})
    counts = [template(region, "pseudodata") for region in ("4j1b", "4j2b")]
    return model, jnp.concatenate([*counts, model.auxdata])


@pytest.mark.skipif(not AGC.exists(), reason="set NABLAB_DATA to a folder with histograms/")
def test_impacts_of_a_real_fit_differ_from_refits_by_what_the_docstring_says():
    model, data = agc()
    assert len(model.init) == 34
    fit = mle.best_fit(model, data)
    fit.certificate.require()
    pulls, impacts = (read(model, data, fit) for read in (diagnostics.pulls, diagnostics.impacts))
    width = pulls.postfit_width[model.poi_index]
    third_order = {}
    for name in AGC_SHAPES:
        p = model.index(name)
        up, down = (
            refit(model, data, p, fit.parameters[p] + sign * pulls.postfit_width[p])
            for sign in (1, -1)
        )
        third_order[name] = abs((up - down) / 2 - impacts.postfit[p]) / width
    assert max(third_order, key=third_order.get) == "ttbar scale"
    np.testing.assert_allclose(third_order["ttbar scale"], 0.12, atol=0.01)
    said = " ".join(diagnostics.impacts.__doc__.split())
    assert "up to 12 % of the uncertainty of mu for a ttbar analysis" in said
