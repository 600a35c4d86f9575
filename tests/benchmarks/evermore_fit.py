"""Best fits of nablab beside evermore's likelihood, minimised by optimistix as in its examples.

The models are those of ``cls.py`` with a ``histosys``, fitted to data off nominal; both packages
interpolate it alike. evermore 0.4.2 needs Python 3.12, which the lock does not have yet, so it has
an environment of its own: ``python3.12 -m venv build/evermore``, then in it ``pip install .
evermore==0.4.2 optimistix==0.1.0`` and ``python tests/benchmarks/evermore_fit.py``. Prints a
Markdown table; the packages must agree on the best fit before they are timed.
"""

import os
import time
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import evermore as evm
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from flax import nnx

from nablab.infer import mle
from nablab.model.histfactory import from_spec

BINS, MANY, ROUNDS = (5, 20), 1000, 100
SOLVERS = {
    "BFGS": optimistix.BFGS(rtol=1e-5, atol=1e-5),
    "L-BFGS": optimistix.LBFGS(rtol=1e-5, atol=1e-5),
}


def yields(bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal (60 events, a bump), background (1,000, falling) and its shape upwards, a tilt of 5 %
    (downwards it is 5 % less)."""
    x = (np.arange(bins) + 0.5) / bins
    signal, background = np.exp(-0.5 * ((x - 0.6) / 0.1) ** 2), np.exp(-x)
    background *= 1000 / background.sum()
    tilt = np.linspace(1, -1, bins)
    return signal * 60 / signal.sum(), background, background * (1 + 0.05 * tilt)


def data(signal, background, up):
    """Signal strength 1.5, and half of the tilt."""
    return 1.5 * signal + 0.5 * (background + up)


def nablab_fit(bins, signal, background, up):
    mu = {"name": "mu", "type": "normfactor", "data": None}
    shape = {"lo_data": 0.95 * background, "hi_data": up}
    samples = [
        {"name": "signal", "data": signal, "modifiers": [mu]},
        {
            "name": "background",
            "data": background,
            "modifiers": [{"name": "shape", "type": "histosys", "data": shape}],
        },
    ]
    model = from_spec({"channels": [{"name": f"bins_{bins}", "samples": samples}]})
    counts = jnp.append(data(signal, background, up), 0.0)
    return mle.best_fit(model, counts).parameters[model.poi_index]


class Parameters(NamedTuple):
    mu: evm.Parameter
    shape: evm.NormalParameter


def evermore_fit(solver, signal, background, up):
    start = Parameters(evm.Parameter(1.0), evm.NormalParameter(0.0))
    graph, fitted, rest = nnx.split(start, evm.filter.is_dynamic_parameter, ...)
    counts = data(signal, background, up)

    def loss(fitted, _):
        parameters = nnx.merge(graph, fitted, rest)
        morphed = parameters.shape.morphing(up_template=up, down_template=0.95 * background)
        expected = jnp.squeeze(parameters.mu.get_value()) * signal + morphed(background)
        likelihood = evm.pdf.PoissonContinuous(lamb=expected).log_prob(counts).sum()
        constraints = evm.util.sum_over_leaves(evm.loss.get_log_probs(parameters))
        return -(likelihood + jnp.sum(constraints))

    found = optimistix.minimise(loss, solver, fitted, max_steps=1000, throw=False).value
    return jnp.squeeze(nnx.merge(graph, found, rest).mu.get_value())


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def compare(bins: int, many: bool) -> list[str]:
    arrays = tuple(map(jnp.asarray, yields(bins)))
    functions = {"nablab": partial(nablab_fit, bins)}
    functions |= {name: partial(evermore_fit, solver) for name, solver in SOLVERS.items()}
    if many:
        jitter = np.random.default_rng(1).lognormal(0.0, 0.05, (3, MANY, 1))
        arrays = tuple(jnp.asarray(a * f) for a, f in zip(arrays, jitter, strict=True))
        functions = {name: jax.vmap(function) for name, function in functions.items()}
    functions = {name: jax.jit(function) for name, function in functions.items()}
    first = {name: seconds(function, *arrays) for name, function in functions.items()}
    found = {name: np.asarray(function(*arrays)) for name, function in functions.items()}
    apart = [np.abs(found[name] - found["nablab"]).max() for name in SOLVERS]
    if not max(apart) < 1e-3:  # also where one is NaN
        raise SystemExit(f"{bins} bins: no agreement, nothing timed: {apart}")
    order, times = np.random.default_rng(0), {name: [] for name in functions}
    for _ in range(20 if many else ROUNDS):
        for name in order.permutation(list(functions)):
            times[name].append(seconds(functions[name], *arrays))
    own, *others = (1e3 * np.median(some) for some in times.values())
    return [
        f"{bins}",
        f"{MANY if many else 1:,}",
        f"{own:.3f}",
        *(f"{other:.3f} ({other / own:.2f})" for other in others),
        *(f"{value:.0e}" for value in apart),
        *(f"{value:.1f}" for value in first.values()),
    ]


def main():
    packages = ("nablab", "evermore", "optimistix", "jax")
    print(", ".join(f"{name} {version(name)}" for name in packages), time.strftime("(%Y-%m-%d)"))
    print(f"load of the last minute: {os.getloadavg()[0]:.2f}\n")
    header = ["bins", "fits", "nablab, ms", *(f"{name}, ms (ratio)" for name in SOLVERS)]
    header += [f"{name}, largest difference of mu" for name in SOLVERS]
    header += [f"{name}, first call, s" for name in ("nablab", *SOLVERS)]
    rows = [compare(bins, many) for bins in BINS for many in (False, True)]
    for row in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main()
