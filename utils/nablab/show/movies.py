"""Movies: an update function over frames, drawn by blitting and encoded by ffmpeg's H.264.

Only what moves is drawn anew: 100 frames of 640 x 360 pixels take about a second. The ffmpeg
binary is the one that ``imageio_ffmpeg`` carries: nothing has to be installed on the system.
"""

import base64
import html
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import imageio_ffmpeg
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Movie:
    """An MP4 that a notebook plays by itself, in a loop, without sound."""

    mp4: bytes
    frames: int
    fps: int | float
    width: int
    height: int
    alt: str = ""

    def save(self, path: str | Path) -> Path:
        """Write the MP4 to ``path``."""
        Path(path).write_bytes(self.mp4)
        return Path(path)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.mp4).decode("ascii")
        alt = html.escape(self.alt)
        return (
            f'<video autoplay loop muted playsinline controls width="{self.width}" '
            f'height="{self.height}" style="max-width: 100%; height: auto" aria-label="{alt}" '
            f'src="data:video/mp4;base64,{data}">{alt}</video>'
        )

    def __repr__(self) -> str:
        text = f"Movie, {self.frames} frames, {self.frames / self.fps:.1f} s"
        return f"{text}: {self.alt}" if self.alt else text


def record(
    figure: Figure,
    update: Callable,
    frames: int | Iterable,
    *,
    fps: int | float = 20,
    alt: str = "",
) -> Movie:
    """Record ``update(frame)`` for each frame (a number of frames, or the frames themselves).

    ``update`` changes or adds artists and returns those that it changed or added, for instance the
    lists that picture functions return. What it added goes when a later frame neither returns nor
    changes it. A change that is not returned is drawn too, but slowly, and so are limits that
    move: set them before. ``alt`` describes the movie in words, instead of the figure's caption.

    Raises ``ValueError`` for no frames or no positive ``fps``. An error in ``update`` is passed on,
    with a note that says in which frame.
    """
    frames = list(range(frames)) if isinstance(frames, int) else list(frames)
    if not frames:
        raise ValueError("frames is empty: a movie needs at least one frame")
    if not fps > 0:
        raise ValueError(f"fps is {fps}: give a positive number of frames per second")
    paint = painter(figure, update)
    pixels = _even(_paint_frame(paint, 0, frames[0]))
    height, width = pixels.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "movie.mp4", Path(folder) / "log"
        command = _encoder(path, width, height, fps)
        with log.open("wb") as stderr, Popen(command, stdin=PIPE, stderr=stderr) as ffmpeg:
            try:
                ffmpeg.stdin.write(pixels)
                for index, frame in enumerate(frames[1:], start=1):
                    ffmpeg.stdin.write(_even(_paint_frame(paint, index, frame)))
            except BrokenPipeError:
                ffmpeg.kill()
        if ffmpeg.returncode != 0:
            said = log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"ffmpeg could not encode the movie: {said[-500:]}")
        mp4 = path.read_bytes()
    return Movie(mp4, len(frames), fps, width, height, alt or figure.get_label())


def _encoder(path, width, height, fps) -> list[str]:
    # Not imageio_ffmpeg.write_frames: it runs Python code after a fork, against which JAX warns.
    # One thread and no version stamps, so that the same pictures give the same bytes.
    return [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *f"-loglevel error -f rawvideo -pix_fmt rgba -s {width}x{height} -r {fps} -i -".split(),
        *"-codec:v libx264 -pix_fmt yuv420p -crf 28 -preset veryfast -threads 1".split(),
        *"-movflags +faststart -fflags +bitexact -flags:v +bitexact".split(),
        str(path),
    ]


def _paint_frame(paint, index, frame):
    try:
        return paint(frame)
    except Exception as error:
        error.add_note(f"while recording frame {index} ({frame!r})")
        raise


def _even(pixels: np.ndarray) -> np.ndarray:
    """The pixels with an even number of rows and columns, which H.264 needs: edges are repeated."""
    rows, columns = pixels.shape[:2]
    padding = ((0, rows % 2), (0, columns % 2), (0, 0))
    return np.ascontiguousarray(np.pad(pixels, padding, mode="edge"))


def painter(figure: Figure, update: Callable) -> Callable:
    """A function ``paint(*args, **kwargs)`` that calls ``update`` and returns the picture's pixels.

    The pixels are an array [height, width, 4] of uint8 that the next call overwrites. The first
    call draws everything and freezes the layout; later calls restore that and draw over it only
    what ``update`` returned. If anything else changed, or the limits of an Axes did, all is
    drawn anew.
    """
    if not isinstance(figure.canvas, FigureCanvasAgg):
        FigureCanvasAgg(figure)
    # An earlier painter, or the same cell run before, must leave no ghosts in this picture.
    _remove(figure, getattr(figure, "moving_artists", ()))
    figure.moving_artists = added = set()
    background = limits = None

    def paint(*args, **kwargs) -> np.ndarray:
        nonlocal background, limits
        before = _parts(figure)
        for ax in figure.axes:
            ax.set_prop_cycle(None)  # or a line without a colour would change it in each frame
        try:
            moving = _flat(update(*args, **kwargs))
        except BaseException:
            _remove(figure, _parts(figure) - before)
            raise
        _remove(figure, (old for old in added.difference(moving) if not old.stale))
        now = _parts(figure)
        added.update(now - before)
        added.intersection_update(now)
        moving = sorted((artist for artist in moving if artist in now), key=Artist.get_zorder)
        for artist in moving:
            artist.set_animated(True)

        canvas = figure.canvas
        if background is None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        still = [artist for artist in _watched(figure) if not artist.get_animated()]
        if limits != _limits(figure) or any(artist.stale for artist in still):
            canvas.draw()
            background = canvas.copy_from_bbox(figure.bbox)
            limits = _limits(figure)
        else:
            canvas.restore_region(background)
        for artist in moving:
            artist.draw(canvas.get_renderer())
        for artist in still + moving:
            artist.stale = False
        return np.asarray(canvas.buffer_rgba())

    return paint


def _parts(figure: Figure) -> set[Artist]:
    """All that an update can add or remove: children of the figure and of its Axes."""
    return set(figure.get_children()).union(*(ax.get_children() for ax in figure.axes))


def _watched(figure: Figure) -> list[Artist]:
    """What has to be drawn anew if it changed; an Axes and its axes count by limits and labels."""
    labels = [axis.label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    return labels + [part for part in _parts(figure) if not isinstance(part, Axes | Axis)]


def _limits(figure: Figure) -> list:
    return [(*ax.get_position().bounds, *ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes]


def _remove(figure: Figure, artists: Iterable[Artist]) -> None:
    for artist in _parts(figure).intersection(artists):
        artist.remove()


def _flat(returned) -> list[Artist]:
    """The artists in what an update returned: one, none, or nested lists and containers of them."""
    if returned is None:
        return []
    if isinstance(returned, Artist):
        return [returned]
    if isinstance(returned, Iterable) and not isinstance(returned, str):
        nested = [artist for part in returned for artist in _flat(part)]
        return list(dict.fromkeys(nested))
    raise TypeError(f"update returned {returned!r}: return the artists that moved, as a list")
