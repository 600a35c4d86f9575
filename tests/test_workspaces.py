"""Workspaces, patches and named numbers against pyhf, and the way back to pyhf."""

import copy
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import models
import numpy as np
import pyhf
import pytest
from models import MU, channel, modifier

from nablab.infer import hypotests, mle
from nablab.model import named_numbers, workspaces
from nablab.model.histfactory import from_pyhf, from_spec
from nablab.model.named_numbers import NamedNumbers

OBSERVED = {"signal_region": [41.0, 50.0, 31.0], "control_region": [137.0, 113.0]}
CONFIGURED = [
    {"name": "lumi", "auxdata": [1.01], "sigmas": [0.03], "bounds": [[0.6, 1.4]], "inits": [0.99]},
    {"name": "mc", "sigmas": [0.1, 0.2, 0.3], "auxdata": [1.0, 0.9, 1.1]},
    {"name": "fakes", "auxdata": [240.0, 2.0], "factors": [250.0, 1.5]},
    {"name": "rate", "inits": [0.3], "bounds": [[-2.0, 2.0]], "auxdata": [0.2], "fixed": True},
    {"name": "free", "inits": [0.9, 1.1], "bounds": [[0.0, 5.0], [0.1, 6.0]]},
    {"name": "mu", "inits": [0.7], "bounds": [[-1.0, 7.0]]},
]


def workspace():
    """All modifiers, and two measurements that configure all there is to configure."""
    spec = models.everything()
    return {
        "channels": spec["channels"],
        "observations": [{"name": name, "data": data} for name, data in OBSERVED.items()],
        "measurements": [
            {"name": "plain", "config": {"poi": "mu", "parameters": spec["parameters"]}},
            {"name": "configured", "config": {"poi": "mu", "parameters": CONFIGURED}},
            {"name": "rate", "config": {"poi": "rate", "parameters": spec["parameters"]}},
        ],
        "version": "1.0.0",
    }


def assert_equal_pyhf(ours, reference, observed):
    """Model and data of ours against a pyhf model and its data."""
    model, data = ours
    config = reference.config
    assert model.parameter_names == tuple(config.par_names)
    assert model.poi_index == config.poi_index
    np.testing.assert_array_equal(model.init, config.suggested_init())
    bounds = np.stack([model.lower, model.upper], axis=1)
    np.testing.assert_array_equal(bounds, config.suggested_bounds())
    np.testing.assert_array_equal(model.fixed, config.suggested_fixed())
    np.testing.assert_allclose(data, observed, rtol=1e-14)
    generator = np.random.default_rng(5)
    for _ in range(3):
        point = np.array(config.suggested_init()) + generator.uniform(0.02, 0.2, config.npars)
        np.testing.assert_allclose(
            model.expected_data(point), reference.expected_data(point), rtol=1e-12
        )
        density = reference.logpdf(point, observed)[0]
        np.testing.assert_allclose(model.logpdf(point, data), density, rtol=1e-12)


@pytest.mark.parametrize("measurement", [None, "plain", "configured", "rate"])
def test_measurements_equal_pyhf(measurement):
    reference = pyhf.Workspace(workspace())
    model = reference.model(measurement_name=measurement)
    ours = workspaces.read(workspace(), measurement)
    assert_equal_pyhf(ours, model, reference.data(model))


def test_codes_and_files(tmp_path):
    (tmp_path / "workspace.json").write_text(json.dumps(workspace()))
    codes = {"histosys": "code0", "normsys": "code1"}
    settings = {kind: {"interpcode": code} for kind, code in codes.items()}
    reference = pyhf.Workspace(workspace())
    model = reference.model(modifier_settings=settings)
    ours = workspaces.read(tmp_path / "workspace.json", codes=codes)
    assert_equal_pyhf(ours, model, reference.data(model))


