"""A toy of events with jets and leptons, and data that the model does not describe.

The model knows one process. Data contain a second one, with harder leptons, harder and more central
jets. Momenta fall exponentially and are independent of each other within a process, so that the
expected histogram of the leading jet's momentum above any cut on the leading lepton is known.
"""

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from nablab import checks
from nablab.checks import Numbers

if TYPE_CHECKING:
    import awkward

#: Where the spectra of transverse momentum begin, in GeV: what the detector can reconstruct.
LOWEST = {"jet": 25.0, "lepton": 10.0}
#: By how many GeV the spectra of the known and of the other process fall by a factor of e.
SCALE = {"jet": (40.0, 60.0), "lepton": (20.0, 35.0)}
#: Probabilities of 1, 2 ... jets and of 0, 1, 2 leptons.
JETS = (0.15, 0.25, 0.25, 0.2, 0.1, 0.05)
LEPTONS = (0.25, 0.6, 0.15)


def jets_and_leptons(events: int, *, key: PRNGKeyArray, other: float = 0.0) -> "awkward.Array":
    """Events with a varying number of ``jets`` and ``leptons``, each in descending momentum.

    Jets have ``pt``, ``eta``, ``phi``, ``mass``, the discriminant ``btag`` between 0 and 1, and
    whether they are ``b`` jets (three in ten); leptons have ``pt``, ``eta``, ``phi`` and
    ``isolation``. Momenta and masses in GeV, angles in radians.

    Args:
        events: how many.
        key: random key; the same key gives the same events.
        other: fraction of events from the process that the model does not know.

    Raises:
        ValueError: fewer than one event, or a fraction outside of 0 to 1.
    """
    import awkward

    if events < 1:
        raise ValueError(f"events is {events}: ask for at least 1")
    checks.positive("other", other, allow_zero=True)
    checks.positive("1 - other", 1.0 - other, allow_zero=True)
    padded = _padded(key, events, other)
    return awkward.zip({name: _jagged(*objects) for name, objects in padded.items()}, depth_limit=1)


def expected_fractions(
    edges: Float[Numbers, "edges"],
    lepton_cut: Float[Numbers, ""] | float,
    *,
    other: float = 0.0,
) -> Float[Array, "bins"]:
    """Fraction of events per bin of the leading jet's pt whose leading lepton is above a cut.

    Exact, for infinitely many events and a hard cut; differentiable in the cut.

    Args:
        edges: of the bins, in GeV.
        lepton_cut: in GeV, at least where the spectrum begins.
        other: fraction of events from the process that the model does not know.
    """
    edges, total = jnp.asarray(edges), 0.0
    for share, jet_scale, lepton_scale in zip(
        (1.0 - other, other), SCALE["jet"], SCALE["lepton"], strict=True
    ):
        below = 1 - jnp.exp(-jnp.maximum(edges - LOWEST["jet"], 0.0) / jet_scale)
        leading_below = sum(p * below**n for n, p in enumerate(JETS, start=1))
        above = jnp.exp(-(lepton_cut - LOWEST["lepton"]) / lepton_scale)
        passes = sum(p * (1 - (1 - above) ** n) for n, p in enumerate(LEPTONS))
        total += share * passes * jnp.diff(leading_below)
    return total


@partial(jax.jit, static_argnames="events")
def _padded(key, events, other):
    """Number and properties of jets and of leptons, in arrays with room for the longest event."""
    of_process, of_jets, of_leptons = jax.random.split(key, 3)
    unknown = jax.random.bernoulli(of_process, other, (events, 1))
    keys = jax.random.split(of_jets, 5)
    counts, shape = _counts(keys[0], events, JETS) + 1, (events, len(JETS))
    jets = _momenta(keys[1], shape, "jet", unknown, counts)
    b = jax.random.bernoulli(keys[2], 0.3, shape)
    jets["mass"] = jets["pt"] * jax.random.uniform(keys[3], shape, minval=0.05, maxval=0.2)
    score = jnp.where(b, 1.5, -2.0) + 1.2 * jax.random.normal(keys[4], shape)
    jets |= {"btag": jax.nn.sigmoid(score), "b": b}

    keys = jax.random.split(of_leptons, 3)
    lepton_counts, shape = _counts(keys[0], events, LEPTONS), (events, len(LEPTONS) - 1)
    leptons = _momenta(keys[1], shape, "lepton", unknown, lepton_counts)
    leptons["isolation"] = 0.1 * jax.random.exponential(keys[2], shape)
    return {"jets": (counts, jets), "leptons": (lepton_counts, leptons)}


def _counts(key, events, probabilities):
    """Draws of 0, 1, 2 ... with these probabilities."""
    bounds = jnp.cumsum(jnp.array(probabilities[:-1]))
    return jnp.searchsorted(bounds, jax.random.uniform(key, (events,)), side="right")


def _momenta(key, shape, kind, unknown, counts):
    """Transverse momenta in descending order (padding last) and directions."""
    of_pt, of_eta, of_phi = jax.random.split(key, 3)
    scale = jnp.where(unknown, SCALE[kind][1], SCALE[kind][0])
    pt = LOWEST[kind] + scale * jax.random.exponential(of_pt, shape)
    pt = -jnp.sort(-jnp.where(jnp.arange(shape[1]) < counts[:, None], pt, 0.0), axis=1)
    eta = jax.random.uniform(of_eta, shape, minval=-2.4, maxval=2.4)
    phi = jax.random.uniform(of_phi, shape, minval=-jnp.pi, maxval=jnp.pi)
    return {"pt": pt, "eta": jnp.where(unknown, 0.7, 1.0) * eta, "phi": phi}


def _jagged(counts, properties):
    import awkward

    counts = np.asarray(counts)
    real = np.arange(properties["pt"].shape[1]) < counts[:, None]
    jagged = {
        name: awkward.unflatten(np.asarray(values)[real], counts)
        for name, values in properties.items()
    }
    return awkward.zip(jagged)
