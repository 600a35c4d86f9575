"""Every notebook has the skeleton, the small cells and the stored outputs that readers count on."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
START = "00_start_here.ipynb"
SECTIONS = ("Exercises", "What you have now", "What next")
SECTIONS_OF_A_LESSON = (*SECTIONS, "Where it breaks", "References")
ABSOLUTE_PATH = re.compile(r"(?<![\w.~/:])/(home|root|Users|tmp|mnt|var)/|\b[A-Z]:\\\w")
MARKUP_THAT_IS_DATA = re.compile(r"base64,[A-Za-z0-9+/=\s]+")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def headings(notebook):
    text = "\n".join(markdown(notebook))
    return re.findall(r"^(#{1,6} .*|\*\*.+?\*\*)", text, flags=re.MULTILINE)


def test_there_are_notebooks():
    assert (ROOT / "nbs" / START) in NOTEBOOKS


def test_first_cell_is_title_minutes_and_needs(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# "), "the first cell starts with the title"
    assert re.search(r"\d+\s*min", first.source), "it says how many minutes the notebook takes"
    assert re.search(r"know|before|need", first.source, re.IGNORECASE), "and what to know before"


def test_has_one_title(notebook):
    titles = [line for line in headings(notebook) if line.startswith("# ")]
    assert len(titles) == 1


def test_has_every_section(path, notebook):
    found = "\n".join(headings(notebook)).lower()
    wanted = SECTIONS if path.name == START else SECTIONS_OF_A_LESSON
    assert not [section for section in wanted if section.lower() not in found]


def test_cells_are_small(notebook):
    lines = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert statistics.median(lines) <= 6
    assert max(lines) <= 25


def test_cells_have_stable_ids(notebook):
    # nbformat 4.4 has none, and then every save invents new ones
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    nbformat.validate(notebook)


def test_stored_size(path):
    assert path.stat().st_size <= 500_000


def test_was_run_top_to_bottom(notebook):
    run = [cell for cell in code_cells(notebook) if cell.source.strip()]
    assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))


def test_stores_no_error_by_accident(notebook):
    for cell in code_cells(notebook):
        failed = any(output.output_type == "error" for output in cell.outputs)
        announced = "raises-exception" in cell.metadata.get("tags", [])
        assert failed == announced, cell.source


def test_stores_no_warnings(notebook):
    # nor text progress bars, whose speed differs from run to run: tqdm.auto draws a widget
    for cell in code_cells(notebook):
        complaints = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert not complaints, cell.source


def test_stores_no_widget_state(notebook):
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_names_no_path_of_one_computer(notebook):
    for cell in notebook.cells:
        for text in [cell.source, *map(output_text, cell.get("outputs", []))]:
            text = MARKUP_THAT_IS_DATA.sub("", text)
            found = ABSOLUTE_PATH.search(text)
            assert not found, text[max(0, found.start() - 60) : found.end() + 60]
            assert str(ROOT) not in text


def output_text(output):
    """What an output says in words: no pictures."""
    data = output.get("data", {})
    words = [str(value) for kind, value in data.items() if not kind.startswith("image/")]
    return "\n".join([output.get("text", ""), *output.get("traceback", []), *words])


def test_museum_is_linked(path, notebook):
    if path.name != "museum.ipynb":
        assert any("](museum.ipynb)" in text for text in markdown(notebook))