def background_only():
    spec = models.shapesys([3.0, 5.0], [50.0, 60.0], [4.0, 6.0])
    result = workspaces.assemble(spec, np.array([53.0, 61.0]))
    del result["channels"][0]["samples"][0]
    return workspaces.write(result)


SIGNAL = {"name": "signal", "data": [3.0, 5.0], "modifiers": [MU]}
ADD_SIGNAL = {"op": "add", "path": "/channels/0/samples/-", "value": SIGNAL}
SCALE_DATA = {"op": "replace", "path": "/channels/0/samples/0/data", "value": [51.0, 59.0]}


def patch_set(of):
    """Two signals, and the digest of the workspace they are for."""
    other = {**ADD_SIGNAL, "value": {**SIGNAL, "data": [6.0, 1.0]}}
    return {
        "metadata": {
            "references": {"hepdata": "ins1234567"},
            "description": "two signals",
            "digests": {"sha256": pyhf.utils.digest(of)},
            "labels": ["mass"],
        },
        "patches": [
            {"metadata": {"name": "light", "values": [100]}, "patch": [ADD_SIGNAL]},
            {"metadata": {"name": "heavy", "values": [200]}, "patch": [other]},
        ],
        "version": "1.0.0",
    }


def test_all_forms_of_patches(tmp_path):
    base = background_only()
    before = copy.deepcopy(base)
    chosen = patch_set(base)
    for name, content in {"operations": [ADD_SIGNAL], "set": chosen}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    reference = pyhf.Workspace(base)
    model = reference.model(patches=[[ADD_SIGNAL], [SCALE_DATA]])
    for patch in (
        [ADD_SIGNAL],
        ADD_SIGNAL,
        tmp_path / "operations.json",
        str(tmp_path / "operations.json"),
        (chosen, "light"),
        (chosen, [100]),
        (tmp_path / "set.json", (100,)),
        (pyhf.PatchSet(chosen), "light"),
        pyhf.PatchSet(chosen)["light"],
        chosen["patches"][0],
    ):
        ours = workspaces.read(base, patches=[patch, [SCALE_DATA]])
        assert_equal_pyhf(ours, model, reference.data(model))
    heavy, _ = workspaces.read(base, patches=[(chosen, "heavy")])
    np.testing.assert_array_equal(heavy.nominal[-2:], [6.0, 1.0])
    assert base == before


def test_patches_may_change_the_measurement():
    path = "/measurements/0/config/parameters/-"
    wide = {"op": "add", "path": path, "value": {"name": "mu", "bounds": [[-5.0, 50.0]]}}
    model, _ = workspaces.read(background_only(), patches=[[ADD_SIGNAL, wide]])
    assert (model.lower[model.poi_index], model.upper[model.poi_index]) == (-5.0, 50.0)


def test_wrong_patches_are_named():
    base = background_only()
    chosen = patch_set(base)
    errors = pyhf.exceptions
    for patch, error, message in (
        ({"op": "remove", "path": "/channels/7"}, ValueError, r"patches\[0\] does not fit"),
        ({"op": "turn", "path": "/channels"}, ValueError, "Unknown operation 'turn'"),
        (chosen, ValueError, "a patch must be a list .* or .patch set, name"),
        ([1.0], ValueError, "a patch must be a list"),
        ((chosen, "absent"), errors.InvalidPatchLookup, "absent"),
        ((chosen, 300), errors.InvalidPatchLookup, "300"),
        (({**chosen, "patches": []}, "light"), errors.InvalidSpecification, "non-empty"),
    ):
        with pytest.raises(error, match=message) as caught:
            workspaces.patched(base, [patch])
        assert len(str(caught.value)) < 1000
    other = workspaces.patched(base, [SCALE_DATA])
    with pytest.raises(errors.PatchSetVerificationError, match="sha256"):
        workspaces.read(other, patches=[(chosen, "light")])


