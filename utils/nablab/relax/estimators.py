"""Gradients of hard cuts and hard counts, without the bias of a soft one, and their noise.

The expected count above a cut is smooth although every count jumps. Three ways to its derivative:
the density at the boundary (exact, where the density is known), the score function (unbiased for
any hard objective, and noisy), and straight-through (the soft gradient at the hard value: cheap,
and as biased as the soft cut).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from nablab import checks
from nablab.checks import Column, Numbers
from nablab.relax._blocks import sum_in_blocks
from nablab.relax.counts import Counts

BLOCK = 256  # events at a time where each has its own bins x parameters


def straight_through(
    hard: Float[Numbers, "*shape"], soft: Float[Numbers, "*shape"]
) -> Float[Array, "*shape"]:
    """The value of ``hard`` with the derivative of ``soft`` (Bengio et al., arXiv:1308.3432).

    weights = straight_through(hard_cut(x, 30.0), soft_cut(x, 30.0, slope=slope))
    """
    soft = jnp.asarray(soft)
    # Adding a difference would round, and turn infinities into NaN: the value is taken over.
    return _value_of_first(jnp.asarray(hard, dtype=soft.dtype), soft)


@jax.custom_jvp
def _value_of_first(hard, soft):
    return hard


@_value_of_first.defjvp
def _slope_of_second(primals, tangents):
    return _value_of_first(*primals), tangents[1]


def boundary_gradient(
    density: Callable,
    boundaries: Column,
    *,
    velocity: Callable | float = 1.0,
) -> Float[Array, "bins"]:
    """Derivative of the expected count between neighbouring boundaries, as events flow through.

    What flows in over the lower boundary minus what flows out over the upper one, ::

        d nu_k / d theta = f(b_k) v(b_k) - f(b_k+1) v(b_k+1),

    where f is the expected number of events per unit of x, and v = E[dx/d theta | x] the velocity
    of events at x as theta changes (the transport theorem of Reynolds, in one dimension). For the
    count above a cut, give the cut and infinity; a cut that moves by d theta is v = -1.

    Args:
        density: f, of an array of x; 0 at infinity.
        boundaries: increasing, one more than bins. Infinity is allowed.
        velocity: v, of an array of x, or a number.

    Raises:
        ValueError: the boundaries do not increase, or the density is negative or not finite. Under
            ``jit`` the derivatives are NaN then.
    """
    boundaries = jnp.asarray(checks.array("boundaries", boundaries), dtype=float)
    checks.increasing("boundaries", boundaries)
    inside = jnp.isfinite(boundaries)
    at = jnp.where(inside, boundaries, 0.0)
    speed = velocity(at) if callable(velocity) else velocity
    height = jnp.where(inside, density(at), 0.0)
    checks.positive("density(boundaries)", height, allow_zero=True)
    good = jnp.all(jnp.diff(boundaries) > 0) & jnp.all(height >= 0)
    return -jnp.diff(height * speed) * checks.one_if(good)


def gradient_counts(
    counts: Callable[[PyTree, PyTree], Counts], parameters: PyTree, events: PyTree
) -> PyTree:
    """Derivatives of the counts with respect to parameters, and the variances of these.

    The derivative of a count is a sum over events like the count itself, so that its variance is
    the sum of the squares of what each event adds to it. Events are taken one by one, in blocks:
    time grows with events x bins x parameters, memory does not.

    Args:
        counts: function of parameters and events that returns Counts which are sums over events;
            edges taken from the same events, say, are not allowed to depend on them.
        parameters: any tree of floating-point numbers or arrays, such as ``{"mean": 0.0}``.
        events: array, or tree of arrays, whose first axis counts the events.

    Returns:
        The tree of ``parameters`` with Counts for each leaf: ``values`` are the derivatives
        (signed), in the shape of the counts, behind the shape of the leaf. ``to_hist`` makes a
        histogram of each. Works under ``jit``, ``grad`` and ``vmap``. ``variances`` hold no
        covariance: what leaves a bin enters its neighbour, and of merged bins the variance is not
        the sum. :func:`covariance` has it.
    """
    parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=float), parameters)
    events = jax.tree.map(jnp.asarray, events)
    leaves, structure = jax.tree.flatten(parameters)

    def of_one_event(event):
        alone = jax.tree.map(lambda array: array[None], event)
        jacobian = jax.jacfwd(lambda parameters: counts(parameters, alone).values)(parameters)
        return [
            # jacfwd puts the axes of the leaf last
            jnp.moveaxis(part, range(-leaf.ndim, 0), range(leaf.ndim))
            for part, leaf in zip(jax.tree.leaves(jacobian), leaves, strict=True)
        ]

    def of_block(block):
        parts = jax.vmap(of_one_event)(block)
        return [(part.sum(axis=0), (part**2).sum(axis=0)) for part in parts]

    edges = counts(parameters, jax.tree.map(lambda array: array[:1], events)).edges
    sums = sum_in_blocks(of_block, events, size=BLOCK)
    return jax.tree.unflatten(structure, [Counts(*part, edges) for part in sums])


def covariance(counts: Callable[[PyTree], Counts | Array], events: PyTree) -> Array:
    """Covariance between the bins of soft counts, of a gradient, of any sum over events.

    An event that contributes to several bins makes them fluctuate together. With the contribution
    c_k(x_i) of event i to bin k, and a Poisson number of independent events, ::

        cov_kl = sum_i c_k(x_i) c_l(x_i).

    The diagonal are the variances of ``Counts``. The variance of merged bins is the sum over the
    block of their elements; that of any function of the counts with gradient u is u . cov . u.

        covariance(lambda x: kde_counts(x, edges, bandwidth=0.3), x)
        covariance(lambda x: gradient_counts(shifted_counts, {"shift": 0.0}, x)["shift"], x)

    Args:
        counts: function of events that returns Counts or an array of any shape, which is a sum over
            them. It is called with one event at a time, in blocks: memory does not grow with
            events x bins.
        events: array, or tree of arrays, whose first axis counts the events, weights among them.

    Returns:
        The covariance, in the shape of the counts twice, such as [bins, bins], in the square of
        their unit. Works under ``jit``, ``grad`` and ``vmap``.

    Raises:
        ValueError: an entry of ``events`` is not finite. Under ``jit`` counts that are NaN then
            give a covariance of NaN.
    """
    events = jax.tree.map(jnp.asarray, events)
    for array in jax.tree.leaves(events):
        checks.finite("events", array)

    def of_one_event(event):
        total = counts(jax.tree.map(lambda array: array[None], event))
        return total.values if isinstance(total, Counts) else total

    def of_block(block):
        parts = jax.vmap(of_one_event)(block)
        return jnp.tensordot(parts, parts, axes=(0, 0))

    return sum_in_blocks(of_block, events, size=BLOCK)


def score_function_gradient(
    objective: Callable,
    parameters: Float[Numbers, "parameters"],
    *,
    widths: Float[Numbers, "parameters"] | Float[Numbers, ""] | float,
    key: Key[Array, ""],
    samples: int,
) -> tuple[Float[Array, "parameters"], Float[Array, "parameters"]]:
    """Gradient of any objective, hard or not, from its values at jittered parameters (REINFORCE).

    The objective is averaged over Gaussian jitter of the parameters, which makes its expectation
    smooth; the derivative of that is (Williams, doi:10.1007/BF00992696) ::

        E[(objective(p + widths e) - baseline) e / widths],       e ~ N(0, 1),

    for any baseline that does not depend on e: here the mean of the other samples, which removes
    most of the variance. It is an unbiased estimate of the derivative of the *averaged* objective;
    the relative error falls with the square root of ``samples``, and grows with the number of
    parameters.

    Args:
        objective: of an array of parameters; needs no gradient, but must work under ``jit``.
        parameters: where the gradient is wanted, such as several thresholds.
        widths: standard deviations of the jitter, in the units of the parameters.
        key: random key of the jitter.
        samples: evaluations of the objective, at least 2.

    Returns:
        The gradient and its standard error.

    Raises:
        ValueError: a parameter is not finite, a width is not positive, or ``samples`` is below 2.
    """
    checks.finite("parameters", parameters)
    checks.positive("widths", widths)
    if samples < 2:
        raise ValueError(f"samples is {samples}: a baseline needs at least 2")
    jitter = jax.random.normal(key, (samples, *jnp.shape(parameters)))
    values = jax.lax.map(lambda e: objective(parameters + widths * e), jitter)
    others = (values.sum() - values) / (samples - 1)
    terms = (values - others)[:, None] * jitter / widths
    return terms.mean(axis=0), terms.std(axis=0, ddof=1) / jnp.sqrt(samples)
