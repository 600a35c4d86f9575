"""What takes too long for notebook 12: its cross-fitted trainings for eight ways to form the folds.

``make open-data`` runs the notebook's own cells and stores what its ``results_of`` returns, so that
page and results cannot differ. After each way the results go to ``open_data.json`` beside this
file, and after an interruption it goes on from there; a change of those cells starts it anew.
It needs the events of the Higgs challenge, as the notebook does.
"""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import page_cells

NOTEBOOK = Path(__file__).parents[2] / "nbs" / "12_open_data.ipynb"
RESULTS = Path(__file__).with_name("open_data.json")
DEFINITIONS = (
    "load", "load-events", "weights", "one-event", "split", "split-it", "samples", "divisions",
    "network", "cross-entropy", "train", "train-function", "yields", "yields-cut", "scan", "ams",
    "significance", "cuts", "merit", "two-speeds", "steps", "goal", "train-for-significance",
    "pooled", "above", "scaled", "choose", "floor", "cross-cut", "networks-of", "selections",
    "behind-cut", "gain", "results-of",
)  # fmt: skip
SEEDS = range(8)


def fingerprint() -> str:
    """Of all that defines the trainings and their judgement."""
    return page_cells.fingerprint(NOTEBOOK, DEFINITIONS)


def rounded(value):
    """Numbers with five digits, in whatever lists and dictionaries."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}")


def store(results):
    """One line for each way to form the folds."""
    head = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, JAX on the CPU",
        "versions": {name: version(name) for name in ("jax", "optax", "flax", "numpy")},
        "fingerprint": fingerprint(),
    }
    page_cells.store(RESULTS, head, {"results": results})


def main():
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results = stored["results"] if stored.get("fingerprint") == fingerprint() else []
    names, began = page_cells.defined(NOTEBOOK, DEFINITIONS), time.monotonic()
    for seed in SEEDS[len(results) :]:
        results.append(rounded(names["results_of"](seed)))
        store(results)
        minutes = (time.monotonic() - began) / 60
        print(f"{minutes:5.1f} min  {seed + 1} of {len(SEEDS)} ways to form the folds", flush=True)


if __name__ == "__main__":
    main()
