"""How long an upper limit and its gradient in the signal take to trace and to compile.

Two bins, and one uncertainty of the background: independent in each bin (``shapesys``, which is
eliminated in closed form) or a shape (``histosys``, which is fitted). Nothing is taken from the
store of compiled programs. Run ``python tests/benchmarks/limit_gradient.py``; prints a Markdown
table.
"""

import time

import jax
import jax.numpy as jnp

from nablab.infer import limits
from nablab.model.histfactory import Model, from_spec

SIGNAL = jnp.array([5.0, 10.0])
UNCERTAINTIES = {
    "shapesys": [5.0, 6.0],
    "histosys": {"lo_data": [45.0, 62.0], "hi_data": [56.0, 57.0]},
}


def model_of(signal, kind: str) -> Model:
    mu = [{"name": "mu", "type": "normfactor", "data": None}]
    uncertainty = [{"name": "a", "type": kind, "data": UNCERTAINTIES[kind]}]
    samples = [
        {"name": "signal", "data": signal, "modifiers": mu},
        {"name": "background", "data": [50.0, 60.0], "modifiers": uncertainty},
    ]
    return from_spec({"channels": [{"name": "c", "samples": samples}]})


def main():
    jax.config.update("jax_enable_compilation_cache", False)
    header = ["uncertainty", "limit", "tracing, s", "compiling, s"]
    header += ["gradient: tracing, s", "compiling, s"]
    print("|", " | ".join(header), "|")
    print("|", " | ".join(["---"] * 2 + ["---:"] * 4), "|")
    for kind in UNCERTAINTIES:
        model = model_of(SIGNAL, kind)
        data = model.expected_data(model.init)
        kinds = {
            "expected": lambda s, kind=kind: limits.expected_upper_limit(model_of(s, kind)).median,
            "observed": lambda s, kind=kind, data=data: (
                limits.upper_limit(model_of(s, kind), data).observed
            ),
        }
        for name, limit in kinds.items():
            row = [kind, name]
            for function in (limit, jax.grad(limit)):
                start = time.perf_counter()
                lowered = jax.jit(function).lower(SIGNAL)
                traced = time.perf_counter()
                lowered.compile()
                row += [f"{traced - start:.1f}", f"{time.perf_counter() - traced:.1f}"]
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
