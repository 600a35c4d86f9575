"""Notebook 12: its stored trainings belong to its cells."""

import json
import sys
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import open_data_training  # noqa: E402

STORED = json.loads((BENCHMARKS / "open_data.json").read_text(encoding="utf-8"))


def test_stored_trainings_are_those_of_the_page():
    now = open_data_training.fingerprint()
    assert STORED["fingerprint"] == now, "the cells have changed: call `make open-data`"
    assert len(STORED["results"]) == len(open_data_training.SEEDS)


def test_gains_are_differences_of_the_stored_significances():
    for result in STORED["results"]:
        z = {name: row["Z"] for name, row in result["selections"].items()}
        value, low, high = np.transpose(result["gains"])
        expected = [
            z["cut for Z"] - z["cut for AMS"],
            z["control"] - z["cut for Z"],
            z["trained on Z"] - z["cut for Z"],
            z["trained on Z"] - z["control"],
        ]
        np.testing.assert_allclose(value, expected, atol=2e-5)
        assert np.all(low < high)
