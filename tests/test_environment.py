"""The places that name packages agree: code, pyproject, lock, environment.yml, installation."""

import ast
import builtins
import dis
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import CodeType

import jax
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from repo2docker.app import Repo2Docker
from repo2docker.buildpacks import CondaBuildPack

import nablab
from nablab.extras import needs

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

LOCKED = [Requirement(line) for line in LOCK.splitlines() if line and not line.startswith("#")]
CONDA = dict(
    line.partition("=")[::2] for line in ENVIRONMENT["dependencies"] if isinstance(line, str)
)
PIP = next(line["pip"] for line in ENVIRONMENT["dependencies"] if isinstance(line, dict))
DEPENDENCIES, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
# What Binder and `make lab` install; an extra names those that it contains.
FOR_NOTEBOOKS = [*DEPENDENCIES, *EXTRAS["opendata"], *EXTRAS["show"], *EXTRAS["notebooks"][1:]]
NOTEBOOKS = sorted([*ROOT.glob("nbs/*.ipynb"), *ROOT.glob("talk/*.ipynb")])
PACKAGE = ROOT / "utils" / "nablab"
MODULES = sorted(PACKAGE.rglob("*.py"))
NOT_FROM_LOCK = {"python", "pip"}


def names(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def locked_version(name, python="3.12"):
    """The version that the lock gives `name` on Linux with this Python."""
    place = {"python_version": python, "python_full_version": f"{python}.9"}
    place |= {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux"}
    versions = [
        next(iter(line.specifier)).version
        for line in LOCKED
        if line.name == name and (line.marker is None or line.marker.evaluate(place))
    ]
    assert len(versions) == 1, f"requirements.lock gives {name} the versions {versions}"
    return versions[0]


def test_every_locked_version_is_installed():
    wrong = {}
    for line in LOCKED:
        if line.marker is None or line.marker.evaluate():
            try:
                installed = metadata.version(line.name)
            except metadata.PackageNotFoundError:
                installed = "not installed"
            if installed not in line.specifier:
                wrong[str(line)] = installed
    assert not wrong


def test_lock_is_exact_and_names_no_host():
    for line in LOCKED:
        assert [part.operator for part in line.specifier] == ["=="], line
        assert line.url is None, line
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host|\bfile:", LOCK)


def test_lock_covers_the_declared_packages():
    declared = [*FOR_NOTEBOOKS, *EXTRAS["posterior"], *EXTRAS["test"], *EXTRAS["site"]]
    for text in declared:
        wanted = Requirement(text)
        if wanted.name == "nablab":
            continue
        for python in ("3.11", "3.12", "3.13"):
            assert locked_version(wanted.name, python) in wanted.specifier, text


def test_python_without_new_versions_keeps_the_last_ones():
    assert Version(locked_version("jax", "3.11")) < Version("0.11")  # which needs Python 3.12
    assert Version(locked_version("jax", "3.12")) >= Version("0.12")
    for name in names(FOR_NOTEBOOKS):
        assert locked_version(name, "3.12") == locked_version(name, "3.13")


def test_environment_file_has_every_package_of_the_notebooks_once():
    listed = [canonicalize_name(name) for name in CONDA if name not in NOT_FROM_LOCK]
    listed += [canonicalize_name(Requirement(text).name) for text in PIP]
    assert len(listed) == len(set(listed))
    assert set(listed) == names(FOR_NOTEBOOKS)


DISTRIBUTIONS = metadata.packages_distributions()  # takes seconds
OURS = {"nablab", *(path.stem for path in ROOT.glob("tools/*.py"))}


def imported(source: str) -> set[str]:
    """The distributions that this code imports, at the top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.partition(".")[0])
    foreign = modules - OURS - sys.stdlib_module_names
    return {canonicalize_name(DISTRIBUTIONS[module][0]) for module in foreign}


# Where an extra is needed. What lies elsewhere finds all it imports after `pip install nablab`.
NEED_EXTRA = {"data/_downloads.py": "opendata", "infer/posterior.py": "posterior", "show": "show"}


def test_package_declares_what_it_imports_and_nothing_else():
    found = {None: set()} | {extra: set() for extra in NEED_EXTRA.values()}
    for path in MODULES:
        inside = path.relative_to(PACKAGE).as_posix()
        extra = next((NEED_EXTRA[place] for place in NEED_EXTRA if inside.startswith(place)), None)
        found[extra] |= imported(path.read_text(encoding="utf-8"))
    always = found.pop(None)
    assert always == names(DEPENDENCIES)
    assert {extra: those - always for extra, those in found.items()} == {
        extra: names(EXTRAS[extra]) for extra in found
    }


def test_an_absent_package_is_named_with_its_extra(monkeypatch):
    for module, extra in (("pooch", "opendata"), ("matplotlib", "show")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=rf"{module} is not .* nablab\[{extra}\]"):
            with needs(extra):
                importlib.import_module(module)


def test_extras_contain_one_another():
    assert EXTRAS["notebooks"][0] == "nablab[opendata,show]"
    assert EXTRAS["test"][0] == "nablab[notebooks,posterior]"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_import_what_is_installed_for_them(path):
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    code = [cell.source for cell in cells if cell.cell_type == "code" and "%" != cell.source[:1]]
    found = set().union(*map(imported, code))
    assert found <= names(FOR_NOTEBOOKS) | {"ipython"}, "IPython is there, as the kernel is its own"


@pytest.mark.parametrize("name", sorted(set(CONDA) - NOT_FROM_LOCK))
def test_conda_pin_is_the_locked_version(name):
    assert CONDA[name] == locked_version(name)


@pytest.mark.parametrize("text", PIP)
def test_pip_pin_is_the_locked_version(text):
    pin = Requirement(text)
    assert str(pin.specifier) == f"=={locked_version(pin.name)}"


def test_environment_file_is_portable():
    assert re.fullmatch(r"3\.\d+", CONDA["python"])
    assert CONDA["python"] in SpecifierSet(PROJECT["requires-python"])
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    for text in PIP:
        assert not re.match(r"-|\.|/|file:", text), f"{text}: local installs go to binder/postBuild"


def test_binder_reads_the_same_file():
    ours, binders = ROOT / "environment.yml", ROOT / "binder" / "environment.yml"
    assert binders.read_bytes() == ours.read_bytes()
    if sys.platform != "win32":
        assert binders.is_symlink()
        assert str(binders.readlink()) == "../environment.yml"


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_binder_scripts_can_run(name):
    script = ROOT / "binder" / name
    assert script.read_text(encoding="utf-8").startswith("#!")
    assert sys.platform == "win32" or script.stat().st_mode & 0o111


def test_binder_image_has_the_pinned_python(monkeypatch):
    monkeypatch.chdir(ROOT)
    build = CondaBuildPack(Repo2Docker().base_image)
    build.platform = "linux/amd64"
    assert build.detect()
    dockerfile = build.render(build_args={})
    assert build.python_version.startswith(CONDA["python"])
    assert f"conda/environment.py-{CONDA['python']}-linux-64.lock" in build.get_build_script_files()
    for step in ("binder/environment.yml", "binder/postBuild", "binder/start"):
        assert step in dockerfile
    assert str(ROOT) not in dockerfile


def test_ci_calls_nothing_but_make():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#!")
    assert [line for line in lines if line.startswith("make")] == ["make test"]


def names_in(code: CodeType, *operations):
    """Names on which this code, or a function or class inside it, does one of the operations."""
    for step in dis.get_instructions(code):
        if step.opname in operations:
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant, *operations)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_name_in_the_package_is_defined(path):
    # ruff takes jaxtyping's axis names for undefined names, and is told to be silent here.
    dotted = ".".join(path.relative_to(ROOT / "utils").with_suffix("").parts)
    module = importlib.import_module(dotted.removesuffix(".__init__"))
    code = compile(path.read_text(encoding="utf-8"), path.name, "exec")
    known = {*dir(module), *dir(builtins), *names_in(code, "STORE_NAME"), "__annotations__"}
    undefined = set(names_in(code, "LOAD_GLOBAL", "LOAD_NAME")) - known
    assert not undefined


def test_binder_image_is_small():
    """Nothing for graphics cards, and one copy of ffmpeg: the one inside imageio-ffmpeg."""
    installed = {line.name for line in LOCKED} | set(CONDA) | names(PIP)
    assert "imageio-ffmpeg" in installed
    assert not [name for name in installed if re.search(r"nvidia|cuda|rocm|torch|^ffmpeg", name)]


def test_binder_says_nothing_about_news():
    settings = json.loads((ROOT / "binder" / "overrides.json").read_text(encoding="utf-8"))
    notification = settings["@jupyterlab/apputils-extension:notification"]
    assert notification["fetchNews"] == "false" and not notification["checkForUpdates"]
    assert "overrides.json" in (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="Binder runs on Linux: test there")
def test_binder_computes_on_a_cpu():
    """What repo2docker starts with binder/start sees the variable."""
    command = [ROOT / "binder" / "start", sys.executable, "-c"]
    asked = "import os; print(os.environ['JAX_PLATFORMS'])"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    said = subprocess.run([*command, asked], env=environment, capture_output=True, text=True)
    assert said.stdout == "cpu\n"


def test_modules_hold_no_arrays_of_jax():
    """Where a module is first imported while JAX traces, they would be tracers for ever."""
    for module in pkgutil.walk_packages(nablab.__path__, "nablab."):
        values = vars(importlib.import_module(module.name)).items()
        arrays = [name for name, value in values if isinstance(value, jax.Array)]
        assert not arrays, f"{module.name} holds {arrays}"
