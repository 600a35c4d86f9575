"""Time of one expected CLs and its gradient in every yield: nablab, everwillow and pyhf.

Run with ``make benchmark``; prints Markdown tables. Nothing is asserted about times, but the
packages must agree on the number before they are timed. RESULTS.md says what is compared.
"""

import os
import platform
import time
from functools import partial
from importlib.metadata import version

import everwillow
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pyhf
from everwillow.hypotest.distributions import QTildeAsymptotic
from everwillow.hypotest.results import TestStatResult
from everwillow.statelib import State

from nablab.infer import hypotests
from nablab.infer.histfactory import Model

ROUNDS = {2: 400, 20: 400, 100: 200}  # by number of bins
PYHF_ROUNDS, COMPILATIONS = 5, 5
PEERS = {"BFGS": None, "L-BFGS": optimistix.LBFGS(rtol=1e-5, atol=1e-5)}  # None: the default
PACKAGES = ("nablab", "everwillow", "optimistix", "pyhf", "jax", "numpy", "scipy")


def yields(bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal (60 events, a bump), background (1,000, falling) and its uncertainty (5 %)."""
    x = (np.arange(bins) + 0.5) / bins
    signal, background = np.exp(-0.5 * ((x - 0.6) / 0.1) ** 2), np.exp(-x)
    background *= 1000 / background.sum()
    return signal * 60 / signal.sum(), background, 0.05 * background


def specification(signal, background, uncertainty, channel="channel") -> dict:
    mu = {"name": "mu", "type": "normfactor", "data": None}
    shape = {"name": "shape", "type": "shapesys", "data": uncertainty}
    signal = {"name": "signal", "data": signal, "modifiers": [mu]}
    background = {"name": "background", "data": background, "modifiers": [shape]}
    return {"channels": [{"name": channel, "samples": [signal, background]}]}


def nablab_cls(channel, signal, background, uncertainty):
    spec = specification(signal, background, uncertainty, channel)
    return hypotests.expected_cls(Model.from_spec(spec)).median


def everwillow_cls(solver, signal, background, uncertainty):
    """The same from everwillow's parts: one fit, at mu = 1, to the Asimov data of mu = 0."""

    def rates(parameters):
        mu, gamma = parameters["mu"], parameters["gamma"]
        auxiliary = gamma * (background / uncertainty) ** 2
        return jnp.concatenate([mu * signal + gamma * background, auxiliary])

    def negative_log_likelihood(parameters, counts):
        expected = rates(parameters)
        return jnp.sum(expected - counts * jnp.log(expected))

    truth = {"mu": 0.0, "gamma": jnp.ones(background.shape)}
    asimov, start = rates(truth), State.from_pytree({**truth, "mu": 1.0})
    fixed = State.from_pytree({"mu": 1.0})
    fit = everwillow.fit(negative_log_likelihood, start, asimov, fixed=fixed, solver=solver)
    q = 2.0 * (fit.nll - negative_log_likelihood(truth, asimov))
    result = TestStatResult(value=q, test=jnp.ones(()), q_asimov=q)
    return QTildeAsymptotic().expected_pvalues(result).cl_s.median


def pyhf_cls(model, data):
    return float(pyhf.infer.hypotest(1.0, data, model, return_expected=True)[1])


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def compiled(bins: int, arrays):
    """The functions to time, and the median time of their first call (trace, compile, run)."""
    first_calls = {}
    for repetition in range(COMPILATIONS):
        # A new channel name is a new structure: asking pyhf for it is part of the first call.
        functions = {"nablab": partial(nablab_cls, f"channel_{bins}_{repetition}")}
        functions |= {name: partial(everwillow_cls, solver) for name, solver in PEERS.items()}
        for name, function in functions.items():
            jax.clear_caches()
            functions[name] = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))
            first_calls.setdefault(name, []).append(seconds(functions[name], *arrays))
    return functions, {name: np.median(times) for name, times in first_calls.items()}


def compare(bins: int) -> tuple[list, list]:
    """Rows of the two tables: times and agreement."""
    arrays = tuple(map(jnp.asarray, yields(bins)))
    functions, first_call = compiled(bins, arrays)
    model = pyhf.Model(specification(*(array.tolist() for array in arrays)), poi_name="mu")
    asimov = np.concatenate([arrays[1], model.config.auxdata])
    values, gradients = {"pyhf": pyhf_cls(model, asimov)}, {}
    for name, function in functions.items():
        values[name], gradient = function(*arrays)
        gradients[name] = np.concatenate(gradient)
    own = gradients["nablab"]
    apart = {name: float(value - values["nablab"]) for name, value in values.items()}
    slopes = {name: np.abs(g - own).max() / np.abs(own).max() for name, g in gradients.items()}
    worst, worst_slope = np.abs([*apart.values()]).max(), np.max([*slopes.values()])
    if not (worst < 1e-6 and worst_slope < 1e-4):  # also where one is NaN
        raise SystemExit(f"{bins} bins: no agreement, nothing timed: {apart}, gradients {slopes}")

    times, order = {name: [] for name in [*functions, "pyhf"]}, np.random.default_rng(0)
    for turn in range(ROUNDS[bins]):
        for name in order.permutation(list(functions)):
            times[name].append(seconds(functions[name], *arrays))
        if turn % (ROUNDS[bins] // PYHF_ROUNDS) == 0:
            times["pyhf"].append(seconds(pyhf_cls, model, asimov))
    ms = {name: 1e3 * np.median(entries) for name, entries in times.items()}

    speed = [bins, f"{ms['nablab']:.3f}"]
    speed += [f"{ms[name]:.3f} ({ms[name] / ms['nablab']:.2f})" for name in PEERS]
    speed += [f"{ms['pyhf']:.0f} ({ms['pyhf'] / ms['nablab']:,.0f})"]
    speed += [f"{first_call[name]:.1f}" for name in functions]
    agreement = [bins, f"{values['nablab']:.8f}", *(f"{apart[k]:+.0e}" for k in [*PEERS, "pyhf"])]
    return speed, agreement + [f"{slopes[name]:.0e}" for name in PEERS]


def print_table(header, rows):
    for cells in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(map(str, cells)), "|")
    print()


def main():
    before = os.getloadavg()[0]
    speed, agreement = zip(*map(compare, ROUNDS), strict=True)
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES), time.strftime("(%Y-%m-%d)"))
    print(f"load of the last minute: {before:.2f} before, {os.getloadavg()[0]:.2f} after\n")
    header = ["bins", "nablab, ms", *(f"{name}, ms (ratio)" for name in [*PEERS, "pyhf"])]
    print_table([*header, "nablab, first call, s", *(f"{name}, s" for name in PEERS)], speed)
    header = ["bins", "CLs", *(f"{name} - nablab" for name in [*PEERS, "pyhf"])]
    print_table([*header, *(f"gradient, {name} - nablab" for name in PEERS)], agreement)


if __name__ == "__main__":
    main()
