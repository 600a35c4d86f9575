"""pyhf's parameters of a large specification, which it sees in parts, are those of the whole."""

import copy
import dataclasses
import json

import models
import numpy as np
import pyhf
import pytest
import test_bad_models
import test_histfactory
import test_workspaces
from models import MU, channel, modifier

from nablab.model import _forms, _parameter_sets
from nablab.model.histfactory import PYHF_CODES, from_spec

SETTINGS = {kind: {"interpcode": code} for kind, code in PYHF_CODES.items()}
CONFIGURED = test_workspaces.workspace()["measurements"][1]["config"]["parameters"]
FIXED = [{"name": "mu", "fixed": True, "inits": [0.0]}, {"name": "mc", "fixed": False}]
SPECS = {
    **test_histfactory.SPECS,
    "configured": {**models.everything(), "parameters": CONFIGURED},
    "fixed": {**models.everything(), "parameters": [*models.everything()["parameters"], *FIXED]},
    "names with slashes": test_workspaces.joined_names(),
    "one name for a normfactor and a bin": {
        "channels": [
            channel("c", s=([5.0, 3.0], [MU]), b=([50.0, 40.0], [modifier("shapefactor", "free")])),
            channel("d", b=([40.0], [modifier("normfactor", "free[0]")])),
        ]
    },
}


def parts_shown(monkeypatch):
    """The specifications that pyhf is shown from now on."""
    shown, original = [], pyhf.Model.__init__

    def init(self, spec, **settings):
        shown.append(spec)
        original(self, spec, **settings)

    monkeypatch.setattr(pyhf.Model, "__init__", init)
    return shown


@pytest.mark.parametrize("poi_name", ["mu", ""])
@pytest.mark.parametrize("name", SPECS)
def test_in_parts_as_in_one(name, poi_name, monkeypatch):
    form = _forms.form(SPECS[name])
    whole = _parameter_sets.read(form, poi_name, SETTINGS)
    reference = pyhf.Model(_forms.spread(form), poi_name=poi_name).config
    monkeypatch.setattr(_parameter_sets, "LARGE", 0)
    shown = parts_shown(monkeypatch)
    parts = _parameter_sets.read(form, poi_name, SETTINGS)
    assert 1 <= len(shown) <= 2 and shown[0] != _forms.spread(form)
    assert parts.names == tuple(reference.par_names)
    assert parts.poi_index == reference.poi_index
    assert parts.constrained == reference.auxdata_order
    np.testing.assert_array_equal(parts.bounds, reference.suggested_bounds())
    for field in dataclasses.fields(parts):
        np.testing.assert_equal(getattr(parts, field.name), getattr(whole, field.name), field.name)


@pytest.mark.parametrize("name", test_bad_models.WRONG)
def test_wrong_in_parts_as_in_one(name, monkeypatch):
    wrong = copy.deepcopy(test_bad_models.spec(**test_bad_models.GOOD))
    test_bad_models.WRONG[name](wrong)
    with pytest.raises(test_bad_models.PYHF_ERRORS) as of_pyhf:
        pyhf.Model(wrong)
    monkeypatch.setattr(_parameter_sets, "LARGE", 0)
    with pytest.raises(of_pyhf.type):
        _parameter_sets.read(_forms.form(wrong), "mu", SETTINGS)


def test_the_parameter_of_interest_in_parts(monkeypatch):
    form = _forms.form(models.everything())
    monkeypatch.setattr(_parameter_sets, "LARGE", 0)
    for poi_name, message in (("absent", "add a signal patch"), ("mc", "multiple components")):
        with pytest.raises(pyhf.exceptions.InvalidModel, match=message):
            _parameter_sets.read(form, poi_name, SETTINGS)


def wide(bins, shapes):
    """A signal and a background with so many shape uncertainties."""
    data = np.linspace(50.0, 90.0, bins)
    shifted = [
        modifier("histosys", f"shape{i}", {"lo_data": data - 1.0 - i, "hi_data": data + 2.0 + i})
        for i in range(shapes)
    ]
    mc = modifier("staterror", "mc", np.sqrt(data))
    return {"channels": [channel("c", s=(0.1 * data, [MU, mc]), b=(data, [*shifted, mc]))]}


def test_pyhf_is_not_shown_the_bins_of_shapes(monkeypatch):
    """Of a large model it sees each shape in one bin; the numbers are where they belong."""
    shown = parts_shown(monkeypatch)
    model = from_spec(wide(500, 150))
    sizes = [json.dumps(spec).count("1.0") for spec in shown]
    assert len(shown) == 2 and sizes[0] < 500 and sizes[1] <= 4 * 500
    assert len(model.parameter_names) == 1 + 150 + 500
    background = np.linspace(50.0, 90.0, 500)
    for i in (0, 77, 149):
        row = np.flatnonzero(model.structure.shift_parameters[:, 1] == model.index(f"shape{i}"))[0]
        np.testing.assert_array_equal(model.shift_up[row, 500:], background + 2.0 + i)
        np.testing.assert_array_equal(model.shift_down[row, 500:], background - 1.0 - i)
        np.testing.assert_array_equal(model.shift_up[row, :500], 0.1 * background)
    parameters = model.init.at[model.index("shape7")].set(1.0)
    np.testing.assert_allclose(model.expected_main(parameters), 1.1 * background + 9.0, rtol=1e-12)


def test_forms_are_short_and_can_be_spread():
    spec = wide(1000, 3)
    form = _forms.form(spec)
    assert len(str(form)) < 1200
    sample = _forms.spread(form)["channels"][0]["samples"][1]
    assert sample["data"] == [1.0] * 1000
    assert _forms.spread(form, most=2)["channels"][0]["samples"][1]["data"] == [1.0, 1.0]
    for numbers, shape in (
        (3, 1.0),
        ([1.0, 2], [1.0, 1.0]),
        ([np.float64(1.0), 2.0], [1.0, 1.0]),
        (np.zeros((2, 3)), [[1.0] * 3] * 2),
        ([[0.0, 10.0]], [[1.0, 1.0]]),
        ([], []),
        (np.zeros(0), []),
    ):
        assert _forms.spread(_forms.form(numbers)) == shape
        assert _forms.size(_forms.form(numbers)) == np.size(shape)
