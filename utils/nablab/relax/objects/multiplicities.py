"""How many objects of an event pass: the distribution of the number, and vetoes.

An object passes with a probability, its membership: a soft cut on its transverse momentum, say.
Objects pass independently of each other, so their number N in an event follows the
Poisson-binomial distribution. Objects that only fill up the arrays (``mask`` false, see
:mod:`nablab.relax.objects.padding`) never pass, whatever their values. The last axis is that of the
objects; leading axes, such as that of the events, are free. ::

    passing = soft_cut(pt, above=30.0, slope=0.5)
    at_least(multiplicity(passing, mask), 4)        # probability of four jets above 30 GeV

The distribution is a polynomial in the memberships: exact, with exact derivatives, where they are
0 or 1.
"""

import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nablab import checks
from nablab.checks import Numbers


def multiplicity(
    memberships: Float[Numbers, "*events objects"], mask: Bool[Numbers, "*events objects"]
) -> Float[Array, "*events numbers"]:
    """P(N = n), the probability that exactly n objects pass, for n = 0 ... objects.

    The objects join one by one: N is n after the next one if it passes and N was n - 1, or if it
    fails and N was n already (direct convolution: Biscarri, Zhao and Brunner,
    doi:10.1016/j.csda.2018.01.007). No term is negative, so the relative error stays at rounding
    level.

    **The product of two such probabilities is not the joint one.** A b-jet is a jet: of four jets
    that pass with 0.6 and carry a tag with 0.3, at least three pass and at least one of these is
    tagged with 0.326, and not P(N_jets >= 3) P(N_b >= 1) = 0.260. Where one tag is asked for, take
    away what has none, ::

        q = passing * tagged
        no_tag = jnp.where(mask, 1 - q, 1).prod(-1)
        joint = at_least(multiplicity(passing, mask), 3) - no_tag * at_least(
            multiplicity((passing - q) / (1 - q), mask), 3
        )

    Raises:
        ValueError: a membership is not between 0 and 1, or the mask has another shape.
    """
    memberships = _checked_memberships(memberships, mask)

    def add_object(probabilities, p):
        p = p[..., None]
        one_less = jnp.pad(probabilities[..., :-1], [(0, 0)] * (p.ndim - 1) + [(1, 0)])
        return (1 - p) * probabilities + p * one_less, None

    *events, objects = memberships.shape
    start = jnp.zeros((*events, objects + 1), memberships.dtype).at[..., 0].set(1.0)
    return jax.lax.scan(add_object, start, jnp.moveaxis(memberships, -1, 0))[0]


def at_least(probabilities: Float[Numbers, "*events numbers"], n: int) -> Float[Array, "*events"]:
    """P(N >= n) from the P(N = n) of :func:`multiplicity`; 0 if there are fewer than n objects.

    The terms from n on are added up: 1 - P(N < n) would lose small probabilities.

    Raises:
        ValueError: n is negative.
    """
    if operator.index(n) < 0:
        raise ValueError(f"n is {n}: it must be at least 0")
    return jnp.asarray(probabilities)[..., n:].sum(axis=-1)


def veto_log_weight(
    log_fail: Float[Numbers, "*events objects"], mask: Bool[Numbers, "*events objects"]
) -> Float[Array, "*events"]:
    """log P(N = 0), the log-weight of each event for the requirement that no object passes.

    A soft lepton veto: ``log_fail`` is the log-probability of each lepton to fail its selection.
    An event without leptons has log-weight 0.

    Raises:
        ValueError: a log-probability is positive or NaN, or the mask has another shape.
    """
    checks.same_shape("mask", mask, "log_fail", log_fail)
    log_fail = jnp.where(mask, log_fail, 0.0)
    checks.positive("1 - exp(log_fail)", -jnp.expm1(log_fail), allow_zero=True)
    return log_fail.sum(axis=-1)


def _checked_memberships(memberships, mask):
    checks.same_shape("mask", mask, "memberships", memberships)
    memberships = jnp.where(mask, memberships, 0.0)
    checks.positive("memberships", memberships, allow_zero=True)
    checks.positive("1 - memberships", 1.0 - memberships, allow_zero=True)
    return memberships
