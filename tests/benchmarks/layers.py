"""Time of one expected CLs and its gradient where bins have uncertainties of their own: none, one
or two in each bin.

Run with ``make benchmark``; prints a Markdown table. The model is that of ``cls.py`` with
``histosys``, whose fit cannot be avoided.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cls import print_table, seconds, specification, yields

from nablab.infer import hypotests
from nablab.model.histfactory import from_spec

BINS = (100, 300, 1000)
OWN = {"none": (), "shapesys": ("shapesys",), "shapesys and staterror": ("shapesys", "staterror")}
ROUNDS = 20


def expected_cls(own, arrays):
    """Median expected CLs, and whether its fit found a minimum."""
    spec = specification(*arrays, kind="histosys")
    background = spec["channels"][0]["samples"][1]
    for kind in own:
        modifier = {"name": kind, "type": kind, "data": 0.1 * background["data"]}
        background["modifiers"].append(modifier)
    result = hypotests.expected_cls(from_spec(spec))
    return result.median, result.converged


def measure(name: str, bins: int) -> tuple[float, float]:
    """Milliseconds, and seconds of the first call."""
    arrays = tuple(map(jnp.asarray, yields(bins)))
    function = jax.jit(
        jax.value_and_grad(lambda *arrays: expected_cls(OWN[name], arrays), (0, 1, 2), has_aux=True)
    )
    first_call = seconds(function, *arrays)
    (_, converged), slopes = function(*arrays)
    if not (converged and all(np.isfinite(slope).all() for slope in slopes)):
        raise SystemExit(f"{name}, {bins} bins: no minimum, nothing reported")
    return 1e3 * np.median([seconds(function, *arrays) for _ in range(ROUNDS)]), first_call


def main():
    rows = []
    for name in OWN:
        times, first_calls = zip(*(measure(name, bins) for bins in BINS), strict=True)
        row = [name, *(f"{time:.2f}" for time in times), f"{times[-1] / times[0]:.1f}"]
        rows.append([*row, f"{max(first_calls):.1f}"])
    header = ["uncertainties of a bin", *(f"{bins} bins, ms" for bins in BINS)]
    print_table([*header, f"{BINS[-1]} : {BINS[0]}", "first call, s"], rows)


if __name__ == "__main__":
    main()
