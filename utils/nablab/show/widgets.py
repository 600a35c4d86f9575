"""Sliders on a picture: a move redraws only what moves and sends one small image to the browser.

A stored notebook reads without a kernel too: the output also carries the picture at the start
values as an image.
"""

import html
import math
import os
import struct
import zlib
from collections.abc import Callable
from numbers import Integral, Real

import ipywidgets
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from nablab.show import sweeps
from nablab.show.movies import painter
from nablab.show.plots import to_png


def explore(figure: Figure, update: Callable, **sliders) -> "Explorer":
    """A picture with one control per keyword; ``update(name=value, ...)`` redraws what moves.

    ``update`` returns the artists it changed or added, as for ``movies.record``. A control is

    - ``(start, stop, value)``: a slider, over whole numbers if all three are; after these may come,
      in any order, a step, the word ``"log"``, and a label with a unit such as ``"cut [GeV]"``
      (the ends of a logarithmic one move by up to half a step, so that the value lies on a step);
    - ``True`` or ``False``: a tick box; a list of strings: buttons, the first one chosen.

    An error in ``update`` becomes a sentence under the faded picture, and the next move goes on.
    Raises ``ValueError`` naming the control for anything else, and for a start value out of range.
    """
    if not sliders:
        raise ValueError("no slider: give at least one, as in threshold=(0.0, 1.0, 0.5)")
    return Explorer(figure, update, {name: control(name, s) for name, s in sliders.items()})


def control(name: str, choice) -> ipywidgets.Widget:
    """The slider, tick box or row of buttons that ``explore`` makes of one keyword."""
    words = [entry for entry in choice if isinstance(entry, str)] if _is_row(choice) else []
    label = next((word for word in words if word != "log"), name.replace("_", " "))
    style = {"description_width": f"{max(8.0, 0.6 * len(label)):.1f}em"}
    shared = {"description": label, "style": style, "layout": {"width": "98%"}}
    if isinstance(choice, bool):
        return ipywidgets.Checkbox(choice, **shared)
    if isinstance(choice, list) and choice and all(isinstance(entry, str) for entry in choice):
        shared["style"] = style | {"button_width": "auto"}  # or long words would be cut off
        return ipywidgets.ToggleButtons(options=choice, **shared)
    numbers = [entry for entry in choice if isinstance(entry, Real)] if _is_row(choice) else []
    if len(numbers) not in (3, 4) or len(numbers) + len(words) != len(choice):
        raise ValueError(f"{name} is {choice!r}: give (start, stop, value), as in (0.0, 1.0, 0.5)")
    start, stop, value = choice[:3]
    if not all(math.isfinite(number) for number in numbers) or not start <= value <= stop > start:
        raise ValueError(
            f"{name} is {choice!r}: start <= value <= stop must hold, with start < stop"
        )
    if "log" in words:
        if start <= 0:
            raise ValueError(f"{name} starts at {start}: a logarithmic slider starts above 0")
        low, high = math.log10(start), math.log10(stop)
        step = numbers[3] if len(numbers) == 4 else (high - low) / 100
        at = math.log10(value)
        low, high = (at + round((end - at) / step) * step for end in (low, high))
        return ipywidgets.FloatLogSlider(
            value, min=low, max=high, step=step, readout_format=".3g", **shared
        )
    if all(isinstance(number, Integral) for number in numbers):
        step = numbers[3] if len(numbers) == 4 else 1
        return ipywidgets.IntSlider(value, min=start, max=stop, step=step, **shared)
    step = numbers[3] if len(numbers) == 4 else step_through(start, value, stop)
    return ipywidgets.FloatSlider(
        value, min=start, max=stop, step=step, readout_format=".4g", **shared
    )


def step_through(start: int | float, value: int | float, stop: int | float) -> float:
    """A step of about a hundredth of the way, one of whose multiples leads to the value.

    A browser moves a slider that stands between two steps, and the picture with it.
    """
    for steps in range(100, 200):
        at = (value - start) / (stop - start) * steps
        if math.isclose(at, round(at), abs_tol=1e-9):
            return (stop - start) / steps
    return (stop - start) / 100


