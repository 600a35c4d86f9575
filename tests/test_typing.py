"""A type checker understands the public face, and finds mistakes in programs that use it."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from mypy import api
from test_imports import MAY_IMPORT as ROOMS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def check():
    """What mypy says of a file, one line for each complaint."""

    def check(path: Path) -> list[str]:
        cache = ["--cache-dir", str(ROOT / "build" / "mypy")]
        said, failed, _ = api.run(
            [*cache, "--config-file", str(ROOT / "pyproject.toml"), str(path)]
        )
        assert not failed, failed
        return said.splitlines()

    return check


def test_right_calls_pass_and_wrong_ones_are_found(check):
    (verdict,) = check(ROOT / "tests" / "typed_program.py")
    assert verdict.startswith("Success")


def public(face: ModuleType) -> list[str]:
    """Names of a face, and of the functions of the modules that it names."""
    names = list(face.__all__)
    for name in face.__all__:
        module = getattr(face, name)
        if isinstance(module, ModuleType):
            own = [k for k, v in vars(module).items() if is_own(v, module) and k[0] != "_"]
            names += [f"{name}.{k}" for k in own]
    return names


def is_own(thing, module: ModuleType) -> bool:
    return callable(thing) and getattr(thing, "__module__", None) == module.__name__


def test_every_public_name_has_a_type(check, tmp_path):
    names = [
        f"{room}.{name}"
        for room in ROOMS
        for name in public(importlib.import_module(f"nablab.{room}"))
    ]
    program = tmp_path / "program.py"
    lines = [f"from nablab import {', '.join(ROOMS)}", *(f"reveal_type({name})" for name in names)]
    program.write_text("\n".join(lines), encoding="utf-8")
    *said, verdict = check(program)
    assert verdict.startswith("Success") and len(said) == len(names) > 100
    assert [line for line in said if line.endswith('"Any"')] == []
