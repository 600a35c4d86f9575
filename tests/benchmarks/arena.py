"""The optimisers of notebook 10 in seconds: what a gradient costs, and how soon each arrives.

Run with ``make benchmark``; prints Markdown tables. Problem and players are the notebook's own
cells. Every optimiser runs until the cuts that it holds for its best have 95 % of the best
possible true significance, or until its budget is used up. Processor seconds: they wait for nobody.
Powell and CMA-ES take part a second time, on the soft significance. Bayesian optimisation thinks
for too long to be timed here; how far it gets is in ``arena.json`` (``make arena``).
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arena_training import BOXES, WANTED, page
from cls import print_table

SEEDS, BUDGET = 8, 3000


class Arrived(Exception):
    """The cuts are good enough, or the budget is used up."""


def ask_the_box(names, box, value_of, n, seed):
    """Whether it arrived, evaluations and processor seconds, the judge's own time left out."""
    events, rng = names["simulate"](n, seed), np.random.default_rng(seed)
    leader, evaluations, judging = -np.inf, 0, 0.0

    def ask(cuts):
        nonlocal leader, evaluations, judging
        if evaluations == BUDGET:
            raise Arrived(False)
        evaluations += 1
        value = float(value_of(cuts, events))
        if value > leader:
            leader, began = value, time.process_time()
            good = float(names["truth"](cuts)) >= WANTED * names["best"][n]
            judging += time.process_time() - began
            if good:
                raise Arrived(True)
        return value

    began = time.process_time()
    try:
        box(ask, n, rng)
        arrived = False
    except Arrived as end:
        arrived = end.args[0]
    return arrived, evaluations, time.process_time() - began - judging


def uphill(soft_z):
    """One step of Adam."""
    adam = optax.adam(0.2)

    @jax.jit
    def step(cuts, state, events):
        updates, state = adam.update(-jax.grad(soft_z)(cuts, events), state)
        return cuts + updates, state

    return adam.init, step


def climb(names, init, step, n, seed):
    """Steps and processor seconds of the gradient."""
    events, begin = names["simulate"](n, seed), jnp.full(n, names["START"])
    jax.block_until_ready(step(*step(begin, init(begin), events), events))  # compiled
    cuts, state, judging = begin, init(begin), 0.0
    start = time.process_time()
    for steps in range(BUDGET):
        began = time.process_time()
        good = float(names["truth"](cuts)) >= WANTED * names["best"][n]
        judging += time.process_time() - began
        if good:
            return True, steps, time.process_time() - start - judging
        cuts, state = jax.block_until_ready(step(cuts, state, events))
    return False, BUDGET, time.process_time() - start - judging


def milliseconds(function, *arguments, rounds=30):
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(rounds):
        began = time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append(time.process_time() - began)
    return 1e3 * np.median(times)


def prices(names):
    soft_z = jax.jit(names["soft_z"])
    slope_of_z = jax.jit(jax.value_and_grad(names["soft_z"]))
    rows = []
    for n in names["best"]:
        arguments = jnp.full(n, names["START"]), names["simulate"](n, 0)
        ways = (names["hard_z"], soft_z, slope_of_z)
        hard_ms, soft_ms, slope_ms = (milliseconds(way, *arguments) for way in ways)
        row = [n, *(f"{ms:.2f}" for ms in (hard_ms, soft_ms, slope_ms))]
        rows.append([*row, f"{slope_ms / hard_ms:.1f}", f"{slope_ms / soft_ms:.1f}"])
    header = ["cuts", "hard, ms", "soft, ms", "soft with gradient, ms"]
    print_table([*header, "gradient : hard", "gradient : soft"], rows)


def race(names, n):
    """(arrived, evaluations, seconds) of each sample for each optimiser."""
    start = np.full(n, names["START"])
    events, ways = names["simulate"](n, 0), (names["hard_z"], jax.jit(names["soft_z"]))
    jax.block_until_ready(([way(start, events) for way in ways], names["truth"](start)))
    boxes = {
        name: (box, ways[0]) for name, box in names["players"].items() if n <= 5 or name != "scan"
    }
    boxes |= {f"{name}, soft": (names["players"][name], ways[1]) for name in ("Powell", "CMA-ES")}
    found = {
        name: [ask_the_box(names, *box, n, seed) for seed in range(SEEDS)]
        for name, box in boxes.items()
    }
    player = uphill(names["soft_z"])
    found["gradient"] = [climb(names, *player, n, seed) for seed in range(SEEDS)]
    return found


def main():
    names = page(BOXES)
    names["BUDGET"] = BUDGET
    prices(names)
    print()
    rows = []
    for n in names["best"]:
        for name, runs in race(names, n).items():
            arrived, evaluations, seconds = map(np.array, zip(*runs, strict=True))
            row = [n, name, f"{arrived.sum()} of {len(runs)}", int(np.median(evaluations))]
            rows.append([*row, f"{np.median(seconds):.2g}"])
    print_table(["cuts", "optimiser", "arrived", "evaluations or steps", "processor s"], rows)


if __name__ == "__main__":
    main()
