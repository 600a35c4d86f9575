"""The plan of the package: faces, arrows between rooms, files that read in one sitting."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "utils" / "nablab"
# In the order of the chain: a room imports from those to its left.
ROOMS = ("data", "relax", "model", "infer", "train", "judge", "show")
FILES = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
PAGES = sorted([*ROOT.glob("nbs/*.ipynb"), *ROOT.glob("talk/*.ipynb"), ROOT / "README.md"])


def imports(code: str):
    """(module, name) of everything that is imported from nablab, wherever it is done."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nablab":
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from ((a.name, None) for a in node.names if a.name.split(".")[0] == "nablab")


def files_named(module: str, name: str | None):
    """The file of the package that an import reads: that of the name, or of the module."""
    parts = tuple(module.split(".")[1:])
    return next(p for p in ((*parts, name), parts, (*parts, "__init__")) if p in FILES)


def code_of(page: Path):
    """Code cells, and code blocks of the text (folded solutions)."""
    text = page.read_text(encoding="utf-8")
    blocks = [text]
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        blocks = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        for cell in cells:
            if cell["cell_type"] == "code":
                yield re.sub(r"^(\s*)[%!].*$", r"\1pass", "".join(cell["source"]), flags=re.M)
    for block in blocks:
        yield from re.findall(r"```python\n(.*?)```", block, flags=re.S)


@pytest.mark.parametrize("room", [*ROOMS, "relax.objects"])
def test_a_face_lists_what_it_shows(room):
    module = importlib.import_module(f"nablab.{room}")
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("room", [*ROOMS, "relax.objects"])
def test_no_name_hides_its_file(room):
    """A function named as its file would hide it."""
    module = importlib.import_module(f"nablab.{room}")
    for name in module.__all__:
        if (*room.split("."), name) in FILES:
            assert getattr(module, name).__name__ == f"nablab.{room}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_faces(page):
    """They import rooms, and colours; a reader sees in which room a call lives."""
    found = {each for code in code_of(page) for each in imports(code)}
    assert found <= {("nablab", room) for room in ROOMS} | {
        ("nablab.show", "COLOUR"),
        ("nablab.show", "INK"),
    }


@pytest.mark.parametrize("parts", sorted(FILES), ids=".".join)
def test_arrows_run_from_left_to_right(parts):
    room = parts[0]
    for module, name in imports(FILES[parts].read_text(encoding="utf-8")):
        target = files_named(module, name)
        if target[0] in ROOMS:
            assert room in ROOMS and ROOMS.index(target[0]) <= ROOMS.index(room), (module, name)
        if target[-1].startswith("_") and target[-1] != "__init__":
            same = target[:-1] == parts[: len(target) - 1]
            assert same, f"{module}.{name} belongs to its room alone"
        assert not (name or "").startswith("_") or (*target[:-1], name) in FILES, (module, name)


@pytest.mark.parametrize("parts", sorted(FILES), ids=".".join)
def test_files_and_functions_read_in_one_sitting(parts):
    code = FILES[parts].read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 350
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def test_no_file_imports_itself_in_a_circle():
    arrows = {
        parts: {files_named(*each) for each in imports(path.read_text(encoding="utf-8"))} - {parts}
        for parts, path in FILES.items()
    }
    # A face imports its files, which may ask for the room: only files count.
    arrows = {k: {f for f in v if f[-1] != "__init__"} for k, v in arrows.items()}
    while leaves := {parts for parts, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {parts: targets for parts, targets in arrows.items() if parts not in leaves}
    assert not arrows, sorted(arrows)
