"""Notebook 10: its stored trainings belong to its cells, and its metrics are the published ones."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import arena_training  # noqa: E402

STORED = json.loads((BENCHMARKS / "arena.json").read_text(encoding="utf-8"))
# What no observable can beat: 20 signal and 100 background events, unbinned, no systematics.
BOUNDS = {"CLs": 2.876e-7, "p0": 3.2e-21, "sigma_mu": 0.25589}


@pytest.fixture(scope="module")
def page():
    """What the notebook's cells define, the samples and the trainings' results left out."""
    names = {}
    code = arena_training.sources()
    wanted = ["imports", *arena_training.DEFINITIONS, "landscape", "best-guess", "guesses"]
    for cell in [*wanted, "on-landscape"]:
        exec(code[cell], names)
    return names


def of_competitor(name, batch=1000):
    """Metrics of each seed: {metric: [seeds]}."""
    rows = [
        row["metrics"]
        for row in STORED["trainings"]
        if (row["competitor"], row["batch"]) == (name, batch)
    ]
    return {metric: np.array([row[metric] for row in rows]) for metric in rows[0]}


def test_stored_trainings_are_those_of_the_page(page):
    now = {
        "trainings": arena_training.fingerprint(arena_training.DEFINITIONS),
        "bayes": arena_training.fingerprint(arena_training.BOXES),
    }
    assert STORED["fingerprints"] == now, "the cells have changed: call `make arena`"
    found = {(row["competitor"], row["batch"], row["seed"]) for row in STORED["trainings"]}
    wanted = {(name, 1000, seed) for name in page["COMPETITORS"] for seed in range(5)}
    wanted |= {(name, 50, seed) for name in ("cross-entropy", "CLs") for seed in range(5)}
    assert found == wanted
    assert len(STORED["trainings"]) == len(wanted)


def test_stored_metrics_follow_from_the_stored_histograms(page):
    for row in STORED["trainings"]:
        counts = {name: np.array(values) for name, values in row["histograms"].items()}
        assert {name: len(values) for name, values in counts.items()} == dict.fromkeys(counts, 4)
        for name, values in counts.items():
            assert values.sum() == pytest.approx(page["EXPECTED"][name], rel=1e-9)
        again = arena_training.metrics(page, row["histograms"])
        assert again == pytest.approx(row["metrics"], rel=1e-5)


def test_nothing_is_below_the_bounds():
    for row in STORED["trainings"]:
        for metric, bound in BOUNDS.items():
            assert row["metrics"][metric] > bound, (row["competitor"], row["seed"], metric)
        assert 0 < row["metrics"]["sigma_alpha"] <= 1


def test_each_inference_aware_objective_wins_on_its_own_metric():
    names = {row["competitor"] for row in STORED["trainings"]}
    for own in ("CLs", "p0", "sigma_mu", "upper limit"):
        medians = {name: np.median(of_competitor(name)[own]) for name in names}
        assert min(medians, key=medians.get) == own


def test_factors_over_the_classifiers():
    """Published: CLs at least 3 times below classifiers; p0-trained below 1e-7, they above 5e-3."""
    trained = of_competitor("CLs")["CLs"]
    assert np.median(trained) < 1e-6
    for name in ("cross-entropy", "with variations"):
        assert np.median(of_competitor(name)["CLs"]) > 8 * np.median(trained)
    assert np.median(of_competitor("sigma_mu")["sigma_mu"]) < 0.27
    assert np.median(of_competitor("p0")["p0"]) < 1e-7
    assert np.median(of_competitor("cross-entropy")["p0"]) > 5e-3


# The two-bin landscape of the thesis behind neos, pyhf's default interpolation (code4p): CLs and p0
# with global profiles over alpha, sigma_mu and 1 / det of the information at mu = 1 and alpha = 0.
TWO_BINS = {
    (0, 0): (0.107956, 0.048812, 0.64043, 0.4101),
    (5, 5): (0.110296, 0.048812, 0.64043, 0.4101),
    (-5, -5): (0.107956, 0.051343, 0.64043, 0.4101),
    (10, 10): (0.116714, 0.048812, 0.64043, 0.4101),
    (-10, -10): (0.107956, 0.054650, 0.64043, 0.4101),
    (10, -10): (0.122635, 0.057341, 0.66537, 0.0993),
    (-10, 10): (0.122635, 0.057341, 0.66537, 0.0993),
    (5, -5): (0.116074, 0.054206, 0.65499, 0.2301),
    (10, 0): (0.119909, 0.051827, 0.65499, 0.2301),
    (0, 10): (0.119909, 0.051827, 0.65499, 0.2301),
    (-10, 0): (0.112545, 0.056125, 0.65499, 0.2301),
}


@pytest.mark.parametrize("metric", ["CLs", "p0", "sigma_mu", "generalised variance", "CLs + p0"])
def test_two_bin_landscape(page, metric):
    of_point = jax.jit(lambda u, d: page["METRICS"][metric](page["landscape"](u, d)))
    for (u, d), (cls, p0, sigma_mu, volume) in TWO_BINS.items():
        published = {
            "CLs": np.log(cls),
            "p0": np.log(p0),
            "sigma_mu": sigma_mu,
            "generalised variance": np.log(volume),
            "CLs + p0": (np.log(cls) + np.log(p0)) / 2,
        }[metric]
        assert float(of_point(float(u), float(d))) == pytest.approx(published, abs=5e-4), (u, d)


def test_upper_limit_on_the_landscape(page):
    """Brute force: the strength at which CLs, alpha scanned, is 0.05."""
    h = page["landscape"](7.0, -4.0)
    limit = float(jnp.exp(page["METRICS"]["upper limit"](h)))
    alphas = np.linspace(-5, 5, 20_001)
    found = page["likelihood"](h)
    data = found.expected_data(found.parameters(0.0))
    at = np.tile(found.parameters(limit), (len(alphas), 1))
    at[:, 1 - found.poi_index] = alphas
    q = jax.vmap(found.deviance, in_axes=(0, None))(jnp.array(at), data).min()
    assert 2 * norm.sf(np.sqrt(q)) == pytest.approx(0.05, rel=1e-5)


def test_best_guess_is_the_least_cross_entropy(page):
    """Against a minimisation over all answers, one for each bin."""
    rng = np.random.default_rng(3)
    signal, background = rng.uniform(1, 9, (2, 5))

    def loss(answers):
        shares = signal / signal.sum(), background / background.sum()
        return (shares[0] @ np.log1p(np.exp(-answers)) + shares[1] @ np.log1p(np.exp(answers))) / 2

    best = np.log(signal / signal.sum() / (background / background.sum()))
    entropy = float(page["best_guess"](jnp.array(signal), jnp.array(background)))
    assert entropy == pytest.approx(loss(best), rel=1e-12)
    assert all(loss(best + rng.normal(0, 0.1, 5)) > entropy for _ in range(20))


def test_flat_and_tilted_landscapes(page):
    """Who does not look at the variations sees no landscape; others see what they were told."""
    value = {
        name: lambda u, d, f=f: float(f(page["landscape"](u, d)))
        for name, f in page["METRICS"].items()
    }
    for name in ("cross-entropy", "s / sqrt(b)", "Asimov Z"):
        assert value[name](9.0, -3.0) == pytest.approx(value[name](0.0, 0.0), rel=1e-12)
    for name in ("with adversary", "Asimov Z, sigma_b"):
        assert value[name](9.0, -3.0) > value[name](0.0, 0.0)
    assert value["with penalty"](6.0, 6.0) == pytest.approx(value["with penalty"](0.0, 0.0))
    assert value["with penalty"](6.0, 5.0) > value["with penalty"](6.0, 6.0)
    # The background of both variations leaves the bin of the signal.
    assert value["with variations"](9.0, 9.0) < value["with variations"](0.0, 0.0)


def test_records_of_bayesian_optimisation():
    assert [row["cuts"] for row in STORED["bayes"]] == [1, 5, 20]
    best = {1: 2.85, 5: 2.50, 20: 4.60}
    for row in STORED["bayes"]:
        records = np.array(row["significance"])
        assert records.shape == (3, 40)
        assert np.all((records >= 0) & (records < 1.005 * best[row["cuts"]]))


def test_file_is_small():
    assert (BENCHMARKS / "arena.json").stat().st_size <= 300_000
