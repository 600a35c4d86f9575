"""CLs and p-values against published numbers, against pyhf, and their gradients against pyhf."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyhf
import pytest

from nablab.infer import fits, hypotests
from nablab.infer.histfactory import Model

SHARED = Path(
    os.environ.get("NABLAB_WORKSPACES", Path(__file__).parents[2] / "shared/data/workspaces")
)
VALIDATION = SHARED / "pyhf-validation"
CODES = {"histosys": "code0", "normsys": "code1"}  # those of the published numbers
# Published within 1e-6; see test_coupled_histosys for the one that sits on a local minimum.
PUBLISHED = [
    "1bin_shapesys",
    "1bin_lumi",
    "1bin_normsys",
    "2bin_histosys",
    "2bin_2channel",
    "2bin_2channel_couplednorm",
    "2bin_2channel_coupledshapefactor",
]

needs_workspaces = pytest.mark.skipif(
    not VALIDATION.exists(), reason=f"set NABLAB_WORKSPACES: no validation workspaces in {SHARED}"
)


def load(name):
    workspace = pyhf.Workspace(json.loads((VALIDATION / f"{name}.json").read_text()))
    settings = {kind: {"interpcode": code} for kind, code in CODES.items()}
    reference = workspace.model(modifier_settings=settings)
    model = Model.from_spec(reference.spec, poi_name=reference.config.poi_name, codes=CODES)
    return model, jnp.array(workspace.data(reference))


def all_values(result):
    return np.array([result.observed, *result.expected])


def published(name):
    numbers = json.loads((VALIDATION / "reference.json").read_text())[name]["published"]
    return np.array([numbers["obs"], *numbers["exp"]])


@needs_workspaces
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cls(name):
    model, data = load(name)
    result = hypotests.cls(model, data, 1.0, "q").require()
    np.testing.assert_allclose(all_values(result), published(name), atol=1e-6)
