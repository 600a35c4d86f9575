"""Likelihoods against pyhf, number by number, and clear errors for bad specifications."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
from models import MU, channel, modifier

from nablab.infer import hypotests
from nablab.model import _layout, histfactory, interpolation
from nablab.model.histfactory import from_spec

ONE_EACH = {
    "normfactor": modifier("normfactor", "scale"),
    "normsys": modifier("normsys", "rate", {"lo": 0.8, "hi": 1.15}),
    "histosys": modifier(
        "histosys", "shape", {"lo_data": [45.0, 57.0, 9.0], "hi_data": [58.0, 61.0, 14.0]}
    ),
    "shapesys": modifier("shapesys", "bins", [5.0, 0.0, 3.0]),
    "staterror": modifier("staterror", "mc", [4.0, 5.0, 0.0]),
    "shapefactor": modifier("shapefactor", "free"),
}
SPECS = {
    name: {
        "channels": [
            channel("c", signal=([3.0, 5.0, 2.0], [MU]), background=([50.0, 60.0, 11.0], [entry]))
        ]
    }
    for name, entry in ONE_EACH.items()
} | {"everything": models.everything()}
CODES = [
    {"histosys": histosys, "normsys": normsys}
    for histosys, normsys in [("code4p", "code4"), ("code0", "code1")]
]


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def pair(spec, codes=CODES[0]):
    settings = {kind: {"interpcode": code} for kind, code in codes.items()}
    return pyhf.Model(spec, modifier_settings=settings), from_spec(spec, codes=codes)


def random_points(reference, points=30):
    """Parameters inside the bounds, with interpolated ones beyond 1 on either side."""
    generator = np.random.default_rng(7)
    lower, upper = np.array(reference.config.suggested_bounds()).T
    center = np.array(reference.config.suggested_init())
    width = np.where(lower < 0, 1.5, 0.2)
    moved = center + width * generator.normal(size=(points, len(center)))
    return jnp.array(np.clip(moved, lower, upper))


@pytest.mark.parametrize("codes", CODES, ids=["code4p-code4", "code0-code1"])
def test_density_and_expected_data_equal_pyhf(spec, codes):
    reference, model = pair(spec, codes)
    assert model.parameter_names == tuple(reference.config.par_names)
    assert model.poi_index == reference.config.poi_index
    np.testing.assert_array_equal(model.fixed, reference.config.suggested_fixed())
    np.testing.assert_allclose(model.init, reference.config.suggested_init())
    np.testing.assert_allclose(model.auxdata, reference.config.auxdata, rtol=1e-12)
    main = np.random.default_rng(3).poisson(reference.expected_actualdata(model.init))
    data = jnp.concatenate([main, jnp.array(reference.config.auxdata)])
    for parameters in random_points(reference):
        expected = reference.expected_data(parameters)
        np.testing.assert_allclose(model.expected_data(parameters), expected, rtol=1e-10)
        density = reference.logpdf(parameters, data)[0]
        np.testing.assert_allclose(model.logpdf(parameters, data), density, rtol=1e-10)


@pytest.mark.parametrize("codes", CODES, ids=["code4p-code4", "code0-code1"])
def test_interpolation_codes_at_the_joints(codes):
    """Value and slope on both sides of -1, 0 and 1, for up and down on the same side, too."""
    spec = SPECS["everything"]
    reference, model = pair(spec, codes)
    for name in ("energy", "rate"):
        index = model.parameter_names.index(name)
        for alpha in (-1.0, 0.0, 1.0):
            for side in (-1e-6, 0.0, 1e-6):
                parameters = model.init.at[index].set(alpha + side)
                np.testing.assert_allclose(
                    model.expected_data(parameters), reference.expected_data(parameters), rtol=1e-12
                )


@pytest.mark.parametrize("code", [interpolation.code4, interpolation.code4p])
def test_smooth_codes_have_continuous_derivatives(code):
    arguments = (np.array([0.8, 1.2]), 1.0, np.array([1.3, 1.1]))
    first, second = jax.jacfwd(code), jax.jacfwd(jax.jacfwd(code))
    for derivative in (code, first, second):
        for joint in (-1.0, 1.0):
            below, above = (
                derivative(joint - 1e-9, *arguments),
                derivative(joint + 1e-9, *arguments),
            )
            np.testing.assert_allclose(below, above, atol=1e-7)


def test_every_number_has_a_gradient(spec):
    """The derivative of the density with respect to each yield, against differences of pyhf."""
    reference, model = pair(spec)
    parameters = random_points(reference, points=1)[0]
    data = jnp.array(reference.expected_data(model.init)) + 1.0

    leaves, tree = jax.tree.flatten(models.with_arrays(spec), is_leaf=lambda x: x is None)
    arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)]

    def filled(values):
        new = list(leaves)
        for i, value in zip(arrays, values, strict=True):
            new[i] = value
        return jax.tree.unflatten(tree, new)

    values = [leaves[i].astype(float) for i in arrays]
    gradients = jax.grad(lambda v: from_spec(filled(v)).logpdf(parameters, data))(values)

    def pyhf_density(values):
        lists = filled([value.tolist() for value in values])
        return pyhf.Model(lists).logpdf(parameters, data)[0]

    checked = 0
    for which, value in enumerate(values):
        for bin_ in range(len(value)):
            if value[bin_] == 0:  # a mask: its derivative is not that of a difference
                continue
            step = 1e-4 * value[bin_]
            up, down = [v.copy() for v in values], [v.copy() for v in values]
            up[which][bin_] += step
            down[which][bin_] -= step
            difference = (pyhf_density(up) - pyhf_density(down)) / (2 * step)
            np.testing.assert_allclose(gradients[which][bin_], difference, rtol=1e-5, atol=1e-6)
            checked += 1
    assert checked >= 6


def test_one_structure_for_all_numbers():
    structures = {
        id(from_spec(models.shapesys([1.0, s], [50.0, 52.0], [3.0, 7.0])).structure)
        for s in (1.0, 2.0, 3.0)
    }
    assert len(structures) == 1


def test_replaced_yields_are_those_of_the_specification(spec):
    """Also of a sample that lacks a shape which others have."""
    changed = models.with_arrays(spec, lambda yields: yields)
    for _, sample in _layout.samples(changed):
        sample["data"] = [1.3 * each + 0.5 for each in sample["data"]]
    reference = from_spec(changed)
    replaced = dataclasses.replace(from_spec(spec), nominal=reference.nominal)
    for parameters in random_points(pyhf.Model(spec), points=5):
        np.testing.assert_allclose(
            replaced.expected_main(parameters), reference.expected_main(parameters), rtol=1e-13
        )


def test_numbers_may_be_traced():
    @jax.jit
    def expected(background):
        return from_spec(models.shapesys([1.0, 2.0], background, 0.1 * background)).nominal

    np.testing.assert_allclose(expected(jnp.array([50.0, 60.0])), [1.0, 2.0, 50.0, 60.0])


def test_numbers_may_be_lists_of_traced_numbers():
    @jax.jit
    def expected(first, second):
        model = from_spec(models.shapesys([first, 2.0], [50.0, second], [5.0, second / 10]))
        return model.nominal

    np.testing.assert_allclose(expected(1.0, 60.0), [1.0, 2.0, 50.0, 60.0])


def test_deviance_keeps_its_digits_for_tiny_uncertainties():
    """An auxiliary count of 1e16: the deviance of one sigma is 1, not a rounding error."""
    model = from_spec(models.shapesys([5.0], [50.0], [5e-7]))
    one_sigma = model.init.at[1].add(1e-8)
    data = model.expected_data(model.init)
    np.testing.assert_allclose(model.deviance(one_sigma, data), 1.0, rtol=1e-6)


def test_configured_parameters_win():
    spec = models.everything()
    spec["parameters"] += [
        {"name": "mc", "sigmas": [0.1, 0.2, 0.3], "fixed": False},
        {"name": "fakes", "auxdata": [300.0, 1.5]},
        {"name": "rate", "inits": [0.3], "bounds": [[-2.0, 2.0]], "fixed": True},
    ]
    reference, model = pair(spec)
    data = jnp.array(reference.expected_data(model.init))
    np.testing.assert_array_equal(model.fixed, reference.config.suggested_fixed())
    np.testing.assert_allclose(model.auxdata, reference.config.auxdata)
    for parameters in random_points(reference, points=5):
        np.testing.assert_allclose(
            model.logpdf(parameters, data), reference.logpdf(parameters, data)[0], rtol=1e-10
        )


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("background", [50.0, float("nan")], r"c/background: data\[1\] is nan"),
        ("background", [50.0, -3.0], r"c\[1\]: the samples add up to -1 events"),
        ("uncertainty", [3.0, -7.0], r"shapesys uncorrelated\[1\] is -7"),
    ],
)
def test_bad_numbers_are_named(entry, value, message):
    numbers = {"signal": [1.0, 2.0], "background": [50.0, 60.0], "uncertainty": [3.0, 7.0]}
    with pytest.raises(ValueError, match=message):
        from_spec(models.shapesys(**{**numbers, entry: value}))


def test_wrong_forms_give_the_message_of_pyhf():
    with pytest.raises(pyhf.exceptions.InvalidSpecification, match="seven"):
        from_spec(models.shapesys([1.0, 2.0], [50.0, 60.0], [3.0, "seven"]))
    with pytest.raises(pyhf.exceptions.InvalidModifier, match="inconsistent with the sample"):
        from_spec(models.shapesys([1.0, 2.0], [50.0, 60.0], [3.0]))
    with pytest.raises(pyhf.exceptions.InvalidModel, match="cannot be fit"):
        from_spec(models.shapesys([1.0], [50.0], [3.0]), poi_name="absent")
    with pytest.raises(pyhf.exceptions.InvalidSpecification):
        from_spec({"channels": [{"name": "c"}]})
    with pytest.raises(ValueError, match="code9"):
        from_spec(models.shapesys([1.0], [50.0], [3.0]), codes={"histosys": "code9"})


def test_bad_data_are_named():
    model = from_spec(models.shapesys([1.0, 2.0], [50.0, 60.0], [3.0, 7.0]))
    with pytest.raises(ValueError, match="2 bins followed by 2 auxiliary"):
        model.logpdf(model.init, jnp.array([51.0, 62.0]))
    with pytest.raises(ValueError, match=r"data\[1\] is -62"):
        model.logpdf(model.init, jnp.array([51.0, -62.0, 278.0, 73.0]))


def test_deviance_is_zero_for_its_own_expectation_and_finite_for_empty_bins():
    model = from_spec(models.shapesys([0.0, 2.0], [0.0, 60.0], [0.0, 7.0]))
    assert model.deviance(model.init, model.expected_data(model.init)) == 0.0
    data = model.expected_data(model.init).at[0].set(3.0)  # events where none are expected
    value, gradient = jax.value_and_grad(model.deviance)(model.init, data)
    assert value > 100.0
    assert jnp.isfinite(gradient).all()


RATE = modifier("normsys", "rate", {"lo": 0.9, "hi": 1.1})
MORPH = modifier("histosys", "h", {"lo_data": [2.5, -0.4], "hi_data": [3.4, 0.1]})
LARGE_MC, SMALL_MC = (modifier("staterror", "mc", e) for e in ([2.0, 2.0], [0.5, 0.3]))
NEGATIVE = {  # modifiers of a positive and of a partly negative background, and CLs of pyhf
    "normsys on the negative one": ([], [RATE], 0.4244044),
    "normsys on both": ([RATE], [RATE], None),
    "staterror on both": ([LARGE_MC], [SMALL_MC], 0.4394032),
    "staterror on the negative one": ([], [SMALL_MC], None),
    "shapesys on the negative one": ([], [modifier("shapesys", "bins", [0.9, 0.3])], None),
    "all": ([LARGE_MC, RATE], [SMALL_MC, MORPH], 0.5513854),
}


@pytest.mark.parametrize("name", NEGATIVE)
def test_a_sample_may_be_negative_where_the_bin_is_positive(name):
    """Interference, or weights of either sign: as pyhf, which looks at neither."""
    on_first, on_second, expected = NEGATIVE[name]
    spec = {
        "channels": [
            channel(
                "c",
                s=([5.0, 4.0], [MU]),
                b1=([50.0, 40.0], on_first),
                b2=([3.0, -0.2], on_second),
            )
        ]
    }
    reference, model = pair(spec)
    np.testing.assert_array_equal(model.fixed, reference.config.suggested_fixed())
    data = [52.0, 43.0, *reference.config.auxdata]
    for point in random_points(reference, 5):
        np.testing.assert_allclose(
            model.logpdf(point, jnp.array(data)), reference.logpdf(point, data)[0], rtol=1e-10
        )
    if expected:
        found = hypotests.cls(model, jnp.array(data)).require()
        np.testing.assert_allclose(found.observed, expected, rtol=1e-6)


def test_samples_that_cancel_are_an_empty_bin():
    spec = {
        "channels": [channel("c", s=([5.0], [MU]), a=([0.3], []), b=([-0.1], []), d=([-0.2], []))],
        "parameters": [{"name": "mu", "inits": [0.0]}],
    }
    assert abs(from_spec(spec).expected_main(jnp.zeros(1))[0]) < 1e-15


COUNT = """
import pickle, sys
import jax
compiled = 0
def count(event, *_, **__):
    global compiled
    compiled += event == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(count)
