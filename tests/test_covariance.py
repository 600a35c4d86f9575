"""What an event adds to several bins makes them fluctuate together: by hand, and in new samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.relax.estimators import BLOCK, covariance, gradient_counts
from nablab.relax.histograms import hard_counts, kde_counts, softmax_counts
from nablab.relax.histograms2d import kde_counts_2d
from nablab.relax.splines import spline_counts

EDGES = np.linspace(-3.0, 3.0, 7)
RNG = np.random.default_rng(0)
EVENTS = RNG.normal(size=2 * BLOCK + 50), RNG.uniform(-1.0, 2.0, 2 * BLOCK + 50)


def soft(events, edges=EDGES):
    x, weights = events
    return kde_counts(x, edges, bandwidth=0.25, weights=weights)


def slope(events, edges=EDGES):
    """The derivative by a shift, as Counts."""
    return gradient_counts(lambda shift, e: soft((e[0] + shift, e[1]), edges), 0.0, events)


@pytest.mark.parametrize("counts", [soft, slope])
def test_it_is_the_sum_over_events_one_by_one(counts):
    x, weights = EVENTS
    found = covariance(counts, EVENTS)
    if counts is slope:  # finite differences, event by event
        step = 1e-5
        more, less = (
            np.array([soft((x[i : i + 1] + d, weights[i : i + 1])).values for i in range(60)])
            for d in (step, -step)
        )
        each = (more - less) / (2 * step)
        found, tolerance = covariance(counts, (x[:60], weights[:60])), 1e-8
    else:
        each = np.array([soft((x[i : i + 1], weights[i : i + 1])).values for i in range(x.size)])
        tolerance = 1e-12
    np.testing.assert_allclose(found, each.T @ each, atol=tolerance * np.abs(each.T @ each).max())


@pytest.mark.parametrize("counts", [soft, slope])
def test_diagonal_are_the_variances_and_blocks_those_of_wider_bins(counts):
    found = covariance(counts, EVENTS)
    np.testing.assert_allclose(np.diag(found), counts(EVENTS).variances, rtol=1e-11)
    wide = counts(EVENTS, edges=EDGES[::2])
    merged = found.reshape(3, 2, 3, 2).sum(axis=(1, 3))
    np.testing.assert_allclose(np.diag(merged), wide.variances, rtol=1e-11)
    # The two mistakes of summed variances have opposite signs.
    summed = np.diag(found).reshape(3, 2).sum(axis=1)
    if counts is soft:
        assert np.all(summed < 0.95 * np.diag(merged))
    else:
        assert np.all(summed > 1.1 * np.diag(merged))


@pytest.mark.parametrize("gradient", [False, True])
def test_new_samples_scatter_like_that(gradient):
    """3000 samples of a Poisson number of events; the elements are known to about 3 %."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3000, 80))
    there = (np.arange(80) < rng.poisson(40, (3000, 1))).astype(float)
    of = slope if gradient else soft
    samples = (jnp.array(x), jnp.array(there))
    values = jax.jit(lambda s: jax.lax.map(lambda e: of(e).values, s))(samples)
    expected = jax.jit(lambda s: jax.lax.map(partial(covariance, of), s))(samples).mean(axis=0)
    scatter = np.cov(values.T)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(scatter / scale, expected / scale, atol=0.12)
    neighbours = np.diag(np.corrcoef(values.T), 1)
    assert np.all(neighbours < -0.05) if gradient else np.all(neighbours > 0.1)


def test_hard_bins_share_nothing_and_other_soft_ones_do():
    x = EVENTS[0]
    hard = covariance(lambda e: hard_counts(e[0], EDGES, weights=e[1]), EVENTS)
    assert np.count_nonzero(hard - np.diag(np.diag(hard))) == 0
    for counts in (softmax_counts, spline_counts):
        found = covariance(lambda x, c=counts: c(x, EDGES, bandwidth=0.5), x)
        np.testing.assert_allclose(
            np.diag(found), counts(x, EDGES, bandwidth=0.5).variances, rtol=1e-9
        )


def test_two_dimensions_transformations_and_no_events():
    x, y = EVENTS

    def counts(events):
        return kde_counts_2d(*events, EDGES, EDGES[:4], bandwidths=(0.4, 0.3))

    found = covariance(counts, EVENTS)
    assert found.shape == (6, 3, 6, 3)
    np.testing.assert_allclose(
        found.sum(axis=(1, 3)),
        covariance(lambda e: counts(e).values.sum(axis=1), EVENTS),
        rtol=1e-10,
    )
    compiled = jax.jit(partial(covariance, soft))
    np.testing.assert_allclose(compiled(EVENTS), covariance(soft, EVENTS), rtol=1e-12)

    def total(shift):
        return covariance(soft, (x[:20] + shift, y[:20])).sum()

    step = 1e-5
    difference = (total(step) - total(-step)) / (2 * step)
    assert jax.grad(total)(0.0) == pytest.approx(float(difference), rel=1e-6)
    np.testing.assert_array_equal(covariance(soft, (x[:0], y[:0])), np.zeros((6, 6)))


def test_bad_events_are_named():
    x, weights = (part.copy() for part in EVENTS)
    x[3] = np.nan
    with pytest.raises(ValueError, match=r"events\[3\] is nan: not finite"):
        covariance(soft, (x, weights))
    assert np.all(np.isnan(jax.jit(partial(covariance, soft))((x, weights))))
