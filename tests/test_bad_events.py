"""One bad event: an error where it can be seen, NaN where not, and never a number."""

from functools import partial

import awkward
import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from models import MU, channel

from nablab import checks
from nablab.infer import diagnostics, hypotests
from nablab.model.histfactory import from_spec
from nablab.relax import cuts, histograms2d
from nablab.relax.estimators import boundary_gradient
from nablab.relax.histograms import (
    BLOCK,
    direct_kde_counts,
    hard_counts,
    kde_counts,
    softmax_counts,
)
from nablab.relax.objects.pairing import hard_pairing, soft_pairing
from nablab.relax.splines import spline_counts
from nablab.train import inferno, objectives

EDGES = np.array([-1.0, 0.0, 0.5, 2.0])
EVENTS = np.random.default_rng(4).normal(0.3, 1.0, 40)
ONES = np.ones(40)


def along_both(counts):
    """A two-dimensional histogram, as one of x."""

    def in_x(x, edges, *, bandwidth, **settings):
        widths = (bandwidth, bandwidth)
        return counts(x, 0 * EVENTS[: len(x)], edges, EDGES, bandwidths=widths, **settings)

    return in_x


HISTOGRAMS = {
    "hard": hard_counts,
    "kde": kde_counts,
    "softmax": softmax_counts,
    "spline": spline_counts,
    "hard 2d": along_both(histograms2d.hard_counts_2d),
    "kde 2d": along_both(histograms2d.kde_counts_2d),
}


@pytest.fixture(params=HISTOGRAMS)
def histogram(request):
    return HISTOGRAMS[request.param]


def replaced(array, bad, at=17):
    array = np.array(array)
    array[at] = bad
    return array


@pytest.mark.parametrize("fold_tails", [False, True])
def test_counts_of_a_bad_event_are_nan_or_an_error(histogram, fold_tails):
    def counts(x, weights):
        return histogram(x, EDGES, bandwidth=0.2, weights=weights, fold_tails=fold_tails)

    compiled = jax.jit(counts)
    assert np.all(np.isfinite(np.array(compiled(EVENTS, ONES)[:2])))
    for bad in (np.nan, np.inf, -np.inf):
        for name, arguments in {
            "x": (replaced(EVENTS, bad), ONES),
            "weights": (EVENTS, replaced(ONES, bad)),
        }.items():
            assert np.all(np.isnan(np.array(compiled(*arguments)[:2])))
            with pytest.raises(ValueError, match=rf"^{name}\[17\] is -?(nan|inf): not finite$"):
                counts(*arguments)


def test_one_of_many_events_is_enough():
    """Where they are summed by the fast transform, or in blocks."""
    x = replaced(np.zeros(BLOCK + 5), np.nan)
    compiled = jax.jit(lambda x: kde_counts(x, EDGES, bandwidth=0.2, fold_tails=True).values)
    assert np.all(np.isnan(compiled(x)))
    compiled = jax.jit(lambda x: softmax_counts(x, EDGES, bandwidth=0.2).values)
    assert np.all(np.isnan(compiled(x)))


def test_their_derivatives_are_nan_too(histogram):
    """A gradient of 0 beside a count of NaN is something that a training goes on with."""

    def total(weight, x):
        return histogram(x, EDGES, bandwidth=0.2, weights=weight * ONES).values.sum()

    slope = jax.jit(jax.grad(total))
    assert np.isfinite(slope(1.0, EVENTS)) and np.isnan(slope(1.0, replaced(EVENTS, np.nan)))


def test_only_the_sample_with_the_bad_event_is_nan(histogram):
    samples = jnp.stack([EVENTS, replaced(EVENTS, np.nan), EVENTS])
    totals = jax.vmap(lambda x: histogram(x, EDGES, bandwidth=0.2).values.sum())(samples)
    np.testing.assert_array_equal(np.isnan(totals), [False, True, False])


