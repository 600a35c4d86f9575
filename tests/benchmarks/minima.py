"""Are the minima the lowest ones? Fits of many likelihoods against 200 random starts of L-BFGS-B.

Called by hand, ``python tests/benchmarks/minima.py [first:last]``, after ``make data``: a minute a
case on one core. Each case is a likelihood, to which fits with ``mu`` free, at 0 and at 1 are made:
random ones of 20 to 80 shapes, or a part of a published one with 15 to 60 of its uncertainties.
The data are far off nominal. A line for each case; then a Markdown table.
"""

import copy
import json
import sys
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
import hard_models  # noqa: E402

import fetch_data  # noqa: E402
from nablab.infer import mle  # noqa: E402
from nablab.infer.certificates import Status  # noqa: E402
from nablab.model import workspaces  # noqa: E402
from nablab.model.histfactory import from_spec  # noqa: E402

DATA, STARTS, APART = fetch_data.folder(), 200, 1e-6
SBOTTOM = Path(fetch_data.SBOTTOM)
PUBLISHED = {
    "ttbar, lepton + jets": (fetch_data.TTBAR, None),
    "contradiction": ("workspaces/hard-fits/contradiction.json", None),
    "sbottom, region A": (SBOTTOM / "BkgOnly.json", SBOTTOM / "patch.sbottom_1300_205_60.json"),
}
FAMILIES = ["random shapes", *PUBLISHED, "strained"]
SETTINGS = {"ftol": 1e-13, "gtol": 1e-8, "maxiter": 1000, "maxfun": 3000}


def part(name, rng):
    """A published likelihood with some of its interpolated uncertainties."""
    path, patch = PUBLISHED[name]
    workspace = json.loads((DATA / path).read_bytes())
    if patch:
        workspace = workspaces.patched(workspace, [json.loads((DATA / patch).read_bytes())])
    workspace = copy.deepcopy(workspace)
    samples = [sample for channel in workspace["channels"] for sample in channel["samples"]]
    interpolated = ("histosys", "normsys")
    names = {m["name"] for s in samples for m in s["modifiers"] if m["type"] in interpolated}
    size = min(len(names), int(rng.integers(15, 60)))
    kept = set(rng.choice(sorted(names), size, replace=False))
    for sample in samples:
        sample["modifiers"] = [
            m for m in sample["modifiers"] if m["type"] not in interpolated or m["name"] in kept
        ]
    return workspaces.read(workspace)[0]


def case(number):
    """Family, model and data."""
    rng, family = np.random.default_rng(1000 + number), FAMILIES[number % len(FAMILIES)]
    if family == "random shapes":
        spec, counts = hard_models.many_shapes(int(rng.integers(20, 80)), rng.integers(8, 30), rng)
        model = from_spec(spec)
    else:
        model = part("ttbar, lepton + jets" if family == "strained" else family, rng)
        alphas = np.isin(np.arange(len(model.init)), model.structure.interpolated)
        truth = model.init + alphas * 1.5 * rng.normal(size=len(alphas))
        rates = np.array(model.init if family == "strained" else truth)
        rates = np.clip(model.expected_main(jnp.array(rates)), 0.0, None)
        if family == "strained":  # off by 10 % where the model knows to 1: all is pulled to bounds
            rates = rates * np.clip(1.0 + 0.1 * rng.normal(size=rates.shape), 0.3, 2.0)
        counts = rng.poisson(rates).astype(float)
    return family, model, jnp.concatenate([jnp.array(counts), model.auxdata])


def lowest_of_many(model, data, mu):
    """The best end of L-BFGS-B from the initial values and from random points."""
    function = jax.jit(jax.value_and_grad(lambda x: model.deviance(x, data)))

    def value_and_gradient(x):
        value, gradient = function(x)
        return float(value), np.asarray(gradient)

    start, fixed = np.array(model.init), np.array(model.fixed)
    lower, upper = np.array(model.lower), np.array(model.upper)
    if mu is not None:
        start[model.poi_index], fixed[model.poi_index] = mu, True
    lower, upper = np.where(fixed, start, lower), np.where(fixed, start, upper)
    interpolated = np.isin(np.arange(len(start)), model.structure.interpolated)
    width, rng = np.where(interpolated, 1.5, 0.15), np.random.default_rng(5)
    moves = width * rng.normal(size=(STARTS, len(start)))
    moves[0] = 0.0
    bounds = np.stack([lower, upper], axis=1)
    return min(
        scipy.optimize.minimize(
            *(value_and_gradient, np.clip(start + move, lower, upper)),
            **dict(jac=True, bounds=bounds, method="L-BFGS-B", options=SETTINGS),
        ).fun
        for move in moves
    )


def main():
    first, last = map(int, (sys.argv[1] if len(sys.argv) > 1 else "0:60").split(":"))
    found = defaultdict(list)
    for number in range(first, last):
        family, model, data = case(number)
        excesses = []
        for mu in (None, 0.0, 1.0):
            fit = (
                mle.best_fit(model, data)
                if mu is None
                else mle.best_fit(model, data, held={model.poi_index: mu})
            )
            excess = float(fit.value) - lowest_of_many(model, data, mu)
            status = Status(int(fit.certificate.status))
            minima = np.sum(np.array(fit.certificate.heights) > 1e-6)
            excesses.append((excess, status, minima > 0))
        found[family].append((len(model.init), excesses))
        words = [f"{excess:+.1e} {status.name}" for excess, status, _ in excesses]
        print(number, family, len(model.init), *words, sep=", ", flush=True)
    print()
    rows = []
    for family, cases in found.items():
        sizes = [size for size, _ in cases]
        fits = [fit for _, excesses in cases for fit in excesses]
        above = [(excess, status) for excess, status, _ in fits if excess > APART]
        unseen = [excess for excess, status in above if status == Status.CONVERGED]
        row = [family, len(cases), f"{min(sizes)}-{max(sizes)}", len(fits)]
        row += [sum(several for *_, several in fits), sum(excess < -APART for excess, *_ in fits)]
        rows.append([*row, len(above), len(unseen), f"{max(unseen, default=0):.1g}"])
    header = ["likelihoods", "cases", "parameters", "fits", "with other minima"]
    header += ["lower than all random starts", "higher", "higher and CONVERGED", "by at most"]
    for cells in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
