"""What a gradient costs beside the number itself, and after how many its compilation has paid.

The models are those of ``size.py``: a ``histosys`` for each parameter, and ``staterror``. The
numbers are the log-density, with its gradient in all parameters or in all numbers of the model
(yields, shapes, uncertainties; of the largest model yields and shapes), and the median expected
CLs with that in all numbers.

Run ``python tests/benchmarks/gradients.py [parameters bins]``; prints a Markdown table. Each row is
measured in a process of its own. Before its time is taken, each gradient is compared with a
difference along a random direction.
"""

import subprocess
import sys
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from size import specification

from nablab.infer import hypotests
from nablab.model.histfactory import from_spec

ROWS = [(30, 100), (300, 300), (3000, 3000)]
MOST_ARRAYS = 1000  # of a specification, each of which is an argument of the compiled function
ROUNDS, LONGEST = 30, 20.0  # seconds


def of_the_numbers(spec, function):
    """``function`` of the model as one of all arrays of its specification, and these."""
    leaves, tree = jax.tree.flatten(spec)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)]

    def of_numbers(numbers):
        filled = dict(enumerate(leaves)) | dict(zip(places, numbers, strict=True))
        return function(from_spec(tree.unflatten(filled.values())))

    return of_numbers, [jnp.asarray(leaves[place]) for place in places]


def of_the_yields(model, function):
    """``function`` of the model as one of its nominal and varied yields, and these."""

    def of_yields(yields):
        nominal, down, up = yields
        return function(replace(model, nominal=nominal, shift_down=down, shift_up=up))

    return of_yields, (model.nominal, model.shift_down, model.shift_up)


def compiled(function, argument):
    """The function, and the seconds of its first call: trace, compile and run."""
    program, start = jax.jit(function), time.perf_counter()
    jax.block_until_ready(program(argument))
    return program, time.perf_counter() - start


def seconds(program, argument) -> float:
    """Median of several calls, fewer where they take long."""
    times = []
    while len(times) < ROUNDS and sum(times) < LONGEST:
        start = time.perf_counter()
        jax.block_until_ready(program(argument))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def agree(value, slopes, argument) -> float:
    """How far the gradient is from a central difference along a random direction, relative."""
    generator = np.random.default_rng(0)
    direction = jax.tree.map(
        lambda a: jnp.asarray(generator.normal(0, 1e-6, a.shape)) * a, argument
    )
    up, down = (
        value(jax.tree.map(lambda a, d, s=sign: a + s * d, argument, direction)) for sign in (1, -1)
    )
    difference = (up - down) / 2
    products = jax.tree.map(lambda s, d: jnp.sum(s * d), slopes, direction)
    return float(abs(sum(jax.tree.leaves(products)) / difference - 1))


def row(name, parameters, bins, function, argument) -> list[str]:
    """Cells of the table: times of the number and its gradient, and when compiling has paid.

    A gradient by differences takes one more value than there are numbers.
    """
    value, compiling = compiled(function, argument)
    gradient, compiling_both = compiled(jax.value_and_grad(function), argument)
    apart = agree(value, gradient(argument)[1], argument)
    if not apart < 1e-4:
        raise SystemExit(f"{name}: gradient and difference are {apart:.1e} apart, nothing timed")
    own, both = seconds(value, argument), seconds(gradient, argument)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(argument))
    by_differences = (numbers + 1) * own
    paid = int(np.ceil(max(compiling_both - compiling, 0.0) / (by_differences - both)))
    ms = [f"{1e3 * own:.3g}", f"{1e3 * both:.3g}", f"{both / own:.1f}"]
    compilations = [f"{compiling:.1f}", f"{compiling_both:.1f}"]
    return [name, f"{parameters}", f"{bins}", f"{numbers:,}", *ms, *compilations, f"{paid}"]


def measure(parameters: int, bins: int) -> None:
    """Print the cells of three rows."""

    spec = specification(bins, parameters)
    model = from_spec(spec)
    generator = np.random.default_rng(1)
    point = model.init + 0.1 * generator.normal(size=model.init.shape) * (model.init == 0)
    point = point.at[model.poi_index].set(1.1)
    data = model.expected_data(model.init)

    def of_numbers(function):
        if parameters > MOST_ARRAYS:
            return of_the_yields(model, function)
        return of_the_numbers(spec, function)

    cases = [
        ("log-density, parameters", lambda point: model.logpdf(point, data), point),
        ("log-density, numbers", *of_numbers(lambda model: model.logpdf(point, data))),
        ("expected CLs, numbers", *of_numbers(median)),
    ]
    for name, function, argument in cases:
        print("|".join(row(name, parameters, bins, function, argument)), flush=True)


def median(model):
    """With that many events a strength of 1 would be excluded beyond all digits."""
    return hypotests.expected_cls(model, 0.01).median


def main():
    given = tuple(map(int, sys.argv[1:]))
    if given[:1] == (0,):
        return measure(*given[1:])
    header = ["number, and its gradient in", "parameters", "bins", "numbers", "value, ms"]
    header += ["with gradient, ms", "ratio", "first value, s", "first gradient, s"]
    header += ["gradients until it pays"]
    print("|", " | ".join(header), "|")
    print("|", " | ".join(["---"] + ["---:"] * (len(header) - 1)), "|")
    for parameters, bins in [given] if given else ROWS:
        command = [sys.executable, __file__, "0", str(parameters), str(bins)]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in said.strip().splitlines():
            print("|", line.replace("|", " | "), "|", flush=True)
    return None


if __name__ == "__main__":
    main()
