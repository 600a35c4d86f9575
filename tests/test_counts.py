"""Counts through hist and back; a gradient that is sliced, rebinned and summed as a histogram."""

import boost_histogram
import hist
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.relax.counts import Counts
from nablab.relax.estimators import BLOCK, gradient_counts
from nablab.relax.histograms import kde_counts
from nablab.relax.histograms2d import kde_counts_2d

EDGES = np.array([-2.0, -1.0, -0.5, 0.0, 0.7, 1.0, 2.0])
EVENTS = np.random.default_rng(0).normal(size=BLOCK + 50)


def shifted_counts(parameters, x):
    return kde_counts(parameters["mean"] + parameters["width"] * x, EDGES, bandwidth=0.3)


PARAMETERS = {"mean": 0.1, "width": 1.2}


def jacobian_of(summary):
    """Derivatives of something made of the counts, one for each parameter."""
    return jax.jacrev(lambda p: summary(shifted_counts(p, jnp.array(EVENTS)).values))(PARAMETERS)


@pytest.fixture(scope="module")
def gradients():
    return gradient_counts(shifted_counts, PARAMETERS, EVENTS)


@pytest.fixture(scope="module")
def histograms(gradients):
    return {name: gradient.to_hist(name="mass") for name, gradient in gradients.items()}


def test_there_and_back_in_one_dimension():
    counts = Counts(jnp.array([1.0, -2.5, 3.0]), jnp.array([0.5, 0.0, 2.0]), EDGES[:4])
    histogram = counts.to_hist(name="mass", label="signal")
    assert histogram.axes[0].name == "mass" and histogram.label == "signal"
    assert histogram.storage_type is hist.storage.Weight
    again = Counts.from_hist(histogram)
    np.testing.assert_array_equal(again.values, counts.values)
    np.testing.assert_array_equal(again.variances, counts.variances)
    np.testing.assert_array_equal(again.edges, EDGES[:4])


def test_there_and_back_in_two_dimensions():
    x, y = np.random.default_rng(1).normal(size=(2, 30))
    counts = kde_counts_2d(x, y, EDGES, EDGES[:4], bandwidths=[0.3, 0.4])
    histogram = counts.to_hist(name=("a", "b"))
    assert [axis.name for axis in histogram.axes] == ["a", "b"]
    again = Counts.from_hist(histogram)
    np.testing.assert_array_equal(again.values, counts.values)
    np.testing.assert_array_equal(again.variances, counts.variances)
    np.testing.assert_array_equal(again.edges[0], EDGES)
    np.testing.assert_array_equal(again.edges[1], EDGES[:4])
    over_y = Counts.from_hist(histogram[:, sum])
    np.testing.assert_allclose(over_y.values, counts.values.sum(axis=1), rtol=1e-14)
    assert [axis.name for axis in counts.to_hist(name="p").axes] == ["p_x", "p_y"]


class UprootLike:
    """Edges and variances by methods, always with underflow and overflow, like a ROOT file's."""

    def __init__(self, values, edges):
        self.with_flow, self._edges, self.axes = np.array(values), edges, [self]

    def edges(self):
        return self._edges

    def values(self, flow=False):
        return self.with_flow if flow else self.with_flow[1:-1]

    variances = values