def test_wrong_workspaces_are_named(tmp_path):
    def broken(change):
        result = copy.deepcopy(workspace())
        change(result)
        return result

    invalid = pyhf.exceptions.InvalidSpecification
    for change, error, message in (
        (lambda w: w.pop("measurements"), invalid, "'measurements' is a required"),
        (lambda w: w.pop("channels"), invalid, "'channels' is a required"),
        (lambda w: w["observations"].pop(), ValueError, "no observations in channel 'control_re"),
        (lambda w: w["observations"][1].update(data=[1.0]), ValueError, "1 observations in .*2 bi"),
        (lambda w: w["observations"][1].update(data=[1.0, -2.0]), ValueError, r"data\[1\] is -2"),
        (lambda w: w["observations"][1].update(data=[1.0, None]), invalid, "None is not of type"),
        (
            lambda w: w["observations"].append(w["observations"][0]),
            ValueError,
            "2 observations are",
        ),
    ):
        with pytest.raises(error, match=message):
            workspaces.read(broken(change))
    with pytest.raises(pyhf.exceptions.InvalidMeasurement, match="absent"):
        workspaces.read(workspace(), "absent")
    with pytest.raises(
        pyhf.exceptions.InvalidModel, match=r"'mu' cannot be fit.* add a signal pat"
    ):
        workspaces.read(background_only())
    (tmp_path / "list.json").write_text(json.dumps([workspace()]))
    with pytest.raises(ValueError, match="workspace is a list: it must be a dict"):
        workspaces.read(tmp_path / "list.json")
    with pytest.raises(ValueError, match=r"^'{.*' ?\.\.\. is the text of a JSON file where its"):
        workspaces.read(json.dumps(workspace()))
    (tmp_path / "cut.json").write_text(json.dumps(workspace())[:-9])
    with pytest.raises(ValueError, match=r"cut.json is not a JSON file: Expecting"):
        workspaces.read(tmp_path / "cut.json")


HS3 = {
    "distributions": [{"name": "c", "type": "histfactory_dist", "samples": []}],
    "domains": [],
    "metadata": {"hs3_version": "0.2"},
}


def test_other_formats_are_named_in_one_line():
    rate = modifier("normsys", "rate", {"lo": 0.9, "hi": 1.1})
    of_modifier, of_parameter = workspace(), workspace()
    sample = of_modifier["channels"][0]["samples"][0]
    sample["modifiers"] = [MU, rate | {"constraint": "LogNormal"}]
    of_parameter["measurements"][0]["config"]["parameters"].append(
        {"name": "rate", "constraint_type": "Gamma"}
    )
    for document, message in (
        (HS3, "'distributions' is part of an HS3 document, which is not supported"),
        (of_modifier, r"channels\[0\].samples\[0\].modifiers\[1\].constraint is not supported"),
        (of_parameter, r"config.parameters\[1\].constraint_type is not supported"),
    ):
        specification = {"channels": document.get("channels", []), "parameters": []}
        specification = document if document is HS3 else specification
        for build in (workspaces.read, named_numbers.numbers, from_spec):
            if build == from_spec:
                if document is of_parameter:
                    continue
                document = specification
            with pytest.raises(ValueError, match=message) as caught:
                build(document)
            assert "\n" not in str(caught.value)


def test_a_measurement_without_parameter_of_interest():
    """cabinetry's default is an empty name; it can also be given, or taken away, when reading."""
    empty = workspace()
    empty["measurements"][0]["config"]["poi"] = ""
    model, data = workspaces.read(empty)
    named, _ = workspaces.read(empty, poi_name="rate")
    assert model.structure.poi_index is None
    assert named.poi_index == named.parameter_names.index("rate")
    with pytest.raises(ValueError, match="has no parameter of interest: name one with poi_name"):
        hypotests.cls(model, data)
    reference = pyhf.Workspace(empty).model()
    assert reference.config.poi_index is None
    np.testing.assert_allclose(
        model.logpdf(model.init, data),
        reference.logpdf(list(model.init), list(data))[0],
        rtol=1e-12,
    )
    without, _ = workspaces.read(workspace(), poi_name="")
    assert without.structure is model.structure
    other, _ = workspaces.read(workspace(), "configured", poi_name="rate")
    assert other.parameter_names[other.poi_index] == "rate"
    fit = mle.best_fit(model, data)
    fit.certificate.require()
    best = mle.best_fit(workspaces.read(workspace())[0], data)
    np.testing.assert_allclose(fit.parameters, best.parameters, rtol=1e-6, atol=1e-8)
    assert workspaces.assemble(models.everything(), np.ones(5), poi_name="")


