"""Pictures of fits: what is drawn is what was given, and absent things are not drawn as zero."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from test_plots import COLOUR_BLINDNESS, lightness_and_hue

from nablab.show import fit_plots, plots

SLOPES = {
    "SR": {"signal": np.array([-0.2, 0.4, 0.0]), "top": np.array([0.1, 0.05, -0.01])},
    "CR": {"top": np.array([-0.03, 0.02])},
}
NAMES = ["energy", "rate", "free"]


def meshes(artists):
    return [artist for artist in artists if isinstance(artist, QuadMesh)]


def texts(artists):
    return [artist.get_text() for artist in artists if hasattr(artist, "get_text")]


def test_sensitivity_draws_every_sample_in_every_bin():
    _, ax = plots.figure(800, 240)
    artists = fit_plots.sensitivity(ax, SLOPES)
    signal_region, control_region = (m.get_array() for m in meshes(artists))
    np.testing.assert_array_equal(signal_region, list(SLOPES["SR"].values()))
    np.testing.assert_array_equal(control_region[1], SLOPES["CR"]["top"])
    assert np.ma.getmaskarray(control_region)[0].all(), "no signal in CR: that is not a zero"
    assert {"SR", "CR", "-0.2", "+0.4", "-0.03"} <= set(texts(artists))
    assert texts(artists).count("–") == 2
    assert [label.get_text() for label in ax.get_yticklabels()] == ["signal", "top"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3", "1", "2"]


def test_sensitivity_puts_a_gap_between_channels_and_white_at_zero():
    _, ax = plots.figure(800, 240)
    left, right = meshes(fit_plots.sensitivity(ax, SLOPES))
    assert left.get_coordinates()[..., 0].max() < right.get_coordinates()[..., 0].min()
    assert left.norm is right.norm, "one scale for all channels"
    assert (left.norm.vmin, left.norm.vmax) == (-0.4, 0.4)
    np.testing.assert_allclose(left.norm([-0.4, -0.1, 0.0, 0.1, 0.4]), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(left.cmap(left.norm(0.0))[:3], 0.97, atol=0.02)


@pytest.mark.parametrize("kind", COLOUR_BLINDNESS)
def test_more_and_less_look_different_to_everybody(kind):
    more, less = (to_hex(fit_plots.SLOPES(end)) for end in (0.85, 0.15))
    seen = [lightness_and_hue(colour, COLOUR_BLINDNESS[kind]) for colour in (more, less)]
    assert np.linalg.norm(seen[0] - seen[1]) > 40


def test_sensitivity_has_a_colour_bar_if_it_has_a_label():
    figure, ax = plots.figure(800, 240)
    fit_plots.sensitivity(ax, SLOPES)
    assert len(figure.axes) == 1
    fit_plots.sensitivity(ax, SLOPES, label="d CLs / d yield")
    bar = figure.axes[1]
    assert bar.get_ylabel() == "d CLs / d yield"
    np.testing.assert_allclose(bar.get_yticks(), [-0.4, -0.1, 0.0, 0.1, 0.4])


def test_sensitivity_of_many_bins_and_of_nothing():
    _, ax = plots.figure(800, 240)
    many = fit_plots.sensitivity(ax, {"SR": {"signal": jnp.linspace(-1, 1, 61)}})
    assert texts(many) == ["SR"]
    flat = fit_plots.sensitivity(ax, {"SR": {"signal": np.array([0.0, np.nan])}})
    assert texts(flat) == ["SR", "+0", "–"]


def test_pulls_are_where_they_were_given():
    figure, ax = plots.figure()
    pull, constraint = jnp.array([0.5, -1.2, jnp.nan]), jnp.array([0.9, 0.3, jnp.nan])
    _, _, bar, line, *_ = artists = fit_plots.pulls(ax, NAMES, pull, constraint)
    line, bar = (line, bar) if hasattr(line, "get_xdata") else (bar, line)
    np.testing.assert_array_equal(line.get_xdata(), pull)
    np.testing.assert_array_equal(line.get_ydata(), [0, 1, 2])
    segments = bar.get_segments()
    np.testing.assert_allclose(segments[0][:, 0], [-0.4, 1.4])
    np.testing.assert_allclose(segments[1][:, 0], [-1.5, -0.9])
    assert ax.yaxis_inverted() and len(artists) == 4
    plots.png(figure)


def test_impacts_are_signed_bars_inside_their_prefit_outline():
    figure, ax = plots.figure()
    artists = fit_plots.impacts(
        ax, NAMES, jnp.array([0.3, -0.2, jnp.nan]), jnp.array([0.25, -0.15, 0.1])
    )
    widths = [bar.get_width() for bar in artists]
    assert widths == [0.25, -0.15, 0.1, 0.3, -0.2, 0.0, -0.25, 0.15, -0.1, -0.3, 0.2, 0.0]
    assert [bar.get_fill() for bar in artists[:6]] == [True] * 3 + [False] * 3
    assert [label.get_text() for label in ax.get_yticklabels()] == NAMES
    plots.png(figure)
