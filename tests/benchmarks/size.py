"""Time and memory of building and fitting a model as large as the largest in use.

The W mass of CMS (arXiv:2412.13872) is measured in some 3,000 bins with 4,000 nuisance parameters.
This is a synthetic model of that size: signal and three backgrounds in one channel, a ``histosys``
for each parameter and a ``staterror``.

Run ``python tests/benchmarks/size.py [bins parameters [samples of each parameter]]``; prints a
Markdown table. Each row is measured in a process of its own. The fit is a free one; the gradient is
that of the best signal strength in all yields, nominal and varied.
"""

import resource
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np

from nablab.infer import mle

SAMPLES = {"signal": 0.3, "top": 1.0, "jets": 0.6, "multijet": 0.2}  # relative size
ROWS = [(100, 30, 1), (300, 300, 1), (1000, 1000, 1), (3000, 4000, 1), (3000, 4000, 4)]


def specification(bins: int = 3000, parameters: int = 4000, spread: int = 1) -> dict:
    """Yields as NumPy arrays; each parameter varies ``spread`` of the samples by some per mille."""
    generator = np.random.default_rng(3)
    x = np.linspace(0.0, 1.0, bins)
    names = list(SAMPLES)
    samples = []
    for place, (name, size) in enumerate(SAMPLES.items()):
        peak = np.exp(-0.5 * ((x - 0.2 - 0.2 * place) / 0.2) ** 2)
        data = 1e4 * size * (0.2 + peak)
        modifiers = [{"name": "mc", "type": "staterror", "data": np.sqrt(data)}]
        if name == "signal":
            modifiers.append({"name": "mu", "type": "normfactor", "data": None})
        samples.append({"name": name, "data": data, "modifiers": modifiers})
    for parameter in range(parameters):
        waves, phase = generator.integers(1, 40), generator.uniform(0.0, 6.28)
        change = 3e-3 * np.sin(waves * x + phase)
        for step in range(spread):
            sample = samples[(parameter + step) % len(names)]
            shape = {
                "lo_data": sample["data"] * (1.0 - change),
                "hi_data": sample["data"] * (1.0 + 1.1 * change),
            }
            sample["modifiers"].append(
                {"name": f"shape{parameter}", "type": "histosys", "data": shape}
            )
    return {"channels": [{"name": "c", "samples": samples}]}


def measure(bins: int, parameters: int, spread: int) -> None:
    """Print the entries of one row."""
    from nablab.model.histfactory import from_spec

    spec = specification(bins, parameters, spread)
    numbers = sum(
        sample["data"].size * (1 + 2 * (len(sample["modifiers"]) - 1))
        for sample in spec["channels"][0]["samples"]
    )
    start = time.perf_counter()
    model = from_spec(spec)
    building, built = time.perf_counter() - start, peak()
    del spec
    row = [bins, len(model.init), f"{numbers / 1e6:.3g}", f"{building:.1f}", f"{built:.2f}"]
    print("|".join(map(str, [*row, *fit(model), f"{peak():.2f}"])))


def fit(model) -> list[str]:
    """Seconds of the fit, and of the fit with its gradient, compiling apart; and what it found."""
    import jax

    data = shifted(model)
    yields = model.nominal, model.shift_down, model.shift_up

    def best(model, yields):
        nominal, down, up = yields
        model = replace(model, nominal=nominal, shift_down=down, shift_up=up)
        return mle.best_fit(model, data)

    def with_gradient(model, yields):
        def mu(yields):
            found = best(model, yields)
            return found.parameters[model.poi_index], found

        (_, found), gradient = jax.value_and_grad(mu, has_aux=True)(yields)
        return found, gradient

    row = []
    for function in (best, with_gradient):
        start, cpu = time.perf_counter(), time.process_time()
        compiled = jax.jit(function).lower(model, yields).compile()
        compiling = time.perf_counter() - start
        start, cpu = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(compiled(model, yields))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        row += [f"{compiling:.1f}", f"{seconds:.1f}", f"{cpu:.1f}"]
        fitted = found if function is best else found[0]
        if not fitted.converged:
            sys.exit(f"no minimum: {fitted.certificate}")
        if function is best:
            row.append(str(int(fitted.certificate.iterations)))
    return [*row, f"{float(fitted.parameters[model.poi_index]):.6f}", f"{float(fitted.value):.4f}"]


def shifted(model):
    """What is expected with more signal and some parameters pulled, and fluctuates."""
    import jax.numpy as jnp

    parameters = np.array(model.parameters(1.1))
    alphas = model.structure.interpolated
    parameters[alphas[:: max(1, len(alphas) // 5)]] = 0.5
    data = np.array(model.expected_data(jnp.asarray(parameters)))
    bins = model.structure.main_bins
    noise = np.random.default_rng(5).normal(size=bins)
    data[:bins] += np.sqrt(data[:bins]) * noise
    data[bins:] = model.auxdata
    return jnp.asarray(data)


def peak() -> float:
    """Largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main():
    given = tuple(map(int, sys.argv[1:]))
    if given[:1] == (0,):
        return measure(*given[1:])
    rows = []
    for row in [(*given, 1)[:3]] if given else ROWS:
        command = [sys.executable, __file__, "0", *map(str, row)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(said.strip().split("|"))
    header = ["bins", "parameters", "numbers, million", "building, s", "its peak, GB"]
    for what in ("fit", "with gradient"):
        header += [f"compiling {what}, s", f"{what}, s", "on all cores, s"]
        header += ["iterations"] * (what == "fit")
    header += ["mu", "deviance", "peak, GB"]
    for row in (header, ["---:"] * len(header), *rows):
        print("|", " | ".join(row), "|")
    return None


if __name__ == "__main__":
    main()
