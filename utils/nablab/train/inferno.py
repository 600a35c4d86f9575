"""The INFERNO problem: its losses, and the table by which they are judged (arXiv:1806.04743).

A benchmark says which parameters the fit may move besides the signal yield, and how well they are
known. The toy itself is ``data.toys.inferno``; a training is
``loop.train(objective(apply, benchmark), ...)``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from nablab.checks import Numbers
from nablab.data.toys import INFERNO_WIDTHS, INFERNO_YIELDS, inferno_background
from nablab.train.objectives import balanced_cross_entropy, poi_variance

SIGNAL, BACKGROUND = INFERNO_YIELDS["signal"], INFERNO_YIELDS["background"]
NOMINAL = {"shift": 0.0, "rate": 3.0}
TEMPERATURE = 0.1
BINS = 10
# Half the distance between the two templates of each nuisance parameter.
TEMPLATE_STEPS = {"shift": 0.2, "rate": 0.5}

#: Floating parameters of each benchmark, with the standard deviation of their constraints.
BENCHMARKS: list[dict[str, float]] = [
    {},
    {"shift": np.inf},
    {"shift": np.inf, "rate": np.inf},
    {name: INFERNO_WIDTHS[name] for name in ("shift", "rate")},
    INFERNO_WIDTHS,
]


def objective(apply: Callable, benchmark: int) -> Callable[[PyTree, PyTree], Array]:
    """The loss of INFERNO: the variance of the signal yield, nuisance parameters profiled.

    Args:
        apply: network with one output for each bin (``networks.mlp``).
        benchmark: what floats in the fit, an index of ``BENCHMARKS``.

    Returns:
        A function of the parameters of the network and of ``signal`` and ``background`` events.
    """
    widths = BENCHMARKS[benchmark]
    moving = [name for name in widths if name in NOMINAL]

    def variance(params, events):
        def shares(x):
            return jax.nn.softmax(apply(params, x) / TEMPERATURE).mean(axis=0).astype(float)

        def background_shares(nuisances):
            return shares(inferno_background(events["background"], **nuisances))

        nominal = {name: NOMINAL[name] for name in moving}
        signal, background = shares(events["signal"]), background_shares(nominal)
        slopes = {"signal": signal, "background": background}
        if moving:
            moved = jax.jacfwd(background_shares)(nominal)
            slopes |= {name: BACKGROUND * moved[name] for name in moving}
        return _variance(signal, background, slopes, widths)

    return variance


def cross_entropy(apply: Callable) -> Callable[[PyTree, PyTree], Array]:
    """The loss of the classifier it is compared with; its network has two outputs."""

    def loss(params, events):
        return balanced_cross_entropy(
            *(jnp.diff(apply(params, events[name]))[:, 0] for name in ("signal", "background"))
        )

    return loss


def uncertainties(
    bin_of: Callable[[Float[Array, "events 3"]], Int[Array, "events"]],
    events: dict[str, Float[Numbers, "events 3"]],
    *,
    bins: int = BINS,
) -> Float[np.ndarray, "5"]:
    """Uncertainty of the signal yield in all benchmarks, with hard bins, as in the paper's table.

    The nuisance parameters enter by templates one step up and down (0.2 in the shift, 0.5 in the
    rate) of the same events. Bins without nominal signal or background are left out.

    Args:
        bin_of: the bin of each event.
        events: ``signal`` and nominal ``background`` events that the training has not seen.
        bins: how many there are.

    Raises:
        ValueError: an event is in none of the bins, as where its observable is NaN.
    """

    def fractions(x):
        index = np.asarray(bin_of(x))
        outside = (index < 0) | (index >= bins)
        if outside.any():
            i = int(np.argmax(outside))
            raise ValueError(
                f"bin_of puts event {i} into bin {index[i]} of {bins}: is its observable NaN?"
            )
        return jnp.bincount(index, length=bins) / len(x)

    signal, background = fractions(events["signal"]), fractions(events["background"])
    filled = (signal > 0) & (background > 0)
    slopes = {"signal": signal, "background": background}
    for name, step in TEMPLATE_STEPS.items():
        down, up = (
            fractions(inferno_background(events["background"], **{name: NOMINAL[name] + moved}))
            for moved in (-step, step)
        )
        slopes[name] = BACKGROUND * (up - down) / (2 * step)
    slopes = {name: slope[filled] for name, slope in slopes.items()}
    variances = [
        _variance(signal[filled], background[filled], slopes, widths) for widths in BENCHMARKS
    ]
    return np.sqrt(np.array(variances))


def _variance(signal, background, slopes, widths):
    counts = SIGNAL * signal + BACKGROUND * background
    rows = jnp.stack([slopes["signal"], *(slopes[name] for name in widths)])
    return poi_variance(counts, rows, widths=np.array([np.inf, *widths.values()]))


def hard_bins(apply: Callable, params: PyTree) -> Callable:
    """The bin of an event after an INFERNO training: its largest output, -1 if one is NaN."""

    def bin_of(x):
        outputs = apply(params, x)
        return jnp.where(jnp.isnan(outputs).any(axis=1), -1, jnp.argmax(outputs, axis=1))

    return bin_of


def probability_bins(probability: Callable, *, bins: int = BINS) -> Callable:
    """The bin of an event in equal bins of a signal probability, -1 where that is NaN."""

    def bin_of(x):
        p = probability(x)
        return jnp.where(jnp.isnan(p), -1, jnp.clip((p * bins).astype(int), 0, bins - 1))

    return bin_of
