"""The fast Gauss transform against the sum over all events: values, gradients, extremes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.relax import _gauss_transform, histograms
from nablab.relax._gauss_transform import CHUNK, GAP
from nablab.relax.histograms import kde_counts, kde_method

EVENTS = 4001  # in most tests, with 13 edges, so that few functions need compiling
EQUAL = jnp.linspace(-5.0, 5.0, 13)
UNEQUAL = jnp.array(np.sort(np.random.default_rng(3).uniform(-5.0, 5.0, 13)))


def direct_counts(x, edges, bandwidth, weights, fold_tails):
    below = jax.scipy.stats.norm.cdf((edges - x[:, None]) / bandwidth)
    if fold_tails:
        below = below.at[:, 0].set(0.0).at[:, -1].set(1.0)
    weighted = jnp.diff(below, axis=1) * (1.0 if weights is None else weights[:, None])
    return weighted.sum(axis=0), (weighted**2).sum(axis=0)


def sample(events=EVENTS, spread=3.0, seed=5):
    """Events, some of them far outside, and weights, some of them negative or zero."""
    generator = np.random.default_rng(seed)
    x, weights = generator.normal(0.2, spread, events), generator.normal(1.0, 0.7, events)
    x[: events // 50] *= 1e4
    weights[::7] = 0.0
    return jnp.array(x), jnp.array(weights)


def one_number(counts, fold_tails, x, edges, bandwidth, weights):
    """A number that depends on every value and variance in its own way, and these."""
    values, variances = counts(x, edges, bandwidth, weights, fold_tails)
    bins = jnp.arange(len(values))
    total = jnp.cos(1.3 * bins) @ values + jnp.sin(0.7 * bins + 1.0) @ variances
    return total, (values, variances)


@cache
def with_gradient(counts, fold_tails=False):
    function = partial(one_number, counts, fold_tails)
    return jax.jit(jax.value_and_grad(function, (0, 1, 2, 3), has_aux=True))


def evaluate(counts, x, edges, bandwidth, weights, fold_tails=False):
    """(values, variances) and the gradient of ``one_number`` in all four arguments."""
    function = with_gradient(counts, fold_tails)
    (_, both), gradient = function(x, edges, jnp.asarray(bandwidth, dtype=float), weights)
    return both, gradient


def close(actual, expected, tolerance):
    """Differences below the tolerance times the largest entry, array by array."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
    ("edges", "bandwidth", "fold_tails"),
    [
        *((EQUAL, 0.8 * bin_widths, fold) for bin_widths in (0.01, 0.3) for fold in (False, True)),
        *((EQUAL, 0.8 * bin_widths, False) for bin_widths in (0.05, 1.0, 10.0)),
        *((UNEQUAL, bandwidth, False) for bandwidth in (0.01, 0.06, 0.3, 2.0)),
        (UNEQUAL, 0.13, True),
    ],
)
def test_values_and_gradients_are_those_of_the_direct_sum(edges, bandwidth, fold_tails):
    arguments = (sample()[0], edges, bandwidth, sample()[1], fold_tails)
    fast, fast_gradient = evaluate(_gauss_transform.counts, *arguments)
    direct, gradient = evaluate(direct_counts, *arguments)
    for one, other in zip(fast, direct, strict=True):  # per bin, not only of the largest
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15 * EVENTS)
    close(fast_gradient, gradient, 1e-11)


@pytest.mark.parametrize("bandwidth", [1.0, 1.37, 1.999])
def test_gaps_of_every_length(bandwidth):
    """Gaps with all cells, with one left out, with many: no event is lost or counted twice."""
    gaps = np.array([0, 0.4, 1, GAP - 2, GAP - 1, GAP, GAP + 1, GAP + 2, 1, 0.2, 3000, GAP, 2])
    edges = jnp.array(-100.3 + np.cumsum(gaps))
    x = [jnp.linspace(edges[0] - 40, edges[9] + 40, EVENTS - 26), edges, edges + 5]
    arguments = (jnp.concatenate(x), edges, bandwidth, jnp.cos(jnp.arange(float(EVENTS))))
    fast, direct = (evaluate(f, *arguments) for f in (_gauss_transform.counts, direct_counts))
    close(fast[0], direct[0], 1e-12)
    close(fast[1], direct[1], 1e-11)


@pytest.mark.parametrize("bandwidth", [1e-300, 1e-20, 1e-15, 1e-12, 1e-9, 1e-4])
def test_tiny_bandwidth_is_the_hard_histogram(bandwidth):
    x, weights = sample()
    near = jnp.min(jnp.abs(x[:, None] - EQUAL), axis=1) < 20 * 1e-4
    x = jnp.where(near, 0.1, x)
    fast, gradient = evaluate(_gauss_transform.counts, x, EQUAL, bandwidth, weights)
    close(fast, histograms.hard_counts(x, EQUAL, weights=weights)[:2], 1e-13)
    assert not any(np.any(part) for part in gradient[:3])


def test_huge_bandwidth():
    x, weights = sample(spread=500.0)
    arguments = (x, EQUAL, 1e3, weights)
    fast, direct = (evaluate(f, *arguments) for f in (_gauss_transform.counts, direct_counts))
    close(fast[0], direct[0], 1e-11)  # of p = 3e-4, a difference of two numbers near 1/2
    close(fast[1], direct[1], 1e-9)


