"""The table of INFERNO (arXiv:1806.04743): 5 losses and a classifier, 5 seeds each.

``make inferno`` trains them with the recipe of the authors' code: plain gradient descent, 200
passes over 100,000 + 100,000 events, batches of 1,000 + 1,000 (loss 4: 1,500 + 1,500) at a rate of
1e-6; the classifier 32 + 32 at 1e-3. One thing is added: the gradients of loss 4 have spikes a
hundred times as long as the rest, which throw trainings out for good (one of two ended with all
events in one bin), so its steps are cut at a length of 0.05. Every training has its checkpoint in
``build/inferno``: after an interruption call it again. The results go to ``inferno.json`` beside
this file, and notebook 09 shows them.
"""

import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import jax
import numpy as np
import optax

from nablab.data import toys
from nablab.train import inferno, loop, networks

RESULTS = Path(__file__).with_name("inferno.json")
CHECKPOINTS = Path(__file__).parents[2] / "build" / "inferno"
SEEDS = range(5)
LOSSES = ["classifier", *(f"INFERNO {benchmark}" for benchmark in range(5))]
EPOCHS, EVENTS = 200, 100_000
DATA_SEEDS = {"training": 27, "validation": 37, "test": 47}


def events(purpose):
    number = 500_000 if purpose == "test" else EVENTS
    sample = toys.inferno(number, key=jax.random.key(DATA_SEEDS[purpose]))
    return {name: x.astype("float32") for name, x in sample.items()}


def recipe(loss):
    """Objective, outputs of the network, batch size and optimizer."""
    if loss == "classifier":
        return inferno.cross_entropy, 2, 32, optax.sgd(1e-3)
    benchmark = int(loss.split()[1])
    batch, optimizer = 1000, optax.sgd(1e-6)
    if benchmark == 4:
        batch, optimizer = 1500, optax.chain(optax.clip_by_global_norm(5e4), optimizer)
    return lambda apply: inferno.objective(apply, benchmark), inferno.BINS, batch, optimizer


def train(loss, seed):
    """One training, its figures on both samples, and the processor seconds it took."""
    objective, outputs, batch, optimizer = recipe(loss)
    key, batch_key = jax.random.split(jax.random.key(777 + seed))
    apply, start = networks.mlp(
        (3, 100, 100, outputs), key=key, initializer=jax.nn.initializers.he_normal()
    )
    began = time.process_time()
    training = loop.train(
        objective(apply), start, events("training"), optimizer=optimizer,
        steps=EPOCHS * EVENTS // batch, batch_size=batch, key=batch_key, progress=False,
        checkpoint=CHECKPOINTS / f"{loss.replace(' ', '_')}_{seed}.npz",
    )  # fmt: skip
    seconds = time.process_time() - began
    if training.stopped != loop.ALL_DONE:
        raise RuntimeError(f"{loss}, seed {seed}: {training.stopped}")
    if loss == "classifier":
        bins = inferno.probability_bins(
            lambda x: jax.nn.softmax(apply(training.params, x).astype(float))[:, 1]
        )
    else:
        bins = inferno.hard_bins(apply, training.params)
    found = {
        purpose: inferno.uncertainties(bins, events(purpose)).tolist()
        for purpose in ("validation", "test")
    }
    return {"loss": loss, "seed": seed, "cpu_seconds": round(seconds, 1), **found}


def stay_on_one_core(cores):
    """JAX would spread each small product over all cores, which takes more time in total."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def main():
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    stored = (
        json.loads(RESULTS.read_text(encoding="utf-8"))["trainings"] if RESULTS.exists() else []
    )
    have = {(row["loss"], row["seed"]): row for row in stored}
    wanted = [(loss, seed) for seed in SEEDS for loss in LOSSES if (loss, seed) not in have]
    began = time.monotonic()
    context, workers = get_context("spawn"), os.cpu_count() or 1
    cores = context.Queue()
    for core in range(workers):
        cores.put(core)
    with ProcessPoolExecutor(workers, context, stay_on_one_core, (cores,)) as pool:
        running = [pool.submit(train, *which) for which in wanted]
        for done in as_completed(running):
            row = done.result()
            have[row["loss"], row["seed"]] = row
            store(have)
            minutes = (time.monotonic() - began) / 60
            numbers = " ".join(f"{x:6.2f}" for x in row["validation"])
            print(
                f"{len(have):2d}/{len(LOSSES) * len(SEEDS)} {minutes:5.1f} min  {row['loss']:10} "
                f"seed {row['seed']}: {numbers}  ({row['cpu_seconds'] / 60:.1f} CPU-min)",
                flush=True,
            )
    table(list(have.values()))


def store(have):
    rows = sorted(have.values(), key=lambda row: (LOSSES.index(row["loss"]), row["seed"]))
    made = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one core for each training, JAX on the CPU",
        "versions": {name: version(name) for name in ("jax", "optax", "flax", "numpy")},
        "seeds": {"data": DATA_SEEDS, "network": "777 + seed"},
        "events": {"training": EVENTS, "validation": EVENTS, "test": 500_000},
        "trainings": rows,
    }
    unfinished = RESULTS.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(RESULTS)


def table(rows):
    print("\nmedian (min to max) over seeds, validation sample\n")
    for loss in LOSSES:
        values = np.array([row["validation"] for row in rows if row["loss"] == loss])
        cells = [f"{np.median(v):6.2f} ({v.min():.2f} to {v.max():.2f})" for v in values.T]
        print(f"{loss:10}", *cells)


if __name__ == "__main__":
    main()
