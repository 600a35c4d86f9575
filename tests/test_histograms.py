"""Soft histograms against brute force, hard ones against numpy; their gradients, limits, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import erf, softmax
from scipy.stats import norm

from nablab.relax import histograms
from nablab.relax.histograms import BLOCK, hard_counts, kde_counts, softmax_counts

EDGES = np.array([-2.0, -0.7, 0.1, 0.5, 2.5])
BINS = len(EDGES) - 1
BANDWIDTH = 0.3
SOFT = [kde_counts, softmax_counts]
ALL = [*SOFT, hard_counts]
COMPILED = {counts: jax.jit(counts, static_argnames="fold_tails") for counts in ALL}


def sample(events, seed=1):
    """Events, some of them beyond the edges, and weights, some of them negative."""
    generator = np.random.default_rng(seed)
    return 1.5 * generator.normal(size=events), generator.normal(1.0, 0.6, size=events)


def kde_memberships(x, edges, bandwidth, fold_tails):
    """Probability of x plus Gaussian noise to lie in each bin."""
    below = [(1 + erf((edge - x) / (np.sqrt(2) * bandwidth))) / 2 for edge in edges]
    p = np.diff(below, axis=0)
    if fold_tails:
        p[0] += below[0]
        p[-1] += 1 - below[-1]
    return p.T


def softmax_memberships(x, edges, bandwidth, fold_tails):
    """Odds of neighbouring bins are exp((x - edge between them) / bandwidth)."""
    scores = [np.zeros_like(x)]  # of the lower tail; the last one is that of the upper tail
    for edge in edges:
        scores.append(scores[-1] + (x - edge) / bandwidth)
    lower, *inside, upper = softmax(scores, axis=0)
    if fold_tails:
        inside[0] = inside[0] + lower
        inside[-1] = inside[-1] + upper
    return np.stack(inside, axis=1)


BRUTE_FORCE = {kde_counts: kde_memberships, softmax_counts: softmax_memberships}


@pytest.mark.parametrize("counts", SOFT)
@pytest.mark.parametrize(
    ("events", "fold_tails"),
    [(1, False), (7, True), (BLOCK, False), (BLOCK + 1, True), (2 * BLOCK + 37, False)],
)
def test_soft_counts_are_the_brute_force_ones(counts, fold_tails, events):
    x, weights = sample(events)
    p = BRUTE_FORCE[counts](x, EDGES, BANDWIDTH, fold_tails)
    soft = COMPILED[counts](
        jnp.array(x), EDGES, bandwidth=BANDWIDTH, weights=jnp.array(weights), fold_tails=fold_tails
    )
    np.testing.assert_allclose(soft.values, weights @ p, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(soft.variances, weights**2 @ p**2, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("counts", SOFT)
def test_absent_weights_are_ones(counts):
    x = sample(7)[0]
    p = BRUTE_FORCE[counts](x, EDGES, BANDWIDTH, False)
    soft = counts(jnp.array(x), jnp.array(EDGES), bandwidth=BANDWIDTH)
    np.testing.assert_allclose(soft.values, p.sum(axis=0), rtol=1e-11)
    np.testing.assert_allclose(soft.variances, (p**2).sum(axis=0), rtol=1e-11)


def test_one_event_by_hand():
    edges = jnp.array([-1.0, 1.0, 3.0])
    soft = COMPILED[kde_counts](jnp.array([0.0]), edges, bandwidth=1.0, weights=jnp.array([2.0]))
    np.testing.assert_allclose(soft.values, [2 * 0.682689492137, 2 * 0.157305356], rtol=1e-8)
    np.testing.assert_allclose(soft.variances, np.square(soft.values), rtol=1e-14)
    soft = COMPILED[softmax_counts](jnp.array([0.0]), edges[:2], bandwidth=1.0)
    np.testing.assert_allclose(soft.values, [np.e / (2 + np.e)], rtol=1e-14)


@pytest.mark.parametrize("counts", ALL)
def test_no_events(counts):
    empty = counts(jnp.zeros(0), jnp.array(EDGES), bandwidth=BANDWIDTH)
    np.testing.assert_array_equal(empty.values, np.zeros(BINS))
    np.testing.assert_array_equal(empty.variances, np.zeros(BINS))


@pytest.mark.parametrize("counts", ALL)
def test_folded_tails_keep_the_total_and_the_inner_bins(counts):
    x, weights = sample(BLOCK + 3)
    x, weights, edges = jnp.array(x), jnp.array(np.abs(weights)), jnp.array(EDGES)
    x = x.at[0].set(-3.0).at[1].set(4.0)
    counts = COMPILED[counts]
    open_ended = counts(x, edges, bandwidth=BANDWIDTH, weights=weights, fold_tails=True)
    closed = counts(x, edges, bandwidth=BANDWIDTH, weights=weights)
    np.testing.assert_allclose(open_ended.values.sum(), weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(open_ended.values[1:-1], closed.values[1:-1], rtol=1e-12)
    assert np.all(open_ended.values[jnp.array([0, -1])] > closed.values[jnp.array([0, -1])])
    one_bin = counts(x, edges[:2], bandwidth=BANDWIDTH, weights=weights, fold_tails=True)
    np.testing.assert_allclose(one_bin.values, [weights.sum()], rtol=1e-12)
    np.testing.assert_allclose(one_bin.variances, [(weights**2).sum()], rtol=1e-12)


def one_number(counts, fold_tails, x, edges, bandwidth, weights):
    """A number that depends on every value and variance in its own way."""
    values, variances, _ = counts(
        x, edges, bandwidth=bandwidth, weights=weights, fold_tails=fold_tails
    )
    return jnp.sum(jnp.arange(1.0, BINS + 1) * values) + jnp.sum(
        jnp.cos(jnp.arange(BINS)) * variances
    )


@pytest.mark.parametrize("counts", SOFT)
@pytest.mark.parametrize(("fold_tails", "block"), [(True, BLOCK), (False, 4)])
def test_gradients_are_the_central_differences(counts, fold_tails, block, monkeypatch):
    monkeypatch.setattr(histograms, "BLOCK", block)  # 4: seven events take two blocks
    jax.clear_caches()  # of what was compiled with the other size of blocks
    x, weights = sample(7)
    flat, unravel = ravel_pytree([jnp.array(a) for a in (x, EDGES, BANDWIDTH, weights)])

    def function(flat):
        return one_number(counts, fold_tails, *unravel(flat))

    gradient = jax.jit(jax.grad(function))(flat)
    forward = jax.jit(jax.jacfwd(function))(flat)
    np.testing.assert_allclose(forward, gradient, rtol=1e-11, atol=1e-13)
    steps = 1e-5 * jnp.eye(len(flat))
    up, down = jax.jit(jax.vmap(jax.vmap(function)))(jnp.stack([flat + steps, flat - steps]))
    np.testing.assert_allclose(gradient, (up - down) / 2e-5, rtol=1e-6, atol=1e-8)
    assert all(np.any(np.abs(part) > 1e-3) for part in unravel(gradient))


@pytest.mark.parametrize("counts", SOFT)
def test_gradient_across_full_blocks_is_that_of_each_event(counts):
    x, weights = (jnp.array(a) for a in sample(BLOCK + 5))
    gradient = jax.jit(jax.grad(partial(one_number, counts, False)))
    whole = gradient(x, jnp.array(EDGES), BANDWIDTH, weights)
    alone = gradient(x[-9:], jnp.array(EDGES), BANDWIDTH, weights[-9:])
    np.testing.assert_allclose(whole[-9:], alone, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("counts", ALL)
def test_compiled_and_mapped(counts):
    x, weights = (jnp.array(a) for a in sample(50))
    edges, bandwidths = jnp.array(EDGES), jnp.array([0.05, 0.3, 1.0])
    rows = [
        COMPILED[counts](x, edges, bandwidth=bandwidth, weights=weights).values
        for bandwidth in bandwidths
    ]
    mapped = jax.jit(
        jax.vmap(lambda bandwidth: counts(x, edges, bandwidth=bandwidth, weights=weights).values)
    )
    np.testing.assert_allclose(mapped(bandwidths), jnp.stack(rows), rtol=1e-12)
    samples = jnp.stack([x, x + 0.5])
    mapped = jax.jit(
        jax.vmap(lambda x: counts(x, edges, bandwidth=BANDWIDTH, weights=weights).variances)
    )
    rows = [
        COMPILED[counts](row, edges, bandwidth=BANDWIDTH, weights=weights).variances
        for row in samples
    ]
    np.testing.assert_allclose(mapped(samples), jnp.stack(rows), rtol=1e-12)


@pytest.mark.parametrize("counts", SOFT)
@pytest.mark.parametrize("bandwidth", [1e-6, 1e-9])
def test_small_bandwidth_is_the_hard_histogram(counts, bandwidth):
    x, weights = sample(5000)
    assert np.abs(x[:, None] - EDGES).min() > 30 * 1e-6
    soft = COMPILED[counts](jnp.array(x), EDGES, bandwidth=bandwidth, weights=jnp.array(weights))
    np.testing.assert_allclose(soft.values, np.histogram(x, EDGES, weights=weights)[0], rtol=1e-9)
    np.testing.assert_allclose(
        soft.variances, np.histogram(x, EDGES, weights=weights**2)[0], rtol=1e-9
    )


@pytest.mark.parametrize("counts", SOFT)
@pytest.mark.parametrize("fold_tails", [False, True])
def test_tiny_bandwidth_never_gives_nan(counts, fold_tails):
    x = jnp.array([*EDGES, 0.3, -0.7 + 1e-9, 0.5 - 1e-9, -50.0, 1e6])
    arguments = (x, jnp.array(EDGES), 1e-9, jnp.ones(len(x)))
    soft = COMPILED[counts](
        x, jnp.array(EDGES), bandwidth=1e-9, weights=jnp.ones(len(x)), fold_tails=fold_tails
    )
    assert np.all(np.isfinite(soft.values))
    assert np.all(np.isfinite(soft.variances))
    gradient = jax.jit(jax.grad(partial(one_number, counts, fold_tails), argnums=(0, 1, 2, 3)))
    assert all(np.all(np.isfinite(part)) for part in gradient(*arguments))


@pytest.mark.parametrize("counts", SOFT)
@pytest.mark.parametrize("bandwidth", [1e-9, 1e-3])
def test_event_on_an_edge_is_shared(counts, bandwidth):
    """At the edge the soft histograms cannot agree with numpy, which gives all to the upper bin."""
    counts = COMPILED[counts]
    shared = counts(jnp.array([0.1]), EDGES, bandwidth=bandwidth).values
    np.testing.assert_allclose(shared, [0.0, 0.5, 0.5, 0.0], atol=1e-9)
    last = counts(jnp.array([2.5]), EDGES, bandwidth=bandwidth).values
    np.testing.assert_allclose(last, [0.0, 0.0, 0.0, 0.5], atol=1e-9)
    np.testing.assert_array_equal(
        hard_counts(jnp.array([0.1]), jnp.array(EDGES)).values, [0, 0, 1, 0]
    )


def eighths(events):
    """Weights whose sums and squares are exact in any order."""
    return np.random.default_rng(2).integers(-8, 24, size=events) / 8


@pytest.mark.parametrize("fold_tails", [False, True])
def test_hard_counts_are_numpys(fold_tails):
    inside = np.nextafter(EDGES, np.inf), np.nextafter(EDGES, -np.inf)
    x = np.concatenate([sample(BLOCK + 100)[0], EDGES, EDGES, *inside, [-1e9, 1e9]])
    weights = eighths(len(x))
    clipped = np.clip(x, EDGES[0], EDGES[-1]) if fold_tails else x
    for compile_or_not in (lambda function: function, jax.jit):
        hard = compile_or_not(partial(hard_counts, fold_tails=fold_tails))(
            jnp.array(x), jnp.array(EDGES), weights=jnp.array(weights)
        )
        values = np.histogram(clipped, EDGES, weights=weights)[0]
        np.testing.assert_array_equal(hard.values, values)
        variances = np.histogram(clipped, EDGES, weights=weights**2)[0]
        np.testing.assert_array_equal(hard.variances, variances)
    unweighted = hard_counts(jnp.array(x), jnp.array(EDGES), bandwidth=0.1, fold_tails=fold_tails)
    np.testing.assert_array_equal(unweighted.values, np.histogram(clipped, EDGES)[0])
    np.testing.assert_array_equal(unweighted.variances, np.histogram(clipped, EDGES)[0])


def test_hard_counts_have_a_gradient_in_the_weights_only():
    x, weights = (jnp.array(a) for a in sample(20))
    total = partial(one_number, hard_counts, False)
    in_x, in_edges, in_weights = jax.jit(jax.grad(total, argnums=(0, 1, 3)))(
        x, jnp.array(EDGES), BANDWIDTH, weights
    )
    np.testing.assert_array_equal(in_x, 0.0)
    np.testing.assert_array_equal(in_edges, 0.0)
    index = np.digitize(x, EDGES) - 1
    expected = [
        0.0 if k in (-1, BINS) else k + 1 + 2 * np.cos(k) * w
        for k, w in zip(index, weights, strict=True)
    ]
    np.testing.assert_allclose(in_weights, expected, rtol=1e-12)


def test_gradient_of_the_expectation():
    """The published check: bandwidth 0.15, 5000 events, 5 seeds, bins of 2 on [-5, 5]."""
    edges = jnp.linspace(-5.0, 5.0, 6)

    def fractions(mean, key):
        return (
            kde_counts(mean + jax.random.normal(key, (5000,)), edges, bandwidth=0.15).values / 5000
        )

    keys = jax.random.split(jax.random.key(0), 5)
    slopes = jax.jit(jax.vmap(jax.jacfwd(fractions), in_axes=(None, 0)))
    for mean in np.linspace(-2.0, 2.0, 21):
        expected = -np.diff(norm.pdf(edges - mean))
        np.testing.assert_allclose(slopes(mean, keys).mean(axis=0), expected, atol=0.01, rtol=0.05)


@pytest.mark.parametrize("counts", SOFT)
def test_memory_does_not_grow_with_events_times_bins(counts):
    events, bins = 1_000_000, 50
    x = jax.ShapeDtypeStruct((events,), jnp.float64)
    edges = jax.ShapeDtypeStruct((bins + 1,), jnp.float64)

    def objective(x, edges, weights):
        values, variances, _ = counts(x, edges, bandwidth=0.1, weights=weights)
        return jnp.sum(values**2 / (1.0 + variances))

    compiled = (
        jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2))).lower(x, edges, x).compile()
    )
    input_size = 2 * 8 * events
    assert compiled.memory_analysis().temp_size_in_bytes < 5 * input_size  # one array of all: 25


@pytest.mark.parametrize("counts", ALL)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": [0.0, 1.0, np.nan]}, r"x\[2\] is nan"),
        ({"x": [0.0, -np.inf, 1.0]}, r"x\[1\] is -inf"),
        ({"weights": [np.nan, 1.0, 1.0]}, r"weights\[0\] is nan"),
        ({"edges": [0.0, 1.0, np.nan]}, r"edges\[2\] is nan"),
        ({"edges": [0.0, 2.0, 1.0]}, r"edges\[1\]=2.0, edges\[2\]=1.0"),
        ({"edges": [0.0, 1.0, 1.0]}, r"edges must increase"),
        ({"edges": [0.0]}, r"edges must be a list of at least 2"),
    ],
)
def test_bad_input_is_named(counts, wrong, message):
    good = {"x": [0.0, 1.0, 2.0], "edges": EDGES, "weights": [1.0, 1.0, 1.0]}
    arguments = {name: jnp.array(value) for name, value in (good | wrong).items()}
    with pytest.raises(ValueError, match=message):
        counts(bandwidth=BANDWIDTH, **arguments)


@pytest.mark.parametrize("counts", SOFT)
@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_bad_bandwidth_is_named(counts, bandwidth):
    with pytest.raises(ValueError, match=f"bandwidth is {bandwidth}"):
        counts(jnp.zeros(3), jnp.array(EDGES), bandwidth=bandwidth)


@pytest.fixture
def without_type_checks():
    """Users have none: the functions themselves must notice a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("counts", ALL)
