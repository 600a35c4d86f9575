"""Shifted truths against pyhf and closed forms; constraints against closed forms and Hessians."""

import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest

from nablab.judge.dependence import best_mu, constraints, observed_cls, robustness
from nablab.model.histfactory import from_spec

SHIFTS = (-2, -0.5, 0, 1, 2)
K = {"name": "k", "type": "normfactor", "data": None}
RATE = models.modifier("normsys", "rate", {"lo": 0.93, "hi": 1.04})
SHAPE = models.modifier("histosys", "shape", {"lo_data": [46.0, 43.0], "hi_data": [55.0, 38.0]})
FAKES = models.modifier("shapesys", "fakes", [6.0, 0.0])
#: Parameters: one of each kind of constraint, a free one, and a fixed one, whose bin is empty.
SPEC = {
    "channels": [
        models.channel(
            "c",
            signal=([5.0, 11.0], [models.MU]),
            background=([50.0, 40.0], [K, RATE, SHAPE]),
            fakes=([10.0, 0.0], [FAKES]),
        ),
        models.channel("control", background=([400.0], [K])),
    ]
}
BACKGROUND, SIGNAL, WIDTH = 80.0, 30.0, 0.1
LUMI = {
    "name": "lumi",
    "auxdata": [1.0],
    "sigmas": [WIDTH],
    "bounds": [[0.5, 1.15]],
    "inits": [1.0],
}


@pytest.fixture(scope="module", autouse=True)
def tight_fits():
    """Drive pyhf's fits to convergence (set once: each change recomputes every live model)."""
    pyhf.set_backend("numpy", pyhf.optimize.scipy_optimizer(tolerance=1e-13, maxiter=10_000))
    yield
    pyhf.set_backend("numpy")


def counting():
    """One bin and a linear nuisance parameter."""
    lumi = models.modifier("lumi", "lumi")
    channel = models.channel("c", s=([SIGNAL], [models.MU]), b=([BACKGROUND], [lumi]))
    mu = {"name": "mu", "bounds": [[-10.0, 10.0]]}
    return from_spec({"channels": [channel], "parameters": [mu, LUMI]})


def test_cls_of_shifted_truths_is_that_of_pyhf():
    found = robustness(from_spec(SPEC), observed_cls, shifts=SHIFTS)
    reference = pyhf.Model(SPEC)
    names = reference.config.par_names
    widths = {"rate": 1.0, "shape": 1.0, "fakes[0]": 0.6}
    assert sorted(found.parameters) == sorted(widths)
    assert sorted(found.left_out) == ["fakes[1]", "k"]
    for row, name in enumerate(found.parameters):
        for column, shift in enumerate(SHIFTS):
            parameters = np.array(reference.config.suggested_init())
            parameters[reference.config.poi_index] = 0.0
            parameters[names.index(name)] += shift * widths[name]
            if parameters[names.index(name)] < 0 and name == "fakes[0]":
                assert not found.possible[row, column] and np.isnan(found.values[row, column])
                continue
            main = reference.expected_data(parameters, include_auxdata=False)
            data = [*main, *reference.config.auxdata]
            expected = pyhf.infer.hypotest(1.0, data, reference)
            assert found.values[row, column] == pytest.approx(float(expected), rel=1e-4)
    assert found.possible.sum() == found.possible.size - 1
    assert np.ptp(found.values[list(found.parameters).index("rate")]) > 0.05


def test_best_mu_of_a_counting_experiment():
    """The only bin is all that speaks of mu: it takes up the whole shift."""
    found = robustness(counting(), best_mu, mu=1.0, shifts=(-2, -1, 0, 1, 2))
    shifts = np.array([-2, -1, 0, 1])
    expected = 1.0 + BACKGROUND * WIDTH * shifts / SIGNAL
    np.testing.assert_allclose(found.values[0, :4], expected, rtol=1e-8)
    assert np.isnan(found.values[0, 4]) and not found.possible[0, 4]  # beyond its upper bound
    assert str(found).split("\n") == [
        "best mu, data with mu = 1, true nuisance parameter shifted by pre-fit standard deviations",
        "  shifted    -2    -1    0   +1  +2",
        "  lumi     0.47  0.73  1.0  1.3   -",
        "-: outside of the parameter's bounds, or negative expected events.",
    ]
    assert "<tr><td>lumi</td><td>0.47</td><td>0.73</td>" in found._repr_html_()


def test_failures_and_names_are_shown():
    def a_fraction_below_one(model, data):
        return jnp.where(data[0] > 85.0, jnp.nan, data[1])

    found = robustness(counting(), a_fraction_below_one, shifts=(-1, 1))
    assert "a fraction below one, data with mu = 0" in str(found)
    # The auxiliary data stay at 1.
    assert str(found).split("\n")[2].split() == ["lumi", "1.0", "failed"]
    with pytest.raises(RuntimeError, match=r"failed for 1 of 2 shifts, the first of them lumi by"):
        found.require()
    assert found.possible.all()