def joined_names():
    """Channels, samples, modifiers and parameters whose joined names are the same."""
    return {
        "channels": [
            channel("SR/0b", ttbar=([10.0], [modifier("shapesys", "x", [1.0])])),
            {
                "name": "SR",
                "samples": [
                    {
                        "name": "0b/ttbar",
                        "data": [77.0],
                        "modifiers": [MU, modifier("staterror", "x: y", [5.0])],
                    },
                    {"name": "0b", "data": [3.0], "modifiers": []},
                    {
                        "name": "0b: histosys a",
                        "data": [0.0],
                        "modifiers": [modifier("normsys", "b", {"lo": 0.7, "hi": 1.4})],
                    },
                ],
            },
            channel(
                "c",
                **{
                    "s": ([20.0], [modifier("normsys", "a: normsys b", {"lo": 0.9, "hi": 1.1})]),
                    "s: normsys a": (
                        [30.0],
                        [modifier("normsys", "b", {"lo": 0.8, "hi": 1.3})],
                    ),
                    "u": (
                        [
                            5.0,
                        ],
                        [modifier("shapesys", "y: sigmas", [2.0])],
                    ),
                },
            ),
        ],
        "parameters": [
            {"name": "x: y", "sigmas": [0.3], "inits": [0.9]},
            {"name": "a: normsys b", "bounds": [[-3.0, 4.0]]},
        ],
    }


def test_names_that_are_the_same_when_joined():
    """Numbers are found by their place: nothing is looked up by the joined name."""
    simple = {
        "channels": [
            channel("SR/0b", ttbar=([10.0], [])),
            channel("SR", **{"0b/ttbar": ([77.0], [MU])}),
            channel("CR", ttbar=([3.0], [])),
        ]
    }
    model = from_spec(simple)
    expected = pyhf.Model(simple).expected_actualdata([1.0])
    np.testing.assert_array_equal(model.expected_main(model.init), expected)
    np.testing.assert_array_equal(expected, [3.0, 77.0, 10.0])
    tricky = joined_names()
    reference = pyhf.Model(tricky)
    ours = from_spec(tricky)
    observed = [*np.round(reference.expected_actualdata(ours.init)), *reference.config.auxdata]
    assert_equal_pyhf((ours, np.array(observed)), reference, observed)


def test_joined_names_that_are_the_same_cannot_be_told_apart():
    spec = joined_names()
    message = "two entries of the specification are both 'SR/0b/ttbar: data': rename a channel"
    with pytest.raises(ValueError, match=message):
        named_numbers.numbers(spec)
    with pytest.raises(ValueError, match=message):
        named_numbers.with_numbers(spec, {"SR/0b/ttbar: data": [1.0]})
    changed = named_numbers.with_numbers(spec, {"SR/0b: data": [4.0]})  # another name is no harm
    assert changed["channels"][1]["samples"][1]["data"] == [4.0]


def test_parameters_of_the_same_name():
    """A normfactor may have the name of a bin of a shapefactor: only its index tells which."""
    spec = {
        "channels": [
            channel("c", s=([5.0], [MU]), b=([50.0], [modifier("shapefactor", "free")])),
            channel("d", b=([40.0], [modifier("normfactor", "free[0]")])),
        ]
    }
    model = from_spec(spec)
    assert model.parameter_names == tuple(pyhf.Model(spec).config.par_names)
    assert model.parameter_names.count("free[0]") == 2
    assert model.index("mu") == model.poi_index == model.index(model.poi_index)
    with pytest.raises(ValueError, match=r"parameter is 'free\[0\]': 2 parameters have this name"):
        model.index("free[0]")
    with pytest.raises(ValueError, match="parameter is 'muu': choose from "):
        model.index("muu")
    with pytest.raises(ValueError, match="parameter is 3: the model has 3 parameters"):
        model.index(3)