@pytest.mark.parametrize("bandwidth", [0.0, -0.2, np.nan, np.inf])
@pytest.mark.parametrize("name", ["kde", "softmax", "spline", "kde 2d"])
def test_bandwidths_that_are_refused_give_nan(name, bandwidth):
    def counts(bandwidth):
        return HISTOGRAMS[name](EVENTS, EDGES, bandwidth=bandwidth)

    assert np.all(np.isnan(np.array(jax.jit(counts)(bandwidth)[:2])))
    with pytest.raises(ValueError, match=r"^bandwidth"):
        counts(bandwidth)


@pytest.mark.parametrize("edges", [[-1.0, 2.0, 0.5], [0.0, 0.0, 1.0], [0.0, np.nan, 1.0]])
def test_edges_that_are_refused_give_nan(histogram, edges):
    def counts(edges):
        return histogram(EVENTS, edges, bandwidth=0.2)

    assert np.all(np.isnan(np.array(jax.jit(counts)(np.array(edges))[:2])))
    with pytest.raises(ValueError, match=r"edges must increase|edges.* not finite"):
        counts(np.array(edges))


@pytest.mark.parametrize("edges", [[-np.inf, 0.0, 1.0], [-1.0, 0.0, np.inf]])
def test_infinite_edges_behave_alike(histogram, edges):
    def counts(edges):
        return histogram(EVENTS, edges, bandwidth=0.2)

    assert np.all(np.isnan(np.array(jax.jit(counts)(np.array(edges))[:2])))
    with pytest.raises(ValueError, match=r"edges must be finite, got .*inf.*fold_tails=True"):
        counts(edges)


def test_the_cure_for_infinite_edges_is_one():
    folded = hard_counts(EVENTS, [-1e9, 0.0, 1.0, 2.0], fold_tails=True).values
    expected = np.histogram(EVENTS, [-np.inf, 0.0, 1.0, np.inf])[0]
    np.testing.assert_array_equal(folded, expected)


def test_no_limit_follows_from_a_bad_event():
    """0.065 came out in the place of 0.118: the event fell into the most signal-like bin."""

    @jax.jit
    def expected(x):
        counts = hard_counts(x, EDGES, fold_tails=True)
        spec = {"channels": [channel("c", s=([1.0, 2.0, 6.0], [MU]), b=(counts.values, []))]}
        model = from_spec(spec)
        cls = hypotests.expected_cls(model)
        return cls.expected, cls.certificates[0].converged, diagnostics.poi_uncertainty(model)

    values, converged, sigma = expected(EVENTS)
    assert np.all(np.isfinite(values)) and converged and np.isfinite(sigma)
    values, converged, sigma = expected(replaced(EVENTS, np.nan))
    assert np.all(np.isnan(values)) and not converged and np.isnan(sigma)


def test_the_direct_sum_of_kernels_does_not_drop_a_bad_event():
    counts = jax.jit(lambda x: direct_kde_counts(x, EDGES, bandwidth=0.1).values)
    assert np.all(np.isfinite(counts(EVENTS)))
    assert np.all(np.isnan(counts(replaced(EVENTS, np.nan))))


CUTS = [cuts.soft_cut, cuts.log_soft_cut, cuts.hard_cut]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("profile", list(cuts.PROFILES))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_of_bad_events_and_cuts_are_nan(cut, profile, bad):
    def weights(x, above=0.0, below=1.0, slope=3.0):
        return cut(x, above, below=below, slope=slope, profile=profile)

    x = replaced(EVENTS, bad)
    np.testing.assert_array_equal(np.isnan(jax.jit(weights)(x)), ~np.isfinite(x))
    for name in ("above", "below"):
        assert np.all(np.isnan(jax.jit(weights)(EVENTS, **{name: bad})))
    with pytest.raises(ValueError, match=r"^x\[17\] is -?(nan|inf)"):
        weights(x)


@pytest.mark.parametrize("cut", CUTS[:2])
def test_slopes_that_are_refused_give_nan(cut):
    for slope in (0.0, -3.0, np.nan):
        assert np.all(np.isnan(jax.jit(lambda k: cut(EVENTS, 0.0, slope=k))(slope)))


