"""A network, a cut, the bin edges and the bandwidth learn together, each by its own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import histosys

from nablab.data import toys
from nablab.model.histfactory import from_spec
from nablab.relax.cuts import hard_cut, soft_cut
from nablab.relax.edges import ordered_edges
from nablab.relax.histograms import hard_counts, kde_counts
from nablab.relax.probes import choose_bandwidth
from nablab.train import loop, networks, objectives

EXPECTED = {"signal": 20.0, "background": 100.0, "down": 100.0, "up": 100.0}
APPLY, NETWORK = networks.mlp((2, 12, 1), key=jax.random.key(0))
START = {
    "network": NETWORK,
    "cut": jnp.array(-1.0),
    "widths": jnp.zeros(4),
    "bandwidth": jnp.array(0.1),
}
TRAINING, HELD_OUT = (toys.blobs(2000, key=key) for key in jax.random.split(jax.random.key(1)))


def log_cls(params, events, cut=soft_cut, counts=kde_counts):
    """A cut on the sum of the features, and a histogram of the network's output."""
    edges = ordered_edges(params["widths"], 0.0, 1.0)
    bins = {}
    for name, x in events.items():
        observable = jax.nn.sigmoid(APPLY(params["network"], x)[:, 0].astype(float))
        passed = cut(x.sum(axis=1), params["cut"], slope=3.0)
        summed = counts(observable, edges, bandwidth=params["bandwidth"], weights=passed).values
        bins[name] = EXPECTED[name] * summed / len(x) + 1e-3
    return objectives.log_cls(
        from_spec(histosys(*(bins[n] for n in ("signal", "background", "down", "up"))))
    )


def observable(params, events):
    return np.concatenate([jax.nn.sigmoid(APPLY(params["network"], x)[:, 0]) for x in events])


@pytest.fixture(scope="module")
def trained():
    outputs = observable(START, TRAINING.values())
    widest = float(choose_bandwidth(outputs, np.linspace(0, 1, 5)).best)
    narrowest = widest / 4
    optimizer = optax.partition(
        {
            "network": optax.adam(5e-3),
            "cut": optax.adam(5e-2),
            "widths": optax.adam(2e-2),
            # Steps so long that only the limits can hold it.
            "bandwidth": optax.chain(optax.adam(0.5), loop.clamped(narrowest, widest)),
        },
        {name: name for name in START},
    )
    training = loop.train(
        log_cls, START, TRAINING, HELD_OUT, optimizer=optimizer, steps=120, batch_size=1000,
        key=jax.random.key(2), check_every=20, snapshot_every=1, progress=False,
    )  # fmt: skip
    return training, narrowest, widest


def test_everything_moves_and_stays_where_it_may(trained):
    training, narrowest, widest = trained
    for name, start in START.items():
        moved = [
            not np.array_equal(now, then)
            for now, then in zip(
                jax.tree.leaves(training.params[name]), jax.tree.leaves(start), strict=True
            )
        ]
        assert all(moved), name
    bandwidths = [float(params["bandwidth"]) for _, params in training.snapshots[1:]]
    assert np.isclose(bandwidths, narrowest).any() or np.isclose(bandwidths, widest).any()
    assert narrowest * (1 - 1e-12) <= min(bandwidths) <= max(bandwidths) <= widest * (1 + 1e-12)
    for _, params in training.snapshots:
        assert np.all(np.diff(ordered_edges(params["widths"], 0.0, 1.0)) > 0)


def test_the_hard_analysis_gains(trained):
    training, *_ = trained
    before, after = (
        float(log_cls(params, HELD_OUT, hard_cut, hard_counts))
        for params in (START, training.params)
    )
    assert after < before - np.log(100)
