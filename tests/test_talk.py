"""The talk is a notebook whose cells are slides: short ones, with notes and minutes for each."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

TALK = Path(__file__).resolve().parent.parent / "talk"
NOTEBOOK = nbformat.read(TALK / "talk.ipynb", as_version=nbformat.NO_CONVERT)
MOST_LINES_OF_CODE, MINUTES = 14, 25


def kind(cell):
    return cell.metadata.get("slideshow", {}).get("slide_type", "continued")


def slides():
    """(title, cells) of each slide; skipped cells belong to none."""
    found = []
    for cell in NOTEBOOK.cells:
        if kind(cell) == "slide":
            found.append((re.search(r"^#+ (.*)$", cell.source, re.MULTILINE).group(1), []))
        if kind(cell) != "skip" and found:
            found[-1][1].append(cell)
    return found


SLIDES = slides()
each_slide = pytest.mark.parametrize("cells", [c for _, c in SLIDES], ids=[t for t, _ in SLIDES])


def test_in_the_order_of_the_story():
    titles = " / ".join(title for title, _ in SLIDES).lower()
    story = (
        "differentiable program", "what is", "why care", "parameters", "with gradients", "goal",
        "chain rule", "every step", "histograms", "width", "soft counts", "softmax", "likelihood",
        "why fits", "fixed points", "which gradient", "together", "neos", "cls: two bins",
        "cls: the three blobs", "result", "does not do", "where to go",
        "backup: which bandwidth", "backup: softmax", "backup: are soft", "backup: hard",
    )  # fmt: skip
    places = [titles.index(part) for part in story]
    assert places == sorted(places)


@each_slide
def test_little_code(cells):
    shown = [
        c
        for c in cells
        if c.cell_type == "code" and "remove-input" not in c.metadata.get("tags", [])
    ]
    assert sum(len(cell.source.splitlines()) for cell in shown) <= MOST_LINES_OF_CODE
    assert max((len(line) for c in shown for line in c.source.splitlines()), default=0) <= 100


@each_slide
def test_has_notes(cells):
    notes = [cell for cell in cells if kind(cell) == "notes"]
    assert len(notes) == 1 and len(notes[0].source.split()) >= 10


def test_minutes_add_up():
    seconds = 0
    for title, cells in SLIDES:
        (notes,) = (cell.source for cell in cells if kind(cell) == "notes")
        time = re.match(r"\*(\d+)(?::(\d\d))? min\.\*", notes)
        assert bool(time) != title.startswith("Backup"), title
        if time:
            seconds += 60 * int(time.group(1)) + int(time.group(2) or 0)
    assert abs(seconds / 60 - MINUTES) <= 0.5


def test_hidden_code_is_hidden_everywhere():
    """JupyterLab and the static deck hide by different marks."""
    for cell in NOTEBOOK.cells:
        in_lab = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert in_lab == ("remove-input" in cell.metadata.get("tags", []))


def test_drawings_are_there_and_described():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", "\n".join(c.source for c in NOTEBOOK.cells))
    assert {Path(name).name for _, name in pictures} == {p.name for p in TALK.glob("figures/*.svg")}
    for words, name in pictures:
        assert len(words.split()) >= 5
        assert "<title>" in (TALK / name).read_text(encoding="utf-8")


def test_cells_are_short():
    lines = [len(c.source.splitlines()) for c in NOTEBOOK.cells if c.cell_type == "code"]
    assert statistics.median(lines) <= 6 and max(lines) <= MOST_LINES_OF_CODE
