"""The look of all pictures: one matplotlib style, one meaning per colour."""

import gc
from pathlib import Path

import matplotlib.style
from matplotlib.colors import LinearSegmentedColormap

from nablab import memory

STYLE = Path(__file__).with_name("nablab.mplstyle")

# Okabe-Ito and relatives. A test holds every pair apart for the three kinds of colour blindness.
COLOUR = {
    "signal": "#D55E00",
    "background": "#56B4E9",
    "data": "#000000",
    "uncertainty": "#999999",
    "gradient": "#AA3377",
    "soft": "#0072B2",
    "hard": "#E69F00",
    "cut": "#3D5A00",
}
# From "looks like background" over white to "looks like signal".
DECISION_COLOURS = LinearSegmentedColormap.from_list(
    "decision", [COLOUR["background"], "#FFFFFF", COLOUR["signal"]]
)
# Samples of events, told apart by colour and by shape: (colour, marker).
SAMPLES = {
    "signal": (COLOUR["signal"], "o"),
    "background": (COLOUR["background"], "s"),
    "background_1": (COLOUR["background"], "s"),
    "background_2": (COLOUR["soft"], "D"),
    "up": (COLOUR["uncertainty"], "^"),
    "down": (COLOUR["uncertainty"], "v"),
    "data": (COLOUR["data"], "."),
}
INK = "#222222"


def set_up() -> None:
    """Prepare a notebook's kernel: pictures in the style of nablab, memory given back.

    Without it, pictures follow matplotlib's own settings. The memory is what compilations have
    freed: a kernel would keep it otherwise (``nablab.memory``). And what is imported by now is not
    searched for garbage again, which took a fifth of the time that JAX takes to trace a fit.
    """
    matplotlib.style.use(STYLE)
    memory.give_back_after_compilations()
    gc.collect()  # what is garbage already would stay for ever
    gc.freeze()
