"""The INFERNO problem against the exact likelihood, the published table, and finite differences."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import expon, norm

from nablab.data import toys
from nablab.train import inferno, objectives

# arXiv:1806.04743: analytical likelihood and optimal classifier, both computed without sampling
# (the printed rows are 14.71 15.52 15.65 15.62 16.89 and 14.97 19.12 24.93 22.13 27.98), and the
# standard deviation of the classifier's row for 100,000 + 100,000 events.
EXACT = np.array([14.705, 15.503, 15.634, 15.605, 16.877])
OPTIMAL = np.array([14.993, 19.371, 24.784, 22.203, 28.136])
SCATTER = np.array([0.051, 0.236, 0.466, 0.248, 0.542])
STORED = Path(__file__).parent / "benchmarks" / "inferno.json"


def densities(x, shift=0.0, rate=3.0):
    """Signal and background density at points [..., 3]."""
    signal = norm.pdf(x[0]) * norm.pdf(x[1]) * expon.pdf(x[2], scale=1 / 2)
    background = (
        norm.pdf(x[0], 2 + shift, np.sqrt(5)) * norm.pdf(x[1], 0, 3)
        * expon.pdf(x[2], scale=1 / rate)
    )  # fmt: skip
    return signal, background


def signal_probability(x):
    signal, background = densities(np.asarray(x).T)
    return jnp.asarray(signal / (signal + background))


def test_bound_of_the_exact_likelihood():
    """Each point of a fine grid is a bin: no summary of the events can do better."""
    nodes, node_weights = np.polynomial.legendre.leggauss(60)
    ranges = [(-14, 18), (-20, 20), (0, 12)]
    axes = [(low + high) / 2 + (high - low) / 2 * nodes for low, high in ranges]
    widths = [(high - low) / 2 * node_weights for low, high in ranges]
    x = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    volume = np.einsum("i,j,k->ijk", *widths).ravel()
    signal, background = densities(x)
    assert volume @ signal == pytest.approx(1, abs=1e-6)
    assert volume @ background == pytest.approx(1, abs=1e-6)
    slopes = {
        "signal": signal,
        "background": background,
        "shift": 1000 * background * (x[0] - 2) / 5,
        "rate": 1000 * background * (1 / 3 - x[2]),
    }
    for widths, exact in zip(inferno.BENCHMARKS, EXACT, strict=True):
        rows = jnp.array([slopes[name] for name in ("signal", *widths)]) * volume
        counts = jnp.array((50 * signal + 1000 * background) * volume)
        variance = objectives.poi_variance(
            counts, rows, widths=np.array([np.inf, *widths.values()])
        )
        assert float(jnp.sqrt(variance)) == pytest.approx(exact, abs=0.002)


@pytest.mark.parametrize(("seed", "number"), [(47, 2_000_000), (37, 100_000)])
def test_optimal_classifier(seed, number):
    sample = toys.inferno(number, key=jax.random.key(seed))
    found = inferno.uncertainties(inferno.probability_bins(signal_probability), sample)
    assert np.all(np.abs(found - OPTIMAL) < 3 * SCATTER * np.sqrt(1e5 / number))
    assert np.all(found > EXACT)


def shares(x):
    """A small smooth summary with six bins, in double precision."""
    weights = jnp.cos(jnp.arange(18.0).reshape(3, 6))
    return x @ weights


@pytest.mark.parametrize("benchmark", range(5))
def test_loss_is_the_inverse_of_the_fisher_information(benchmark):
    """With slopes by finite differences of the moved events, and NumPy's own inverse."""
    sample = toys.inferno(400, key=jax.random.key(benchmark))

    def counts(theta):
        def mean_shares(x):
            outputs = np.asarray(shares(x)) / 0.1
            exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            return (exponentials / exponentials.sum(axis=1, keepdims=True)).mean(axis=0)

        s, shift, rate, b = theta
        moved = np.array(sample["background"]) + np.array([shift, 0, 0])
        moved[:, 2] *= 3 / rate
        return s * mean_shares(np.array(sample["signal"])) + b * mean_shares(moved)

    theta = np.array([50.0, 0.0, 3.0, 1000.0])
    steps = 1e-4 * np.eye(4)
    slopes = np.array([(counts(theta + d) - counts(theta - d)) / 2e-4 for d in steps])
    widths = [np.inf, np.inf, np.inf, np.inf]
    if benchmark >= 3:
        widths = [np.inf, 0.4, 1.0, 100.0]
    free = {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[benchmark]
    fisher = (slopes / counts(theta)) @ slopes.T + np.diag(1 / np.square(widths))
    variance = np.linalg.inv(fisher[np.ix_(free, free)])[0, 0]
    loss = jax.jit(inferno.objective(lambda scale, x: scale * shares(x), benchmark))
    assert float(loss(1.0, sample)) == pytest.approx(variance, rel=1e-6)
    slope = jax.jit(jax.grad(loss))(1.0, sample)
    difference = (loss(1 + 1e-5, sample) - loss(1 - 1e-5, sample)) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)


