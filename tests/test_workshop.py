"""Both editions of the workshop come from one source, and the solutions solve the exercises.

That each solution makes its check say so is tested with the notebooks themselves: see conftest.py.
"""

import re

import nbformat
import pytest

import workshop

UNDONE = "not done yet"


@pytest.fixture(params=workshop.NOTEBOOKS, ids=lambda path: path.name, scope="module")
def notebook(request):
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def text(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def test_every_notebook_has_exercises_that_ask_to_be_done(notebook):
    found = workshop.exercises(notebook)
    assert found
    for exercise in found:
        assert exercise.stub < exercise.check < exercise.solution
        (said,) = notebook.cells[exercise.check].outputs
        assert UNDONE in said.text, "the check says so as long as the stub is untouched"
        hint = said.text.partition(UNDONE)[2]
        assert len(hint.split()) >= 3, "and gives a hint"


def test_participants_get_no_solution(notebook):
    edition = workshop.for_participants(notebook)
    for exercise in workshop.exercises(notebook):
        assert exercise.code not in text(edition)
    assert "<summary>Solution" not in text(edition)
    by_id = {cell.id: cell for cell in edition.cells}
    for exercise in workshop.exercises(notebook):
        assert not by_id[f"check-{exercise.name}"].outputs
        assert by_id[f"exercise-{exercise.name}"].source == notebook.cells[exercise.stub].source
    # What stands behind a solution in its cell, the text of the next exercise, is still there.
    headings = re.findall(r"^(?:\*\*\d|#+ ).*$", text(notebook), re.MULTILINE)
    assert headings == re.findall(r"^(?:\*\*\d|#+ ).*$", text(edition), re.MULTILINE)
    nbformat.validate(edition)


def test_teachers_get_solutions_and_minutes(notebook):
    edition = workshop.for_teachers(notebook)
    ids = [cell.id for cell in edition.cells]
    for exercise in workshop.exercises(notebook):
        place = ids.index(f"solved-{exercise.name}")
        assert edition.cells[place].source == exercise.code.strip()
        assert ids[place - 2] == f"check-{exercise.name}"
    named = int(re.search(r"(\d+)\s*min", notebook.cells[0].source).group(1))
    minutes = workshop.minutes(notebook)
    assert sum(minutes) == named and min(minutes) >= 0
    assert len(re.findall(r"^\*(?:\d+|under 1) min\*$", text(edition), re.MULTILINE)) == (
        len(minutes) - 1
    )
    nbformat.validate(edition)


def test_the_source_is_left_alone(notebook):
    before = nbformat.writes(notebook)
    workshop.for_participants(notebook), workshop.for_teachers(notebook)
    assert nbformat.writes(notebook) == before


def test_incomplete_exercises_are_refused():
    stub = nbformat.v4.new_code_cell("x = None", id="exercise-x")
    check = nbformat.v4.new_code_cell("print(x)", id="check-x")
    empty = nbformat.v4.new_markdown_cell("<details><summary>Solution</summary></details>")
    empty.id = "solution-x"
    with pytest.raises(ValueError, match="exercise-x has no cell check-x"):
        workshop.exercises(nbformat.v4.new_notebook(cells=[stub]))
    with pytest.raises(ValueError, match="solution-x has no folded block"):
        workshop.exercises(nbformat.v4.new_notebook(cells=[stub, check, empty]))


def test_editions_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(workshop, "EDITIONS", tmp_path / "workshop")
    workshop.main()
    workshop.main()  # over an earlier one
    for edition in ("participants", "teachers"):
        written = sorted(path.name for path in (tmp_path / "workshop" / edition).glob("*.ipynb"))
        assert written == [path.name for path in workshop.NOTEBOOKS]
        assert (tmp_path / "workshop" / edition / "images" / "chain.svg").exists()


def test_plans_fit_their_notebooks():
    """No plan gives a notebook more minutes than it says it takes; a full day is one."""
    text = (workshop.ROOT / "nbs" / "TEACHING.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (workshop.ROOT / "nbs" / link).exists(), link
    for plan, low, high in (("Half a day", 180, 240), ("A full day", 390, 480)):
        table = text.partition(f"## {plan}")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (\d+) \| (?:\[[^]]*\]\(([^)]+)\))?", table, re.MULTILINE)
        for minutes, name in rows:
            if name:
                first = nbformat.read(workshop.ROOT / "nbs" / name, as_version=4).cells[0].source
                assert int(minutes) <= int(re.search(r"(\d+)\s*min", first).group(1)), name
        assert low <= sum(int(minutes) for minutes, _ in rows) <= high
