"""Notebooks whose long trainings are stored: their own cells are run, and the results written."""

import hashlib
import json
from pathlib import Path

import nbformat


def sources(notebook: Path) -> dict[str, str]:
    """The code of a notebook's cells by their names."""
    cells = nbformat.read(notebook, as_version=4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


def fingerprint(notebook: Path, cells) -> str:
    """Of the cells that define what is stored."""
    code = sources(notebook)
    return hashlib.sha256("\n".join(code[name] for name in cells).encode()).hexdigest()


def defined(notebook: Path, cells) -> dict:
    """What the imports and those cells of the notebook define."""
    code, names = sources(notebook), {}
    for name in ("imports", *cells):
        exec(compile(code[name], f"{notebook.name}, cell {name}", "exec"), names)
    return names


def store(path: Path, head: dict, lists: dict[str, list]) -> None:
    """One line for each entry of a list; a file that is being written is never a half one."""
    pieces = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, entries in lists.items():
        lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        pieces.append(f' "{key}": [\n{lines}\n ]')
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("{\n" + ",\n".join(pieces) + "\n}\n", encoding="utf-8")
    unfinished.replace(path)