from nablab.infer import hypotests
from nablab.model.histfactory import from_spec
from nablab.judge.calibration import coverage
with open(sys.argv[1], "rb") as file:
    spec, model, other, data = pickle.load(file)
assert other.structure is model.structure is from_spec(spec).structure
first = float(hypotests.cls(model, data).observed)
before = compiled
assert float(hypotests.cls(other, data).observed) == first
assert float(hypotests.cls(from_spec(spec), data).observed) == first
assert before and compiled == before, (before, compiled)
coverage(other, from_spec(spec), key=jax.random.key(1), toys=2)
print(first)
"""


def test_a_model_survives_pickle_and_copies(tmp_path):
    """Here and in another process it has the one structure of its specification."""
    spec = SPECS["normsys"]
    model = from_spec(spec)
    copies = [copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert other.structure is model.structure
        for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    data = model.expected_data(model.init)
    observed = hypotests.cls(model, data).observed
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((spec, model, copies[1], data)))
    run = subprocess.run([sys.executable, "-c", COUNT, path], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    np.testing.assert_allclose(float(run.stdout), observed, rtol=1e-12)


def test_deviance_close_to_the_mean_keeps_its_digits():
    """Of rates a little off the counts: no digit is lost but the last one of the rate."""
    rng = np.random.default_rng(0)
    away = rng.choice([-1.0, 1.0], 1000) * 10.0 ** rng.uniform(-15.0, -0.31, 1000)
    rates = 1.0 + away
    with localcontext(prec=50):
        exact = [float(2 * (Decimal(rate) - 1 - Decimal(rate).ln())) for rate in rates]
    found = jax.jit(histfactory._poisson_deviance)(jnp.array(rates), jnp.ones(len(rates)))
    np.testing.assert_array_less(np.abs(found - np.array(exact)), 1e-15 * np.abs(away))
