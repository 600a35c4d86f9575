"""Pictures as functions of data and an Axes, in one style, with one meaning per colour.

A picture function adds its artists to the Axes it is given and returns them as a list. That list
is all that ``movies.record`` and ``widgets.explore`` need, so each is also a movie and a slider.

Figures here never pass through ``pyplot``: nothing is shown twice, and nothing has to be closed.
"""

import io

import numpy as np
from jaxtyping import Real, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, StepPatch
from PIL import Image

from nablab.checks import Numbers
from nablab.show.palette import COLOUR, DECISION_COLOURS, INK, SAMPLES

CUT_DASHES = (0, (4, 2))
BAND = {"facecolor": "none", "edgecolor": COLOUR["uncertainty"], "hatch": "//////"}


class _Picture(Figure):
    """A matplotlib Figure that a notebook shows as a PNG when it is the last line of a cell."""

    def __repr__(self):
        width, height = self.canvas.get_width_height()
        text = f"Picture, {width} x {height} pixels"
        return f"{text}: {self.get_label()}" if self.get_label() else text

    def _repr_mimebundle_(self, include=None, exclude=None):
        alt = {"image/png": {"alt": self.get_label()}}
        return {"image/png": png(self), "text/plain": repr(self)}, alt


def _resize(picture: Figure, width: int, height: int) -> None:
    # Slightly more than asked, because canvases round the number of pixels down.
    picture.set_size_inches((width + 1e-3) / picture.dpi, (height + 1e-3) / picture.dpi)


def figure(width: int = 640, height: int = 360, rows: int = 1, columns: int = 1, **subplots):
    """A new figure, ``width`` x ``height`` pixels, and its Axes as ``pyplot.subplots`` gives them.

    Further keywords go to ``Figure.subplots`` (``sharex``, ``width_ratios`` ...). Raises
    ``ValueError`` for a size below 16 pixels.
    """
    for name, size in (("width", width), ("height", height)):
        if size < 16:
            raise ValueError(f"{name} is {size}: give it in pixels, at least 16")
    picture = _Picture(dpi=100, layout="constrained")
    FigureCanvasAgg(picture)
    _resize(picture, width, height)
    return picture, picture.subplots(rows, columns, **subplots)


def caption(picture: Figure, text: str) -> Figure:
    """Write ``text`` under the picture, which grows by these lines, and keep it as alt text.

    Call it once, before a movie or an explorer is made of the picture.
    """
    width, height = picture.canvas.get_width_height()
    picture.set_label(text)
    line = picture.supxlabel(text, x=12 / width, ha="left", color="#555555")
    line.set_wrap(True)
    needed = line.get_window_extent(picture.canvas.get_renderer()).height
    _resize(picture, width, height + round(needed) + 8)
    return picture


