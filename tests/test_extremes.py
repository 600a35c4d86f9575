"""A slider at its worst value gives a picture or a sentence, never a traceback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.relax.cuts import soft_cut
from nablab.relax.histograms import hard_counts, kde_counts, softmax_counts
from nablab.relax.probes import choose_bandwidth
from nablab.relax.splines import spline_counts
from nablab.show import plots, widgets

EDGES = np.linspace(-3.0, 3.0, 13)
MANY = jax.random.normal(jax.random.key(1), (100_000,))


@pytest.mark.parametrize("counts", [kde_counts, softmax_counts, spline_counts, hard_counts])
def test_histogram_over_all_bandwidths_and_numbers_of_events(counts):
    figure, ax = plots.figure(320, 200)

    def update(bandwidth, events):
        values = counts(MANY[:events], EDGES, bandwidth=bandwidth).values
        slope = jax.grad(lambda h: counts(MANY[:events], EDGES, bandwidth=h).values.sum())(
            bandwidth
        )
        assert np.all(np.isfinite(values)) and np.isfinite(slope)
        return plots.outline(ax, values, EDGES)

    explorer = widgets.explore(figure, update, bandwidth=(0.0, 1e6, 0.5), events=(0, 100_000, 10))
    for events in (0, 1, 100_000):
        for bandwidth in (0.0, 1e-300, 1e-9, 1e6):
            explorer.set(bandwidth=bandwidth, events=events)
            if counts is hard_counts or bandwidth > 0:
                assert explorer.message == ""
            else:
                assert "bandwidth is 0.0: it must be greater than 0" in explorer.message
            assert explorer.image.startswith(b"\x89PNG")


@pytest.mark.parametrize("profile", ["sigmoid", "erf", "compact"])
def test_cut_over_all_slopes(profile):
    figure, ax = plots.figure(320, 200)
    x = np.linspace(-3.0, 3.0, 101)

    def update(slope, cut):
        def count(cut):
            return soft_cut(MANY[:100], cut, slope=slope, profile=profile).sum()

        assert np.isfinite(jax.grad(count)(cut))
        weights = soft_cut(x, cut, slope=slope, profile=profile)
        return plots.curve(ax, x, weights)

    explorer = widgets.explore(figure, update, slope=(0.0, 1e6, 1.0), cut=(-1e9, 1e9, 0.0))
    for slope in (1e-9, 1e6):
        for cut in (-1e9, 0.0, 1e9):
            explorer.set(slope=slope, cut=cut)
            assert explorer.message == ""
    explorer.set(slope=0.0)
    assert "slope is 0.0: it must be greater than 0" in explorer.message


def test_rule_for_no_events_is_a_sentence():
    figure, ax = plots.figure(320, 200)

    def update(events):
        choice = choose_bandwidth(MANY[:events], EDGES)
        return plots.curve(ax, choice.tried, choice.error)

    explorer = widgets.explore(figure, update, events=(0, 100_000, 100))
    for events, sentence in ((0, "no events"), (1, "spread of x"), (2, ""), (100_000, "")):
        explorer.set(events=events)
        assert sentence in explorer.message and bool(sentence) == bool(explorer.message)
    assert jnp.all(jnp.isfinite(choose_bandwidth(MANY[:2], EDGES).error))