def test_measurements_with_a_slash_in_the_name():
    slashed = workspace()
    for measurement, name in zip(slashed["measurements"], ("a", "a/lumi", "lumi"), strict=True):
        measurement["name"] = name
    slashed["measurements"][0]["config"]["parameters"].append({"name": "lumi/mc"})
    for name in ("a", "a/lumi", "lumi"):
        reference = pyhf.Workspace(slashed)
        model = reference.model(measurement_name=name)
        assert_equal_pyhf(workspaces.read(slashed, name), model, reference.data(model))
    assert named_numbers.numbers(slashed)["a/lumi/rate: inits"] == 0.3


READ = r"""
import sys
from nablab.model import workspaces
model, data = workspaces.read(sys.argv[1])
assert workspaces.patched(sys.argv[1], [])["channels"][0]["samples"][1]["name"] == "\u00b5+jets"
workspaces.write(workspaces.patched(sys.argv[1], []), sys.argv[2])
print(ascii(model.parameter_names), float(data[0]))
"""


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_files_are_utf8_whatever_the_locale(mark, tmp_path):
    document = workspaces.assemble(
        {
            "channels": [
                channel(
                    "c",
                    s=([5.0], [MU]),
                    **{
                        "µ+jets": ([50.0], [modifier("normsys", "µ-scale", {"lo": 0.9, "hi": 1.1})])
                    },
                )
            ]
        },
        np.array([53.0]),
    )
    document = workspaces.plain(document)
    path, copy_path = tmp_path / "workspace.json", tmp_path / "copy.json"
    path.write_bytes(mark + json.dumps(document, ensure_ascii=False).encode("utf-8"))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", READ, path, copy_path],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode("utf-8", "replace")
    assert b"53.0" in run.stdout
    assert workspaces.patched(copy_path, []) == document


def test_objects_of_pyhf():
    """A pyhf.Workspace and a pyhf.Model give the same as what they were made of."""
    reference = pyhf.Workspace(workspace())
    ours = workspaces.read(reference, "configured")
    model = reference.model(measurement_name="configured")
    assert_equal_pyhf(ours, model, reference.data(model))
    same = from_pyhf(model)
    assert same.structure is ours[0].structure
    for field in (
        "nominal",
        "shift_up",
        "normal_width",
        "poisson_scale",
        "init",
        "lower",
        "auxdata",
    ):
        np.testing.assert_array_equal(getattr(same, field), getattr(ours[0], field))
    spec = models.everything()
    # Where the settings leave a kind out, pyhf falls back on other codes than its default.
    for settings in (
        {"histosys": {"interpcode": "code0"}},
        {"normsys": {"interpcode": "code1"}, "histosys": {"interpcode": "code4p"}},
        {},
    ):
        model = pyhf.Model(spec, poi_name="rate", modifier_settings=settings)
        observed = [*np.round(model.expected_actualdata(model.config.suggested_init()))]
        observed += model.config.auxdata
        assert_equal_pyhf((from_pyhf(model), np.array(observed)), model, observed)
    model = pyhf.Model(spec, poi_name=None)
    assert from_pyhf(model).structure.poi_index is None
    with pytest.raises(ValueError, match="clips its rates"):
        from_pyhf(pyhf.Model(spec, clip_bin_data=0.0))
    with pytest.raises(ValueError, match=r"spec is a workspace: use workspaces.read"):
        from_spec(reference)


def renewed(numbers, vector):
    """The same names with other numbers."""
    return NamedNumbers(jnp.asarray(vector), numbers.names, numbers.shapes)