def png(picture: Figure) -> bytes:
    """The picture as PNG with 256 colours, about 20 kB; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="raw", dpi=picture.dpi)
    width, height = picture.canvas.get_width_height()
    return to_png(np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4))


def to_png(pixels: UInt8[np.ndarray, "height width 4"]) -> bytes:
    """Opaque pixels as a small PNG."""
    colours = Image.fromarray(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    colours.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def legend(ax: Axes, location: str = "best", **labels: str) -> Artist:
    """A legend made of the fixed colours: ``legend(ax, soft="soft counts", data="toy data")``.

    Raises ``ValueError`` for a name that has no colour.
    """
    unknown = sorted(set(labels) - set(COLOUR))
    if unknown:
        raise ValueError(f"{unknown[0]} has no colour; these have: {', '.join(COLOUR)}")
    areas = {
        "signal": {"facecolor": COLOUR["signal"]},
        "background": {"facecolor": COLOUR["background"]},
        "uncertainty": BAND,
    }
    lines = {"data": {"ls": "none", "marker": "o"}, "cut": {"ls": CUT_DASHES}}
    handles = []
    for name, text in labels.items():
        if name in areas:
            handles.append(Patch(label=text, lw=0, **areas[name]))
        else:
            handles.append(Line2D([], [], color=COLOUR[name], label=text, **lines.get(name, {})))
    return ax.legend(handles=handles, loc=location)


def _same_bins(edges, **counts) -> None:
    for name, values in counts.items():
        if np.shape(values)[-1] != np.size(edges) - 1:
            raise ValueError(
                f"{name} has {np.shape(values)[-1]} bins and edges {np.size(edges)} entries: "
                "give one edge more than bins"
            )


def _finite(*arrays):
    """The arrays with NaN, which is not drawn, for what is infinite."""
    return [np.where(np.isfinite(array), array, np.nan) for array in arrays]


def _stairs(ax: Axes, top, edges, base=0.0, **style) -> Artist:
    """``Axes.stairs`` without its search for the limits, which takes longer than the drawing."""
    patch = StepPatch(top, edges, baseline=base, **style)
    ax.add_artist(patch)
    heights = np.concatenate([np.ravel(top), np.ravel(0.0 if base is None else base)])
    heights = heights[np.isfinite(heights)]
    if heights.size:
        ax.update_datalim([(edges[0], heights.min()), (edges[-1], heights.max())])
        patch.sticky_edges.y.append(heights.min())
        ax.autoscale_view()
    return patch


def _band(ax: Axes, low, high, edges) -> Artist:
    return _stairs(ax, high, edges, base=low, fill=True, lw=0, zorder=3, **BAND)


def outline(
    ax: Axes,
    counts: Real[Numbers, "bins"],
    edges: Real[Numbers, "edges"],
    *,
    uncertainty: Real[Numbers, "bins"] | None = None,
    colour: str = COLOUR["soft"],
    label: str | None = None,
    fill: bool = False,
) -> list[Artist]:
    """Outline (or, with ``fill``, area) of a histogram; ``uncertainty`` is one sigma of ``counts``.

    Bins that are not finite stay empty. Raises ``ValueError`` unless there is one edge more than
    counts.
    """
    _same_bins(edges, counts=counts)
    counts, edges = _finite(counts, edges)
    if fill:
        style = {"facecolor": colour, "alpha": 0.6, "lw": 0}
    else:
        style = {"edgecolor": colour, "lw": 2.2}
    artists = [_stairs(ax, counts, edges, fill=fill, label=label, zorder=2.5, **style)]
    if uncertainty is not None:
        (sigma,) = _finite(uncertainty)
        artists.append(_band(ax, counts - sigma, counts + sigma, edges))
    return artists


def stacked(
    ax: Axes,
    edges: Real[Numbers, "edges"],
    signal: Real[Numbers, "bins"],
    background: Real[Numbers, "bins"],
    *,
    background_band: Real[Numbers, "..."] | None = None,
) -> list[Artist]:
    """Background, signal on top of it, and the uncertainty of the background as a hatched band.

    ``background_band`` is one sigma in events, shape ``[bins]``, or below and above, ``[2, bins]``.
    """
    _same_bins(edges, signal=signal, background=background)
    edges, signal, background = _finite(edges, signal, background)
    total = background + signal
    artists = [
        _stairs(ax, background, edges, fill=True, fc=COLOUR["background"], lw=0),
        _stairs(ax, total, edges, base=background, fill=True, fc=COLOUR["signal"], lw=0),
    ]
    if background_band is not None:
        _same_bins(edges, background_band=background_band)
        below, above = np.broadcast_to(_finite(background_band)[0], (2, background.size))
        artists.append(_band(ax, background - below, background + above, edges))
    return artists


def events_2d(ax: Axes, samples: dict[str, Real[Numbers, "events 2"]], *, size=4) -> list[Artist]:
    """One dot per event and sample; known names (``SAMPLES``) keep their colour and marker."""
    artists = []
    for name, points in samples.items():
        points = np.asarray(points)
        colour, marker = SAMPLES.get(name, (INK, "."))
        style = {"color": colour, "marker": marker, "ms": size, "mew": 0, "alpha": 0.8}
        artists += ax.plot(points[:, 0], points[:, 1], ls="none", label=name, **style)
    return artists


def decision_map(
    ax: Axes,
    values: Real[Numbers, "rows columns"],
    extent: tuple,
    *,
    low: int | float = 0.0,
    high: int | float = 1.0,
    lines: int = 5,
) -> list[Artist]:
    """A decision function on a grid, as colours from ``low`` to ``high`` with contour lines.

    ``values[row, column]`` with rows along y, upwards; ``extent`` is (x first, x last, y first,
    y last), the centres of the outermost grid points. No line is drawn where no value reaches it.
    """
    values = np.asarray(values)
    x0, x1, y0, y1 = extent
    rows, columns = values.shape
    dx, dy = (x1 - x0) / max(columns - 1, 1) / 2, (y1 - y0) / max(rows - 1, 1) / 2
    ax.grid(False)
    image = ax.imshow(
        # Colours, not values: matplotlib would look up that of every pixel, not of every point.
        DECISION_COLOURS((values - low) / (high - low), alpha=0.45, bytes=True),
        extent=(x0 - dx, x1 + dx, y0 - dy, y1 + dy),
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        zorder=0,
    )
    artists = [image]
    finite = values[np.isfinite(values)]
    levels = np.linspace(low, high, lines + 2)[1:-1]
    if finite.size and min(rows, columns) > 1:
        levels = levels[(levels > finite.min()) & (levels < finite.max())]
        if levels.size:
            grid = np.linspace(x0, x1, columns), np.linspace(y0, y1, rows)
            artists.append(ax.contour(*grid, values, levels, colors="#555555", linewidths=0.9))
    return artists


def curve(
    ax: Axes,
    x: Real[Numbers, "points"],
    y: Real[Numbers, "points"],
    *,
    label: str | None = None,
    colour: str = COLOUR["soft"],
    **style,
) -> list[Artist]:
    """A line through the points; further keywords go to ``Axes.plot``."""
    return ax.plot(np.asarray(x), np.asarray(y), label=label, color=colour, **style)


def cut_line(ax: Axes, threshold, *, label: str | None = None) -> list[Artist]:
    """A dashed vertical line at the threshold of a cut."""
    return [ax.axvline(float(threshold), color=COLOUR["cut"], ls=CUT_DASHES, label=label)]


def gradient_arrow(ax: Axes, x, y, slope, *, length=50) -> list[Artist]:
    """The point (x, y) and an arrow of ``length`` pixels along the tangent, uphill.

    A slope of zero has no uphill: a flat bar to both sides. A slope that is NaN or infinite: an
    open circle, no arrow.
    """
    x, y, slope, length = float(x), float(y), float(slope), float(length)
    colour, known = COLOUR["gradient"], np.isfinite(slope)
    face = colour if known else "white"
    artists = ax.plot(x, y, "o", ms=8, color=colour, mfc=face, mew=2, zorder=5)
    if not known or not np.isfinite([x, y]).all():
        return artists
    # A quiver keeps its angle to the data when the limits or the layout change later.
    uphill = (np.sign(slope) or 1.0) * np.array(
        [np.cos(np.arctan(slope)), np.sin(np.arctan(slope))]
    )
    head = {"headwidth": 4, "headlength": 4.5, "headaxislength": 4.2}
    if slope == 0:
        head = {"headwidth": 0, "headlength": 0, "headaxislength": 0, "pivot": "middle"}
    arrow = ax.quiver(
        x,
        y,
        *uphill,
        angles="xy",
        scale=1 / length,
        scale_units="dots",
        units="dots",
        width=3.5,
        color=colour,
        zorder=5,
        clip_on=False,
        **head,
    )
    return [*artists, arrow]