def test_wrong_shapes_are_named(counts, without_type_checks):
    x, edges = jnp.zeros(4), jnp.array(EDGES)
    for weights in (jnp.ones((4, 1)), jnp.ones(3), jnp.array(2.0)):
        with pytest.raises(ValueError, match=r"weights must have the shape of x, \(4,"):
            counts(x, edges, bandwidth=BANDWIDTH, weights=weights)
    with pytest.raises(ValueError, match=r"x must have one value per event, got shape \(4, 1\)"):
        counts(x[:, None], edges, bandwidth=BANDWIDTH)
    with pytest.raises(ValueError, match="edges must be a list"):
        counts(x, edges[:, None], bandwidth=BANDWIDTH)


@pytest.mark.parametrize("counts", [partial(kde_counts, kernel="biweight"), softmax_counts])
def test_second_call_compiles_nothing(counts, caplog):
    """A slider calls it again and again, outside of any ``jit``."""
    x, edges = jnp.linspace(-2.0, 2.0, BLOCK + 5), jnp.array(EDGES)
    moved = x + 0.1
    with jax.log_compiles():
        counts(x, edges, bandwidth=0.3)
        assert "Compiling" in caplog.text
        caplog.clear()
        counts(moved, edges, bandwidth=0.4)
    assert "Compiling" not in caplog.text