def test_every_number_of_a_workspace_has_a_gradient():
    """Of the density, in yields, observations and the measurement, against differences of pyhf."""
    original = workspace()
    numbers = named_numbers.numbers(original)
    reference = pyhf.Workspace(original)
    model = reference.model(measurement_name="configured")
    init = np.array(model.config.suggested_init())
    parameters = init + np.random.default_rng(2).uniform(-0.3, 0.3, len(init))

    @jax.jit
    def density(numbers):
        model, data = workspaces.read(named_numbers.with_numbers(original, numbers), "configured")
        return model.logpdf(parameters, data)

    def pyhf_density(vector):
        moved = named_numbers.with_numbers(original, renewed(numbers, vector))
        changed = pyhf.Workspace(workspaces.write(moved))
        model = changed.model(measurement_name="configured")
        return model.logpdf(parameters, changed.data(model))[0]

    slopes = jax.grad(density)(numbers)
    assert isinstance(slopes, NamedNumbers)
    vector, position = np.array(numbers.vector), 0
    checked = {"observed": 0, "auxdata": 0, "sigmas": 0, "factors": 0, "data": 0}
    for name, entry in numbers.items():
        for i in range(entry.size):
            where, position = position, position + 1
            if vector[where] == 0.0 or ("/" in name and name.startswith(("plain/", "rate/"))):
                continue  # a mask, whose derivative is no difference; another measurement
            step = 1e-4 * vector[where] * np.eye(len(vector))[where]
            difference = pyhf_density(vector + step) - pyhf_density(vector - step)
            difference /= 2 * step[where]
            slope = np.ravel(slopes[name])[i]
            np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-6, err_msg=name)
            for kind in checked:
                checked[kind] += name.endswith(kind) and slope != 0.0
    assert min(checked.values()) >= 1, checked
    # What the starting values and bounds are worth is not in the density.
    moved = named_numbers.with_numbers(
        original, {"configured/mu: inits": np.array([0.2]), "configured/mu: bounds": [[-2.0, 3.0]]}
    )
    model, _ = workspaces.read(moved, "configured")
    poi = model.poi_index
    assert (model.init[poi], model.lower[poi], model.upper[poi]) == (0.2, -2.0, 3.0)


def test_gradient_of_cls_in_every_number_of_a_patched_workspace():
    patched = workspaces.patched(background_only(), [ADD_SIGNAL])
    numbers = named_numbers.numbers(patched)

    @jax.jit
    def cls(numbers):
        return hypotests.cls(
            *workspaces.read(named_numbers.with_numbers(patched, numbers))
        ).observed

    slopes = jax.jit(jax.grad(cls))(numbers)
    vector = np.array(numbers.vector)
    for i, number in enumerate(vector):
        step = 1e-3 * number * np.eye(len(vector))[i]
        up, down = (cls(renewed(numbers, vector + sign * step)) for sign in (1, -1))
        difference = (up - down) / (2e-3 * number)
        np.testing.assert_allclose(slopes.vector[i], difference, rtol=1e-5, atol=1e-9)
    assert (np.abs(slopes["c: observed"]) > 1e-3).all()


def test_names_of_numbers():
    numbers = named_numbers.numbers(workspace())
    np.testing.assert_array_equal(numbers["signal_region/top: data"], [30.0, 40.0, 20.0])
    np.testing.assert_array_equal(
        numbers["signal_region/top: histosys energy hi_data"], [33.0, 38.0, 18.5]
    )
    assert numbers["signal_region/top: normsys rate lo"] == 0.92
    assert numbers["control_region/top: normsys energy hi"] == 1.08
    np.testing.assert_array_equal(numbers["signal_region/top: staterror mc"], [2.0, 3.0, 0.0])
    np.testing.assert_array_equal(numbers["control_region/top: shapesys fakes"], [7.0, 0.0])
    np.testing.assert_array_equal(numbers["control_region: observed"], [137.0, 113.0])
    assert numbers["configured/free: bounds"].shape == (2, 2)
    assert len(numbers) == len(list(numbers)) == len(dict(numbers)) > 30
    assert "signal_region/signal: data" in repr(numbers)
    assert set(named_numbers.numbers(models.everything())) >= {"lumi: sigmas", "lumi: inits"}


