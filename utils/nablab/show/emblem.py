"""The emblem of the project: the whole chain of an analysis, with the gradient flowing back."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Outline

from nablab.show.palette import COLOUR, INK

WIDTH, HEIGHT = 900, 330
# A step's name, what is free in it, and who sets that.
CHAIN = (
    ("data", "", ""),
    ("cuts", "thresholds", "trained"),
    ("observable", "network\nweights", "trained"),
    ("histogram", "edges,\nbandwidth", "trained"),
    ("model", "strength $\\mu$,\nnuisances $\\theta$", "fitted"),
    ("fit", "", ""),
    ("p-value or limit", "", ""),
)
CENTRES = np.linspace(66, WIDTH - 66, len(CHAIN))
CARD_WIDTH, CARD_HEIGHT, CARD_MIDDLE = 98, 92, 232
CHIP_MIDDLE, RIVER = 126, 52
GREY = "#777777"


def chain(ax: Axes, here: str | None = None) -> list[Artist]:
    """Draw the chain from data to p-value; made for ``plots.figure(900, 330)``.

    ``here`` names a step to highlight. Raises ``ValueError`` for a step that does not exist.
    """
    names = [name for name, _, _ in CHAIN]
    if here is not None and here not in names:
        raise ValueError(f"here is {here!r}: choose one of {', '.join(names)}")
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    ax.axis("off")
    before = set(ax.get_children())
    _gradient_river(ax)
    for x, (name, free, who) in zip(CENTRES, CHAIN, strict=True):
        _card(ax, x, name, name == here)
        PICTOGRAMS[name](ax, *_inside(x))
        if free:
            _chip(ax, x, free, who)
    for x, side, who, colour in (
        (CENTRES[1] - 60, "right", "trained", COLOUR["gradient"]),
        (CENTRES[4] + 60, "left", "fitted", GREY),
    ):
        ax.text(x, CHIP_MIDDLE, who, ha=side, va="center", style="italic", color=colour)
    for x in (CENTRES[:-1] + CENTRES[1:]) / 2:
        _arrow(ax, (x - 13, CARD_MIDDLE), (x + 13, CARD_MIDDLE), "#555555", 2.2, head=8)
    return [artist for artist in ax.get_children() if artist not in before]


def chain_svg(path: str | Path, here: str | None = None) -> Path:
    """Write the drawing of ``chain`` as SVG, with the same bytes on every run."""
    picture = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, layout="none")
    FigureCanvasSVG(picture)
    chain(picture.add_axes((0, 0, 1, 1)), here)
    picture.savefig(path, format="svg", metadata={"Date": None, "Title": "the chain of nablab"})
    return Path(path)


def _inside(x):
    """Functions that turn fractions of the card centred at ``x`` into coordinates."""
    wide, high = CARD_WIDTH - 16, CARD_HEIGHT - 16
    return (
        lambda u: x + wide * (np.asarray(u) - 0.5),
        lambda v: CARD_MIDDLE + high * (np.asarray(v) - 0.5),
    )


def _box(ax, x, y, width, height, rounding, **style):
    corner = x - width / 2, y - height / 2
    shape = f"round,pad=0,rounding_size={rounding}"
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=shape, **style))


def _card(ax, x, name, highlighted):
    edge, width = (INK, 2.6) if highlighted else ("#BBBBBB", 1.2)
    face = "#FFF8E7" if highlighted else "#FAFAFA"
    _box(ax, x, CARD_MIDDLE, CARD_WIDTH, CARD_HEIGHT, 9, fc=face, ec=edge, lw=width)
    top = CARD_MIDDLE + CARD_HEIGHT / 2 + 10
    ax.text(x, top, name, ha="center", va="bottom", fontsize=10.5, fontweight="bold")


def _chip(ax, x, free, who):
    trained = who == "trained"
    colour, face = (COLOUR["gradient"], "#F9EAF2") if trained else (GREY, "#F3F3F3")
    _box(ax, x, CHIP_MIDDLE, CARD_WIDTH, 42, 12, fc=face, ec=colour, lw=1.6, zorder=3)
    ax.text(x, CHIP_MIDDLE, free, ha="center", va="center", fontsize=9, color=INK, zorder=4)
    ax.plot([x, x], [CHIP_MIDDLE + 21, CARD_MIDDLE - CARD_HEIGHT / 2], color=colour, lw=1.6)


def _arrow(ax, start, end, colour, width, head):
    style = f"-|>,head_width={head / 2.2},head_length={head}"
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle=style,
        color=colour,
        lw=width,
        shrinkA=0,
        shrinkB=0,
        joinstyle="miter",
    )
    ax.add_patch(arrow)


def _gradient_river(ax):
    """From the p-value down and back to the left, with a branch up into whatever is trained."""
    colour, last = COLOUR["gradient"], CENTRES[-1]
    trained = [x for x, (_, _, who) in zip(CENTRES, CHAIN, strict=True) if who == "trained"]
    bend, up = 26, CHIP_MIDDLE - 21
    source = CARD_MIDDLE - CARD_HEIGHT / 2 - 2
    for width, x in zip(np.linspace(4, 7, len(trained)), trained, strict=True):
        points = [(last, source), (last, RIVER + bend), (last, RIVER), (last - bend, RIVER)]
        points += [(x + bend, RIVER), (x, RIVER), (x, RIVER + bend), (x, up - 10)]
        codes = [Outline.MOVETO, Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3, Outline.LINETO]
        river = FancyArrowPatch(
            path=Outline(points, codes), arrowstyle="-", color=colour, lw=width, capstyle="butt"
        )
        ax.add_patch(river)
        _arrow(ax, (x, up - 14), (x, up), colour, 1, head=11)
    middle = (trained[-1] + last) / 2
    text = "the gradient flows back through the whole chain"
    ax.text(middle, RIVER - 12, text, ha="center", va="top", fontsize=10, color=colour)


def _draw_data(ax, u, v):
    random = np.random.RandomState(4)
    for mean, name, marker in (((0.36, 0.6), "background", "s"), ((0.66, 0.4), "signal", "o")):
        x, y = (np.clip(random.normal(m, 0.14, 26), 0.03, 0.97) for m in mean)
        ax.plot(u(x), v(y), marker, ms=4, mew=0, alpha=0.8, color=COLOUR[name])


def _draw_cuts(ax, u, v):
    x = np.linspace(0, 1, 60)
    ax.plot(u([0.5, 0.5]), v([0, 1]), color=COLOUR["cut"], lw=2, ls=(0, (3, 1.5)))
    ax.plot(u(x), v(0.12 + 0.76 / (1 + np.exp(-(x - 0.5) * 13))), color=COLOUR["soft"], lw=2.4)


def _draw_observable(ax, u, v):
    layers = [[(0.1, y) for y in (0.2, 0.5, 0.8)], [(0.5, y) for y in (0.08, 0.36, 0.64, 0.92)]]
    layers.append([(0.9, 0.5)])
    for left, right in pairwise(layers):
        for a in left:
            for b in right:
                ax.plot(u([a[0], b[0]]), v([a[1], b[1]]), color="#BBBBBB", lw=0.9)
    for layer, colour in zip(layers, (GREY, COLOUR["soft"], COLOUR["signal"]), strict=True):
        x, y = np.transpose(layer)
        ax.plot(u(x), v(y), "o", ms=7, color=colour, mec="white", mew=0.8)


def _draw_histogram(ax, u, v):
    background, signal = np.array([0.62, 0.42, 0.26, 0.12]), np.array([0.03, 0.08, 0.2, 0.4])
    edges, width = np.linspace(0.04, 0.96, 5), 0.23
    for x, b, s in zip(edges, background, signal, strict=False):
        for low, high, name in ((0, b, "background"), (b, b + s, "signal")):
            ax.fill(
                u([x, x + width, x + width, x]), v([low, low, high, high]), color=COLOUR[name], lw=0
            )
    ax.errorbar(
        u(edges[:-1] + width / 2),
        v([0.72, 0.47, 0.52, 0.5]),
        7,
        fmt="o",
        ms=4,
        lw=1.4,
        color="black",
    )


def _draw_model(ax, u, v):
    ax.text(u(0.5), v(0.72), r"$L(\mu,\theta)$", ha="center", va="center", fontsize=15)
    x = np.linspace(0.08, 0.92, 6)
    nominal = np.array([0.4, 0.3, 0.22, 0.15, 0.1])
    for shift, colour, style in (
        (1.3, GREY, "--"),
        (0.7, GREY, "--"),
        (1, COLOUR["background"], "-"),
    ):
        ax.stairs(v(shift * nominal), u(x), baseline=None, color=colour, ls=style, lw=1.6)


def _draw_fit(ax, u, v):
    x = np.linspace(0.06, 0.94, 60)
    ax.plot(u(x), v(0.16 + 4.2 * (x - 0.5) ** 2), color=INK, lw=2.2)
    ax.plot(u([0.5]), v([0.16]), "o", ms=7, color=INK)
    ax.text(u(0.5), v(0.74), r"$\hat\mu,\hat\theta$", ha="center", va="center", fontsize=12)


def _draw_tail(ax, u, v):
    x = np.linspace(0.02, 0.98, 90)
    density = 0.1 + 0.78 * np.exp(-((x - 0.4) ** 2) / 0.042)
    tail = x >= 0.6
    ax.fill_between(u(x[tail]), v(0.1), v(density[tail]), color=COLOUR["gradient"], lw=0)
    ax.plot(u(x), v(density), color=INK, lw=2)


PICTOGRAMS = {
    "data": _draw_data,
    "cuts": _draw_cuts,
    "observable": _draw_observable,
    "histogram": _draw_histogram,
    "model": _draw_model,
    "fit": _draw_fit,
    "p-value or limit": _draw_tail,
}
