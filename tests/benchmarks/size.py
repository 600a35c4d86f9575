"""Time and memory of building a model as large as the largest in use.

The W mass of CMS (arXiv:2412.13872) is measured in some 3,000 bins with 4,000 nuisance parameters.
This is a synthetic model of that size: signal and three backgrounds in one channel, a ``histosys``
for each parameter and a ``staterror``.

Run ``python tests/benchmarks/size.py [bins parameters [samples of each parameter]]``; prints a
Markdown table. Each row is measured in a process of its own.
"""

import resource
import subprocess
import sys
import time

import numpy as np

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
    from nablab.infer.histfactory import Model

    spec = specification(bins, parameters, spread)
    numbers = sum(
        sample["data"].size * (1 + 2 * (len(sample["modifiers"]) - 1))
        for sample in spec["channels"][0]["samples"]
    )
    before = peak()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model = Model.from_spec(spec)
        seconds.append(time.perf_counter() - start)
    row = [bins, len(model.init), f"{numbers / 1e6:.3g}"]
    print(
        "|".join(map(str, [*row, *(f"{t:.2f}" for t in seconds), f"{before:.2f}", f"{peak():.2f}"]))
    )


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
    header = ["bins", "parameters", "numbers, million", "building, s", "again, s"]
    header += ["memory before, GB", "peak, GB"]
    for row in (header, ["---:"] * len(header), *rows):
        print("|", " | ".join(row), "|")
    return None


if __name__ == "__main__":
    main()
