"""The table of neos (arXiv:2203.05570): what each objective leaves on held-out events.

    python tests/benchmarks/neos_table.py [paper] [long] [fine]

``paper`` is the set-up of the paper: network 2-1024-1024-1, 10,000 events a blob, Adam at 1e-3,
15 epochs of 5 batches of 2,000. ``long`` is close to the thesis that followed (phinate/thesis):
107 epochs of a small network. ``fine`` is the same with 20 bins. Without a name all three run.

Every training and what it took go to ``build/neos_table.json`` as soon as it has ended; after an
interruption call it again. The figures that count are those of hard bins on held-out events.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from neos import ADAM, EXPECTED, spec

from nablab.data import toys
from nablab.infer import diagnostics
from nablab.model.histfactory import from_spec
from nablab.relax.histograms import hard_counts, kde_counts
from nablab.train import loop, networks, objectives

RESULTS = Path(__file__).parents[2] / "build" / "neos_table.json"
SEEDS = range(7)
EVENTS, HELD_OUT, BATCH = 10_000, 20_000, 2_000
STEPS_PER_EPOCH = EVENTS // BATCH
# The starting weights of the paper's code; flax begins with larger ones in the first layer.
START = jax.nn.initializers.glorot_normal()
# Bins, bandwidth, network, epochs at which to look, objectives.
ALL = ("BCE", "BCE+aug", "INFERNO, mu = 0", "INFERNO, mu = 1", "CLs", "log CLs")
SETUPS = {
    "paper": (4, 0.1, (2, 1024, 1024, 1), (5, 10, 15), ALL),
    "long": (5, 0.09, (2, 128, 128, 1), (15, 50, 107), ALL),
    "fine": (20, 0.09, (2, 128, 128, 1), (15, 50, 107), ("BCE", "INFERNO, mu = 1", "log CLs")),
}


def blobs(purpose, events=EVENTS):
    """Independent samples for each purpose, and independent blobs within each."""
    sample = toys.blobs(events, key=jax.random.key({"training": 11, "held out": 31}[purpose]))
    return {name: x.astype("float32") for name, x in sample.items()}


def model_of(apply, bins, bandwidth):
    """The likelihood as a function of parameters, events and a histogram."""
    edges = jnp.linspace(0, 1, bins + 1)

    def model(params, events, counts):
        found = {}
        for name, x in events.items():
            observable = jax.nn.sigmoid(apply(params, x)[:, 0].astype(float))
            found[name] = (
                EXPECTED[name] * counts(observable, edges, bandwidth=bandwidth).values / len(x)
            )
        return from_spec(spec(found))

    return model


def objective_of(loss, apply, model):
    """What the training minimises; for INFERNO the variance of mu."""

    def logits(params, events, names):
        return [apply(params, events[name])[:, 0] for name in names]

    def entropy(params, events):
        return objectives.balanced_cross_entropy(*logits(params, events, ("signal", "background")))

    def augmented(params, events):
        return objectives.balanced_cross_entropy(*logits(params, events, EXPECTED))

    def inferno(mu):
        return lambda params, events: (
            diagnostics.poi_uncertainty(model(params, events, kde_counts), mu) ** 2
        )

    def cls(params, events):
        return objectives.log_cls(model(params, events, kde_counts))

    return {
        "BCE": entropy,
        "BCE+aug": augmented,
        "INFERNO, mu = 0": inferno(0.0),
        "INFERNO, mu = 1": inferno(1.0),
        "CLs": lambda params, events: jnp.exp(cls(params, events)),  # what the paper minimises
        "log CLs": cls,
    }[loss]


def hard_figures(model):
    """CLs, sigma_mu at mu = 1 and 0, and the emptiest bin, with hard bins on held-out events."""

    @jax.jit
    def figures(params, held_out):
        found = model(params, held_out, hard_counts)
        background = found.expected_data(found.parameters(0.0))[: found.structure.main_bins]
        return {
            "CLs": jnp.exp(objectives.log_cls(found)),
            "sigma_1": diagnostics.poi_uncertainty(found, 1.0),
            "sigma_0": diagnostics.poi_uncertainty(found, 0.0),
            "simulated": jnp.min(background) * HELD_OUT / EXPECTED["background"],
        }

    return lambda params, held_out: {k: float(v) for k, v in figures(params, held_out).items()}


def trainings(setup):
    """Functions that train one seed for each of the objectives of a set-up."""
    bins, bandwidth, sizes, epochs, losses = SETUPS[setup]
    apply, _ = networks.mlp(sizes, key=jax.random.key(0), initializer=START)
    model = model_of(apply, bins, bandwidth)
    figures = hard_figures(model)
    found = {loss: objective_of(loss, apply, model) for loss in losses}
    held_out = blobs("held out", HELD_OUT)

    def train(loss, seed):
        began = time.process_time()
        training = loop.train(
            found[loss],
            networks.mlp(sizes, key=jax.random.key(seed), initializer=START)[1],
            blobs("training"),
            optimizer=ADAM, steps=epochs[-1] * STEPS_PER_EPOCH, batch_size=BATCH,
            key=jax.random.key(100 + seed), snapshot_every=STEPS_PER_EPOCH, progress=False,
        )  # fmt: skip
        seconds = time.process_time() - began
        if training.stopped != loop.ALL_DONE:
            raise RuntimeError(f"{setup}, {loss}, seed {seed}: {training.stopped}")
        at = {step // STEPS_PER_EPOCH: params for step, params in training.snapshots}
        looks = {str(epoch): figures(at[epoch], held_out) for epoch in epochs}
        return {"cpu_seconds": round(seconds, 1), "at": looks}

    return train


def table(setup, rows):
    """Median (smallest to largest) over the seeds, as markdown."""
    bins, bandwidth, sizes, epochs, losses = SETUPS[setup]
    network = "-".join(map(str, sizes))
    lines = [f"\n`{setup}`: {network}, {bins} bins, bandwidth {bandwidth}\n"]
    heads = [f"CLs, epoch {epoch}" for epoch in epochs]
    heads += ["sigma_mu, mu = 1", "mu = 0", "emptiest bin, events", "CPU s", "seeds"]
    lines += ["| objective | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for loss in losses:
        seeds = [rows[key] for key in (f"{setup}|{loss}|{seed}" for seed in SEEDS) if key in rows]
        if not seeds:
            continue
        last = str(epochs[-1])
        cells = [spread([s["at"][str(e)]["CLs"] for s in seeds], "{:.1e}") for e in epochs]
        cells += [
            spread([s["at"][last][name] for s in seeds], form)
            for name, form in (
                ("sigma_1", "{:.4f}"),
                ("sigma_0", "{:.3f}"),
                ("simulated", "{:.0f}"),
            )
        ]
        cells += [f"{np.median([s['cpu_seconds'] for s in seeds]):.0f}", str(len(seeds))]
        lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values, form):
    """Median and, in brackets, the range."""
    return f"{form} ({form} to {form})".format(np.median(values), min(values), max(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setups", nargs="*", default=[], choices=[[], *SETUPS])
    setups = parser.parse_args().setups or list(SETUPS)
    RESULTS.parent.mkdir(exist_ok=True)
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for setup in setups:
        train = trainings(setup)
        for seed in SEEDS:
            for loss in SETUPS[setup][-1]:
                key = f"{setup}|{loss}|{seed}"
                if key in rows:
                    continue
                rows[key] = train(loss, seed)
                RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                last = list(rows[key]["at"].values())[-1]
                print(
                    f"{setup:5} seed {seed} {loss:15} CLs {last['CLs']:.2e} sigma_mu "
                    f"{last['sigma_1']:.4f} in {rows[key]['cpu_seconds']} CPU s",
                    flush=True,
                )
    for setup in setups:
        print(table(setup, rows))


if __name__ == "__main__":
    os.nice(10)
    main()
