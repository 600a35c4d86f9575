"""How many objects of an event pass: soft counts, the distribution of the number, vetoes.

An object passes with a probability, its membership: a soft cut on its transverse momentum, say.
Objects pass independently of each other, so their number N in an event follows the
Poisson-binomial distribution. Objects that only fill up the arrays (``mask`` false, see
:mod:`nablab.relax.objects.padding`) never pass, whatever their values. The last axis is that of the
objects; leading axes, such as that of the events, are free. ::

    passing = soft_cut(pt, above=30.0, slope=0.5)
    at_least(multiplicity(passing, mask), 4)        # probability of four jets above 30 GeV

Two functions return the distribution. :func:`multiplicity` is a polynomial in the memberships:
exact, with exact derivatives, where they are 0 or 1. :func:`log_multiplicity` works with
logarithms throughout: it neither underflows nor loses its gradient where an event is far from
passing, and is what to use when many weights multiply.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nablab import checks
from nablab.checks import Numbers


def soft_count(
    memberships: Float[Numbers, "*events objects"], mask: Bool[Numbers, "*events objects"]
) -> Float[Array, "*events"]:
    """Expected number of objects that pass, the sum of the memberships.

    Raises:
        ValueError: a membership is not between 0 and 1, or the mask has another shape.
    """
    return _checked_memberships(memberships, mask).sum(axis=-1)


def gaussian_log_weight(
    count: Float[Numbers, "*events"],
    wanted: Float[Numbers, ""] | float,
    width: Float[Numbers, ""] | float,
) -> Float[Array, "*events"]:
    """Log-weight of each event, -(count - wanted)² / (2 width²): 0 at the wanted multiplicity.

    A cheap substitute for P(N = wanted), which has a gradient at any distance: it asks for the
    expected number, so that three jets at 0.5 weigh like one at 1 and one at 0.5.

    Args:
        count: soft count of each event.
        wanted: the number of objects that the event should have.
        width: standard deviation, in objects.

    Raises:
        ValueError: an entry is not finite, or the width is not positive.
    """
    checks.finite("count", count)
    checks.finite("wanted", wanted)
    checks.positive("width", width)
    return -0.5 * ((jnp.asarray(count) - wanted) / width) ** 2


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
        return (1 - p) * probabilities + p * _shifted(probabilities, 0.0), None

    start = jnp.zeros(_numbers(memberships), memberships.dtype).at[..., 0].set(1.0)
    return jax.lax.scan(add_object, start, jnp.moveaxis(memberships, -1, 0))[0]


def log_multiplicity(
    log_pass: Float[Numbers, "*events objects"],
    log_fail: Float[Numbers, "*events objects"],
    mask: Bool[Numbers, "*events objects"],
) -> Float[Array, "*events numbers"]:
    """log P(N = n) for n = 0 ... objects, by the recurrence of :func:`multiplicity` on logarithms.

    Args:
        log_pass: log-probability of each object to pass, e.g.
            ``jax.nn.log_sigmoid(slope * (pt - threshold))``. Minus infinity is allowed.
        log_fail: log-probability to fail; taken apart from ``log_pass``, because 1 - p has no
            digits left where p is close to 1.
        mask: true for objects, false for padding.

    Returns:
        Log-weights; minus infinity, with a zero gradient, where n objects cannot pass.

    Raises:
        ValueError: the two probabilities of an object do not add up to 1, or a shape differs.
    """
    log_pass, log_fail = _checked_log_memberships(log_pass, log_fail, mask)

    def add_object(log_probabilities, one):
        passes, fails = (log_p[..., None] for log_p in one)
        ways = [fails + log_probabilities, passes + _shifted(log_probabilities, -jnp.inf)]
        return _logsumexp(jnp.stack(ways), axis=0), None

    start = jnp.full(_numbers(log_pass), -jnp.inf, log_pass.dtype).at[..., 0].set(0.0)
    objects = jnp.moveaxis(log_pass, -1, 0), jnp.moveaxis(log_fail, -1, 0)
    return jax.lax.scan(add_object, start, objects)[0]


def at_least(probabilities: Float[Numbers, "*events numbers"], n: int) -> Float[Array, "*events"]:
    """P(N >= n) from the P(N = n) of :func:`multiplicity`; 0 if there are fewer than n objects.

    The terms from n on are added up: 1 - P(N < n) would lose small probabilities.

    Raises:
        ValueError: n is negative.
    """
    return jnp.asarray(probabilities)[..., _not_negative(n) :].sum(axis=-1)


def log_at_least(
    log_probabilities: Float[Numbers, "*events numbers"], n: int
) -> Float[Array, "*events"]:
    """log P(N >= n) from :func:`log_multiplicity`; minus infinity if n objects cannot pass.

    Raises:
        ValueError: n is negative.
    """
    return _logsumexp(jnp.asarray(log_probabilities)[..., _not_negative(n) :], axis=-1)


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


def _shifted(probabilities, nothing):
    """The probabilities of one object less: those of N = n - 1 in the place of N = n."""
    nobody = jnp.full_like(probabilities[..., :1], nothing)
    return jnp.concatenate([nobody, probabilities[..., :-1]], axis=-1)


def _numbers(memberships):
    """Shape of the probabilities of N = 0 ... objects."""
    return (*memberships.shape[:-1], memberships.shape[-1] + 1)


def _logsumexp(terms, axis):
    """``jax.nn.logsumexp``, whose gradient is NaN where all the terms are minus infinity."""
    largest = terms.max(axis=axis, keepdims=True, initial=-jnp.inf)
    impossible = largest == -jnp.inf
    largest = jax.lax.stop_gradient(jnp.where(impossible, 0.0, largest))
    total = jnp.exp(terms - largest).sum(axis=axis, keepdims=True)
    logs = largest + jnp.log(jnp.where(impossible, 1.0, total))
    return jnp.where(impossible, -jnp.inf, logs).squeeze(axis)


def _not_negative(n):
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"n is {n}: it must be at least 0")
    return n


def _checked_memberships(memberships, mask):
    checks.same_shape("mask", mask, "memberships", memberships)
    memberships = jnp.where(mask, memberships, 0.0)
    checks.positive("memberships", memberships, allow_zero=True)
    checks.positive("1 - memberships", 1.0 - memberships, allow_zero=True)
    return memberships


def _checked_log_memberships(log_pass, log_fail, mask):
    checks.same_shape("log_fail", log_fail, "log_pass", log_pass)
    checks.same_shape("mask", mask, "log_pass", log_pass)
    log_pass, log_fail = jnp.where(mask, log_pass, -jnp.inf), jnp.where(mask, log_fail, 0.0)
    if not checks.is_traced(log_pass, log_fail):
        total = np.exp(log_pass) + np.exp(log_fail)
        wrong = np.argwhere(~(np.abs(total - 1) < 1e-5))
        if len(wrong):
            entry = tuple(int(i) for i in wrong[0])
            raise ValueError(
                f"exp(log_pass) + exp(log_fail) is {total[entry]} at entry {entry}: "
                "an object either passes or fails, so it must be 1"
            )
    return log_pass, log_fail
