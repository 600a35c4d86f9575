"""Bad input: a clear error where it can be raised, otherwise a status; never a silent number."""

import copy
import re
from functools import partial

import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
from models import MU, channel, modifier

from nablab.infer import (
    diagnostics,
    hypotests,
    intervals,
    limits,
    mle,
    test_statistics,
    toy_hypotests,
)
from nablab.infer.certificates import Status
from nablab.infer.limits import LimitStatus
from nablab.model import named_numbers
from nablab.model.histfactory import from_spec
from nablab.relax.counts import Counts

NAN, INF = float("nan"), float("inf")
GOOD = {
    "signal": [5.0, 9.0],
    "background": [50.0, 60.0],
    "observed": [53.0, 66.0],
    "rate": [0.9, 1.1],
    "uncertainty": [3.0, 5.0],
    "bounds": [[0.0, 10.0]],
    "inits": [1.0],
}


def spec(signal, background, rate, uncertainty, bounds, inits, **_):
    return {
        "channels": [
            channel(
                "c",
                signal=(signal, [MU]),
                background=(
                    background,
                    [
                        modifier("normsys", "rate", {"lo": rate[0], "hi": rate[1]}),
                        modifier("shapesys", "bins", uncertainty),
                    ],
                ),
            )
        ],
        "parameters": [{"name": "mu", "inits": inits, "bounds": bounds}],
    }


@jax.jit
def results(numbers):
    """What a caller may ask, under jit."""
    model = from_spec(spec(**numbers))
    data = jnp.concatenate([numbers["observed"], model.auxdata])
    return {
        "cls": hypotests.cls(model, data),
        "p0": hypotests.p0(model, data),
        "expected cls": hypotests.expected_cls(model),
        "limit": limits.upper_limit(model, data),
        "fit": mle.best_fit(model, data),
    }


def traced(**changes):
    return results({name: jnp.array(value) for name, value in {**GOOD, **changes}.items()})


def good(results):
    """Which of them say that they can be trusted."""
    fit = results["fit"].certificate
    others = {name: result for name, result in results.items() if name != "fit"}
    return {"fit": bool(fit.converged)} | {k: bool(v.converged) for k, v in others.items()}


def test_good_numbers_are_good():
    found = traced()
    assert all(good(found).values())
    assert 0.0 < found["cls"].observed < 1.0


BAD_NUMBERS = {
    "NaN signal": ({"signal": [NAN, 9.0]}, r"c/signal: data\[0\] is nan: not finite"),
    "NaN background": ({"background": [50.0, NAN]}, r"c/background: data\[1\] is nan"),
    "infinite background": ({"background": [INF, 60.0]}, r"c/background: data\[0\] is inf"),
    "negative signal": ({"signal": [-55.0, 9.0]}, r"c\[0\]: the samples add up to -5 events"),
    "negative background": ({"background": [50.0, -60.0]}, r"c\[1\]: .* add up to -51 events"),
    "negative at the start": (
        {"signal": [-5.0, 9.0], "inits": [10.1], "bounds": [[0.0, 20.0]]},
        r"c\[0\]: the samples add up to -0.5 events at the starting values",
    ),
    "NaN uncertainty": ({"uncertainty": [NAN, 5.0]}, r"shapesys bins\[0\] is nan"),
    "negative uncertainty": ({"uncertainty": [3.0, -5.0]}, r"shapesys bins\[1\] is -5.0"),
    "zero factor": ({"rate": [0.0, 1.1]}, r"normsys rate lo\[0\] is 0.0: .* greater than 0"),
    "negative factor": ({"rate": [0.9, -1.1]}, r"normsys rate hi\[0\] is -1.1"),
}


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_bad_numbers(name):
    changes, message = BAD_NUMBERS[name]
    with pytest.raises(ValueError, match=message):
        from_spec(spec(**{**GOOD, **changes}))
    as_arrays = {key: np.array(value) for key, value in {**GOOD, **changes}.items()}
    with pytest.raises(ValueError, match=message):
        from_spec(spec(**as_arrays))
    found = traced(**changes)
    assert not any(good(found).values()), good(found)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        found["expected cls"].require()


