"""The cells that one cell needs, of a notebook with all ways in which one depends on another."""

import cells
import nbformat.v4 as nb
import pytest

SHOWN = [nb.new_output("display_data", {"text/plain": "Explorer, a = 1: a picture"})]
# Source of the cell, and whether the last cell needs it.
SOURCES = [
    ("import numpy as np\nfrom nablab import show", True),
    ("show.set_up()", False),
    ("a = 1", False),  # made anew below
    ("a = [2]", True),
    ("a.append(3)", True),
    ("b = a[0]\nprint(b)", False),
    ("for k in range(3):\n    c = k", False),
    ("def draw(x):\n    return helper(x) + a[0]", True),
    ("def helper(x):\n    unused = 1\n    return [np.sin(y) for y in x]", True),
    ("unused = 2", False),
    ("%matplotlib inline\nd = {'x': 1}", True),
    ("d['y'] = 2", True),
    ("with open('f') as d2:\n    pass", False),
]


def test_what_a_cell_needs():
    code = [nb.new_code_cell(source) for source, _ in SOURCES]
    last = nb.new_code_cell("show.explore(draw, d)", outputs=SHOWN)
    text = nb.new_markdown_cell("a = 5")
    notebook = nb.new_notebook(cells=[text, *code, last, nb.new_code_cell("a = 6")])
    wanted = [1 + k for k, (_, needed) in enumerate(SOURCES) if needed] + [1 + len(SOURCES)]
    assert cells.needed(notebook, "Explorer, ") == wanted


@pytest.mark.parametrize("output", [nb.new_output("stream", text="Explorer, a"), None])
def test_without_an_explorer_nothing_is_needed(output):
    cell = nb.new_code_cell("a = 1", outputs=[output] if output else [])
    assert cells.needed(nb.new_notebook(cells=[cell]), "Explorer, ") == []