def test_numbers_and_with_numbers_are_inverse():
    original = workspace()
    numbers = named_numbers.numbers(original)
    scaled = jax.tree.map(lambda vector: 2.0 * vector, numbers)
    changed = named_numbers.with_numbers(original, scaled)
    np.testing.assert_array_equal(named_numbers.numbers(changed).vector, scaled.vector)
    assert original == workspace()
    some = {"signal_region/signal: data": jnp.array([1.0, 2.0, 3.0]), "plain/lumi: sigmas": [0.1]}
    found = named_numbers.numbers(named_numbers.with_numbers(original, some))
    for name in numbers:
        np.testing.assert_array_equal(found[name], some.get(name, numbers[name]))


def test_wrong_numbers_are_named():
    spec = models.everything()
    with pytest.raises(ValueError, match="did you mean 'signal_region/top: data'"):
        named_numbers.with_numbers(spec, {"signal_region/topp: data": np.ones(3)})
    with pytest.raises(ValueError, match=r"top: data has shape \(2,\).* has \(3,\)"):
        named_numbers.with_numbers(spec, {"signal_region/top: data": np.ones(2)})
    with pytest.raises(pyhf.exceptions.InvalidSpecification, match="'samples' is a required"):
        named_numbers.numbers({"channels": [{"name": "c"}]})
    with pytest.raises(pyhf.exceptions.InvalidSpecification, match="'samples' is a required"):
        named_numbers.with_numbers({"channels": [{"name": "c"}]}, {})
    twice = {"channels": [*spec["channels"], spec["channels"][0]]}
    with pytest.raises(ValueError, match="are both 'signal_region/signal: data'"):
        named_numbers.numbers(twice)


def test_numbers_work_under_vmap_and_twice_differentiated():
    spec = models.shapesys([3.0, 5.0], [50.0, 60.0], [4.0, 6.0])
    numbers = named_numbers.numbers(spec)

    @jax.jit
    def density(numbers):
        model = from_spec(named_numbers.with_numbers(spec, numbers))
        return model.logpdf(jnp.array([1.2, 1.02, 0.97]), jnp.array([51.0, 66.0, 160.0, 90.0]))

    batch = renewed(numbers, numbers.vector * np.array([[1.0], [1.1]]))
    both = jax.jit(jax.vmap(density))(batch)
    np.testing.assert_allclose(both[0], density(numbers), rtol=1e-14)
    np.testing.assert_allclose(both[1], density(renewed(numbers, batch.vector[1])), rtol=1e-14)
    hessian = jax.jit(jax.hessian(density))(numbers).vector.vector
    step = 1e-3 * np.eye(6)
    slope = jax.jit(jax.grad(density))
    up, down = (
        np.stack([slope(renewed(numbers, numbers.vector + sign * row)).vector for row in step])
        for sign in (1, -1)
    )
    np.testing.assert_allclose(hessian, (up - down) / 2e-3, rtol=1e-5, atol=1e-8)


