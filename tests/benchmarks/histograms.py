"""Time and memory of soft histograms, beside the ordinary one of NumPy.

Run with ``make benchmark``; prints a Markdown table. Each time is the median of some rounds, in
which the functions take turns; memory is what a function needs above its input, its result
included: XLA's own account, for NumPy that of ``tracemalloc``. The gradient is that of
sum(values^2 / (1 + variances)) in the events, the edges and the bandwidth.
"""

import importlib.util
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
from cls import print_table, seconds

from nablab.relax import histograms

SIZES = ((10**4, 50), (10**5, 50), (10**6, 50), (10**7, 50), (10**6, 500))
BANDWIDTHS = (1.0, 0.05)  # in bin widths
MOST_MEMBERSHIPS = 5 * 10**7  # events x bins for the direct sum and for relaxed


def objective(counts):
    def function(x, edges, bandwidth):
        values, variances, _ = counts(x, edges, bandwidth=bandwidth)
        return jnp.sum(values**2 / (1.0 + variances))

    return jax.value_and_grad(function, argnums=(0, 1, 2))


def direct_sum(x, edges, bandwidth):
    return histograms.direct_kde_counts(x, edges, bandwidth=bandwidth)


def contestants(events, bins):
    functions = {
        "numpy.histogram": np.histogram,
        "hard_counts": jax.jit(histograms.hard_counts),
        "kde_counts": jax.jit(histograms.kde_counts),
        "kde_counts, gradient": jax.jit(objective(histograms.kde_counts)),
    }
    if events * bins <= MOST_MEMBERSHIPS:
        functions["direct sum"] = jax.jit(direct_sum)
        functions["direct sum, gradient"] = jax.jit(objective(direct_sum))
    if importlib.util.find_spec("relaxed") and events * bins <= MOST_MEMBERSHIPS:
        import relaxed

        def relaxed_counts(x, edges, bandwidth):
            values = relaxed.hist(x, bins=edges, bandwidth=bandwidth)
            return values, jnp.zeros_like(values)

        functions["relaxed, gradient"] = jax.jit(objective(relaxed_counts))
    return functions


def megabytes(function, arguments) -> float:
    """Memory above the input, result included."""
    if function is np.histogram:
        tracemalloc.start()
        function(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 1e6
    memory = function.lower(*arguments).compile().memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


def measure(events, bins, bandwidth):
    """Median milliseconds and megabytes of each function."""
    x = np.random.default_rng(0).normal(0.0, 3.0, events)
    edges = np.linspace(-5.0, 5.0, bins + 1)
    arguments = (jnp.array(x), jnp.array(edges), bandwidth * 10.0 / bins)
    functions = contestants(events, bins)
    calls = {name: (function, arguments) for name, function in functions.items()}
    calls["numpy.histogram"] = (np.histogram, (x, edges))
    soft = functions["kde_counts"](*arguments)
    if "direct sum" in functions:
        direct = functions["direct sum"](*arguments)
        if np.abs(soft.values - direct.values).max() > 1e-12 * events:
            raise SystemExit(f"{events} events, {bins} bins: not the direct sum, nothing reported")
    rounds = 5 if events >= 10**6 else 9
    times = {name: [] for name in calls}
    for _ in range(1 + rounds):  # the first one compiles
        for name, (function, inputs) in calls.items():
            times[name].append(1e3 * seconds(function, *inputs))
    return {
        name: (np.median(times[name][1:]), megabytes(function, inputs))
        for name, (function, inputs) in calls.items()
    }


def main():
    rows = []
    for bandwidth in BANDWIDTHS:
        for events, bins in SIZES:
            results = measure(events, bins, bandwidth)
            numpy_time = results["numpy.histogram"][0]
            for name, (time, memory) in results.items():
                row = [f"{events:.0e}", str(bins), f"{bandwidth:g}", name]
                rows.append([*row, f"{time:.2f}", f"{time / numpy_time:.1f}", f"{memory:.1f}"])
    header = ["events", "bins", "bandwidth / bin width", "function", "ms", ": numpy", "MB"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
