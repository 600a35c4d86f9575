"""A thousand fits at once, in watched fresh processes.

Batched Newton iterations that called LAPACK in their loop have been seen to hang (two of five
processes; 0 of 30 when tried again, with and without asynchronous dispatch). The library does
neither: solves are written out, and fits run on the thread that asks for them.
``NABLAB_BATCH_RUNS=200`` repeats them that often.
"""

import os
import subprocess
import sys

import pytest

RUNS, SECONDS = int(os.environ.get("NABLAB_BATCH_RUNS", "1")), 180
SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from nablab.infer import hypotests
from nablab.model.histfactory import from_spec
import models

def cls(signal, background, uncertainty):
    down, up = background - uncertainty, background + 0.5 * uncertainty
    model = from_spec(models.histosys(signal, background, down, up))
    return hypotests.expected_cls(model).median

jitter = np.random.default_rng(int(sys.argv[1])).lognormal(0.0, 0.1, (3, 1000, 5))
yields = np.array([[1, 3, 6, 3, 1], [40, 35, 30, 26, 23], [4, 3, 3, 3, 2]])[:, None] * jitter
values, slopes = jax.jit(jax.vmap(jax.value_and_grad(cls, argnums=(0, 1, 2))))(*jnp.array(yields))
assert jnp.isfinite(values).all() and all(jnp.isfinite(slope).all() for slope in slopes)
print("done")
"""


@pytest.mark.parametrize("run", range(RUNS))
def test_a_thousand_fits_end(run):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run)],
        env={**os.environ, "PYTHONPATH": path},
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr
