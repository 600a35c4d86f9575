"""Which two of four jets belong together: hh -> bbbb, as a soft minimum over three pairings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Numbers

#: The jets of both pairs in the three ways to pair four jets.
PAIRINGS = np.array([[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]])


class Pairing(NamedTuple):
    """Weights of the three pairings, and the masses of the leading and the subleading pair."""

    weights: Float[Array, "*events 3"]
    masses: Float[Array, "*events 2"]


def pair_masses(
    pt: Float[Numbers, "*events 4"],
    eta: Float[Numbers, "*events 4"],
    phi: Float[Numbers, "*events 4"],
    mass: Float[Numbers, "*events 4"],
) -> Float[Array, "*events 3 2"]:
    """Invariant masses of both pairs in each of the three pairings of four jets (``PAIRINGS``).

    Written without differences of large numbers, so that pairs of collinear or light jets have
    their mass, too::

        m² = m1² + m2² + 2 (E1 E2 - p1 p2) + 2 p1 p2 (1 - cos angle)

    with E1 E2 - p1 p2 = (m1² p2² + m2² p1² + m1² m2²) / (E1 E2 + p1 p2) and
    p1 p2 (1 - cos angle) = 2 pt1 pt2 (sinh²(Δη / 2) + sin²(Δφ / 2)).

    Args:
        pt: transverse momenta, greater than 0, in GeV (or any unit, that of the masses).
        eta: pseudorapidities.
        phi: azimuthal angles in radians.
        mass: masses of the jets, at least 0.

    Raises:
        ValueError: an entry is not finite, a pt is not positive, a mass is negative, or there are
            not four jets per event. Padding passes; what an event with fewer than four jets
            weighs is for :mod:`nablab.relax.objects.multiplicities` to say.
    """
    pt, eta, phi, mass = _checked_jets(pt, eta, phi, mass)
    p = pt * jnp.cosh(eta)
    energy = jnp.sqrt(p**2 + mass**2)

    def of_both(quantity):
        return quantity[..., PAIRINGS[..., 0]], quantity[..., PAIRINGS[..., 1]]

    (pt1, pt2), (eta1, eta2), (phi1, phi2) = of_both(pt), of_both(eta), of_both(phi)
    (m1, m2), (p1, p2), (e1, e2) = of_both(mass**2), of_both(p), of_both(energy)
    massive = (m1 * p2**2 + m2 * p1**2 + m1 * m2) / (e1 * e2 + p1 * p2)
    angle = 2 * pt1 * pt2 * (jnp.sinh((eta1 - eta2) / 2) ** 2 + jnp.sin((phi1 - phi2) / 2) ** 2)
    squared = m1 + m2 + 2 * (massive + angle)
    # The root has no derivative at 0, where massless jets are parallel: there it is set to 0.
    parallel = squared == 0
    return jnp.where(parallel, 0.0, jnp.sqrt(jnp.where(parallel, 1.0, squared)))


def soft_pairing(
    pt: Float[Numbers, "*events 4"],
    eta: Float[Numbers, "*events 4"],
    phi: Float[Numbers, "*events 4"],
    mass: Float[Numbers, "*events 4"],
    *,
    temperature: Float[Numbers, ""] | float,
    expected_masses: Float[Numbers, "2"] | tuple[float, float] = (125.0, 120.0),
) -> Pairing:
    """Pair the four jets of hh -> bbbb by a soft minimum over the three pairings.

    The pairing wanted is the one closest to the line from the origin through the expected masses
    of the leading and the subleading Higgs boson candidate, ::

        D_hh = |m_lead - r m_sub| / sqrt(1 + r²),      r = expected m_lead / expected m_sub,

    where the leading candidate is the pair with the larger scalar sum of pt. A pairing weighs
    exp(-D_hh / temperature), and a pair leads by the sigmoid of the difference of the sums of pt
    over the temperature: a hard order would let D_hh jump. (Searches in this final state: ATLAS,
    arXiv:1804.06174; CMS, arXiv:2202.09617.)

    Args:
        pt, eta, phi, mass: the four jets, as for :func:`pair_masses`, in any order.
        temperature: in the unit of the masses, GeV: of a choice between alternatives, where a
            ``bandwidth`` or a ``slope`` smears one observable. Far below the differences of D_hh
            and of pt the result is that of :func:`hard_pairing`.
        expected_masses: of the leading and the subleading candidate; their ratio matters.

    Returns:
        The weights of the three pairings, which add up to 1, and the masses of the leading and
        the subleading candidate, each averaged with these weights.

    Raises:
        ValueError: as for :func:`pair_masses`, or a temperature or expected mass not positive.
            Under ``jit`` weights and masses are NaN then.
    """
    checks.positive("temperature", temperature)
    if checks.is_traced(temperature):
        temperature *= checks.one_if(temperature > 0)

    def choose(distances):
        # The best one is subtracted before the division: after it, compiled code may round the
        # two differently, and at low temperature even the exponential of that is infinite.
        best = jax.lax.stop_gradient(distances.min(axis=-1, keepdims=True))
        return jax.nn.softmax((best - distances) / temperature, axis=-1)

    return _pairing(
        (pt, eta, phi, mass),
        expected_masses,
        leads=lambda difference: jax.nn.sigmoid(difference / temperature),
        choose=choose,
    )


def hard_pairing(
    pt: Float[Numbers, "*events 4"],
    eta: Float[Numbers, "*events 4"],
    phi: Float[Numbers, "*events 4"],
    mass: Float[Numbers, "*events 4"],
    *,
    temperature: Float[Numbers, ""] | float | None = None,
    expected_masses: Float[Numbers, "2"] | tuple[float, float] = (125.0, 120.0),
) -> Pairing:
    """The pairing with the smallest D_hh has weight 1, the others 0.

    Arguments, result and errors as for :func:`soft_pairing`; ``temperature`` is not used. There
    is a gradient of the masses, at a fixed pairing.
    """
    return _pairing(
        (pt, eta, phi, mass),
        expected_masses,
        leads=lambda difference: (difference >= 0).astype(difference.dtype),
        choose=lambda distances: jax.nn.one_hot(distances.argmin(axis=-1), 3),
    )


def _pairing(jets, expected_masses, leads, choose) -> Pairing:
    checks.positive("expected_masses", expected_masses)
    ratio = expected_masses[0] / expected_masses[1]
    masses = pair_masses(*jets)
    pt_sums = jnp.asarray(jets[0])[..., PAIRINGS].sum(axis=-1)
    first_leads = leads(pt_sums[..., 0] - pt_sums[..., 1])

    def in_either_order(function):
        first = function(masses[..., 0], masses[..., 1])
        return first_leads * first + (1 - first_leads) * function(masses[..., 1], masses[..., 0])

    distances = in_either_order(lambda lead, sub: jnp.abs(lead - ratio * sub))
    weights = choose(distances / jnp.sqrt(1 + ratio**2))
    weights = jnp.where(jnp.isfinite(distances), weights, jnp.nan)  # an index has no NaN
    lead = (weights * in_either_order(lambda lead, sub: lead)).sum(axis=-1)
    sub = (weights * in_either_order(lambda lead, sub: sub)).sum(axis=-1)
    return Pairing(weights, jnp.stack([lead, sub], axis=-1))


def _checked_jets(pt, eta, phi, mass):
    for name, array in {"pt": pt, "eta": eta, "phi": phi, "mass": mass}.items():
        if jnp.shape(array) != jnp.shape(pt) or jnp.shape(array)[-1:] != (4,):
            raise ValueError(f"{name} must have 4 jets per event, got shape {jnp.shape(array)}")
        checks.finite(name, array)
    checks.positive("pt", pt)
    checks.positive("mass", mass, allow_zero=True)
    return (jnp.asarray(array, dtype=float) for array in (pt, eta, phi, mass))
