"""Pictures of what a fit did, and of which yields a result hangs on.

Picture functions as in ``nablab.show.plots``: they add artists to an Axes and return them.
"""

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm

from nablab.checks import Numbers
from nablab.show.palette import COLOUR, INK

# White at 0, and two ends that differ for every kind of colour blindness.
SLOPES = matplotlib.colormaps["PuOr_r"]
GAP = 0.5  # between channels, in bins
MOST_CELLS_WITH_NUMBERS = 60


def sensitivity(
    ax: Axes, slopes: dict[str, dict[str, Float[Numbers, "bins"]]], *, label: str | None = None
) -> list[Artist]:
    """A map of derivatives, samples against bins, with a gap between the channels.

    Args:
        ax: where to draw.
        slopes: ``{channel: {sample: [bins]}}``, as from ``diagnostics.sensitivity_map``.
        label: what the colour means, written at a colour bar; without it, there is none.

    The colour grows with the root of the number, as signal events weigh far more than background
    ones. Small maps have the numbers written into them. A dash stands for a sample that the channel
    does not have, and for a derivative that is not finite.
    """
    names = list(dict.fromkeys(name for channel in slopes.values() for name in channel))
    tables = {channel: _table(samples, names) for channel, samples in slopes.items()}
    everything = np.concatenate(list(tables.values()), axis=1)
    largest = np.max(np.abs(everything), where=np.isfinite(everything), initial=0.0) or 1.0
    norm = FuncNorm((_signed_root, _signed_square), -largest, largest)
    artists, ticks, labels, left = [], [], [], 0.0
    for channel, values in tables.items():
        bins = values.shape[1]
        edges = left + np.arange(bins + 1)
        artists.append(
            ax.pcolormesh(
                edges, np.arange(len(names) + 1), values, cmap=SLOPES, norm=norm, ec="white", lw=1.5
            )
        )
        middle = left + bins / 2
        top = ax.get_xaxis_transform()
        artists.append(ax.text(middle, 1.02, channel, transform=top, ha="center", va="bottom"))
        for (row, bin_), value in np.ndenumerate(values):
            text = f"{value:+.2g}" if np.isfinite(value) else "–"
            if everything.size <= MOST_CELLS_WITH_NUMBERS or text == "–":
                colour = "white" if abs(value) > 0.35 * largest else INK
                centre = edges[bin_] + 0.5, row + 0.5
                style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": colour}
                artists.append(ax.text(*centre, text, **style))
        ticks += list(edges[:-1] + 0.5)
        labels += [str(bin_ + 1) for bin_ in range(bins)]
        left += bins + GAP
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set(xlim=(0, left - GAP), ylim=(len(names), 0), xlabel="bin")
    ax.set_xticks(ticks, labels)
    ax.set_yticks(np.arange(len(names)) + 0.5, names)
    if label is not None:
        marks = largest * np.array([-1, -0.25, 0, 0.25, 1])
        bar = ax.figure.colorbar(artists[0], ax=ax, label=label)
        bar.set_ticks(marks, labels=[f"{mark:+.2g}" if mark else "0" for mark in marks])
    return artists


def _signed_root(x):
    return np.sign(x) * np.sqrt(np.abs(x))


def _signed_square(x):
    return x * np.abs(x)


def _table(samples, names) -> np.ndarray:
    """Rows in the order of ``names``, NaN for a sample that is not there."""
    absent = np.full(len(next(iter(samples.values()))), np.nan)
    return np.array([np.asarray(samples.get(name, absent), dtype=float) for name in names])


def pulls(
    ax: Axes,
    names: list[str],
    pull: Float[Numbers, "parameters"],
    constraint: Float[Numbers, "parameters"],
) -> list[Artist]:
    """One row per parameter, the first on top: its pull, with the post-fit width as a bar.

    Both in units of the pre-fit width, which is the shaded band. A row whose pull is NaN is empty.
    """
    rows = np.arange(len(names))
    band = ax.axvspan(-1, 1, color=COLOUR["uncertainty"], alpha=0.25, lw=0)
    zero = ax.axvline(0, color=COLOUR["uncertainty"], lw=1)
    style = {"fmt": "o", "color": COLOUR["data"], "ms": 5, "lw": 1.8}
    points = ax.errorbar(np.asarray(pull), rows, xerr=np.asarray(constraint), **style)
    _label_rows(ax, names)
    return [band, zero, *points.get_children()]


def impacts(
    ax: Axes,
    names: list[str],
    prefit: Float[Numbers, "parameters"],
    postfit: Float[Numbers, "parameters"],
) -> list[Artist]:
    """One row per parameter, the first on top: the move of the parameter of interest.

    Filled for +1, pale for -1 post-fit width; the outline is that of the pre-fit width.
    """
    rows = np.arange(len(names))
    prefit, postfit = (np.nan_to_num(np.asarray(values)) for values in (prefit, postfit))
    colour = COLOUR["gradient"]
    artists = []
    for sign, alpha in ((1, 1.0), (-1, 0.35)):
        artists += ax.barh(rows, sign * postfit, height=0.6, color=colour, alpha=alpha, lw=0)
        artists += ax.barh(rows, sign * prefit, height=0.8, fill=False, ec=INK, lw=1)
    _label_rows(ax, names)
    return artists


def _label_rows(ax, names) -> None:
    ax.grid(axis="y", visible=False)
    ax.set_yticks(np.arange(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