@pytest.mark.parametrize(
    ("bounds", "inits"), [([[2.0, 5.0]], [1.0]), ([[0.0, 10.0]], [11.0]), ([[5.0, 0.0]], [1.0])]
)
def test_bounds_that_exclude_the_starting_value(bounds, inits):
    changes = {"bounds": bounds, "inits": inits}
    message = rf"parameter mu starts at {inits[0]}, outside of its bounds"
    with pytest.raises(ValueError, match=message):
        from_spec(spec(**{**GOOD, **changes}))
    # Where mu is fixed to the value under test, its bounds do not matter.
    found = good(traced(**changes))
    assert not any(found[name] for name in ("fit", "cls", "p0", "limit"))


def test_signal_of_nothing():
    """No fit of its strength; it can neither be excluded (CLs = 1) nor discovered (p0 = 1/2)."""
    found = traced(signal=[0.0, 0.0])
    assert not any(good(found)[name] for name in ("fit", "cls", "p0", "limit"))
    assert jnp.isnan(found["limit"].observed)
    assert (found["limit"].status == LimitStatus.BEYOND_BOUND).all()
    with pytest.raises(RuntimeError, match="a direction without effect"):
        found["cls"].require()
    np.testing.assert_allclose(found["expected cls"].expected, 1.0, rtol=1e-14)


ZERO = {
    "no background at all": {"background": [0.0, 0.0], "uncertainty": [0.0, 0.0]},
    "one bin without background": {"background": [50.0, 0.0], "uncertainty": [3.0, 0.0]},
    "one bin where nothing is expected": {
        "background": [50.0, 0.0],
        "uncertainty": [3.0, 0.0],
        "signal": [5.0, 0.0],
    },
}


@pytest.mark.parametrize("name", list(ZERO)[:2])
def test_counts_that_only_a_signal_explains(name):
    """Zero background is the limit of very little: the signal is discovered beyond doubt."""
    nothing = traced(**ZERO[name])
    background = [b or 1e-8 for b in ZERO[name]["background"]]
    little = traced(**{**ZERO[name], "background": background})
    assert all(good(nothing).values())
    np.testing.assert_allclose(nothing["cls"].observed, little["cls"].observed, rtol=1e-6)
    assert nothing["p0"].observed < 1e-300


@pytest.mark.parametrize("name", ZERO)
def test_no_counts_where_nothing_is_expected(name):
    """Zero background is no harm as long as nothing is seen there."""
    observed = [float(b > 0) * 53.0 for b in ZERO[name]["background"]]
    found = traced(**ZERO[name], observed=observed)
    assert good(found)["cls"]
    assert good(found)["expected cls"]
    assert 0.0 <= found["cls"].observed <= 1.0


def test_counts_that_nothing_explains():
    """The numbers of the other bin, but none of the fits counts as one."""
    found = traced(**ZERO["one bin where nothing is expected"])
    alone = traced(**ZERO["one bin where nothing is expected"], observed=[53.0, 0.0])
    np.testing.assert_allclose(found["cls"].observed, alone["cls"].observed, rtol=1e-9)
    assert found["fit"].value > 1000.0 > alone["fit"].value
    assert good(alone)["cls"]
    assert not any(good(found)[name] for name in ("fit", "cls", "p0", "limit"))
    with pytest.raises(RuntimeError, match="nothing is expected"):
        found["cls"].require()


@pytest.mark.parametrize("observed", [[NAN, 66.0], [53.0, -66.0], [INF, 66.0]])
def test_bad_data(observed):
    model = from_spec(spec(**GOOD))
    data = jnp.concatenate([jnp.array(observed), model.auxdata])
    for test in (hypotests.cls, hypotests.p0, mle.best_fit, test_statistics.q0):
        with pytest.raises(ValueError, match=r"data\[[01]\] is (nan|-66|inf)"):
            test(model, data)
    found = good(traced(observed=observed))
    assert not any(found[name] for name in ("fit", "cls", "p0", "limit"))


