"""Show: pictures, movies and sliders. A picture is a function of an Axes and data."""

from nablab.extras import needs

with needs("show"):
    from nablab.show.fit_plots import impacts, pulls, sensitivity
    from nablab.show.movies import Movie, record
    from nablab.show.palette import COLOUR, INK, SAMPLES, set_up
    from nablab.show.plots import (
        caption,
        curve,
        cut_line,
        decision_map,
        events_2d,
        figure,
        gradient_arrow,
        legend,
        outline,
        stacked,
    )
    from nablab.show.widgets import control, explore, step_through

__all__ = [
    "COLOUR",
    "INK",
    "SAMPLES",
    "Movie",
    "caption",
    "control",
    "curve",
    "cut_line",
    "decision_map",
    "events_2d",
    "explore",
    "figure",
    "gradient_arrow",
    "impacts",
    "legend",
    "outline",
    "pulls",
    "record",
    "sensitivity",
    "set_up",
    "stacked",
    "step_through",
]
