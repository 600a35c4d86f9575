"""The notebooks and the package as pages that need no network: ``make book`` writes build/book.

Every notebook is run with its sliders drawn beforehand (``nablab.show.sweeps``), so that they move
without a kernel; a run is kept until the notebook's code, the package or the lock changes. Sphinx
and myst-nb make the pages; MathJax is copied beside them, from the package that carries it.
"""

import ast
import hashlib
import importlib
import inspect
import os
import pkgutil
import shutil
import sys
import textwrap
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError
from sphinx.application import Sphinx

import execute

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "book"
HOME = "https://github.com/nablab/nablab/blob/HEAD/"
PACKAGE = ROOT / "utils" / "nablab"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
ROOMS = {
    "data": "events: toys and open data",
    "relax": "soft cuts, histograms, objects, and how wrong they are",
    "relax.objects": "jets and leptons",
    "model": "likelihoods: read, written and built",
    "infer": "fits, p-values, limits, intervals",
    "train": "networks, objectives, the loop",
    "judge": "whether a result is worth anything",
    "show": "pictures, movies, sliders",
}
SETTINGS = {
    "project": "nablab",
    "author": "the nablab developers",
    "html_title": "nablab",
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {"home_page_in_toc": True, "use_download_button": False},
    "html_context": {"default_mode": "light"},
    "html_static_path": ["_static"],
    "html_css_files": ["nablab.css"],
    "html_show_sourcelink": False,
    "html_show_search_summary": False,  # it would be read from the pages, which a browser forbids
    "html_copy_source": False,
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"],
    "nb_execution_mode": "off",
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
    "myst_heading_slug_func": "book.anchor",
    "napoleon_attr_annotations": False,
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "none",  # see as_written
    "mathjax_path": "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full",
    "mathjax2_config": {"HTML-CSS": {"availableFonts": [], "webFont": "STIX-Web"}},
    "myst_update_mathjax": False,
}
STYLE = """
.bd-header { display: none !important; }  /* a second field for searching, nothing else */
.cell_output video, .cell_output img { max-width: 100%; height: auto; }
div.cell div.cell_input pre, div.cell div.cell_output pre { font-size: 13px; }
dl.py { overflow-wrap: anywhere; }
"""
FRONT = """# Physics analysis as a differentiable program

nablab is a collection of notebooks in which the derivative of the final p-value is computed with
respect to cuts, network weights and bin edges, and used to optimise them. On these pages the
notebooks have been run; their sliders move, over pictures drawn beforehand. To compute along, run
`make lab` in the repository, or open a notebook on
[Binder](https://mybinder.org/v2/gh/nablab/nablab/HEAD?labpath=nbs/00_start_here.ipynb).

![The chain of an analysis: data, cuts, observable, histogram, model, fit, p-value or limit. The
gradient flows back from the p-value to thresholds, weights and bin edges.](nbs/images/chain.svg)

```{{toctree}}
:caption: Notebooks
:maxdepth: 1
{notebooks}
```

```{{toctree}}
:caption: Teaching
:maxdepth: 1
nbs/TEACHING
```

```{{toctree}}
:caption: The package
:maxdepth: 1
{rooms}
```
"""


def anchor(title: str) -> str:
    """Where a heading is found on its page, by JupyterLab's rule."""
    return title.replace(" ", "-")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook) -> str:
    """Of a notebook's code and of all that it imports."""
    parts = [cell.source.encode() for cell in code_cells(notebook)]
    used = [*sorted(PACKAGE.rglob("*.py")), ROOT / "requirements.lock"]
    parts += [file.read_bytes() for file in used]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def with_sliders(path: Path):
    """The notebook with the outputs of a run in which its sliders have left their pages behind."""
    notebook = nbformat.read(path, as_version=4)
    kept = BUILD / "executed" / f"{path.stem}.{fingerprint(notebook)}.ipynb"
    if not kept.exists():
        try:
            run = execute.with_sweeps(path)
        except CellExecutionError as error:
            print(f"{path.name} did not run; shown as stored: {error}", file=sys.stderr)
            return notebook
        kept.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(run, kept)
    run = nbformat.read(kept, as_version=4)
    for cell, done in zip(code_cells(notebook), code_cells(run), strict=True):
        cell.outputs = done.outputs
    return notebook


