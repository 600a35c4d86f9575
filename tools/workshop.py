"""Two editions of every notebook for a workshop, made from the one in ``nbs``.

    python tools/workshop.py

``build/workshop/participants`` has no solutions, and its exercises and checks no outputs.
``build/workshop/teachers`` has the solutions as cells of their own below each check, and minutes at
every section. An exercise is three cells, whose ids belong together: ``exercise-name`` (code, the
stub), ``check-name`` (code, prints what is wrong, or "right") and ``solution-name`` (markdown,
folded, with one block of Python).
"""

import itertools
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
EDITIONS = ROOT / "build" / "workshop"
FOLDED = re.compile(r"<details><summary>Solution.*?</details>\s*", re.DOTALL)
HEADING = re.compile(r"^## .*$", re.MULTILINE)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
# Reading and running, for the minutes of a section relative to the others.
WORDS_PER_MINUTE, MINUTES_PER_CELL, MINUTES_PER_EXERCISE = 150, 0.5, 6


class Exercise(NamedTuple):
    """Where the cells of an exercise are, and the Python of its solution."""

    name: str
    stub: int
    check: int
    solution: int
    code: str


def exercises(notebook) -> list[Exercise]:
    """The exercises of a notebook in their order.

    Raises:
        ValueError: an exercise has no check, no solution, or a solution without Python.
    """
    place = {cell.id: i for i, cell in enumerate(notebook.cells)}
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code" or not cell.id.startswith("exercise-"):
            continue
        name = cell.id.removeprefix("exercise-")
        missing = [part for part in ("check", "solution") if f"{part}-{name}" not in place]
        if missing:
            raise ValueError(f"{cell.id} has no cell {missing[0]}-{name}")
        solution = place[f"solution-{name}"]
        folded = FOLDED.search(notebook.cells[solution].source)
        code = PYTHON.search(folded.group()) if folded else None
        if code is None:
            raise ValueError(f"solution-{name} has no folded block of Python")
        where = place[cell.id], place[f"check-{name}"], solution
        found.append(Exercise(name, *where, code.group(1)))
    return found


def for_participants(notebook):
    """Without the solutions; the exercises and their checks have not been run."""
    edition = nbformat.from_dict(notebook)
    found = exercises(edition)
    for exercise in found:
        for i in (exercise.stub, exercise.check):
            edition.cells[i].update(outputs=[], execution_count=None)
        text = edition.cells[exercise.solution]
        text.source = FOLDED.sub("", text.source)
    edition.cells = [cell for cell in edition.cells if cell.source.strip()]
    return edition


def for_teachers(notebook):
    """With minutes at every section, and each solution as a cell that can be run."""
    edition = for_participants(notebook)
    planned = iter(minutes(notebook)[1:])
    for cell in edition.cells:
        if cell.cell_type == "markdown":
            cell.source = HEADING.sub(
                lambda line: f"{line.group()}\n\n*{next(planned) or 'under 1'} min*", cell.source
            )
    for exercise in exercises(notebook):
        place = 1 + next(
            i for i, cell in enumerate(edition.cells) if cell.id == f"check-{exercise.name}"
        )
        text = FOLDED.search(notebook.cells[exercise.solution].source).group()
        text = PYTHON.sub("", re.sub(r"</?details>|<summary>.*?</summary>", "", text)).strip()
        edition.cells[place:place] = [
            nbformat.v4.new_markdown_cell(f"**Solution.** {text}", id=f"about-{exercise.name}"),
            nbformat.v4.new_code_cell(exercise.code.strip(), id=f"solved-{exercise.name}"),
        ]
    return edition


def minutes(notebook) -> list[int]:
    """Minutes of the head and of each section (``##``); their sum is what the first cell names."""
    total = int(re.search(r"(\d+)\s*min", notebook.cells[0].source).group(1))
    efforts = [0.0]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exercise = cell.id.startswith("exercise-")
            efforts[-1] += MINUTES_PER_EXERCISE if exercise else MINUTES_PER_CELL
            continue
        before, *sections = re.split(r"^## ", cell.source, flags=re.MULTILINE)
        efforts[-1] += len(before.split()) / WORDS_PER_MINUTE
        efforts += [len(text.split()) / WORDS_PER_MINUTE for text in sections]
    ends = [round(total * end / sum(efforts)) for end in itertools.accumulate(efforts)]
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]


def main() -> None:
    shutil.rmtree(EDITIONS, ignore_errors=True)
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        for edition, make in (("participants", for_participants), ("teachers", for_teachers)):
            folder = EDITIONS / edition
            folder.mkdir(parents=True, exist_ok=True)
            nbformat.write(make(notebook), folder / path.name)
    # What notebooks read beside themselves.
    for folder in ("participants", "teachers"):
        shutil.copytree(ROOT / "nbs" / "images", EDITIONS / folder / "images")
    stored = EDITIONS / "tests" / "benchmarks"
    stored.mkdir(parents=True)
    for path in (ROOT / "tests" / "benchmarks").glob("*.json"):
        shutil.copy(path, stored)
    print(f"{len(NOTEBOOKS)} notebooks for participants and for teachers: {EDITIONS}")


if __name__ == "__main__":
    main()
