"""Time of one expected CLs and its gradient in every yield: nablab, everwillow and pyhf.

Run with ``make benchmark``; prints Markdown tables. Nothing is asserted about times, but the
packages must agree on the number before they are timed. RESULTS.md says what is compared.
"""

import json
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
from nablab.model import interpolation
from nablab.model.histfactory import from_spec

MODELS = [("histosys", 5), ("histosys", 20)]
MODELS += [("shapesys", bins) for bins in (2, 20, 100, 1000)]
ROUNDS = {2: 400, 5: 400, 20: 400, 100: 200, 1000: 40}  # by number of bins
PYHF_ROUNDS, PYHF_BINS, COMPILATIONS = 5, 100, 3
MANY, MANY_MODELS = 1000, [("histosys", 5), ("shapesys", 20)]
PEERS = {"BFGS": None, "L-BFGS": optimistix.LBFGS(rtol=1e-5, atol=1e-5)}  # None: the default
PACKAGES = ("nablab", "everwillow", "optimistix", "pyhf", "jax", "numpy", "scipy")


def yields(bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal (60 events, a bump), background (1,000, falling) and its uncertainty (5 %)."""
    x = (np.arange(bins) + 0.5) / bins
    signal, background = np.exp(-0.5 * ((x - 0.6) / 0.1) ** 2), np.exp(-x)
    background *= 1000 / background.sum()
    return signal * 60 / signal.sum(), background, 0.05 * background


def tilt(bins):
    """The shape of the histosys uncertainty upwards; downwards it is 1."""
    return np.linspace(1, -1, bins)


def specification(signal, background, uncertainty, kind="shapesys", channel="channel") -> dict:
    mu = {"name": "mu", "type": "normfactor", "data": None}
    shape = {"name": "shape", "type": kind, "data": uncertainty}
    if kind == "histosys":
        up = background + uncertainty * tilt(len(uncertainty))
        shape["data"] = {"lo_data": background - uncertainty, "hi_data": up}
    signal = {"name": "signal", "data": signal, "modifiers": [mu]}
    background = {"name": "background", "data": background, "modifiers": [shape]}
    return {"channels": [{"name": channel, "samples": [signal, background]}]}


def nablab_cls(kind, channel, *arrays):
    spec = specification(*arrays, kind, channel)
    return hypotests.expected_cls(from_spec(spec)).median


def shapesys_likelihood(signal, background, uncertainty):
    """By hand: expected counts, -log likelihood, nuisance parameters at their nominal values."""

    def rates(parameters):
        mu, gamma = parameters["mu"], parameters["nuisance"]
        auxiliary = gamma * (background / uncertainty) ** 2
        return jnp.concatenate([mu * signal + gamma * background, auxiliary])

    def negative_log_likelihood(parameters, counts):
        expected = rates(parameters)
        return jnp.sum(expected - counts * jnp.log(expected))

    return rates, negative_log_likelihood, jnp.ones(background.shape)


def histosys_likelihood(signal, background, uncertainty):
    down, up = background - uncertainty, background + uncertainty * tilt(len(uncertainty))

    def rates(parameters):
        shift = interpolation.code4p(parameters["nuisance"], down, background, up)
        return parameters["mu"] * signal + background + shift

    def negative_log_likelihood(parameters, counts):
        expected = rates(parameters)
        constraint = 0.5 * parameters["nuisance"] ** 2
        return jnp.sum(expected - counts * jnp.log(expected)) + constraint

    return rates, negative_log_likelihood, 0.0


LIKELIHOODS = {"shapesys": shapesys_likelihood, "histosys": histosys_likelihood}


def everwillow_cls(kind, solver, *arrays):
    """The same from everwillow's parts: one fit, at mu = 1, to the Asimov data of mu = 0."""
    rates, negative_log_likelihood, nominal = LIKELIHOODS[kind](*arrays)
    truth = {"mu": 0.0, "nuisance": nominal}
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


def with_gradient(function):
    return jax.value_and_grad(function, argnums=(0, 1, 2))


def contestants(kind, channel):
    functions = {"nablab": partial(nablab_cls, kind, channel)}
    return functions | {name: partial(everwillow_cls, kind, peer) for name, peer in PEERS.items()}


def compiled(kind, bins, arrays):
    """The functions to time, and the median time of their first call (trace, compile, run)."""
    first_calls = {}
    for repetition in range(COMPILATIONS):
        # A new channel name is a new structure: asking pyhf for it is part of the first call.
        functions = contestants(kind, f"channel_{bins}_{repetition}")
        for name, function in functions.items():
            jax.clear_caches()
            functions[name] = jax.jit(with_gradient(function))
            first_calls.setdefault(name, []).append(seconds(functions[name], *arrays))
    return functions, {name: np.median(times) for name, times in first_calls.items()}


def take_turns(functions, arrays, rounds, order) -> dict[str, list[float]]:
    """Times of each function in ms, called in random order."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name in order.permutation(list(functions)):
            times[name].append(1e3 * seconds(functions[name], *arrays))
    return times


def beside(own: float, others) -> list[str]:
    """Cells of the table: a time, then the others with their ratios to it."""
    return [f"{own:.3f}", *(f"{other:.3f} ({other / own:.2f})" for other in others)]


def pyhf_model(kind, bins):
    """The model, and the Asimov data of mu = 0."""
    spec = json.loads(json.dumps(specification(*yields(bins), kind), default=np.ndarray.tolist))
    model = pyhf.Model(spec, poi_name="mu")
    truth = np.array(model.config.suggested_init())
    truth[model.config.poi_index] = 0.0
    return model, model.expected_data(truth)


def compare(kind: str, bins: int) -> tuple[list, list]:
    """Rows of the two tables: times and agreement."""
    arrays = tuple(map(jnp.asarray, yields(bins)))
    functions, first_call = compiled(kind, bins, arrays)
    values, gradients = {}, {}
    for name, function in functions.items():
        values[name], gradient = function(*arrays)
        gradients[name] = np.concatenate(gradient)
    pyhf_arguments = pyhf_model(kind, bins) if bins <= PYHF_BINS else None
    if pyhf_arguments:
        values["pyhf"] = pyhf_cls(*pyhf_arguments)
    own = gradients["nablab"]
    apart = {name: float(value - values["nablab"]) for name, value in values.items()}
    slopes = {name: np.abs(g - own).max() / np.abs(own).max() for name, g in gradients.items()}
    worst, worst_slope = np.abs([*apart.values()]).max(), np.max([*slopes.values()])
    if not (worst < 1e-6 and worst_slope < 1e-4):  # also where one is NaN
        raise SystemExit(f"{kind} {bins}: no agreement, nothing timed: {apart}, {slopes}")

    times, order = {name: [] for name in [*functions, "pyhf"]}, np.random.default_rng(0)
    for _ in range(PYHF_ROUNDS):
        for name, some in take_turns(functions, arrays, ROUNDS[bins] // PYHF_ROUNDS, order).items():
            times[name] += some
        if pyhf_arguments:
            times["pyhf"].append(1e3 * seconds(pyhf_cls, *pyhf_arguments))
    ms = {name: np.median(entries) for name, entries in times.items() if entries}
    speed = [kind, bins, *beside(ms["nablab"], [ms[name] for name in PEERS])]
    speed.append(f"{ms['pyhf']:.0f} ({ms['pyhf'] / ms['nablab']:,.0f})" if "pyhf" in ms else "")
    speed += [f"{first_call[name]:.1f}" for name in functions]
    agreement = [kind, bins, f"{values['nablab']:.8f}"]
    agreement += [f"{apart[name]:+.0e}" if name in apart else "" for name in [*PEERS, "pyhf"]]
    return speed, agreement + [f"{slopes[name]:.0e}" for name in PEERS]


def compare_many(kind: str, bins: int) -> list:
    """Row of the third table: MANY different models at once, in microseconds each."""
    jitter = np.random.default_rng(1).lognormal(0.0, 0.05, (3, MANY, bins))
    arrays = [
        jnp.asarray(array * factor) for array, factor in zip(yields(bins), jitter, strict=True)
    ]
    functions = {
        name: jax.jit(jax.vmap(with_gradient(function)))
        for name, function in contestants(kind, f"many_{bins}").items()
    }
    values = {name: function(*arrays)[0] for name, function in functions.items()}
    times = take_turns(functions, arrays, 20, np.random.default_rng(0))
    us = {name: 1e3 * np.median(entries) / MANY for name, entries in times.items()}
    apart = [f"{np.abs(values[name] - values['nablab']).max():.0e}" for name in PEERS]
    return [kind, bins, *beside(us["nablab"], [us[name] for name in PEERS]), *apart]


def print_table(header, rows):
    for cells in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(map(str, cells)), "|")
    print()


def main():
    before = os.getloadavg()[0]
    speed, agreement = zip(*(compare(*model) for model in MODELS), strict=True)
    many = [compare_many(*model) for model in MANY_MODELS]
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES), time.strftime("(%Y-%m-%d)"))
    print(f"load of the last minute: {before:.2f} before, {os.getloadavg()[0]:.2f} after\n")
    header = ["model", "bins", "nablab, ms"]
    header += [f"{name}, ms (ratio)" for name in [*PEERS, "pyhf"]]
    print_table([*header, "nablab, first call, s", *(f"{name}, s" for name in PEERS)], speed)
    header = ["model", "bins", "CLs", *(f"{name} - nablab" for name in [*PEERS, "pyhf"])]
    print_table([*header, *(f"gradient, {name} - nablab" for name in PEERS)], agreement)
    header = ["model", "bins", "nablab, us", *(f"{name}, us (ratio)" for name in PEERS)]
    print_table([*header, *(f"{name}, largest difference" for name in PEERS)], many)


if __name__ == "__main__":
    main()