@pytest.mark.parametrize("ellipse", [cuts.soft_ellipse, cuts.hard_ellipse])
def test_ellipses_that_are_refused_give_nan(ellipse):
    x = replaced(EVENTS, np.nan)
    weights = jax.jit(lambda x: ellipse(x, EVENTS, (0.0, 0.0), (1.0, 2.0)))(x)
    np.testing.assert_array_equal(np.isnan(weights), np.isnan(x))
    for radius in (0.0, -1.0):
        weights = jax.jit(lambda r: ellipse(EVENTS, EVENTS, (0.0, 0.0), (1.0, r)))(radius)
        assert np.all(np.isnan(weights))


def test_pairs_of_bad_objects_are_nan():
    jets = np.random.default_rng(2).uniform(20.0, 90.0, (4, 2, 4)) / [[[30.0]]]
    broken = jets.copy()
    broken[1, 0, 2] = np.nan
    for pair in (hard_pairing, partial(soft_pairing, temperature=1.0)):
        for part in jax.jit(pair)(*broken):
            assert np.all(np.isnan(part[0])) and np.all(np.isfinite(part[1]))
    paired = jax.jit(lambda t: soft_pairing(*jets, temperature=t).masses)
    assert np.all(np.isnan(paired(-1.0)))


def test_spread_of_bad_events_is_nan():
    assert np.isnan(jax.jit(cuts.spread)(ONES)) and np.isnan(jax.jit(cuts.spread)(ONES * np.nan))


def test_flow_of_a_negative_density_is_nan():
    flow = jax.jit(lambda edges, height: boundary_gradient(lambda x: height + 0 * x, edges))
    assert np.all(np.isfinite(flow(EDGES, 2.0)))
    assert np.all(np.isnan(flow(EDGES, -2.0))) and np.all(np.isnan(flow(EDGES[::-1], 2.0)))


# --- negative expectation ------------------------------------------------------------------------

NEGATIVE = {
    "asimov_significance": lambda s, b: objectives.asimov_significance(s, b).sum(),
    "with uncertainty": lambda s, b: objectives.asimov_significance(
        s, b, background_sigma=0.1
    ).sum(),
    "s_over_sqrt_b": lambda s, b: objectives.s_over_sqrt_b(s, b).sum(),
    "poi_variance": lambda s, b: objectives.poi_variance(s + b, jnp.stack([s, b])),
    "dependence": lambda s, b: objectives.dependence(s + b, jnp.stack([s, b])),
}


@pytest.mark.parametrize("name", NEGATIVE)
@pytest.mark.parametrize("bad", [-0.1, -1e-12, np.nan, np.inf])
def test_negative_expectation_has_one_rule(name, bad):
    """-0.1 events of background gave 11.2 sigma."""
    good, wrong = jnp.array([4.0, 50.0]), jnp.array([bad, 50.0])
    signal = jnp.array([0.0, 5.0])  # so that the sum is negative, too
    compiled = jax.jit(jax.value_and_grad(NEGATIVE[name], argnums=1))
    value, slope = compiled(signal, good)
    assert np.isfinite(value) and np.all(np.isfinite(slope))
    value, slope = compiled(signal, wrong)
    assert np.isnan(value) and np.isnan(slope[0])
    with pytest.raises(ValueError, match=r"^(background|counts)\[0\] is "):
        NEGATIVE[name](signal, wrong)


def test_negative_signal_and_uncertainty_follow_it():
    z = jax.jit(lambda s, d: objectives.asimov_significance(s, 50.0, background_sigma=d))
    assert np.isnan(z(-1.0, 0.0)) and np.isnan(z(1.0, -3.0)) and np.isfinite(z(1.0, 3.0))
    assert np.isnan(jax.jit(objectives.s_over_sqrt_b)(-1.0, 50.0))


def test_a_model_with_negative_expectation_measures_nothing():
    @jax.jit
    def measured(background):
        samples = {"s": (jnp.array([1.0, 5.0]), [MU]), "b": (background, [])}
        model = from_spec({"channels": [channel("c", **samples)]})
        cls = hypotests.expected_cls(model)
        parameters = model.parameters(1.0)
        return (
            cls.expected,
            cls.certificates[0].converged,
            diagnostics.information(model, parameters),
        )

    values, converged, information = measured(np.array([-3.0, 50.0]))
    assert np.all(np.isnan(values)) and not converged and np.all(np.isnan(information))
    assert np.all(np.isfinite(measured(np.array([3.0, 50.0]))[2]))