def test_assemble_and_write_round_trip(tmp_path):
    """A specification with trained numbers, written for pyhf and read again by both."""
    spec = models.everything()
    trained = jax.tree.map(lambda vector: 1.05 * vector, named_numbers.numbers(spec))
    trained = dict(trained) | {"lumi: bounds": [[0.4, 1.6]], "lumi: inits": [1.0]}
    spec = named_numbers.with_numbers(spec, trained)
    model = from_spec(spec)
    observed = jnp.round(1.1 * model.expected_main(model.init))
    written = workspaces.write(
        workspaces.assemble(spec, observed, measurement="trained"), tmp_path / "trained.json"
    )
    assert json.loads((tmp_path / "trained.json").read_text()) == written
    reference = pyhf.Workspace(written)
    assert reference.measurement_names == ["trained"]
    pyhf_model = reference.model()
    assert_equal_pyhf(workspaces.read(written), pyhf_model, reference.data(pyhf_model))
    again, data = workspaces.read(tmp_path / "trained.json")
    np.testing.assert_array_equal(data, jnp.concatenate([observed, model.auxdata]))
    assert again.structure is model.structure
    assert again.logpdf(model.init, data) == model.logpdf(model.init, data)


def test_cls_is_the_same_after_writing():
    patched = workspaces.patched(background_only(), [ADD_SIGNAL])
    trained = renewed(named_numbers.numbers(patched), 1.07 * named_numbers.numbers(patched).vector)
    written = workspaces.write(named_numbers.with_numbers(patched, trained))
    value = hypotests.cls(*workspaces.read(named_numbers.with_numbers(patched, trained))).observed
    assert hypotests.cls(*workspaces.read(written)).observed == value
    reference = pyhf.Workspace(written)
    model = reference.model()
    np.testing.assert_allclose(
        value, pyhf.infer.hypotest(1.0, reference.data(model), model), rtol=1e-4
    )


def test_a_workspace_that_cannot_be_written_says_why():
    spec = models.shapesys([3.0, 5.0], [50.0, 60.0], [4.0, 6.0])
    complete = workspaces.assemble(spec, np.array([53.0, 61.0]))
    nan = named_numbers.with_numbers(complete, {"c/signal: data": [1.0, np.nan]})
    with pytest.raises(ValueError, match=r"c/signal: data\[1\] is nan"):
        workspaces.write(nan)
    with pytest.raises(ValueError, match=r"observed has shape \(3,\), but the model has 2 bins"):
        workspaces.assemble(spec, np.ones(3))
    with pytest.raises(pyhf.exceptions.InvalidSpecification, match="'measurements' is a required"):
        workspaces.write(spec)

    @jax.jit
    def traced(numbers):
        workspaces.write(named_numbers.with_numbers(complete, numbers))

    with pytest.raises(ValueError, match=r"channels\[0\].samples\[0\].data is a traced value"):
        traced(named_numbers.numbers(complete))


def big(shapes):
    """Many shape uncertainties, as real likelihoods have them."""
    shifted = [
        modifier("histosys", f"shape{i}", {"lo_data": [9.0, 19.0], "hi_data": [11.0, 22.0]})
        for i in range(shapes)
    ]
    return {"channels": [channel("c", s=([1.0, 2.0], [MU]), b=([10.0, 20.0], shifted))]}


def test_cost_of_tracing_does_not_grow_with_the_number_of_modifiers():
    def equations(spec):
        def nominal(numbers):
            return from_spec(named_numbers.with_numbers(spec, numbers)).shift_up

        return len(jax.make_jaxpr(nominal)(named_numbers.numbers(spec)).eqns)

    assert equations(big(50)) == equations(big(5)) < 60


def test_what_is_not_traced_stays_known():
    @jax.jit
    def check(signal):
        model = from_spec(models.shapesys(signal, [50.0, 60.0], [4.0, 6.0]))
        traced = {name for name in vars(model) if isinstance(getattr(model, name), jax.core.Tracer)}
        assert traced == {"nominal"}
        return model.nominal

    np.testing.assert_array_equal(check(jnp.array([1.0, 2.0])), [1.0, 2.0, 50.0, 60.0])


def test_names_of_samples_do_not_make_another_structure():
    one, other = models.everything(), models.everything()
    for each in other["channels"]:
        for sample in each["samples"]:
            sample["name"] = f"another {sample['name']}"
    assert from_spec(one).structure is from_spec(other).structure
    other["channels"][0]["name"] = "another region"
    assert from_spec(one).structure is not from_spec(other).structure