def png_at_once(pixels: UInt8[np.ndarray, "height width 4"]) -> bytes:
    """Opaque pixels as PNG without row filters, whose choice takes libraries most of the time."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each row begins with its filter: 0
    rows[:, 1:].reshape(height, width, 3)[:] = pixels[..., :3]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _is_row(choice) -> bool:
    return isinstance(choice, tuple) and all(isinstance(entry, Real) for entry in choice[:3])


class Explorer(ipywidgets.VBox):
    """What ``explore`` returns: controls over a picture, and a line of text under it."""

    def __init__(self, figure: Figure, update: Callable, controls: dict[str, ipywidgets.Widget]):
        width, height = figure.canvas.get_width_height()
        super().__init__(layout={"width": f"{width}px", "max_width": "100%"})
        self.controls = controls
        self._moving_several = False
        self._paint = painter(figure, update)
        self._caption = figure.get_label()
        self._pixels = np.full((height, width, 4), 255, dtype=np.uint8)
        # Its usual margin would make it wider than the box, and the browser draw a scroll bar.
        flush = {"margin": "0"}
        self._picture = ipywidgets.Image(format="png", width=width, height=height, layout=flush)
        # The words for screen readers: the picture itself cannot carry them, and they are no text.
        words = html.escape(self._caption or f"picture for {', '.join(controls)}")
        self._description = f'<span role="img" aria-label="{words}"></span>'
        self._message = ipywidgets.HTML()
        self.message = ""
        self.redraw()
        for widget in controls.values():
            widget.observe(self._moved, names="value")
        self.children = [*controls.values(), self._picture, self._message]

    @property
    def values(self) -> dict:
        """Where the controls stand."""
        return {name: widget.value for name, widget in self.controls.items()}

    @property
    def image(self) -> bytes:
        """The picture as it stands, as PNG."""
        return bytes(self._picture.value)

    @property
    def stored_image(self) -> bytes:
        """The same, smaller: it takes longer to make."""
        return to_png(self._pixels)

    @property
    def message(self) -> str:
        """The sentence under the picture; empty when all is well."""
        return self._sentence

    @message.setter
    def message(self, sentence: str) -> None:
        self._sentence = sentence
        self._message.value = self._description + html.escape(sentence)

    def set(self, **values) -> None:
        """Move several controls, with one redraw. Raises ``ValueError`` for an unknown name."""
        unknown = sorted(set(values) - set(self.controls))
        if unknown:
            raise ValueError(f"{unknown[0]} is no slider; these are: {', '.join(self.controls)}")
        self._moving_several = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._moving_several = False
            self.redraw()

    def redraw(self) -> None:
        """Draw the picture for the values as they stand."""
        try:
            self._pixels = self._paint(**self.values).copy()
            self.message = ""
            self._picture.value = png_at_once(self._pixels)
        except Exception as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            if not isinstance(error, ValueError) or not reason:
                reason = f"{type(error).__name__} {reason}".strip()
            self.message = f"No picture for {self._settings()}: {reason}. Move a slider to go on."
            faded = 255 - (255 - self._pixels.astype(int)) // 4
            self._picture.value = png_at_once(faded.astype(np.uint8))

    def _moved(self, change) -> None:
        if not self._moving_several:
            self.redraw()

    def _settings(self) -> str:
        shown = (f"{v:.4g}" if isinstance(v, float) else f"{v}" for v in self.values.values())
        return ", ".join(f"{name} = {v}" for name, v in zip(self.values, shown, strict=True))

    def __repr__(self) -> str:
        parts = (f"Explorer, {self._settings()}", self._caption, self.message)
        return ": ".join(part for part in parts if part)

    def _repr_mimebundle_(self, **kwargs) -> dict:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        if os.environ.get("NABLAB_SWEEPS"):
            bundle["text/html"] = sweeps.page(self)
        return bundle | {"image/png": self.stored_image, "text/plain": repr(self)}
