"""Error of the gradient at the bandwidth of ``choose_bandwidth``, over that of the best bandwidth.

    python tests/benchmarks/bandwidths.py

For each case: samples from a known distribution, the derivative of every bin under a shift of all
events, its distance to the exact one. The best bandwidth is the one with the smallest root mean
squared error over the samples; it is fixed, and known only to who knows the truth. The rule sees
one sample at a time. Its constants were chosen on other distributions (claw, bimodal, peak on flat,
Student, gamma, log-normal).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nablab.relax.estimators import boundary_gradient
from nablab.relax.histograms import kde_counts
from nablab.relax.probes import choose_bandwidth

SAMPLES = 40
DISTRIBUTIONS = {
    "Gaussian": [(1.0, stats.norm(0, 1))],
    "beta": [(1.0, stats.beta(2, 5))],
    "Rayleigh": [(1.0, stats.rayleigh())],
    "Z peak": [(0.4, stats.t(2, 91, 2.5)), (0.6, stats.expon(40, 40))],
    "Laplace": [(1.0, stats.laplace())],
    "three peaks": [(0.3, stats.norm(0, 1)), (0.3, stats.norm(4, 0.5)), (0.4, stats.norm(8, 2))],
    "network": [(0.8, stats.beta(1.5, 6)), (0.2, stats.beta(7, 2))],
    "falling pT": [(1.0, stats.pareto(3, scale=30))],
    "small bump": [(0.95, stats.expon(100, 50)), (0.05, stats.norm(150, 8))],
    "Weibull": [(1.0, stats.weibull_min(1.8))],
}
CASES = [
    ("Gaussian", (-5, 5), 5, 1555),
    ("Gaussian", (-4, 4), 8, 400),
    ("Gaussian", (-4, 4), 25, 20_000),
    ("beta", (0.05, 0.95), 10, 1000),
    ("beta", (0.05, 0.95), 30, 10_000),
    ("Rayleigh", (0.2, 3.5), 7, 600),
    ("Z peak", (60, 140), 40, 5000),
    ("Z peak", (60, 140), 16, 20_000),
    ("Laplace", (-3.3, 3.7), 12, 2500),
    ("three peaks", (-3, 13), 20, 3000),
    ("three peaks", (-3, 13), 6, 500),
    ("network", (0.02, 0.98), 10, 4000),
    ("network", (0.02, 0.98), 50, 10_000),
    ("falling pT", (35, 200), 12, 3000),
    ("small bump", (105, 250), 15, 8000),
    ("Weibull", (0.1, 2.6), 9, 1200),
    ("Laplace", (-3.3, 3.7), 4, 100),
    ("Gaussian", (-5, 5), 5, 20),
]


def draw(parts, events, generator):
    which = generator.choice(len(parts), events, p=[share for share, _ in parts])
    columns = [part.rvs(events, random_state=generator) for _, part in parts]
    return np.choose(which, columns)


def compare(name, limits, bins, events, generator):
    parts, edges = DISTRIBUTIONS[name], np.linspace(*limits, bins + 1)
    width = edges[1] - edges[0]
    truth = boundary_gradient(
        lambda x: events * sum(share * part.pdf(x) for share, part in parts), edges
    )

    @jax.jit
    def squared_errors(x, bandwidths):
        def gradient(bandwidth):
            return jax.jvp(
                lambda shift: kde_counts(x + shift, edges, bandwidth=bandwidth).values,
                (0.0,),
                (1.0,),
            )[1]

        errors = jax.lax.map(gradient, bandwidths) - truth
        return (errors**2).sum(axis=1) / (truth**2).sum()

    tried = np.geomspace(0.03, 4.0, 40) * width
    of_tried, of_chosen, chosen = [], [], []
    for _ in range(SAMPLES):
        x = jnp.asarray(draw(parts, events, generator))
        chosen.append(choose_bandwidth(x, edges).best)
        of_tried.append(squared_errors(x, tried))
        of_chosen.append(squared_errors(x, jnp.array([chosen[-1]]))[0])
    best = np.sqrt(np.mean(of_tried, axis=0))
    ratios = (
        np.sqrt(np.mean(of_chosen)) / best.min(),
        np.mean(np.sqrt(of_chosen)) / np.min(np.mean(np.sqrt(of_tried), axis=0)),
    )
    print(
        f"| {name} | {bins} | {events} | {tried[best.argmin()] / width:.2f} | "
        f"{np.median(chosen) / width:.2f} | {best.min():.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    print("| distribution | bins | events | best h / bin | chosen | best error | rms | mean |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        compare(*case, np.random.default_rng(11))