def test_bins_of_a_network_that_returns_nan():
    events = {name: jnp.array([[0.2, 0.1, 0.3]] * 4) for name in ("signal", "background")}
    sick = {**events, "background": events["background"].at[2].set(jnp.nan)}

    def outputs(params, x):
        return jnp.concatenate([x, 1 - x], axis=1)

    for bin_of in (
        inferno.hard_bins(outputs, None),
        inferno.probability_bins(lambda x: x[:, 0]),
    ):
        assert np.all(bin_of(events["background"]) >= 0)
        with pytest.raises(ValueError, match="event 2 into bin -1 of 10"):
            inferno.uncertainties(bin_of, sick)


# --- lists, tables and awkward arrays ------------------------------------------------------------


@pytest.mark.parametrize("kept", [list, tuple, awkward.Array, pandas.Series, np.array])
def test_events_may_be_kept_anywhere(histogram, kept):
    x, weights = EVENTS.astype(np.float32), np.linspace(0.5, 1.5, 40)
    expected = histogram(x, EDGES, bandwidth=0.2, weights=weights)
    found = histogram(kept(x), list(EDGES), bandwidth=0.2, weights=kept(weights))
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5, atol=1e-6)
    integers = histogram(list(range(5)), EDGES, bandwidth=0.2)
    floats = histogram(np.arange(5.0), EDGES, bandwidth=0.2)
    np.testing.assert_array_equal(integers[:2], floats[:2])


@pytest.mark.parametrize("kept", [list, awkward.Array, pandas.Series])
def test_cuts_take_them_as_well(kept):
    for cut in CUTS:
        np.testing.assert_array_equal(cut(kept(EVENTS), 0.2), cut(EVENTS, 0.2))
    expected = cuts.soft_ellipse(EVENTS, EVENTS, (0.0, 0.0), (1.0, 1.0))
    found = cuts.soft_ellipse(kept(EVENTS), kept(EVENTS), (0.0, 0.0), (1.0, 1.0))
    np.testing.assert_array_equal(found, expected)
    assert cuts.spread(kept(EVENTS)) == cuts.spread(EVENTS)


def test_a_list_of_traced_numbers_is_an_array():
    total = jax.jit(lambda a: hard_counts([a, 2 * a], [0.0, 1.0, 2.0]).values)
    np.testing.assert_array_equal(total(0.7), [1.0, 1.0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0], [1.0, 2.0]], "x is jagged, .*pad_objects"),
        (awkward.Array([[1.0], [1.0, 2.0]]), "x is jagged, .*pad_objects"),
        (awkward.Array([1.0, None]), r"x\[1\] is missing .*awkward.drop_none"),
        (awkward.Array([{"pt": 1.0}]), r"x has the fields \['pt'\]: pass one"),
        (np.ma.masked_array([1.0, 2.0], [False, True]), r"x\[1\] is masked"),
        (pandas.Series([1.0, None]), r"x\[1\] is nan"),
        (["1.0", "b"], "x must hold numbers only, without gaps: could not convert"),
        ([1.0, None], r"x\[1\] is nan"),
        ([1j], "x must hold numbers only, without gaps: they are complex"),
    ],
)
def test_what_is_not_a_column_is_a_sentence(value, message):
    with pytest.raises(ValueError, match=message):
        checks.finite("x", checks.array("x", value))
    with pytest.raises(ValueError, match=message):
        cuts.soft_cut(value, 1.0)
    with pytest.raises(ValueError, match=message):
        kde_counts(value, [0.0, 1.0], bandwidth=0.1)


def test_option_types_without_gaps_are_numbers():
    full = awkward.mask(awkward.Array([1.0, 2.0]), [True, True])
    np.testing.assert_array_equal(checks.array("x", full), [1.0, 2.0])
