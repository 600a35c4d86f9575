"""Explorers: sliders moved from Python, the picture and the words looked at, no browser."""

import io

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from nablab.show import plots, widgets

EDGES = np.linspace(0.0, 1.0, 6)


def explorer(update=None, **sliders):
    figure, ax = plots.figure(320, 240)
    ax.set(xlim=(0, 1), ylim=(0, 10))
    plots.caption(figure, "A threshold.")
    sliders = sliders or {"threshold": (0.0, 1.0, 0.5)}
    return widgets.explore(
        figure, update or (lambda threshold: plots.cut_line(ax, threshold)), **sliders
    )


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_moving_a_slider_changes_the_picture_and_moving_back_restores_it():
    explored = explorer()
    start = explored.image
    explored.controls["threshold"].value = 0.8
    assert explored.image != start
    explored.set(threshold=0.5)
    assert explored.image == start


def test_output_has_widget_picture_and_words():
    explored = explorer()
    bundle = explored._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == "Explorer, threshold = 0.5: A threshold."
    stored, live = pixels(bundle["image/png"]), pixels(explored.image)
    assert stored.shape == live.shape and np.abs(stored - live).max() < 40
    assert bundle["image/png"] == explorer()._repr_mimebundle_()["image/png"]


def test_the_picture_is_the_figure_drawn_directly():
    figure, ax = plots.figure(320, 240)
    ax.set(xlim=(0, 1), ylim=(0, 10))
    plots.caption(figure, "A threshold.")
    plots.cut_line(ax, 0.3)
    figure.canvas.draw()
    direct = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    explored = explorer()
    explored.set(threshold=0.3)
    differs = (pixels(explored.image) != direct).any(axis=2)
    assert differs.mean() < 1e-3, "only where the line crosses the axis may it lie above, not below"


def test_set_moves_several_sliders_with_one_redraw():
    calls = []
    explored = explorer(lambda **values: calls.append(values), a=(0.0, 1.0, 0.5), b=(0, 9, 3))
    explored.set(a=0.25, b=4)
    assert calls == [{"a": 0.5, "b": 3}, {"a": 0.25, "b": 4}]
    with pytest.raises(ValueError, match="c is no slider; these are: a, b"):
        explored.set(c=1)


@pytest.mark.parametrize(
    ("caption", "label"), [("CLs < 0.05", "CLs &lt; 0.05"), ("", "picture for threshold")]
)
def test_the_picture_has_words_for_screen_readers(caption, label):
    figure, _ = plots.figure(320, 240)
    plots.caption(figure, caption)
    explored = widgets.explore(figure, lambda threshold: [], threshold=(0.0, 1.0, 0.5))
    assert f'role="img" aria-label="{label}"' in explored.children[-1].value
    assert explored.message == ""


def test_an_error_is_a_sentence_and_the_next_move_recovers():
    def update(threshold):
        if threshold > 0.7:
            raise ValueError("threshold <above> all events.\nsecond line")

    explored = explorer(update)
    fine = explored.image
    explored.set(threshold=0.75)
    assert explored.message == (
        "No picture for threshold = 0.75: threshold <above> all events. Move a slider to go on."
    )
    assert "<above>" not in explored.children[-1].value, "text must not become markup"
    assert explored.image != fine and explored.message in repr(explored)
    explored.set(threshold=0.5)
    assert explored.message == "" and explored.image == fine


def test_errors_of_other_kinds_and_while_drawing_are_sentences_too():
    figure, ax = plots.figure(320, 240)

    def update(case):
        if case == 1:
            return [ax.text(0.5, 0.5, "$\\nonsense$")]
        if case == 2:
            return {}["missing"]
        if case == 3:
            return 3.0
        return []

    explored = widgets.explore(figure, update, case=(0, 3, 0))
    fine = explored.image
    for case, words in ((1, "nonsense"), (2, "KeyError 'missing'"), (3, "return the artists")):
        explored.set(case=case)
        assert words in explored.message
        assert "Traceback" not in explored.message
        explored.set(case=0)
        assert explored.message == "" and explored.image == fine


def test_nan_and_no_events_survive():
    figure, ax = plots.figure(320, 240)
    rng = np.random.RandomState(0)

    def update(events, slope):
        points = rng.normal(size=(events, 2))
        counts = np.full(5, np.nan) if events == 0 else np.full(5, float(events))
        arrow = plots.gradient_arrow(ax, 0.5, 1.0, np.log(slope) if slope < 1 else np.nan)
        return plots.events_2d(ax, {"signal": points}), plots.outline(ax, counts, EDGES), arrow

    explored = widgets.explore(figure, update, events=(0, 50, 9), slope=(1e-9, 1e9, 0.5, "log"))
    for events in (0, 50):
        for slope in (1e-9, 1e9):
            explored.set(events=events, slope=slope)
            assert explored.message == ""