def test_nothing_to_shift():
    model = from_spec({"channels": [models.channel("c", b=([50.0], [models.MU, K]))]})
    found = robustness(model, lambda model, data: data.sum())
    assert found.values.shape == (0, 5)
    assert "No nuisance parameter has a constraint.\nLeft out" in str(found)
    assert "constraint: k." in str(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shifts": ()}, "shifts is empty"),
        ({"shifts": (1.0, np.inf)}, r"shifts\[1\] is inf"),
        ({"mu": np.nan}, "mu is nan"),
        ({"number": lambda model, data: data}, r"number has shape \(2,\): it must be a scalar"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        robustness(counting(), **{"number": best_mu, **change})


def control_regions(shape_shift=11.0, signal=20.0):
    """One bin for the signal, and one for each of three nuisance parameters."""
    shape = {"lo_data": [100.0 - shape_shift], "hi_data": [100.0 + shape_shift]}
    shape = models.modifier("histosys", "shape", shape)
    bins = models.modifier("shapesys", "bins", [8.0])
    spec = {
        "channels": [
            models.channel("signal", s=([signal], [models.MU])),
            models.channel("first", b=([100.0], [shape])),
            models.channel("second", b=([40.0], [bins])),
            models.channel("third", b=([70.0], [models.modifier("lumi", "lumi")])),
        ],
        "parameters": [LUMI],
    }
    return from_spec(spec)


def test_constraints_in_closed_form():
    found = constraints(control_regions())
    # The bin measures the yield to its square root, the auxiliary measurement as given.
    expected = {
        "shape": (1 + 11.0**2 / 100.0) ** -0.5,
        "bins[0]": (1 + 8.0**2 / 40.0) ** -0.5,
        "lumi": (1 + (70.0 * WIDTH) ** 2 / 70.0) ** -0.5,
    }
    assert dict(zip(found.parameters, found.ratios, strict=True)) == pytest.approx(
        expected, rel=1e-10
    )
    assert sorted(found.over_constrained) == ["bins[0]", "shape"]
    lines = [line.split() for line in str(found).split("\n")]
    assert ["shape", "0.67", "over-constrained"] in lines
    assert ["lumi", "0.77"] in lines
    assert "Over-constrained (below 0.7): this histogram measures the parameter" in str(found)
    assert "<td>over-constrained</td>" in found._repr_html_()


def test_the_threshold_can_be_chosen():
    """A shift of 10 in 100 events is known equally well from either: 0.7071."""
    model = control_regions(10.0)
    assert "shape" not in constraints(model).over_constrained
    assert "shape" in constraints(model, flag_below=0.71).over_constrained
    assert "Over" not in str(constraints(model, flag_below=0.1))


def test_constraints_are_those_of_the_hessian_of_pyhf():
    spec, mu, step = models.everything(), 1.7, 1e-3
    reference = pyhf.Model(spec)
    model = from_spec(spec)
    found = constraints(model, mu)
    centre = np.asarray(model.parameters(mu))
    data = reference.expected_data(centre)
    free = np.flatnonzero(~np.asarray(model.fixed))

    def log_likelihood(*moves):
        return float(reference.logpdf(centre + np.sum(moves, axis=0), data)[0])

    unit = step * np.eye(len(centre))[free]
    hessian = np.array(
        [
            [
                log_likelihood(a, b)
                - log_likelihood(a, -b)
                - log_likelihood(-a, b)
                + log_likelihood(-a, -b)
                for b in unit
            ]
            for a in unit
        ]
    )
    covariance = np.linalg.inv(-hessian / (4 * step**2))
    post_fit = dict(zip(np.array(model.parameter_names)[free], np.diag(covariance), strict=True))
    pre_fit = {"energy": 1.0, "rate": 1.0, "lumi": 0.02, "fakes[0]": 7.0 / 110.0}
    names = dict(zip(found.parameters, found.ratios, strict=True))
    assert {"mc[0]", "mc[1]", *pre_fit} <= set(names)
    for name, width in pre_fit.items():
        assert names[name] == pytest.approx(post_fit[name] ** 0.5 / width, rel=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": np.inf}, "mu is inf"),
        ({"flag_below": 0.0}, "flag_below is 0.0"),
    ],
)
def test_bad_input_of_constraints_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        constraints(control_regions(), **change)


def test_a_parameter_without_effect_is_named():
    with pytest.raises(ValueError, match="model has no covariance at mu = 1: mu has no effect"):
        constraints(control_regions(signal=0.0))
