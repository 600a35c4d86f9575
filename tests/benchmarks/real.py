"""Time of the observed CLs of published likelihoods and its gradient in every yield, and of limits.

Run with ``make benchmark``, after ``make data``; prints a Markdown table. The likelihoods are those
of the tests.
"""

import os
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from cls import print_table, seconds

from nablab.infer import hypotests, limits
from nablab.model import workspaces

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
from published import LEPTONS  # noqa: E402

import fetch_data  # noqa: E402

DATA = fetch_data.folder()
SBOTTOM, TTBAR = DATA / fetch_data.SBOTTOM, DATA / fetch_data.TTBAR
LIKELIHOODS = {
    "sbottom, region A": (SBOTTOM / "BkgOnly.json", [SBOTTOM / "patch.sbottom_1300_205_60.json"]),
    "ttbar, lepton + jets": (TTBAR, []),
    "displaced leptons": (LEPTONS, []),
}
ROUNDS, LIMIT_ROUNDS = 20, 3


def measure(name: str) -> list:
    """A row of the table."""
    path, patches = LIKELIHOODS[name]
    start = time.perf_counter()
    model, data = workspaces.read(path, patches=patches)
    reading = time.perf_counter() - start

    def observed(yields):
        result = hypotests.cls(replace(model, nominal=yields), data)
        return result.observed, result.converged

    function = jax.jit(jax.value_and_grad(observed, has_aux=True))
    first_call = seconds(function, model.nominal)
    times = [1e3 * seconds(function, model.nominal) for _ in range(ROUNDS)]
    (value, converged), slopes = function(model.nominal)
    if not (converged and np.isfinite(slopes).all()):
        raise SystemExit(f"{name}: no minimum, nothing reported")
    row = [name, len(model.init), model.structure.main_bins, len(model.nominal)]
    times = [f"{np.median(times):.1f}", f"{first_call:.1f}", f"{reading:.2f}"]
    limit, *again = (seconds(limits.upper_limit, model, data) for _ in range(1 + LIMIT_ROUNDS))
    return [*row, f"{value:.7f}", *times, f"{np.median(again):.2g}", f"{limit:.0f}"]


def main():
    if not TTBAR.exists():
        sys.exit(f"no real likelihoods in {DATA}: run 'make data' once, with a network")
    rows = [measure(name) for name in LIKELIHOODS]
    print(f"{os.cpu_count()} cores, {platform.machine()}, jax {version('jax')}")
    print(f"load of the last minute: {os.getloadavg()[0]:.2f} after\n")
    header = ["likelihood", "parameters", "bins", "yields", "observed CLs", "CLs + gradient, ms"]
    print_table([*header, "first call, s", "reading, s", "limit and band, s", "first, s"], rows)


if __name__ == "__main__":
    main()