@pytest.mark.parametrize("bandwidth", [1e-9, 0.1, 20.0])
def test_events_on_an_edge(bandwidth):
    arguments = (jnp.full(EVENTS, EQUAL[4]), EQUAL, bandwidth, jnp.ones(EVENTS))
    fast, direct = (evaluate(f, *arguments) for f in (_gauss_transform.counts, direct_counts))
    close(fast[0], direct[0], 1e-12)
    for one, other in zip(fast[1], direct[1], strict=True):
        # That in the bandwidth is zero by symmetry: measured by the size of its terms, 1/bandwidth.
        np.testing.assert_allclose(bandwidth * one, bandwidth * other, rtol=0, atol=1e-12 * EVENTS)


def test_nan_in_compiled_code_is_not_dropped():
    x, weights = sample()
    for bandwidth in (0.4, 0.01):  # without and with cells left out
        for broken in ((x.at[-5].set(jnp.nan), weights), (x, weights.at[-5].set(jnp.nan))):
            fast, _ = evaluate(_gauss_transform.counts, broken[0], EQUAL, bandwidth, broken[1])
            assert all(np.any(np.isnan(part)) for part in fast)
    fast, _ = evaluate(_gauss_transform.counts, x, EQUAL, jnp.nan, weights)
    assert all(np.all(np.isnan(part)) for part in fast)


def test_single_precision_events():
    x, weights = (a.astype(jnp.float32) for a in sample())
    _, fast = evaluate(_gauss_transform.counts, x, EQUAL, 0.3, weights)
    assert fast[0].dtype == fast[3].dtype == jnp.float32
    _, direct = evaluate(direct_counts, x.astype(float), EQUAL, 0.3, weights.astype(float))
    close(fast, direct, 1e-6)


def test_forward_mode_and_second_derivatives():
    arguments = (sample()[0], UNEQUAL, jnp.array(0.3), sample()[1])
    generator = np.random.default_rng(8)
    direction = jax.tree.map(lambda a: jnp.array(generator.normal(size=a.shape)), arguments)

    def derivatives(counts):
        def function(*arguments):
            return one_number(counts, False, *arguments)[0]

        forward = jax.jvp(function, arguments, direction)[1]
        return forward, jax.jvp(jax.grad(function, (0, 1, 2, 3)), arguments, direction)[1]

    fast = jax.jit(partial(derivatives, _gauss_transform.counts))()
    close(fast, jax.jit(partial(derivatives, direct_counts))(), 1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_many_events_take_the_transform(weighted, monkeypatch):
    many = 2 * histograms.BLOCK + 37  # a prime: some events are left over from the chunks
    x, weights = sample(many)
    arguments = (x, EQUAL, jnp.array(0.2), weights if weighted else None)
    given = {"bandwidth": arguments[2], "weights": arguments[3]}
    close(kde_counts(x, EQUAL, **given)[:2], direct_counts(*arguments, False), 1e-13)
    monkeypatch.setattr(_gauss_transform, "counts", lambda *_: (jnp.zeros(12), jnp.zeros(12)))
    assert not np.any(kde_counts(x, EQUAL, **given).values)
    assert kde_method(many) == "fast Gauss transform"
    few = histograms.BLOCK
    assert np.any(kde_counts(x[:few], EQUAL, bandwidth=given["bandwidth"]).values)
    assert kde_method(few) == "direct sum"


@pytest.mark.parametrize("events", [0, 1, 3 * CHUNK])
def test_any_number_of_events_is_cut_into_chunks(events):
    x, _ = sample(events)
    arguments = (x, EQUAL, jnp.array(0.7), None, False)
    close(_gauss_transform.counts(*arguments), direct_counts(*arguments), 1e-13)


def test_counts_without_weights_are_never_negative():
    generator = np.random.default_rng(1)
    for bandwidth in (0.2, 0.3, 0.5):
        x = jnp.array(generator.normal(-5.0, 0.5, EVENTS))
        for part in _gauss_transform.counts(x, EQUAL, jnp.array(bandwidth), None, False):
            assert np.all(part >= 0)
            assert part[-1] < 1e-12


def test_mapped_over_each_argument():
    x, weights = sample(1000)
    arguments = (x, EQUAL, jnp.array(0.3), weights)

    def gradient(*arguments):
        function = partial(one_number, _gauss_transform.counts, False)
        return jax.grad(function, (0, 1, 2), has_aux=True)(*arguments)[0]

    factors = ([1.0, 0.3], [1.0, 2.0], [1.0, 0.01], [1.0, -2.0])
    several = [
        jnp.stack([f * a for f in factor]) for factor, a in zip(factors, arguments, strict=True)
    ]
    mapped = jax.jit(jax.vmap(gradient))(*several)
    for row in range(2):
        one = jax.jit(gradient)(*(a[row] for a in several))
        close([part[row] for part in mapped], list(one), 1e-12)


def test_memory_grows_neither_with_events_nor_with_events_times_bins():
    def temporary(events, bins):
        x = jax.ShapeDtypeStruct((events,), jnp.float64)
        edges = jax.ShapeDtypeStruct((bins + 1,), jnp.float64)
        bandwidth = jax.ShapeDtypeStruct((), jnp.float64)
        compiled = with_gradient(_gauss_transform.counts).lower(x, edges, bandwidth, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(10**7, 50) < 20e6  # one number per event: 80e6
