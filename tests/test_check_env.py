"""What a participant is told the day before, on a good computer and on bad ones."""

import shutil
import sys

import pytest

import check_env


def test_ready_here(capsys):
    assert check_env.main() == 0
    said = capsys.readouterr().out
    assert "MISSING" not in said and said.endswith("Ready.\n")
    assert said.count("ok     ") == len(check_env.IN_ORDER) + len(check_env.ANYWAY)


def complaint(capsys):
    assert check_env.main() == 1
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSING")]


def test_old_python(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert complaint(capsys) == [
        "MISSING  Python is 3.9.2: install 3.11 or newer, then 'make lab PYTHON=python3.12'"
    ]


@pytest.mark.parametrize("found", [None, "0.1"])
def test_missing_or_other_package(found, monkeypatch, capsys):
    version = check_env.importlib.metadata.version

    def without_jax(name):
        if name != "jax":
            return version(name)
        if found is None:
            raise check_env.importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(check_env.importlib.metadata, "version", without_jax)
    (line,) = complaint(capsys)
    assert ("jax is missing" if found is None else "jax is 0.1, not") in line
    assert "make lab" in line


def test_failing_code_and_full_disk(monkeypatch, capsys):
    monkeypatch.setattr(check_env, "TRY_JAX", "raise RuntimeError('no such device')")
    full = shutil.disk_usage(".")._replace(free=10**8)
    monkeypatch.setattr(check_env.shutil, "disk_usage", lambda path: full)
    first, second = complaint(capsys)
    assert "JAX does not compute" in first and "no such device" in first
    assert second == "MISSING  only 0.1 GB free on the disk: 1 GB is needed"
