"""What takes too long for notebook 10: every objective on the problem of neos, five seeds each.

``make arena`` trains what the notebook defines: it runs the notebook's own cells up to the
competitors, so that page and table cannot differ. It also plays the tournament of the second
part. After every piece the results go to ``arena.json`` beside this file, and after an
interruption it goes on from there; a change of those cells starts it anew. The notebook shows the
results.
"""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import page_cells

NOTEBOOK = Path(__file__).parents[2] / "nbs" / "10_arena.ipynb"
RESULTS = Path(__file__).with_name("arena.json")
DEFINITIONS = (
    "samples", "start", "logits", "histograms", "likelihood", "classifiers", "penalty",
    "adversary", "formulae", "formula-uncertain", "on-bins", "on-model", "guarded", "over-prior",
    "objectives", "competitors", "adam", "train", "judge", "judge-parts", "edges",
)  # fmt: skip
BOXES = (
    "boxes-sample", "boxes-significance", "boxes-weights", "boxes-soft", "boxes-truth",
    "boxes-best", "players-simple", "players-simplex", "players-evolution", "players-bayes",
    "players", "play", "so-far", "gradient-steps", "gradient-player", "tournament",
)  # fmt: skip
SEEDS, BATCH, SMALL_BATCH = range(5), 1000, 50
# After how many evaluations the curve of a game is stored, and what counts as having arrived.
MARKS = [1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 55, 75, 100, 140, 200, 300, 400, 550, 750, 1000]
WANTED = 0.95
# The decision map of the first seed: points along each side, from -6 to 6 as in the pictures.
MAP_POINTS = 41
PACKAGES = ("jax", "optax", "flax", "numpy", "scipy", "bayesian-optimization")


def sources() -> dict[str, str]:
    """The code of the notebook's cells by their names."""
    return page_cells.sources(NOTEBOOK)


def fingerprint(cells) -> str:
    """Of all that defines the trainings and their judgement, or the black boxes."""
    return page_cells.fingerprint(NOTEBOOK, cells)


def page(cells) -> dict:
    """What those cells of the notebook define."""
    return page_cells.defined(NOTEBOOK, cells)


def histograms(names, params, *edges):
    """Expected events; four decimals are exact for the numbers of held-out events."""
    found = names["hard_bins"](params, names["held_out"], *edges)
    return {name: np.round(np.asarray(counts), 4).tolist() for name, counts in found.items()}


def metrics(names, found):
    values = names["judged"]({name: jnp.array(counts) for name, counts in found.items()})
    return {name: float(f"{value:.7g}") for name, value in values.items()}


def decision_map(names, params):
    """The observable in per cent on a square of the two features, row by row."""
    side = jnp.linspace(-6, 6, MAP_POINTS)
    points = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    (logits,) = names["logits"](params, {"map": points}).values()
    return np.round(100 / (1 + np.exp(-np.asarray(logits)))).astype(int).tolist()


def compete(names, competitor, batch):
    """The trainings of one competitor, a row for each seed, and their processor seconds."""
    began = time.process_time()
    trained = names["compete"](competitor, list(SEEDS), batch)
    seconds = time.process_time() - began
    rows = []
    for seed, by_step in zip(SEEDS, trained, strict=True):
        found = histograms(names, by_step[names["STEPS"]])
        row = {"competitor": competitor, "batch": batch, "seed": seed}
        row |= {"metrics": metrics(names, found), "histograms": found}
        row["watched_steps"] = list(by_step)
        row["watched_cls"] = [
            float(f"{names['cls_of'](names['hard_bins'](params, names['watch'])):.3g}")
            for params in by_step.values()
        ]
        if seed == SEEDS[0] and batch == BATCH:
            row["map"] = decision_map(names, by_step[names["STEPS"]])
        rows.append(row | {"cpu_seconds": round(seconds / len(SEEDS), 2)})
        if competitor in names["SCANNED"] and batch == BATCH:
            rows.append(with_edges(names, row, by_step[names["STEPS"]]))
    return rows


def with_edges(names, row, params):
    """The same network with the best of the random bin edges."""
    edges = names["best_edges"](params)
    found = histograms(names, params, edges)
    named = {"competitor": f"{row['competitor']} + edges", "batch": row["batch"]}
    named |= {"seed": row["seed"], "edges": [float(f"{edge:.7g}") for edge in edges]}
    return named | {"metrics": metrics(names, found), "histograms": found}


def store(results):
    """One line for each training."""
    head = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, JAX on the CPU",
        "versions": {name: version(name) for name in PACKAGES},
        "map_points": MAP_POINTS,
        "marks": MARKS,
    }
    head |= {"fingerprints": {"trainings": fingerprint(DEFINITIONS), "games": fingerprint(BOXES)}}
    page_cells.store(RESULTS, head, {key: results[key] for key in ("trainings", "games")})


def from_before():
    """What an earlier call has found for the same definitions."""
    stored = (
        json.loads(RESULTS.read_text(encoding="utf-8"))
        if RESULTS.exists()
        else {"fingerprints": {}}
    )
    now = {"trainings": fingerprint(DEFINITIONS), "games": fingerprint(BOXES)}
    return {
        key: stored[key] if stored["fingerprints"].get(key) == mark else []
        for key, mark in now.items()
    }


def train_all(results, began):
    names = page(DEFINITIONS)
    wanted = [(name, BATCH) for name in names["COMPETITORS"]]
    wanted += [(name, SMALL_BATCH) for name in ("cross-entropy", "CLs")]
    have = {(row["competitor"], row["batch"]) for row in results["trainings"]}
    print(f"{len(have)} of {len(wanted)} competitors are there already", flush=True)
    for competitor, batch in wanted:
        if (competitor, batch) not in have:
            found = compete(names, competitor, batch)
            results["trainings"] += found
            store(results)
            cls = " ".join(f"{row['metrics']['CLs']:.1e}" for row in found)
            report(began, f"{competitor:24} batch {batch:4d}, CLs {cls}")


def play_all(results, began):
    """The true significance of the best cuts so far, as a share of the best possible one."""
    names = page(BOXES)
    have = {(game["cuts"], game["player"]) for game in results["games"]}
    for cuts, best in names["best"].items():
        for player, game in names["games"](cuts).items():
            if (cuts, player) in have:
                continue
            shares = np.array([game(sample) for sample in range(names["SAMPLES"])]) / best
            arrived = [np.flatnonzero(share >= WANTED) for share in shares]
            row = {"cuts": cuts, "player": player}
            row["needed"] = [int(when[0]) + 1 if when.size else None for when in arrived]
            row["shares"] = np.round(shares[:, np.array(MARKS) - 1], 3).tolist()
            results["games"].append(row)
            store(results)
            report(began, f"{cuts} cuts, {player}: ends at {np.median(shares[:, -1]):.3f}")


def report(began, text):
    print(f"{(time.monotonic() - began) / 60:5.1f} min  {text}", flush=True)


def main():
    results, began = from_before(), time.monotonic()
    train_all(results, began)
    play_all(results, began)


if __name__ == "__main__":
    main()
