"""Does JAX find LAPACK in a large program on a single processor? With 0.10.2 it does not.

Run with ``python tests/benchmarks/lapack.py`` (Linux only). Once the oldest supported version
prints a number, ``nablab.infer.linalg.LARGE`` need not ask for the processors. With the argument
``without`` the fit is made as nablab makes it there, without LAPACK.
"""

# ruff: noqa: E402
import os
import sys

# Before anything asks how many processors there are.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # what another process has compiled tells nothing

import jax
import jaxlib
import numpy as np

from nablab import infer, model
from nablab.infer import linalg

BINS, PARAMETERS = 20, 512


def fit_of_many_parameters() -> float:
    """The signal strength, 1.3, of a fit with 512 histosys parameters."""
    changes = 0.2 * np.random.default_rng(0).normal(size=(PARAMETERS, BINS))
    shapes = [
        {"name": f"a{k}", "type": "histosys", "data": {"hi_data": 100 + d, "lo_data": 100 - d}}
        for k, d in enumerate(changes)
    ]
    mu = [{"name": "mu", "type": "normfactor", "data": None}]
    samples = [
        {"name": "signal", "data": np.linspace(1.0, 20.0, BINS), "modifiers": mu},
        {"name": "background", "data": np.full(BINS, 100.0), "modifiers": shapes},
    ]
    likelihood = model.from_spec({"channels": [{"name": "c", "samples": samples}]})
    data = likelihood.expected_data(likelihood.parameters(1.3))
    return float(infer.best_fit(likelihood, data).require().parameters[likelihood.poi_index])


def main():
    if "without" not in sys.argv:
        linalg.LARGE = PARAMETERS
    try:
        print(fit_of_many_parameters())
    except jax.errors.JaxRuntimeError as error:
        print(f"jaxlib {jaxlib.__version__}: {error}")


if __name__ == "__main__":
    main()