def entry(name: str, notebook) -> str:
    """A line of the table of contents: number and title."""
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    number = f"{name[:2]} " if name[:2].isdigit() else ""
    return f"{number}{title} <nbs/{name}>"


def room_page(room: str) -> str:
    """Markdown with the docstrings of the files that a room's face shows something of."""
    face = importlib.import_module(f"nablab.{room}")
    shown = [getattr(face, name) for name in face.__all__]
    shown = {getattr(thing, "__module__", getattr(thing, "__name__", "")) for thing in shown}
    modules = (m.name for m in pkgutil.iter_modules(face.__path__) if not m.ispkg)
    names = [name for name in modules if f"nablab.{room}.{name}" in shown]
    parts = [f"# `nablab.{room}`: {ROOMS[room]}"]
    for name in names:
        module = f"nablab.{room}.{name}"
        parts.append(
            f"## `{room}.{name}`\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```"
        )
    return "\n\n".join(parts) + "\n"


def as_written(app, kind, name, documented, options, signature, returned):
    """The signature of a function as it stands in the code, with the names of its shapes."""
    function = inspect.unwrap(getattr(documented, "__func__", documented))
    if not inspect.isfunction(function):
        return signature and ("", None)
    written = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    written.args.args = [arg for arg in written.args.args if arg.arg not in ("self", "cls")]
    return f"({ast.unparse(written.args)})", written.returns and ast.unparse(written.returns)


def without_words(app, kind, name, member, skip, options):
    """Leaves out the fields of named tuples about which nothing is said."""
    return skip or (getattr(member, "__doc__", None) or "").startswith("Alias for field") or None


def write_sources(notebooks: dict, source: Path) -> None:
    """What Sphinx reads: executed notebooks by name, a front page, a page for each room."""
    shutil.rmtree(source, ignore_errors=True)
    for folder in ("nbs", "api", "_static"):
        (source / folder).mkdir(parents=True)
    pages = {}
    for name, notebook in notebooks.items():
        execute.describe(notebook)
        pages[f"{name}.ipynb"] = nbformat.writes(notebook)
    pages["TEACHING.md"] = (ROOT / "nbs" / "TEACHING.md").read_text(encoding="utf-8")
    for name, text in pages.items():
        # What is beside the notebooks' folder is not among the pages.
        text = text.replace("](../", f"]({HOME}")
        (source / "nbs" / name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "nbs" / "images", source / "nbs" / "images")
    for room in ROOMS:
        (source / "api" / f"{room}.md").write_text(room_page(room), encoding="utf-8")
    (source / "_static" / "nablab.css").write_text(STYLE, encoding="utf-8")
    front = FRONT.format(
        notebooks="\n".join(entry(name, notebook) for name, notebook in notebooks.items()),
        rooms="\n".join(f"api/{room}" for room in ROOMS),
    )
    (source / "index.md").write_text(front, encoding="utf-8")


def build(notebooks: dict, folder: Path) -> Path:
    """Write the pages of these notebooks; returns the first page. A dead link is an error."""
    source, html = folder / "source", folder / "html"
    write_sources(notebooks, source)
    shutil.rmtree(html, ignore_errors=True)
    app = Sphinx(
        source, None, html, folder / "doctrees", "html",
        confoverrides=SETTINGS, warningiserror=True, status=None, keep_going=True,
    )  # fmt: skip
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-skip-member", without_words)
    app.build()
    if app.statuscode:
        raise RuntimeError("the pages have dead links or other faults: see the warnings above")
    execute.copy_from_package("jupyter_server_mathjax", "static", html / "_static" / "mathjax")
    return html / "index.html"


def check_links() -> None:
    """Ask for every address that the pages name. Needs a network."""
    folder = ROOT / "build" / "links"
    write_sources({path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}, folder)
    settings = SETTINGS | {"linkcheck_ignore": [HOME, "https://mybinder.org/v2/"]}
    app = Sphinx(folder, None, folder / "out", folder / "doctrees", "linkcheck", settings)
    app.build()
    sys.exit(app.statuscode)


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    notebooks = {}
    for path in NOTEBOOKS:
        print(path.name, flush=True)
        notebooks[path.stem] = with_sliders(path)
    print(f"the book is {build(notebooks, BUILD)}; copy its folder to take it along")


if __name__ == "__main__":
    check_links() if sys.argv[1:] == ["links"] else main()
