"""Settings of the tests, which the kernels of the tested notebooks inherit."""

import os
import sys
from collections import defaultdict
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

REPOSITORY = Path(__file__).resolve().parent
sys.path.insert(0, str(REPOSITORY / "utils"))
import workshop  # noqa: E402

NEEDS_OPEN_DATA = ("12_open_data.ipynb",)

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def open_data_folder() -> Path | None:
    """Where the open-data files are: $NABLAB_DATA, or a folder beside the repository."""
    if os.environ.get("NABLAB_DATA"):
        return Path(os.environ["NABLAB_DATA"]).resolve()
    beside = REPOSITORY.parent / "shared" / "data"
    return beside if (beside / "opendata").is_dir() else None


folder = open_data_folder()
if folder is not None:
    # Absolute, because a notebook's kernel works in the notebook's folder.
    os.environ["NABLAB_DATA"] = str(folder)


SOLVED = """
from IPython.utils.capture import capture_output
with capture_output() as said:
    get_ipython().run_cell({check!r}).raise_error()
assert said.stdout and "not yet" not in said.stdout and "not done" not in said.stdout, said.stdout
"""


def pytest_collection_modifyitems(items):
    """After the last cell of a notebook, whose exercises are undone, its solutions are checked."""
    by_file = {}
    for item in items:
        by_file.setdefault(item.parent, []).append(item)
    for file, cells in by_file.items():
        if isinstance(file, IPyNbFile):
            cells += solved_exercises(file, len(cells))
    items[:] = [item for group in by_file.values() for item in group]
    if folder is None:
        reason = "set NABLAB_DATA to a folder with the open-data files to test this notebook"
        for item in items:
            if item.path.name in NEEDS_OPEN_DATA:
                item.add_marker(pytest.mark.skip(reason=reason))


def solved_exercises(file, number):
    """For each exercise a cell with its solution, in which the check must be content."""
    options = defaultdict(bool, check=False)
    for exercise in workshop.exercises(file.nb):
        check = file.nb.cells[exercise.check].source
        cell = nbformat.v4.new_code_cell(exercise.code + SOLVED.format(check=check), outputs=[])
        name = f"Solution {exercise.name}"
        yield IPyNbCell.from_parent(file, name=name, cell_num=number, cell=cell, options=options)
        number += 1