def test_data_of_the_wrong_length():
    model = from_spec(spec(**GOOD))
    for length in (2, 3, 6):
        data = jnp.full(length, 50.0)
        message = rf"data has shape \({length},\), but the model has 2 bins followed by 3 auxil"
        with pytest.raises(ValueError, match=message):
            hypotests.cls(model, data)
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda data: hypotests.cls(model, data).observed)(data)


def test_parameter_of_interest_that_is_absent():
    with pytest.raises(pyhf.exceptions.InvalidModel, match="'absent' cannot be fit"):
        from_spec(spec(**GOOD), poi_name="absent")
    with pytest.raises(pyhf.exceptions.InvalidModel, match="'bins' contains multiple components"):
        from_spec(spec(**GOOD), poi_name="bins")
    with pytest.raises(pyhf.exceptions.InvalidModel, match="Then add a signal patch"):
        from_spec(spec(**GOOD), poi_name="absent")


NEEDS_POI = {
    "cls": hypotests.cls,
    "p0": hypotests.p0,
    "q0": test_statistics.q0,
    "tmu": lambda model, data: test_statistics.tmu(model, data, 1.0),
    "qmu_tilde": lambda model, data: test_statistics.qmu_tilde(model, data, 1.0),
    "held": lambda model, data: mle.best_fit(model, data, held={model.poi_index: 1.0}),
    "expected_cls": lambda model, data: hypotests.expected_cls(model),
    "expected_p0": lambda model, data: hypotests.expected_p0(model),
    "asimov_data": lambda model, data: hypotests.asimov_data(model, 1.0),
    "upper_limit": limits.upper_limit,
    "profile_scan": lambda model, data: mle.profile_scan(model, data, jnp.array([0.0, 1.0])),
    "toys": lambda model, data: toy_hypotests.cls(model, data, key=jax.random.key(0), toys=10),
    "feldman_cousins": lambda model, data: intervals.feldman_cousins(
        model, data, jnp.array([0.5, 1.0]), key=jax.random.key(0), toys=10
    ),
    "poi_uncertainty": lambda model, data: diagnostics.poi_uncertainty(model),
    "impacts": lambda model, data: diagnostics.impacts(model, data, mle.best_fit(model, data)),
}


@pytest.mark.parametrize("name", NEEDS_POI)
def test_what_needs_a_parameter_of_interest_says_so(name):
    model = from_spec(spec(**GOOD), poi_name="")
    data = model.expected_data(model.init)
    with pytest.raises(ValueError, match="the model has no parameter of interest: name one with"):
        NEEDS_POI[name](model, data)


def test_two_parameters_with_the_same_effect():
    """A singular Hessian: two factors of the same sample, of which only the product is measured."""
    rate = modifier("normsys", "rate", {"lo": 0.9, "hi": 1.1})
    twice = {
        "channels": [
            channel("c", signal=([5.0, 9.0], [MU, modifier("normfactor", "other")])),
            channel("d", background=([50.0, 60.0], [rate])),
        ]
    }
    model = from_spec(twice)
    data = model.expected_data(model.init)
    fit = mle.best_fit(model, data)
    assert fit.certificate.status == Status.NOT_A_MINIMUM
    with pytest.raises(RuntimeError, match="a direction without effect"):
        fit.certificate.require()


# Wrong specifications: what pyhf says, in whatever form the numbers come.


def change(path, value):
    """A change of one entry of the specification below; ``None`` takes it out."""

    def apply(original):
        holder = original
        for key in path[:-1]:
            holder = holder[key]
        if value is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value

    return apply


