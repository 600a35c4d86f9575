"""What a training step costs: the analysis in the objective against the cross-entropy alone.

The problem of neos (arXiv:2203.05570): four blobs, 4 bins, one background shape. Every objective
sees the same number of events in a step. All run in one process and take turns; a cost is the
median over the rounds, and only ratios of one run are compared.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nablab.data import toys
from nablab.infer import diagnostics
from nablab.model.histfactory import from_spec
from nablab.relax.histograms import kde_counts
from nablab.train import loop, networks, objectives

BATCH, ROUNDS, SEEDS = 2000, 7, 7
EXPECTED = {"signal": 20.0, "background": 100.0, "up": 100.0, "down": 100.0}
EDGES, BANDWIDTH = jnp.linspace(0, 1, 5), 0.1
BLOBS = toys.blobs(10_000, key=jax.random.key(1))
NOMINAL = {name: BLOBS[name] for name in ("signal", "background")}
ADAM = optax.adam(1e-3)


def spec(bins):
    mu = {"name": "mu", "type": "normfactor", "data": None}
    shape = {"hi_data": bins["up"], "lo_data": bins["down"]}
    alpha = {"name": "alpha", "type": "histosys", "data": shape}
    samples = [
        {"name": "signal", "data": bins["signal"], "modifiers": [mu]},
        {"name": "background", "data": bins["background"], "modifiers": [alpha]},
    ]
    return {"channels": [{"name": "observable", "samples": samples}]}


def model(apply, params, events):
    def counts(x):
        observable = jax.nn.sigmoid(apply(params, x)[:, 0].astype(float))
        return kde_counts(observable, EDGES, bandwidth=BANDWIDTH).values / len(x)

    return from_spec(spec({name: EXPECTED[name] * counts(x) for name, x in events.items()}))


def cross_entropy(apply, params, events):
    logits = {name: apply(params, x)[:, 0] for name, x in events.items()}
    return objectives.balanced_cross_entropy(logits.pop("signal"), *logits.values())


def tasks(hidden):
    """Name: objective and samples."""
    apply, _ = networks.mlp((2, *hidden, 1), key=jax.random.key(0))
    through_model = {
        "INFERNO (sigma of mu)": diagnostics.poi_uncertainty,
        "neos (CLs)": objectives.log_cls,
        "p0": objectives.log_p0,
        "upper limit": objectives.log_limit,
    }
    found = {
        "cross-entropy": (partial(cross_entropy, apply), NOMINAL),
        "cross-entropy, augmented": (partial(cross_entropy, apply), BLOBS),
    }
    for name, objective in through_model.items():
        found[name] = (lambda p, e, o=objective: o(model(apply, p, e)), BLOBS)
    return found


def timed(run, steps):
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) / steps


def compare(hidden):
    small = max(hidden) < 1000
    steps = 400 if small else 15
    starts = [networks.mlp((2, *hidden, 1), key=jax.random.key(s))[1] for s in range(SEEDS)]
    keys = jax.random.split(jax.random.key(2), SEEDS)
    settings = {"optimizer": ADAM, "steps": steps, "progress": False}

    def one(objective, events):
        loop.train(
            objective, starts[0], events, key=keys[0], batch_size=BATCH // len(events), **settings
        )

    def seven(objective, events):
        loop.train_seeds(
            objective, starts, events, keys=keys, batch_size=BATCH // len(events), **settings
        )

    runs = {}
    for name, task in tasks(hidden).items():
        runs[name, "one"] = partial(one, *task)
        if small:
            runs[name, "seven"] = partial(seven, *task)
    for run in runs.values():
        run()  # compiles
    order, seconds = np.random.default_rng(0), {which: [] for which in runs}
    for _ in range(ROUNDS):
        for which in order.permutation(len(runs)):
            which = list(runs)[which]
            seconds[which].append(timed(runs[which], steps))
    return {which: np.median(values) for which, values in seconds.items()}


def main():
    for hidden in ((64, 64), (1024, 1024)):
        cost = compare(hidden)
        first = cost["cross-entropy", "one"]
        print(f"\nnetwork 2-{hidden[0]}-{hidden[1]}-1, {BATCH} events in a step\n")
        print("| objective | ms a step | over cross-entropy | 7 seeds over one |")
        print("| --- | --- | --- | --- |")
        for name in tasks(hidden):
            one, seven = cost[name, "one"], cost.get((name, "seven"))
            seeds = f"{seven / one:.2f}" if seven else ""
            print(f"| {name} | {1e3 * one:.2f} | {one / first:.2f} | {seeds} |")


if __name__ == "__main__":
    main()