def test_per_luminosity():
    """A sample in which each event stands twice gives the same number."""
    sample = toys.inferno(300, key=jax.random.key(1))
    twice = {name: jnp.concatenate([x, x]) for name, x in sample.items()}
    for loss in (inferno.objective(lambda p, x: shares(x), 4), inferno.cross_entropy(two_outputs)):
        assert float(loss(0.0, twice)) == pytest.approx(float(loss(0.0, sample)), rel=1e-12)


def two_outputs(params, x):
    return jnp.stack([jnp.zeros(len(x)), x[:, 0]], axis=1)


def test_cross_entropy_knows_which_output_is_signal():
    sample = toys.inferno(500, key=jax.random.key(2))
    loss = float(inferno.cross_entropy(two_outputs)(0.0, sample))
    signal, background = (np.asarray(sample[name])[:, 0] for name in ("signal", "background"))
    expected = np.log1p(np.exp(-signal)).mean() / 2 + np.log1p(np.exp(background)).mean() / 2
    assert loss == pytest.approx(expected, rel=1e-12)


def test_bins_without_signal_or_background_are_left_out():
    sample = toys.inferno(2000, key=jax.random.key(3))

    def in_two_of_ten(x):
        return jnp.where(x[:, 0] > 1.0, 2, 7)

    found = inferno.uncertainties(in_two_of_ten, sample)
    without_signal = inferno.uncertainties(
        lambda x: jnp.where(x[:, 0] > 12.0, 5, in_two_of_ten(x)), sample
    )
    assert np.isfinite(found[:2]).all()
    np.testing.assert_allclose(found, without_signal, rtol=1e-2)
    np.testing.assert_array_equal(
        inferno.probability_bins(lambda x: x)(jnp.array([0.0, 0.0999, 0.1, 0.55, 1.0])),
        [0, 0, 1, 5, 9],
    )


def stored(sample):
    """Uncertainties [seeds, benchmarks] of each loss, from ``make inferno``."""
    rows = json.loads(STORED.read_text(encoding="utf-8"))["trainings"]
    losses = ["classifier", *(f"INFERNO {k}" for k in range(5))]
    found = {
        loss: np.array([row[sample] for row in rows if row["loss"] == loss]) for loss in losses
    }
    assert all(values.shape == (5, 5) for values in found.values())
    return found


def test_stored_classifier_is_the_published_one():
    """Medians of five seeds, in the bands that sampling allows."""
    bands = [(14.9, 15.1), (18.7, 19.6), (23.2, 25.3), (21.2, 22.7), (26.0, 28.8)]
    medians = np.median(stored("validation")["classifier"], axis=0)
    for median, (low, high) in zip(medians, bands, strict=True):
        assert low < median < high


def test_stored_trainings_are_the_published_ones():
    """On the larger sample: that of the paper adds 0.3 % to 2 % of its own."""
    table = stored("test")
    for benchmark, published in enumerate([15.51, 16.79, 16.95, 16.89, 18.68]):
        matched = table[f"INFERNO {benchmark}"][:, benchmark]
        assert 0.99 * published < np.median(matched) < 1.015 * published
        assert np.all(matched < 1.04 * published)
    for sample in ("validation", "test"):
        assert all(np.all(values > EXACT) for values in stored(sample).values())


def test_stored_table_has_the_published_structure():
    table = stored("test")
    medians = {loss: np.median(values, axis=0) for loss, values in table.items()}
    assert medians["INFERNO 2"][2] / medians["classifier"][2] == pytest.approx(0.71, abs=0.03)
    # Those that know both shapes agree wherever one of them floats ...
    with_both = np.array([medians[f"INFERNO {k}"][1:] for k in (2, 3, 4)])
    assert np.all(np.ptp(with_both, axis=0) < 0.01 * with_both.mean(axis=0))
    # ... and the one that knows neither depends on its seed.
    assert np.all(table["INFERNO 0"][:, 1:].std(axis=0) > 0.01 * medians["INFERNO 0"][1:])
