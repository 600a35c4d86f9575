"""Explorers as pages without a kernel: what is inside, and what each position shows."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from nablab.show import plots, sweeps, widgets


def explorer(**sliders):
    figure, ax = plots.figure(160, 120)
    ax.set(xlim=(0, 10), ylim=(0, 10))

    def update(**values):
        numbers = [float(v) if not isinstance(v, str) else len(v) for v in values.values()]
        if values.get("x") == 10:
            raise ValueError("no picture at the end </script>")
        return plots.cut_line(ax, sum(numbers) % 10)

    return widgets.explore(figure, update, **sliders)


def inside(page):
    return json.loads(re.search(r'application/json">(.*?)</script>', page, re.DOTALL).group(1))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_every_position_has_its_picture():
    explored = explorer(x=(0.0, 10.0, 2.0), shown=True, kind=["a", "bbb"])
    start = explored.stored_image
    data = inside(sweeps.page(explored))
    xs, shown, kinds = data["values"]
    assert len(data["pictures"]) == len(data["messages"]) == len(xs) * len(shown) * len(kinds)
    assert explored.values == {"x": 2.0, "shown": True, "kind": "a"}, "as before"
    assert explored.stored_image == start
    # The last control varies fastest, as in the script.
    place = (xs.index("2") * 2 + 1) * 2
    np.testing.assert_array_equal(pixels(base64.b64decode(data["pictures"][place])), pixels(start))
    explored.set(x=float(xs[3]), shown=False, kind="bbb")
    place = (3 * 2 + 0) * 2 + 1
    assert base64.b64decode(data["pictures"][place]) == explored.stored_image


def test_sentences_travel_along_and_end_no_script():
    page = sweeps.page(explorer(x=(0.0, 10.0, 2.0)))
    data = inside(page)
    assert "no picture at the end" in data["messages"][-1] and not data["messages"][0]
    assert page.count("</script>") == 2


@pytest.mark.parametrize(
    ("choice", "first", "last", "start"),
    [
        ((0.0, 10.0, 3.3), 0.0, 10.0, 3.3),
        ((-1.0, 1.0, 0.0), -1.0, 1.0, 0.0),
        ((0.01, 100.0, 0.5, "log"), 0.01, 100.0, 0.5),
        ((1, 500, 7), 1, 500, 7),
        ((1, 3, 2), 1, 3, 2),
    ],
)
def test_positions_of_a_slider(choice, first, last, start):
    values = sweeps.values_of(widgets.control("x", choice), 1)
    # A logarithmic slider ends up to half of its hundred steps from where it was asked to.
    half = (last / first) ** 0.005 - 1 if len(choice) == 4 else 1e-9
    assert values[0] == pytest.approx(first, rel=half, abs=1e-9)
    assert values[-1] == pytest.approx(last, rel=half)
    assert start in values and list(values) == sorted(values)
    assert 3 <= len(values) <= sweeps.POSITIONS + 1
    if len(choice) == 4:
        ratios = np.diff(np.log(values))
        assert ratios.max() < 2.1 * ratios.min() + 1e-9


def test_only_where_it_is_asked_for(monkeypatch):
    explored = explorer(x=(0.0, 10.0, 2.0))
    assert "text/html" not in explored._repr_mimebundle_()
    monkeypatch.setenv("NABLAB_SWEEPS", "1")
    page = explored._repr_mimebundle_()["text/html"]
    assert page == explorer(x=(0.0, 10.0, 2.0))._repr_mimebundle_()["text/html"]
    assert "http" not in page, "nothing is loaded from elsewhere"
