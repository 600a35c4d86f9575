"""Notebook 10: its stored trainings belong to its cells, and its metrics are the published ones."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
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
        "games": arena_training.fingerprint(arena_training.BOXES),
    }
    assert STORED["fingerprints"] == now, "the cells have changed: call `make arena`"
    found = {(row["competitor"], row["batch"], row["seed"]) for row in STORED["trainings"]}
    wanted = {(name, 1000, seed) for name in page["COMPETITORS"] for seed in range(5)}
    wanted |= {(name, 50, seed) for name in ("cross-entropy", "CLs") for seed in range(5)}
    wanted |= {(f"{name} + edges", 1000, seed) for name in page["SCANNED"] for seed in range(5)}
    assert found == wanted
    assert len(STORED["trainings"]) == len(wanted)


def test_stored_metrics_follow_from_the_stored_histograms(page):
    for row in STORED["trainings"]:
        counts = {name: np.array(values) for name, values in row["histograms"].items()}
        assert {name: len(values) for name, values in counts.items()} == dict.fromkeys(counts, 4)
        for name, values in counts.items():
            assert values.sum() == pytest.approx(page["EXPECTED"][name], rel=1e-9)
        if row["seed"] == 0:
            again = arena_training.metrics(page, row["histograms"])
            assert again == pytest.approx(row["metrics"], rel=1e-5, abs=1e-9, nan_ok=True)


def test_nothing_is_below_the_bounds():
    for row in STORED["trainings"]:
        for metric, bound in BOUNDS.items():
            where = row["competitor"], row["seed"], metric
            unfitted = where[0] == "generalised variance" and np.isnan(row["metrics"][metric])
            assert unfitted or row["metrics"][metric] > bound, where
        assert 0 <= row["metrics"]["failed fits"] <= 1


def test_the_lowest_rate_against_a_scan(page):
    """Code 4p written out, at the same values of alpha."""
    for row in STORED["trainings"]:
        h = {name: np.array(values) for name, values in row["histograms"].items()}
        alpha = np.linspace(-1, 1, 81)[:, None]
        odd, even = (h["up"] - h["down"]) / 2, (h["up"] + h["down"]) / 16 - h["background"] / 8
        moved = alpha * odd + even * alpha**2 * (15 - 10 * alpha**2 + 3 * alpha**4)
        lowest = (h["background"] + moved).min()
        assert row["metrics"]["lowest rate"] == pytest.approx(lowest, rel=1e-6, abs=1e-9)


def test_cls_over_the_prior_against_scans(page):
    """Both fits by a scan of mu and alpha, for the first networks trained on CLs and on p0."""
    scans = np.linspace(-5, 5, 1001)
    for name in ("CLs", "Asimov Z, sigma_b"):
        row = next(row for row in STORED["trainings"] if row["competitor"] == name)
        found = page["likelihood"]({n: np.array(v) for n, v in row["histograms"].items()})
        alphas = np.array(page["spread"](41))
        theirs = np.median([scanned_cls(found, alpha, scans) for alpha in alphas[::4]])
        ours = np.median([float(page["cls_at"](found, a).observed) for a in alphas[::4]])
        assert ours == pytest.approx(theirs, rel=0.02)


def scanned_cls(found, alpha, scans):
    """Observed CLs of mu = 1, all fits by scans of alpha and, for the best, of mu."""
    at = 1 - found.poi_index
    seen = found.expected_main(found.parameters(0.0).at[at].set(alpha))
    data = jnp.append(jnp.maximum(seen, 0.0), 0.0)

    @jax.jit
    def deviance(mu, data):
        points = jnp.tile(found.parameters(mu), (len(scans), 1)).at[:, at].set(scans)
        return jax.vmap(found.deviance, in_axes=(0, None))(points, data)

    at_mu = {mu: deviance(mu, data) for mu in (0.0, 1.0)}
    best = min(float(deviance(mu, data).min()) for mu in np.linspace(0, 1, 201))
    q = max(float(at_mu[1.0].min()) - best, 0.0)
    fitted = float(scans[int(at_mu[0.0].argmin())])
    expected = found.expected_data(found.parameters(0.0).at[at].set(fitted))
    q_asimov = float(deviance(1.0, expected).min() - deviance(0.0, expected).min())
    if q > q_asimov:
        x = (q + q_asimov) / (2 * np.sqrt(q_asimov)), (q - q_asimov) / (2 * np.sqrt(q_asimov))
    else:
        x = np.sqrt(q), np.sqrt(q) - np.sqrt(q_asimov)
    return norm.sf(x[0]) / norm.sf(x[1])


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


def test_games_are_complete_and_below_the_best_possible():
    marks, seen = STORED["marks"], {}
    assert marks == arena_training.MARKS
    for game in STORED["games"]:
        shares = np.array(game["shares"])
        assert shares.shape == (8, len(marks)) and len(game["needed"]) == 8
        assert np.all((shares >= 0) & (shares < 1.005))
        seen.setdefault(game["cuts"], set()).add(game["player"])
        arrived = (shares >= arena_training.WANTED + 0.001).any(axis=1)
        assert all(needed for needed, there in zip(game["needed"], arrived, strict=True) if there)
    everybody = seen[5]
    assert seen == {1: everybody, 5: everybody, 20: everybody - {"scan", "Bayes"}}
    assert len(everybody) == 15


def test_file_is_small():
    assert (BENCHMARKS / "arena.json").stat().st_size <= 300_000


def test_answers_of_the_talk():
    """Its backup slides quote medians of what is stored, and what cells of notebook 11 print."""
    talk = nbformat.read(Path(__file__).parents[1] / "talk" / "talk.ipynb", as_version=4)
    said = " ".join(c.source for c in talk.cells if c.id.startswith("backup-questions"))

    def quoted(name, metric):
        mantissa, power = f"{np.median(of_competitor(name)[metric]):.1e}".split("e")
        return rf"${mantissa}\cdot10^{{{int(power)}}}$"

    for name in ("cross-entropy", "cross-entropy + edges", "with adversary + edges", "CLs"):
        assert quoted(name, "CLs") in said
    assert f"{np.median(of_competitor('CLs')['over the prior']):.2f} trained on CLs" in said
    limits = [np.median(of_competitor(n)["upper limit"]) for n in ("with adversary + edges", "CLs")]
    assert "{:.2f} for {:.2f}".format(*limits) in said.replace("\n", " ")
    assert f"{of_competitor('p0')['lowest rate'].min():.1f}" in said
    for player in ("gradient", "CMA-ES", "Powell"):
        (game,) = (
            g for g in STORED["games"] if (g["cuts"], g["player"]) == (20, f"{player}, slope 5")
        )
        assert f"{np.median(np.array(game['shares'])[:, -1]):.0%}".replace("%", " %") in said
        assert f"{np.median([n for n in game['needed'] if n]):.0f}" in said
