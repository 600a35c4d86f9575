"""In a plain kernel, where nobody imported pyplot, every output of the show room has something."""

import base64
import io

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

SETUP = """
from nablab.show import movies, plots, widgets
figure, ax = plots.figure(320, 240)
ax.set(xlim=(0, 1), ylim=(0, 1))
plots.caption(figure, "A cut.")
update = lambda threshold: plots.cut_line(ax, threshold)
"""
CELLS = {
    "figure": "update(0.5)\nfigure",
    "movie": "movies.record(figure, update, [0.2, 0.4])",
    "explorer": "widgets.explore(figure, update, threshold=(0.0, 1.0, 0.5))",
}


@pytest.fixture(scope="module")
def outputs():
    notebook = nbformat.v4.new_notebook()
    sources = [SETUP, *CELLS.values()]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbclient.NotebookClient(notebook, kernel_name="python3", record_timing=False).execute()
    assert notebook.cells[0].outputs == []
    for cell in notebook.cells[1:]:
        assert len(cell.outputs) == 1, "one output per cell: nothing twice, nothing on stderr"
    return {name: cell.outputs[0] for name, cell in zip(CELLS, notebook.cells[1:], strict=True)}


@pytest.mark.parametrize("name", ["figure", "explorer"])
def test_pictures_are_not_blank(outputs, name):
    png = base64.b64decode(outputs[name].data["image/png"])
    assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).std() > 5
    assert "A cut." in outputs[name].data["text/plain"]


def test_alt_text_travels_with_the_picture(outputs):
    assert outputs["figure"].metadata["image/png"]["alt"] == "A cut."


def test_movie_is_a_video(outputs):
    assert outputs["movie"].data["text/html"].startswith("<video autoplay loop muted")
    assert outputs["movie"].data["text/plain"] == "Movie, 2 frames, 0.1 s: A cut."


def test_explorer_is_live_when_there_is_a_kernel(outputs):
    assert "application/vnd.jupyter.widget-view+json" in outputs["explorer"].data
