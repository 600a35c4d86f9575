"""Toys per second, each with a free and a fixed fit: nablab, and pyhf beside it.

Run with ``python tests/benchmarks/toys.py``; prints Markdown tables. Nothing is asserted about
times, but the packages must agree on the test statistics before they are timed.
"""

import os
import platform
import time
from importlib.metadata import version

import jax
import numpy as np
import pyhf
from cls import print_table, specification, yields

from nablab.infer import pseudoexperiments, test_statistics
from nablab.model.histfactory import from_spec

BINS, TOYS = (1, 5, 20, 100), {1: 10_000, 5: 10_000, 20: 10_000, 100: 1_000}
PYHF_TOYS = {1: 50, 5: 20, 20: 10, 100: 3}  # in each round
ROUNDS = 3
STATISTICS = {
    "q0": (test_statistics.q0, pyhf.infer.test_statistics.q0, None),
    "q-mu-tilde": (test_statistics.qmu_tilde, pyhf.infer.test_statistics.qmu_tilde, 1.0),
}
PACKAGES = ("nablab", "pyhf", "jax", "numpy", "scipy")
KEY = jax.random.key(0)


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def pyhf_values(statistic, mu, model, data):
    config = model.config
    settings = config.suggested_init(), config.suggested_bounds(), config.suggested_fixed()
    return np.array([statistic(mu or 0.0, d.tolist(), model, *settings) for d in data])


def compare(bins: int, name: str) -> list:
    """A row of the table."""
    statistic, pyhf_statistic, mu = STATISTICS[name]
    arrays = yields(bins)
    model = from_spec(specification(*arrays))
    reference = pyhf.Model(specification(*(array.tolist() for array in arrays)), poi_name="mu")
    truth = model.parameters(0.0 if mu is None else mu)

    def throw(toys):
        return pseudoexperiments.distribution(
            statistic, model, truth, key=KEY, toys=toys, mu=mu, progress=False
        )

    first_call, _ = seconds(throw, 1)
    times, pyhf_times, apart = [], [], []
    for turn in range(ROUNDS):
        duration, toys = seconds(throw, TOYS[bins])
        times.append(duration)
        some = slice(turn * PYHF_TOYS[bins], (turn + 1) * PYHF_TOYS[bins])
        data = pseudoexperiments.sample(model, truth, key=KEY, toys=ROUNDS * PYHF_TOYS[bins])[some]
        duration, values = seconds(pyhf_values, pyhf_statistic, mu, reference, np.asarray(data))
        pyhf_times.append(duration)
        apart.extend(np.abs(values - toys.values[some]))
    if not np.median(apart) < 1e-4:  # also where it is NaN
        raise SystemExit(f"{bins} bins, {name}: no agreement: {apart}")
    rate = TOYS[bins] / np.median(times)
    pyhf_rate = PYHF_TOYS[bins] / np.median(pyhf_times)
    row = [bins, name, f"{TOYS[bins]:,}", f"{np.median(times):.2f}", f"{rate:,.0f}"]
    row += [f"{pyhf_rate:.1f} ({rate / pyhf_rate:,.0f})", f"{first_call:.1f}"]
    return [*row, int(toys.failed), f"{np.median(apart):.0e}", f"{np.max(apart):.0e}"]


def main():
    before = os.getloadavg()[0]
    rows = [compare(bins, name) for bins in BINS for name in STATISTICS]
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES), time.strftime("(%Y-%m-%d)"))
    print(f"load of the last minute: {before:.2f} before, {os.getloadavg()[0]:.2f} after\n")
    header = ["bins", "statistic", "toys", "nablab, s", "nablab, toys/s", "pyhf, toys/s (ratio)"]
    header += ["nablab, first call, s", "failed fits", "difference, median", "largest"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
