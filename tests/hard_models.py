"""Likelihoods that are hard to fit: valleys along bounds, and more than one minimum."""

import numpy as np
from models import MU, channel, modifier

BOUNDS = np.array([[0.0, 10.0], [-5.0, 5.0], [-50.0, 50.0], [0.0, 2.0]])


def valley(normalisations, bins, rng):
    """Templates that are nearly the same, free normalisations with near and far bounds, counts.

    Templates [normalisations, bins], bounds [normalisations, 2], counts [bins].
    """
    base = rng.uniform(5.0, 200.0, bins)
    differ = 10.0 ** rng.uniform(-4.0, -0.5)
    scale = 10.0 ** rng.uniform(-1.0, 1.5, (normalisations, 1))
    templates = scale * base * (1.0 + differ * rng.normal(size=(normalisations, bins)))
    templates = np.clip(templates, 1e-3, None)
    rate = rng.uniform(0.0, 2.0, normalisations) @ templates
    if rng.random() < 0.5:
        counts = rng.poisson(rate).astype(float)
    else:
        counts = np.round(rate * np.clip(1.0 + 0.1 * rng.normal(size=bins), 0.1, None), 1)
    return templates, BOUNDS[rng.integers(len(BOUNDS), size=normalisations)], counts


def normalisations(templates, bounds):
    """One channel in which every template has a free normalisation, the first one ``mu``."""
    names = ["mu", *(f"k{i}" for i in range(1, len(templates)))]
    samples = {
        f"s{i}": (template, [modifier("normfactor", name)])
        for i, (name, template) in enumerate(zip(names, templates, strict=True))
    }
    parameters = [
        {"name": name, "inits": [1.0], "bounds": [bound]}
        for name, bound in zip(names, bounds, strict=True)
    ]
    return {"channels": [channel("c", **samples)], "parameters": parameters}


def many_shapes(shapes, bins, rng):
    """A specification with many one-sided and lopsided histosys, and counts far off nominal."""
    x = (np.arange(bins) + 0.5) / bins
    background = 400.0 * np.exp(-1.5 * x)
    signal = 30.0 * np.exp(-0.5 * ((x - 0.6) / 0.1) ** 2)
    size = 0.5 / np.sqrt(shapes)
    modifiers = []
    for i in range(shapes):
        up, down = (
            size * rng.normal() * np.cos(rng.uniform(0.0, 6.0) + 4.0 * x * rng.random((2, 1)))
        )
        if rng.random() < 0.5:  # both variations to the same side: two minima
            down = up * rng.uniform(0.5, 1.0)
        data = {"hi_data": background * (1.0 + up), "lo_data": background * (1.0 + down)}
        modifiers.append(modifier("histosys", f"shape{i}", data))
    counts = rng.poisson(background * (1.0 + 0.15 * rng.normal(size=bins)) + signal).astype(float)
    spec = {"channels": [channel("c", signal=(signal, [MU]), background=(background, modifiers))]}
    return spec, counts


# Three free normalisations, two of them nearly the same: [templates], [bounds], counts.
ALONG_A_BOUND = (
    [[210.01, 164.03, 43.8], [0.345, 3.13, 1156.8], [0.0349, 0.336, 116.1]],
    [[-10.0, 10.0], [-10.0, 10.0], [-5.0, 5.0]],
    [247.8, 153.9, 1174.0],
)
# A small sample with an enormous uncertainty, whose factor is negative where alpha is.
ENORMOUS = {
    "channels": [
        channel(
            "c",
            signal=([5.0], [MU]),
            background=([70.0], []),
            small=([1.0], [modifier("normsys", "jer", {"lo": 0.01, "hi": 105.646})]),
        )
    ]
}
