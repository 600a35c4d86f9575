"""A machine without a browser, data and network: what it does not test is little, and is said."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import needs
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_few_tests_need_more_than_the_packages(request):
    wanting = [item for item in request.session.items if item.get_closest_marker("needs")]
    assert len(wanting) + len(needs.NOTEBOOKS) <= 60


def test_reasons_name_what_is_absent_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path))
    reason = needs.reason_to_skip("opendata/a.csv", "opendata/b.csv")
    assert reason == f"no opendata/a.csv or opendata/b.csv in {tmp_path}: {needs.FETCH_DATA}"
    (tmp_path / "b.csv").touch()
    assert needs.reason_to_skip("opendata/a.csv", "opendata/b.csv") is None


def test_a_browser_that_does_not_start_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "chromium").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "chromium").chmod(0o755)
    assert needs.chromium.__wrapped__() is None
    (tmp_path / "google-chrome").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "google-chrome").chmod(0o755)
    assert needs.chromium.__wrapped__() == str(tmp_path / "google-chrome")


def test_last_words_of_a_bare_machine(tmp_path):
    tests = ["tests/test_browser_talk.py", "tests/test_opendata.py::test_real_higgsml"]
    environment = os.environ | {"PATH": str(tmp_path), "NABLAB_DATA": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    *_, said, total = run.stdout.splitlines()
    first, second = f"1 until you {needs.INSTALL_BROWSER}", f"1 until you {needs.FETCH_DATA}"
    assert said == f"Not tested here: {first}; {second}."
    assert total.startswith("2 skipped")
    assert run.returncode == 0


@pytest.mark.parametrize(
    ("user", "browser", "apt", "called"),
    [
        (0, None, "exit 0", ["apt-get update", "apt-get install chromium", "make test"]),
        (0, None, "exit 1", ["apt-get update", "make test"]),
        (0, None, None, ["make test"]),
        (0, "google-chrome", "exit 0", ["make test"]),
        (1000, None, "exit 0", ["make test"]),
    ],
    ids=["installed", "no network", "no apt", "there already", "not root"],
)
def test_ci_brings_a_browser_where_it_may(user, browser, apt, called, tmp_path):
    """And runs the tests in any case."""
    programs = {"id": f"echo {user}", "make": 'echo make "$@" >> $LOG', browser: "exit 0"}
    if apt:
        said = 'for word; do case $word in -*|fonts-*) ;; *) line="$line $word";; esac; done'
        programs["apt-get"] = f"{said}; echo apt-get$line >> $LOG; {apt}"
    for name, lines in programs.items():
        if name:
            (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
            (tmp_path / name).chmod(0o755)
    for name in ("bash", "sh", "dirname", "timeout"):
        (tmp_path / name).symlink_to(shutil.which(name))
    log = tmp_path / "log"
    environment = {"PATH": str(tmp_path), "LOG": str(log)}
    command = [shutil.which("bash"), ROOT / ".ci" / "run"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert log.read_text().splitlines() == called
