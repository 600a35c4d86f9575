"""Toy samples: the standard examples of the field, with the numbers their authors used.

Every sample within a toy has its own random key (``jax.random.split``). The public code of some of
these toys draws all its samples with one and the same key, so that signal and background carry
identical noise; here they are independent.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from nablab import checks
from nablab.checks import Numbers

Moments = tuple[tuple[float, float], tuple[tuple[float, float], tuple[float, float]]]

#: Means of the four blobs of ``blobs``; each has unit covariance.
BLOB_MEANS = {
    "signal": (-1.0, 1.0),
    "background": (1.0, -1.0),
    "up": (2.5, 2.0),
    "down": (-2.5, -1.5),
}

_UNIT = ((1.0, 0.0), (0.0, 1.0))

#: Mean and covariance of each sample of ``two_modes``: modes of different shape.
TWO_MODES: dict[str, Moments] = {
    "signal": ((2.0, 5.0), _UNIT),
    "background_1": ((4.0, 6.0), ((1.0, 0.6), (0.6, 1.0))),
    "background_2": ((5.5, 4.5), ((1.7, 0.2), (0.2, 1.0))),
}

#: The same toy as first trained by its authors: round modes on both sides of the signal.
TWO_ROUND_MODES: dict[str, Moments] = {
    "signal": ((-1.0, 1.0), _UNIT),
    "background_1": ((2.0, 2.0), _UNIT),
    "background_2": ((-1.0, -1.0), _UNIT),
}

#: Expected events of ``inferno``, and the standard deviations with which its benchmarks 3 and 4
#: know the nuisance parameters.
INFERNO_YIELDS = {"signal": 50.0, "background": 1000.0}
INFERNO_WIDTHS = {"shift": 0.4, "rate": 1.0, "background": 100.0}


def _at_least_one(events: int) -> None:
    if events < 1:
        raise ValueError(f"events is {events}: ask for at least 1")


def cut_example(
    seed: int = 0,
) -> tuple[Float[np.ndarray, "300"], Float[np.ndarray, "8000"]]:
    """The sample of the field's classic cut optimisation, bit for bit.

    Background N(40, 10) with 8000 events, then signal N(50, 5) with 300 events, drawn in this order
    from numpy's legacy generator (A. Held, differentiable-analysis-example,
    ``Significance_optimization.ipynb``, which uses seed 0).

    Args:
        seed: of ``numpy.random.RandomState``.

    Returns:
        Signal and background values of the observable (arbitrary units), one entry per event.
    """
    generator = np.random.RandomState(seed)
    background = generator.normal(40, 10, 8000)
    signal = generator.normal(50, 5, 300)
    return signal, background


def moving_gaussian(
    mean: Float[Array, ""] | float | int,
    *,
    key: PRNGKeyArray,
    events: int = 100,
    width: Float[Array, ""] | float | int = 1.0,
) -> Float[Array, "events"]:
    """Draws from N(mean, width) that move with ``mean``: ``x = mean + width * noise``.

    For a fixed ``key`` the noise is fixed, so each event is a differentiable function of ``mean``
    (slope 1) and of ``width`` (the reparametrisation trick, arXiv:1312.6114).

    Args:
        mean: centre of the Gaussian, may be traced.
        key: random key; the same key gives the same noise.
        events: how many draws.
        width: standard deviation, greater than 0, in units of the observable; may be traced.

    Raises:
        ValueError: fewer than one event, a mean that is not finite, a width that is not positive.
    """
    _at_least_one(events)
    checks.finite("mean", mean)
    checks.positive("width", width)
    return mean + width * jax.random.normal(key, (events,))


def _gaussian_samples(
    key: PRNGKeyArray, events: int, moments: dict[str, Moments]
) -> dict[str, Float[Array, "events 2"]]:
    """One two-dimensional Gaussian sample for each named (mean, covariance), independent keys."""
    _at_least_one(events)
    keys = jax.random.split(key, len(moments))
    samples = {}
    for sample_key, (name, (mean, covariance)) in zip(keys, moments.items(), strict=True):
        noise = jax.random.normal(sample_key, (events, 2))
        samples[name] = jnp.asarray(mean) + noise @ np.linalg.cholesky(covariance).T
    return samples


def blobs(events: int, *, key: PRNGKeyArray) -> dict[str, Float[Array, "events 2"]]:
    """The neos toy: signal, nominal background and its two variations, four round blobs.

    Simpson and Heinrich, arXiv:2203.05570, with the means of their code, see ``BLOB_MEANS`` (the
    list of hyper-parameters in the paper has the three background means permuted). Unlike in the
    public code the four blobs are statistically independent.

    Args:
        events: events in each blob; scale the histograms to the yields you want (the paper: 20
            signal and 100 background events).
        key: random key, split into one for each blob.

    Returns:
        ``signal``, ``background`` and its one-sigma variations ``up`` and ``down``.

    Raises:
        ValueError: fewer than one event.
    """
    return _gaussian_samples(
        key, events, {name: (mean, _UNIT) for name, mean in BLOB_MEANS.items()}
    )


def two_modes(
    events: int, *, key: PRNGKeyArray, moments: dict[str, Moments] | None = None
) -> dict[str, Float[Array, "events 2"]]:
    """The first neos toy: a signal and two equally valid predictions of one background.

    The background in a bin is taken as the mean of the two modes, its uncertainty as half their
    difference, so that a good observable is one in which the two modes look alike. The default
    moments are those of ``get_three_blobs`` in ``02_data.ipynb`` of the gradhep/neos (then
    pyhf/neos) repository of early 2020, with modes of different covariance; ``TWO_ROUND_MODES``
    has those of its ``demo_training.ipynb``, with unit covariances. Both demos scale the counts to
    20 signal and 100 background events. The three samples are statistically independent.

    Args:
        events: events in each sample.
        key: random key, split into one for each sample.
        moments: mean and covariance of each sample, ``TWO_MODES`` if left out.

    Returns:
        ``signal``, ``background_1`` and ``background_2``.

    Raises:
        ValueError: fewer than one event.
    """
    return _gaussian_samples(key, events, TWO_MODES if moments is None else moments)


def inferno(events: int, *, key: PRNGKeyArray) -> dict[str, Float[Array, "events 3"]]:
    """The INFERNO toy: three features, two of them Gaussian and one exponential.

    Signal: a round unit Gaussian at (0, 0), and a decay rate of 2. Background: a Gaussian at (2, 0)
    with variances 5 and 9, and a decay rate of 3. These are the numbers of the code of
    arXiv:1806.04743, which belong to its table; its text prints (1, 1) for the signal's mean.

    Args:
        events: events in each sample; ``INFERNO_YIELDS`` are expected.
        key: random key, split into one for each sample.

    Returns:
        ``signal``, and ``background`` at the nominal nuisance parameters, for other values see
        :func:`inferno_background`.

    Raises:
        ValueError: fewer than one event.
    """
    _at_least_one(events)
    signal_key, background_key = jax.random.split(key)

    def sample(key, mean, deviations, rate):
        plane_key, decay_key = jax.random.split(key)
        plane = mean + deviations * jax.random.normal(plane_key, (events, 2))
        decay = jax.random.exponential(decay_key, (events, 1)) / rate
        return jnp.concatenate([plane, decay], axis=1)

    return {
        "signal": sample(signal_key, jnp.zeros(2), jnp.ones(2), 2.0),
        "background": sample(
            background_key, jnp.array([2.0, 0.0]), jnp.sqrt(jnp.array([5.0, 9.0])), 3.0
        ),
    }


def inferno_background(
    nominal: Float[Numbers, "events 3"],
    *,
    shift: Float[Numbers, ""] | float = 0.0,
    rate: Float[Numbers, ""] | float = 3.0,
) -> Float[Array, "events 3"]:
    """Background of the INFERNO toy with other nuisance parameters: every event is moved.

    Args:
        nominal: background events from :func:`inferno`.
        shift: of the first feature, nominally 0.
        rate: of the decay of the third feature, nominally 3; greater than 0.

    Raises:
        ValueError: a shift that is not finite, a rate that is not positive.
    """
    checks.finite("shift", shift)
    checks.positive("rate", rate)
    first, second, third = jnp.asarray(nominal).T
    return jnp.stack([first + shift, second, third * (3.0 / rate)], axis=1)
