"""What importing nablab loads and changes, seen from a fresh process; and who imports whom."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jax
import pytest

import nablab
from nablab import model

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(nablab.__file__).parent
# From left to right. A room that imports one more to its left is no fault, but a decision.
MAY_IMPORT = {
    "data": set(),
    "relax": set(),
    "model": set(),
    "infer": {"model"},
    "train": {"data", "model", "infer"},
    "judge": {"model", "infer", "train"},
    "show": set(),
}
# Slow to import, and needed by few of the functions.
HEAVY = (
    "awkward blackjax flax hist imageio_ffmpeg ipywidgets IPython jsonpatch jsonschema matplotlib "
    "optax pandas PIL pooch pyhf requests scipy tqdm"
).split()
SPEC = {"channels": [{"name": "c", "samples": [{"name": "s", "data": [5.0], "modifiers": []}]}]}


def said(code: str, **environment) -> list[str]:
    """What a fresh Python prints that runs this code."""
    variables = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"} | environment
    variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def rooms_imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "nablab":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nablab."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("nablab.")}
    return found & set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_from_its_left(room):
    found = set().union(*map(rooms_imported, (PACKAGE / room).rglob("*.py"))) - {room}
    assert found == MAY_IMPORT[room]
    order = list(MAY_IMPORT)
    assert all(order.index(other) < order.index(room) for other in found)


def test_the_table_has_every_room_and_what_they_share_imports_none():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)
    shared = list(PACKAGE.glob("*.py"))
    assert shared and not set().union(*map(rooms_imported, shared))


def test_importing_a_room_loads_nothing_heavy_and_no_other_room():
    code = "import sys; from nablab import infer; print(*sys.modules)"
    loaded = set(said(code))
    assert "nablab.infer.limits" in loaded
    assert not loaded.intersection(HEAVY)
    assert {room for room in MAY_IMPORT if f"nablab.{room}" in loaded} == {"model", "infer"}


def test_importing_changes_neither_style_nor_listeners():
    """``show.set_up`` does, and only once."""
    code = """
import jax, matplotlib
heard = []
jax.monitoring.register_event_duration_secs_listener = heard.append
before = dict(matplotlib.rcParams)
from nablab import data, relax, model, infer, train, judge, show
print(dict(matplotlib.rcParams) == before, len(heard), end=" ")
show.set_up(), show.set_up()
print(dict(matplotlib.rcParams) == before, len(heard))
"""
    once = "1" if sys.platform.startswith("linux") else "0"
    assert said(code) == ["True", "0", "False", once]


def test_the_process_may_have_decided_otherwise():
    """JAX_ENABLE_X64=0 stays; a backend that runs keeps its dispatch, and one warning says so."""
    code = """
import warnings, jax
jax.numpy.ones(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from nablab import model, relax
print(jax.numpy.ones(1).dtype, len([w for w in caught if "import nablab first" in str(w.message)]))
"""
    assert said(code, JAX_ENABLE_X64="0") == ["float32", "1"]
    assert said(code) == ["float64", "1"]


def test_by_default_64_bits_on_the_thread_that_asks():
    code = "import nablab, jax; print(jax.numpy.ones(1).dtype, end=' ')"
    code += "; print(jax.config.read('jax_cpu_enable_async_dispatch'))"
    assert said(code) == ["float64", "False"]


def test_models_refuse_32_bits():
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="a model needs 64-bit floats"):
        model.from_spec(SPEC, poi_name=None)


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert nablab.__version__ == metadata.version("nablab") == version, "run make lab again"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE).group(1) == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(\S+)\] - (\S+)$", changes, re.MULTILINE).groups() == (
        version,
        re.search(r"^date-released: (\S+)$", citation, re.MULTILINE).group(1),
    )


def test_types_are_marked():
    assert (PACKAGE / "py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["*"]
