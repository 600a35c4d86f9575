"""The front pages keep their promises: links, tables of notebooks, versions, and the example."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jax.numpy as jnp
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
START = ROOT / "nbs" / "00_start_here.ipynb"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def markdown(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def title_and_minutes(path):
    """What the first cell of a notebook says."""
    first = markdown(path)[0]
    return first.splitlines()[0].removeprefix("# "), re.search(r"(\d+)\s*min", first).group(1)


def table(text):
    """Rows (title, address, minutes, what you learn) that start with a link to a notebook."""
    row = r"^\| \[([^\]]+)\]\(([^)]+\.ipynb)\) \| (\d+) \| ([^|]+?) \|"
    return re.findall(row, text, flags=re.MULTILINE)


README_TABLE = table(README)
MAP = table("\n".join(markdown(START)))
BINDER = [link for link in LINK.findall(README) if urlsplit(link).path.startswith("/v2/")]


def test_readme_is_short():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize(
    ("rows", "folder", "notebooks"),
    [
        pytest.param(README_TABLE, ROOT, NOTEBOOKS, id="README"),
        pytest.param(MAP, START.parent, [path for path in NOTEBOOKS if path != START], id="map"),
    ],
)
def test_table_lists_every_notebook_as_it_calls_itself(rows, folder, notebooks):
    listed = {(folder / address).resolve(): (title, minutes) for title, address, minutes, _ in rows}
    assert listed == {path: title_and_minutes(path) for path in notebooks}
    assert list(listed) == notebooks, "in reading order"


def test_both_tables_say_the_same():
    in_readme = [(title, Path(address).name, *rest) for title, address, *rest in README_TABLE]
    assert in_readme[1:] == [tuple(row) for row in MAP]


def test_binder_opens_every_notebook():
    opened = [parse_qs(urlsplit(link).query)["labpath"][0] for link in BINDER]
    assert opened[0] == "nbs/00_start_here.ipynb", "the badge opens the first page"
    assert opened[1:] == [address for _, address, *_ in README_TABLE]
    assert len({link.partition("?")[0] for link in BINDER}) == 1, "one repository"


def test_versions_are_those_of_the_lock():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {line.partition(" ;")[0] for line in lock}
    section = README.partition("## Versions")[2].partition("\n## ")[0]
    named = re.findall(r"\b([a-z]+) (\d+(?:\.\d+){2,})", section)
    assert len(named) >= 5
    assert not [pin for pin in map("==".join, named) if pin not in pins]


def test_make_targets_exist():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^ {4}|folder )make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"lab", "test", "talk", "book", "slides", "workshop"} <= named
    assert not [target for target in named if not re.search(rf"^{target}:", rules, re.MULTILINE)]


def test_example_runs_and_its_gradient_is_right():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert 0.0 < names["value"] < 1.0
    edges, step = jnp.array([0.0, 35.0, 45.0, 55.0, 80.0]), 1e-3 * jnp.eye(5)[2]
    difference = (names["cls"](edges + step) - names["cls"](edges - step)) / 2e-3
    assert abs(difference) > 0.01 * names["value"]
    assert abs(names["gradient"][2] - difference) < 1e-5 * abs(difference)


def test_the_picture_is_small():
    assert (ROOT / "nbs" / "images" / "chain.svg").stat().st_size <= 100_000
