"""Is this computer ready for the notebooks? To be run the day before: ``make check-env``.

Every line says in plain words what is there, or what is missing and what to do about it. Nothing
but Python is needed to run it.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (3, 11)
GIGABYTES_OF_MEMORY, GIGABYTES_OF_DISK = 2, 1
INSTALL = "run 'make lab' once, with a network"
TRY_JAX = """
import jax, jax.numpy as jnp
import nablab
slope = jax.jit(jax.grad(lambda x: jnp.sum(x**2)))(jnp.arange(3.0))
assert slope.tolist() == [0.0, 2.0, 4.0] and slope.dtype == "float64", slope
"""
TRY_MOVIE = """
import imageio_ffmpeg
movie = imageio_ffmpeg.write_frames(PATH, (16, 16))
movie.send(None)
movie.send(bytes(16 * 16 * 3))
movie.close()
"""
TRY_KERNEL = """
import nbformat, nbclient
cell = nbformat.v4.new_code_cell("1 + 1")
nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=60).execute()
assert cell.outputs[0]["data"]["text/plain"] == "2"
"""


def python_version():
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return f"Python is {found}: install 3.11 or newer, then 'make lab PYTHON=python3.12'"


def packages():
    import tomllib  # from Python 3.11 on

    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return f"packages: packaging is missing: {INSTALL}"
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    of_extras = (extras[name] for name in ("opendata", "show", "notebooks"))
    needed = [*project["dependencies"], *chain.from_iterable(of_extras)]
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {pin.name: pin for pin in map(Requirement, lines) if here(pin)}
    wrong = []
    for name in (Requirement(text).name for text in needed):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if name in pins and found not in pins[name].specifier:
            wrong.append(f"{name} is {found}, not {str(pins[name].specifier)[2:]}")
    if wrong:
        others = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return f"packages: {', '.join(wrong[:3])}{others}: {INSTALL}"


def here(pin) -> bool:
    """Whether a line of the lock is meant for this Python and this system."""
    return pin.marker is None or pin.marker.evaluate()


def derivatives():
    return tried(TRY_JAX, f"JAX does not compute: {INSTALL}")


def movies():
    with tempfile.TemporaryDirectory() as scratch:
        code = TRY_MOVIE.replace("PATH", repr(str(Path(scratch) / "try.mp4")))
        return tried(code, f"movies cannot be made: {INSTALL}")


def notebooks():
    return tried(TRY_KERNEL, f"a notebook cannot be run: {INSTALL}")


def memory():
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None  # not to be found out on this system
    if pages < GIGABYTES_OF_MEMORY * 1e9:
        return f"only {pages / 1e9:.1f} GB of memory: use Binder, or another computer"


def disk():
    free = shutil.disk_usage(ROOT).free
    if free < GIGABYTES_OF_DISK * 1e9:
        return f"only {free / 1e9:.1f} GB free on the disk: {GIGABYTES_OF_DISK} GB is needed"


# What comes after the first of these that fails would only repeat its complaint.
IN_ORDER = {
    f"Python {PYTHON[0]}.{PYTHON[1]} or newer": python_version,
    "the packages, in the tested versions": packages,
    "derivatives with JAX": derivatives,
    "movies": movies,
    "a notebook can be run": notebooks,
}
ANYWAY = {"memory": memory, "room on the disk": disk}


def tried(code, complaint):
    """The complaint, with the last line of the error, if the code fails in a fresh Python."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        return f"{complaint} ({last})"


def main() -> int:
    problems = []
    for what, check in [*IN_ORDER.items(), *ANYWAY.items()]:
        if problems and what in IN_ORDER:
            continue
        problem = check()
        if problem is not None:
            problems.append(problem)
        print(f"ok       {what}" if problem is None else f"MISSING  {problem}", flush=True)
    print("Not ready: see the lines that begin with MISSING." if problems else "Ready.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