PYHF_ERRORS = (
    pyhf.exceptions.InvalidSpecification,
    pyhf.exceptions.InvalidModel,
    pyhf.exceptions.InvalidModifier,
    pyhf.exceptions.InvalidNameReuse,
)
BACKGROUND = ("channels", 0, "samples", 1)
RATE, BINS = (*BACKGROUND, "modifiers", 0), (*BACKGROUND, "modifiers", 1)
WRONG = {
    "no channels": change(("channels",), []),
    "channels absent": change(("channels",), None),
    "no samples": change(("channels", 0, "samples"), []),
    "no name": change(("channels", 0, "name"), None),
    "sample without data": change((*BACKGROUND, "data"), None),
    "sample without modifiers": change((*BACKGROUND, "modifiers"), None),
    "sample of another length": change((*BACKGROUND, "data"), [50.0]),
    "a number for a list": change((*BACKGROUND, "data"), 50.0),
    "a table for a list": change((*BACKGROUND, "data"), [[50.0, 60.0]]),
    "a text for a number": change((*BACKGROUND, "data"), [50.0, "60"]),
    "an object for a list": change((*BACKGROUND, "data"), {"0": 50.0}),
    "unknown modifier": change((*RATE, "type"), "normsis"),
    "modifier without data": change((*RATE, "data"), None),
    "modifier without half of its data": change((*RATE, "data", "lo"), None),
    "modifier with too much data": change((*RATE, "data", "nominal"), 1.0),
    "a list for a number": change((*RATE, "data", "lo"), [0.9, 0.9]),
    "modifier of another length": change((*BINS, "data"), [3.0, 5.0, 7.0]),
    "a name for two kinds": change((*BINS, "name"), "mu"),
    "lists of another length": change(("parameters", 0, "inits"), [1.0, 1.0]),
    "bounds without pairs": change(("parameters", 0, "bounds"), [0.0, 10.0]),
    "parameter without name": change(("parameters", 0, "name"), None),
    "unknown setting": change(("parameters", 0, "start"), [1.0]),
    "setting that does not apply": change(("parameters", 0, "sigmas"), [1.0]),
    "fixed is no yes or no": change(("parameters", 0, "fixed"), [True]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_specifications_get_the_message_of_pyhf(name):
    wrong = copy.deepcopy(spec(**GOOD))
    WRONG[name](wrong)
    wrong = jax.tree.map(lambda x: x, wrong)  # keys in alphabetic order, as below
    with pytest.raises(PYHF_ERRORS) as of_pyhf:
        pyhf.Model(wrong)
    # The message quotes the offending part, in which our numbers are all 1.0.
    message = re.sub(r"\d+\.\d+", "1.0", str(of_pyhf.value))

    def same_error(specification):
        with pytest.raises(of_pyhf.type) as ours:
            from_spec(specification)
        assert str(ours.value) == message

    same_error(wrong)
    same_error(as_arrays(wrong, np.asarray))
    leaves, tree = jax.tree.flatten(wrong)
    numbers = [i for i, leaf in enumerate(leaves) if isinstance(leaf, float)]

    @jax.jit
    def traced(values):
        new = list(leaves)
        for i, value in zip(numbers, values, strict=True):
            new[i] = value
        same_error(jax.tree.unflatten(tree, new))

    traced([leaves[i] for i in numbers])


def as_arrays(value, convert):
    """Every list of floats passed through ``convert``."""
    if isinstance(value, dict):
        return {key: as_arrays(entry, convert) for key, entry in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(entry, float) for entry in value):
            return convert(value)
        return [as_arrays(entry, convert) for entry in value]
    return value


def broken(*changes):
    result = copy.deepcopy(spec(**GOOD))
    for apply in changes:
        apply(result)
    return result


def test_wrong_specifications_that_pyhf_takes_in_silence():
    signal = broken()["channels"][0]["samples"][0]
    rate = broken()["channels"][0]["samples"][1]["modifiers"][0]
    shared, free = modifier("staterror", "mc", [1.0, 1.0]), modifier("shapefactor", "free")

    def two_channels(first, second, name="d"):
        return {"channels": [channel("c", s=first), channel(name, b=second)]}

    for wrong, message in (
        (broken(change(BACKGROUND, signal)), "2 samples in channel c are named 'signal'"),
        (broken(change(BINS, rate)), "2 modifiers of c/background are named .*'rate'"),
        (two_channels(([1.0], [MU]), ([1.0], []), "c"), "2 channels are named 'c'"),
        (broken(change(RATE, modifier("lumi", "lumi"))), "lumi needs inits, bounds and auxdata"),
        (broken(change(("parameters", 0, "bounds"), [[0.0, 1.0, 2.0]])), "mu: bounds must be"),
        (
            two_channels(([1.0, 2.0], [MU, shared]), ([1.0, 2.0], [shared])),
            "all samples that share a staterror",
        ),
        (
            two_channels(([1.0], [MU, free]), ([1.0, 2.0], [free])),
            "shapefactor free has 1 parameters, from another channel, .* 2 bins",
        ),
        (broken(change((*BACKGROUND, "data"), object())), r"samples\[1\].data is a object"),
        (broken(change((*BACKGROUND, "data"), np.array(["50"]))), r"samples\[1\].data is a nd"),
    ):
        with pytest.raises(ValueError, match=message):
            from_spec(wrong)


@pytest.mark.parametrize("key", ["fixed", "name"])
def test_structure_that_hangs_on_a_traced_value(key):
    @jax.jit
    def build(value):
        from_spec(broken(change(("parameters", 0, key), value)))

    message = rf"cannot be decided: specification.parameters\[0\].{key} is a traced value"
    with pytest.raises(ValueError, match=message):
        build(True)
    with pytest.raises(ValueError, match=message):
        build(1.0)


def test_settings_may_be_numpy():
    """A yes or no of NumPy, counts as integers, a single-precision array, a tuple."""
    loose = broken(
        change(("parameters", 0, "fixed"), np.True_),
        change((*BACKGROUND, "data"), np.array([50, 60])),
        change(("channels", 0, "samples", 0, "data"), (np.float32(5.0), 9)),
    )
    strict = broken(change(("parameters", 0, "fixed"), True))
    np.testing.assert_array_equal(from_spec(loose).nominal, from_spec(strict).nominal)
    assert from_spec(loose).fixed[from_spec(loose).poi_index]


def test_numbers_of_a_bad_specification_are_flagged_too():
    """The same statuses when the numbers come by name."""
    original = spec(**GOOD)
    numbers = named_numbers.numbers(original)

    @partial(jax.jit, static_argnums=1)
    def status(numbers, name):
        model = from_spec(named_numbers.with_numbers(original, numbers))
        return jnp.isfinite(model.deviance(model.init, model.expected_data(model.init)))

    assert status(numbers, "good")
    for name in (
        "c/background: data",
        "c/background: shapesys bins",
        "c/background: normsys rate hi",
    ):
        broken = dict(numbers) | {name: -numbers[name]}
        assert not status(broken, name)


@pytest.mark.parametrize("codes", [{"histosys": "code9"}, {"normsys": "code4p"}, {"lumi": "code1"}])
def test_unknown_codes(codes):
    with pytest.raises(ValueError, match=r"code9|code4p|'lumi'"):
        from_spec(models.shapesys([1.0], [50.0], [3.0]), codes=codes)


def test_histograms_in_the_place_of_their_values():
    """Both are tuples, of which pyhf says "[1.0, 1.0] is not of type 'number'"."""
    counts = Counts(np.ones(2), np.ones(2))
    for data, message in (
        (
            counts,
            r"samples\[0\].data, of 'ttbar', is Counts\(values, variances, edges\): .* \.values$",
        ),
        ((np.ones(2), np.arange(3.0)), r"samples\[0\].data, of 'ttbar', is a tuple of arrays"),
    ):
        spec = {"channels": [channel("c", ttbar=(data, [MU]))]}
        for read in (from_spec, named_numbers.numbers):
            with pytest.raises(ValueError, match=message):
                read(spec)
    as_tuple = {"channels": [channel("c", ttbar=((5.0, jnp.array(9.0)), [MU]))]}
    np.testing.assert_array_equal(from_spec(as_tuple).nominal, [5.0, 9.0])
