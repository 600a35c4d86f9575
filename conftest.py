"""Settings of the tests, which the kernels of the tested notebooks inherit."""

import gc
import os
from collections import defaultdict

import jax
import nbformat
import needs
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

import fetch_data
import workshop
from nablab import memory

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little, with flags for that; notebooks train.
jax.devices()
os.environ.pop("XLA_FLAGS", None)
if fetch_data.folder().is_dir():
    # Absolute, because a notebook's kernel works in the notebook's folder.
    os.environ["NABLAB_DATA"] = str(fetch_data.folder())

# What takes longest comes first, so that the workers end together. `make quick` leaves it out;
# `make test` runs the first case of each of these tests, and `make thorough` all.
LONG = """
browser_lab browser_pages browser_talk real_likelihoods hypotests hard_fits limits histfactory
posterior workspaces bounds diagnostics profile objectives batch_status bad_models resampling
intervals profile_intervals pseudoexperiments reports
jittered_models batched_fits arena readme inferno histograms
histograms2d gauss_transform joint_training dependence fixed_points checkpoints bad_events splines
interpolation minimizer probes linalg typing needs imports toys extremes
""".split()

SOLVED = """
from IPython.utils.capture import capture_output
with capture_output() as said:
    get_ipython().run_cell({check!r}).raise_error()
assert said.stdout and "not yet" not in said.stdout and "not done" not in said.stdout, said.stdout
"""


def pytest_configure(config):
    memory.give_back_after_compilations()
    config.addinivalue_line(
        "markers", "needs(*wanted): a browser, or one of these files (needs.py)"
    )
    config.addinivalue_line("markers", "long: takes long, and is left out by 'make quick'")
    config.addinivalue_line("markers", "thorough: is run by 'make thorough' only")


def pytest_collection_finish():
    # What is imported stays: searching it for garbage again and again takes a fifth of tracing.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """After the last cell of a notebook, whose exercises are undone, its solutions are checked."""
    by_file = {}
    for item in items:
        by_file.setdefault(item.parent, []).append(item)
    for file, cells in by_file.items():
        if isinstance(file, IPyNbFile):
            cells += solved_exercises(file, len(cells))
            skip_without_data(config, cells)
    items[:] = [item for group in by_file.values() for item in group]
    items.sort(key=place)
    begun = set()
    for item in items:
        if 0 <= place(item) < len(LONG):
            item.add_marker("long")
            function = item.path, item.originalname
            if function in begun:
                item.add_marker("thorough")
            begun.add(function)
        for mark in item.iter_markers("needs"):
            if reason := needs.reason_to_skip(*mark.args):
                item.add_marker(pytest.mark.skip(reason=reason))


def place(item) -> int:
    """Where the file of a test comes: notebooks before all, then what takes long."""
    name = item.path.stem.removeprefix("test_")
    return -1 if isinstance(item, IPyNbCell) else LONG.index(name) if name in LONG else len(LONG)


def skip_without_data(config, cells):
    """A notebook whose data are absent is skipped as one test, the first of its cells."""
    wanted = needs.NOTEBOOKS.get(cells[0].path.name, [])
    if reason := next((why for files in wanted if (why := needs.reason_to_skip(*files))), None):
        cells[0].add_marker(pytest.mark.skip(reason=reason))
        config.hook.pytest_deselected(items=cells[1:])
        del cells[1:]


def solved_exercises(file, number):
    """For each exercise a cell with its solution, in which the check must be content."""
    options = defaultdict(bool, check=False)
    for exercise in workshop.exercises(file.nb):
        check = file.nb.cells[exercise.check].source
        cell = nbformat.v4.new_code_cell(exercise.code + SOLVED.format(check=check), outputs=[])
        name = f"Solution {exercise.name}"
        yield IPyNbCell.from_parent(file, name=name, cell_num=number, cell=cell, options=options)
        number += 1


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """The last words are what was not tested, and how it would be."""
    result = yield
    if skipped := terminalreporter.stats.get("skipped"):
        terminalreporter.write_line(needs.not_tested([report.longrepr[2] for report in skipped]))
    return result