def test_other_libraries_are_read():
    filled = boost_histogram.Histogram(
        boost_histogram.axis.Regular(4, -1, 1), storage=boost_histogram.storage.Weight()
    )
    filled.fill([-0.9, 0.1, 0.2, 0.9], weight=[1.0, 2.0, 3.0, -1.0])
    counts = Counts.from_hist(filled)
    np.testing.assert_array_equal(counts.values, [1, 0, 5, -1])
    np.testing.assert_array_equal(counts.variances, [1, 0, 13, 1])
    np.testing.assert_array_equal(counts.edges, [-1, -0.5, 0, 0.5, 1])
    counts = Counts.from_hist(UprootLike([0.0, 3.0, 4.0, 0.0], [0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(counts.values, [3.0, 4.0])
    np.testing.assert_array_equal(counts.edges, [0.0, 1.0, 2.0])


@pytest.mark.parametrize("flow", [{}, {"underflow": False}, {"overflow": False}])
def test_flow_is_folded_or_an_error(flow):
    axis = hist.axis.Variable([0.0, 1.0, 2.0, 3.0], **flow)
    filled = hist.Hist(axis, storage=hist.storage.Weight())
    filled.fill([-1.0, 0.5, 1.5, 1.6, 7.0, 8.0], weight=[2.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    if flow != {"overflow": False}:  # here +1 and -1 cancel in the values, not in the variances
        with pytest.raises(ValueError, match=r"variances in underflow or overflow|values in under"):
            Counts.from_hist(filled)
    counts = Counts.from_hist(filled, fold_tails=True)
    low = 0.0 if "underflow" in flow else 2.0
    high = 0.0 if "overflow" in flow else 2.0
    np.testing.assert_array_equal(counts.values, [1.0 + low, 2.0, 0.0])
    np.testing.assert_array_equal(counts.variances, [1.0 + 2 * low, 2.0, high])


def test_flow_is_folded_in_two_dimensions():
    axes = [hist.axis.Regular(2, 0, 2), hist.axis.Regular(3, 0, 3)]
    filled = hist.Hist(*axes, storage=hist.storage.Weight())
    filled.fill([-1.0, 0.5, 5.0], [9.0, -2.0, 1.5])
    counts = Counts.from_hist(filled, fold_tails=True)
    np.testing.assert_array_equal(counts.values, [[1, 0, 1], [0, 1, 0]])


def test_gradient_is_the_jacobian_and_its_variance_the_sum_of_squares(gradients):
    expected = jacobian_of(lambda values: values)

    def of_one(p, x):
        return shifted_counts(p, x[None]).values

    each = jax.vmap(jax.jacrev(of_one), in_axes=(None, 0))(PARAMETERS, jnp.array(EVENTS))
    for name in PARAMETERS:
        np.testing.assert_allclose(gradients[name].values, expected[name], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(gradients[name].variances, (each[name] ** 2).sum(0), rtol=1e-11)
        assert np.any(gradients[name].values < -1) and np.any(gradients[name].values > 1)


def test_gradient_variance_is_that_of_many_samples():
    """Poisson-distributed numbers of events: the variance of a sum is the sum of squares."""

    def gradient_of(x):
        return gradient_counts(lambda m, x: kde_counts(m + x, EDGES, bandwidth=0.3), 0.0, x)

    samples = jax.random.normal(jax.random.key(1), (2000, 40))
    fixed_number = jax.jit(jax.vmap(gradient_of))(samples)
    # With a fixed number of events the mean of one event's share is not part of the spread.
    expected = fixed_number.variances.mean(axis=0) - fixed_number.values.mean(axis=0) ** 2 / 40
    np.testing.assert_allclose(fixed_number.values.var(axis=0), expected, rtol=0.15)


SUMMARIES = {
    "rebinned": (lambda h: h[:: hist.rebin(2)].values(), lambda v: v.reshape(3, 2).sum(axis=1)),
    "summed": (lambda h: h[sum].value, jnp.sum),
    "sliced": (lambda h: h[hist.loc(-1.0) : hist.loc(1.0)].values(), lambda v: v[1:5]),
    "window": (lambda h: h[hist.loc(-1.0) : hist.loc(0.7) : sum].value, lambda v: v[1:4].sum()),
    "both": (
        lambda h: h[hist.loc(-1.0) : hist.loc(1.0) : hist.rebin(2)].values(),
        lambda v: v[1:5].reshape(2, 2).sum(axis=1),
    ),
}


@pytest.mark.parametrize("summary", SUMMARIES)
def test_operations_on_the_gradient_histogram_are_gradients(summary, histograms):
    of_histogram, of_counts = SUMMARIES[summary]
    for name, expected in jacobian_of(of_counts).items():
        np.testing.assert_allclose(of_histogram(histograms[name]), expected, rtol=1e-11)


def test_to_hist_says_that_its_variances_do_not_add_up(gradients, histograms):
    """hist adds the variances of merged bins; those of a gradient are far from independent."""
    rebinned = Counts.from_hist(histograms["mean"][:: hist.rebin(3)])
    np.testing.assert_array_equal(rebinned.edges, EDGES[::3])

    def wide(parameters, x):
        x = parameters["mean"] + parameters["width"] * x
        return kde_counts(x, EDGES[::3], bandwidth=0.3)

    right = gradient_counts(wide, PARAMETERS, EVENTS)["mean"]
    np.testing.assert_allclose(rebinned.values, right.values, rtol=1e-11)
    assert np.all(rebinned.variances > 2 * np.asarray(right.variances))
    assert "nablab.relax.covariance" in Counts.to_hist.__doc__


def test_array_of_parameters_and_two_dimensions():
    x, y = np.random.default_rng(2).normal(size=(2, 20))

    def counts(shift, events):
        x, y = events
        return kde_counts_2d(x + shift[0], y + shift[1], EDGES, EDGES[:4], bandwidths=[0.3, 0.4])

    shift = jnp.array([0.1, -0.2])
    gradient = jax.jit(gradient_counts, static_argnums=0)(counts, shift, (x, y))
    expected = jax.jacrev(lambda shift: counts(shift, (x, y)).values)(shift)
    assert gradient.values.shape == (2, 6, 3)
    np.testing.assert_allclose(gradient.values, np.moveaxis(expected, -1, 0), atol=1e-13)
    one = gradient._replace(values=gradient.values[1], variances=gradient.variances[1]).to_hist()
    np.testing.assert_allclose(one[sum, :].values(), expected[..., 1].sum(axis=0), atol=1e-13)


def test_gradient_of_no_events_is_zero():
    gradient = gradient_counts(shifted_counts, PARAMETERS, np.zeros(0))["mean"]
    np.testing.assert_array_equal(gradient.values, np.zeros(6))
    np.testing.assert_array_equal(gradient.variances, np.zeros(6))


def test_bad_input_is_named():
    counts = Counts(jnp.ones(3), jnp.ones(3), EDGES[:4])
    with pytest.raises(ValueError, match=r"^edges are not known"):
        counts._replace(edges=None).to_hist()
    with pytest.raises(ValueError, match=r"^values must have the shape \(2,\) of the bins"):
        counts._replace(edges=EDGES[:3]).to_hist()
    with pytest.raises(ValueError, match=r"edges must increase: edges\[0\]"):
        counts._replace(edges=EDGES[3::-1]).to_hist()
    with pytest.raises(ValueError, match="name must be one for each of the 1 axes"):
        counts.to_hist(name=("a", "b"))
    unweighted = hist.Hist(hist.axis.Regular(2, 0, 1)).fill([0.1, 0.7], weight=[1.0, 2.0])
    with pytest.raises(ValueError, match="histogram has no variances"):
        Counts.from_hist(unweighted)
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        Counts.from_hist(UprootLike([0.0, np.nan, 0.0, 0.0], [0.0, 1.0, 2.0]))


@pytest.mark.parametrize("storage", [hist.storage.Mean(), hist.storage.WeightedMean()])
def test_means_are_not_counts(storage):
    profile = hist.Hist(hist.axis.Regular(2, 0, 2), storage=storage)
    profile.fill([0.5, 0.5, 1.5, 1.5], sample=[2.0, 3.0, 4.0, 5.0])
    name = type(storage).__name__
    with pytest.raises(ValueError, match=rf"^histogram has {name} storage, .*means.*Weight"):
        Counts.from_hist(profile)


def test_a_tuple_is_not_a_histogram():
    filled = hist.Hist(hist.axis.Regular(2, 0, 2)).fill([0.5])
    with pytest.raises(ValueError, match=r"^histogram is a tuple, such as to_numpy\(\)"):
        Counts.from_hist(filled.to_numpy())


def test_categories_keep_their_names():
    axes = hist.axis.StrCategory(["SR", "CR"], name="region"), hist.axis.Regular(2, 0, 2)
    filled = hist.Hist(*axes, storage=hist.storage.Weight())
    filled.fill(["SR", "CR", "SR"], [0.5, 1.5, 7.0])
    counts = Counts.from_hist(filled, fold_tails=True)
    assert counts.edges[0] == ("SR", "CR")
    np.testing.assert_array_equal(counts.values, [[1, 1], [0, 1]])
    again = counts.to_hist(name=("region", "x"))
    assert again["CR", :].values().tolist() == [0, 1] and again.axes[0].name == "region"
    assert Counts.from_hist(again).edges[0] == ("SR", "CR")
    alone = Counts.from_hist(filled[:, sum])
    assert alone.edges == ("SR", "CR") and alone.to_hist()["SR"].value == 2
    with pytest.raises(ValueError, match="edges must be different names"):
        alone._replace(edges=("SR", "SR")).to_hist()


def test_what_is_in_no_bin_is_not_folded_into_the_last_one():
    named = hist.Hist(hist.axis.StrCategory(["SR", "CR"]), storage=hist.storage.Weight())
    circle = hist.Hist(hist.axis.Regular(2, 0, 2, circular=True), storage=hist.storage.Weight())
    for filled, values in ((named, ["SR", "other"]), (circle, [0.5, np.nan])):
        with pytest.raises(
            ValueError, match=r"in underflow or overflow of axis 0.*none of its bins"
        ):
            Counts.from_hist(filled.fill(values), fold_tails=True)
