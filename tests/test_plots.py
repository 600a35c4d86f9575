"""Pictures: colours that stay apart, edges of the input, bytes that do not change between runs."""

import io
import subprocess
import sys
from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nablab.show import plots

EDGES = np.linspace(0.0, 1.0, 6)
COUNTS = np.array([1.0, 4.0, 9.0, 4.0, 1.0])
# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
COLOUR_BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.969]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def drawn(*pictures) -> np.ndarray:
    """The pixels of a figure on which every given picture function was called."""
    figure, ax = plots.figure(320, 240)
    ax.set(xlim=(0, 1), ylim=(0, 10))
    for picture in pictures:
        picture(ax)
    return pixels_of(plots.png(figure))


def lightness_and_hue(colour: str, blindness) -> np.ndarray:
    """CIE Lab of a hexadecimal colour as seen with a kind of colour blindness."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(blindness) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.asarray(to_xyz) @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", COLOUR_BLINDNESS)
def test_no_two_meanings_look_alike(kind):
    seen = {n: lightness_and_hue(c, COLOUR_BLINDNESS[kind]) for n, c in plots.COLOUR.items()}
    distance = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(seen, 2)}
    closest = min(distance, key=distance.get)
    assert distance[closest] > 15, f"{closest} are only {distance[closest]:.1f} apart"


@pytest.mark.parametrize("size", [(640, 360), (643, 365), (320, 241)])
def test_a_figure_has_the_pixels_that_were_asked_for(size):
    figure, _ = plots.figure(*size)
    assert Image.open(io.BytesIO(plots.png(figure))).size == size


def test_figures_do_not_pass_through_pyplot():
    code = "from nablab.show import plots, movies, widgets; plots.figure()"
    check = f"{code}; import sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_figure_too_small_is_refused():
    with pytest.raises(ValueError, match="height is 5"):
        plots.figure(640, 5)


def test_a_figure_shows_itself_as_a_small_png_with_words():
    figure, ax = plots.figure()
    plots.outline(ax, COUNTS, EDGES)
    plots.caption(figure, "Five bins.")
    data, metadata = figure._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 25_000
    assert data["text/plain"].startswith("Picture, 640 x 38") and "Five bins." in data["text/plain"]
    assert metadata["image/png"]["alt"] == "Five bins."


def test_a_long_caption_wraps_and_the_axes_keep_their_size():
    def axes_height(text):
        figure, ax = plots.figure()
        plots.caption(figure, text)
        plots.png(figure)
        return figure.canvas.get_width_height()[1], ax.get_window_extent().height

    short, short_axes = axes_height("One line.")
    tall, tall_axes = axes_height("Many words in a row. " * 12)
    assert tall > short + 20
    assert abs(tall_axes - short_axes) < 12


def test_same_picture_same_bytes():
    def once():
        figure, ax = plots.figure()
        plots.stacked(ax, EDGES, COUNTS, 2 * COUNTS, background_band=0.3 * COUNTS)
        plots.legend(ax, signal="signal", background="background", uncertainty="band")
        return plots.png(figure)

    assert once() == once()
    assert b"Software" not in once() and b"matplotlib" not in once()


def test_steps_has_the_height_of_the_counts():
    _, ax = plots.figure()
    (outline,) = plots.outline(ax, jnp.asarray(COUNTS), jnp.asarray(EDGES))
    np.testing.assert_array_equal(outline.get_data().values, COUNTS)
    assert ax.get_ylim()[1] > COUNTS.max() and ax.get_xlim()[0] <= EDGES[0]


def test_steps_with_uncertainty_adds_a_band_of_one_sigma():
    _, ax = plots.figure()
    _, band = plots.outline(ax, COUNTS, EDGES, uncertainty=np.sqrt(COUNTS))
    np.testing.assert_allclose(band.get_data().values, COUNTS + np.sqrt(COUNTS))
    np.testing.assert_allclose(band.get_data().baseline, COUNTS - np.sqrt(COUNTS))


@pytest.mark.parametrize("bad", [np.full(5, np.nan), np.full(5, np.inf), np.zeros(5)])
def test_steps_survives_empty_and_broken_counts(bad):
    drawn(lambda ax: plots.outline(ax, bad, EDGES, uncertainty=bad))


def test_a_nan_bin_stays_empty():
    hole = COUNTS.copy()
    hole[2] = np.nan
    whole = drawn(lambda ax: plots.outline(ax, COUNTS, EDGES, fill=True))
    assert (drawn(lambda ax: plots.outline(ax, hole, EDGES, fill=True)) != whole).any()


def test_wrong_number_of_edges_is_named():
    _, ax = plots.figure()
    with pytest.raises(ValueError, match="counts has 5 bins and edges 5 entries"):
        plots.outline(ax, COUNTS, EDGES[:-1])
    with pytest.raises(ValueError, match="signal has 4 bins"):
        plots.stacked(ax, EDGES, COUNTS[:-1], COUNTS[:-1])


def test_stacked_puts_signal_on_background_and_the_band_around_background():
    _, ax = plots.figure()
    below, above = 0.1 * COUNTS, 0.5 * COUNTS
    background, signal, band = plots.stacked(
        ax, EDGES, COUNTS, 2 * COUNTS, background_band=np.stack([below, above])
    )
    np.testing.assert_allclose(signal.get_data().baseline, background.get_data().values)
    np.testing.assert_allclose(signal.get_data().values, 3 * COUNTS)
    np.testing.assert_allclose(band.get_data().values, 2 * COUNTS + above)
    np.testing.assert_allclose(band.get_data().baseline, 2 * COUNTS - below)


def test_events_of_all_samples_and_of_none():
    _, ax = plots.figure()
    points = np.random.RandomState(0).normal(size=(30, 2))
    artists = plots.events_2d(ax, {"signal": points, "up": np.zeros((0, 2)), "mine": points})
    assert [artist.get_label() for artist in artists] == ["signal", "up", "mine"]
    assert artists[0].get_color() == plots.COLOUR["signal"]
    assert drawn(lambda ax: plots.events_2d(ax, {"signal": np.zeros((0, 2))})).any()


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        (np.add.outer(np.linspace(0, 0.5, 9), np.linspace(0, 0.5, 9)), True),
        (np.full((9, 9), 0.5), False),
        (np.full((9, 9), np.nan), False),
        (np.linspace(0, 1, 9)[None, :], False),
    ],
)
def test_decision_draws_lines_only_where_there_are_any(values, lines):
    figure, ax = plots.figure()
    assert len(plots.decision_map(ax, values, (-1, 1, -1, 1))) == 1 + lines
    plots.png(figure)


def test_decision_puts_the_first_row_at_the_bottom():
    figure, ax = plots.figure(200, 200)
    plots.decision_map(ax, np.array([[0.0, 0.0], [1.0, 1.0]]), (0, 1, 0, 1))
    picture = pixels_of(plots.png(figure))
    top, bottom = picture[40, 130], picture[140, 130]
    assert top[0] > top[2] and bottom[2] > bottom[0], "signal red above, background blue below"


def test_gradient_arrow_points_uphill():
    _, ax = plots.figure()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    for slope in (2.0, -2.0, 1e300):
        _, arrow = plots.gradient_arrow(ax, 0.5, 0.5, slope)
        assert arrow.V[0] > 0 and np.sign(arrow.U[0]) == np.sign(slope)


def test_gradient_arrow_without_a_direction():
    _, ax = plots.figure()
    _, bar = plots.gradient_arrow(ax, 0.5, 0.5, 0.0)
    assert bar.headlength == 0
    for nowhere in (np.nan, np.inf):
        (circle,) = plots.gradient_arrow(ax, 0.5, 0.5, nowhere)
        assert circle.get_markerfacecolor() == "white"
    drawn(lambda ax: plots.gradient_arrow(ax, np.nan, np.nan, 1.0))


def test_key_knows_its_colours():
    _, ax = plots.figure()
    legend = plots.legend(ax, "upper left", signal="S", cut="threshold", data="observed")
    assert [text.get_text() for text in legend.get_texts()] == ["S", "threshold", "observed"]
    with pytest.raises(ValueError, match="green has no colour"):
        plots.legend(ax, green="?")


def test_cut_line_and_curve_are_drawn():
    empty = drawn()
    assert (drawn(lambda ax: plots.cut_line(ax, 0.5)) != empty).any()
    assert (drawn(lambda ax: plots.curve(ax, EDGES[1:], COUNTS)) != empty).any()