def test_axes_that_scale_themselves_are_drawn_anew():
    figure, ax = plots.figure(320, 240)
    explored = widgets.explore(
        figure, lambda top: plots.outline(ax, np.full(5, top), EDGES), top=(1.0, 1e4, 1.0, "log")
    )
    explored.set(top=5e3)
    assert ax.get_ylim()[1] >= 5e3 and explored.message == ""


@pytest.mark.parametrize(
    ("choice", "kind", "value"),
    [
        ((0.0, 1.0, 0.5), ipywidgets.FloatSlider, 0.5),
        ((0, 1.5, 1), ipywidgets.FloatSlider, 1.0),
        ((0, 10, 5), ipywidgets.IntSlider, 5),
        ((0, 10, 4, 2), ipywidgets.IntSlider, 4),
        ((1e-3, 10.0, 0.1, "log"), ipywidgets.FloatLogSlider, 0.1),
        (True, ipywidgets.Checkbox, True),
        (["hard", "soft"], ipywidgets.ToggleButtons, "hard"),
    ],
)
def test_controls(choice, kind, value):
    made = widgets.control("some_name", choice)
    assert type(made) is kind and made.value == value
    assert made.description == "some name"


def test_step_label_and_log_come_in_any_order():
    slider = widgets.control("width", (0.1, 10.0, 1.0, "bandwidth [GeV]", 0.5, "log"))
    assert isinstance(slider, ipywidgets.FloatLogSlider)
    assert slider.description == "bandwidth [GeV]" and slider.step == 0.5
    assert slider.min == pytest.approx(-1) and slider.max == pytest.approx(1)
    assert widgets.control("cut", (0.0, 1.0, 0.5, 0.25)).step == 0.25


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ((0.0, 1.0), r"cut is .*: give \(start, stop, value\)"),
        (3.0, r"cut is 3.0: give \(start, stop, value\)"),
        (("log", 1.0, 2.0, 1.5), "give"),
        ((0.0, 1.0, 2.0), "start <= value <= stop"),
        ((1.0, 0.0, 0.5), "start <= value <= stop"),
        ((1.0, 1.0, 1.0), "start < stop"),
        ((0.0, float("nan"), 0.0), "start <= value <= stop"),
        ((0.0, 1.0, 0.5, "log"), "cut starts at 0.0"),
        ([], "give"),
    ],
)
def test_bad_controls_are_named(choice, message):
    with pytest.raises(ValueError, match=message):
        widgets.control("cut", choice)


def test_no_slider_is_refused():
    figure, _ = plots.figure()
    with pytest.raises(ValueError, match="at least one"):
        widgets.explore(figure, lambda: None)


def test_running_the_cell_again_leaves_no_ghosts():
    figure, ax = plots.figure(320, 240)
    ax.set(xlim=(0, 1), ylim=(0, 10))

    def make():
        return widgets.explore(
            figure, lambda top: plots.outline(ax, np.full(5, top), EDGES), top=(1.0, 9.0, 4.0)
        )

    first = make().image
    assert make().image == first and len(ax.patches) == 1


def test_the_picture_has_no_tooltip():
    """With one, ipywidgets 8.1.9 fails in the browser, where no other test looks."""
    figure, ax = plots.figure()
    explorer = widgets.explore(figure, lambda level: [ax.axhline(level)], level=(0.0, 1.0, 0.5))
    assert explorer._picture.tooltip is None


@pytest.mark.parametrize(
    "choice",
    [
        (-3.0, 3.0, 1.0),
        (0.1, 3.0, 1.0),
        (0.01, 0.3, 0.1),
        (0.0, 0.7, 0.7),
        (1e-3, 3.0, 0.5, "log"),
        (0.1, 50.0, 1.0, "log"),
        (2.0, 9.0, 2.0, "log"),
        (2.0, 9.0, 9.0, "log"),
    ],
)
def test_a_slider_starts_on_one_of_its_steps(choice):
    """Or the browser moves it, and the picture with it, before anybody has touched it."""
    slider = widgets.control("x", choice)
    at = np.log10(slider.value) if "log" in choice else slider.value
    steps = (at - slider.min) / slider.step
    assert slider.value == choice[2] and abs(steps - round(steps)) < 1e-9
    assert slider.min - 1e-9 <= at <= slider.max + 1e-9
    assert 99 <= (slider.max - slider.min) / slider.step < 201
