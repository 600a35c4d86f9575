"""Movies: decoded again, and compared with the directly drawn figure."""

import html
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from nablab.show import movies, plots

EDGES = np.linspace(0.0, 1.0, 6)


def stage(width=320, height=240):
    figure, ax = plots.figure(width, height)
    ax.set(xlim=(0, 1), ylim=(0, 10), xlabel="x [GeV]")
    return figure, ax


def decode(movie, folder) -> np.ndarray:
    """All frames of a movie, [frames, height, width, 3]."""
    path = movie.save(folder / "movie.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *"-loglevel error -i".split(), str(path)]
    command += "-f rawvideo -pix_fmt rgb24 -".split()
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, movie.height, movie.width, 3).astype(int)


def pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def heights(frame):
    return np.full(5, 1.0 + 7.0 * frame / 9)


def test_frames_differ_where_the_artist_moved_and_nowhere_else(tmp_path):
    figure, ax = stage()
    frames = decode(
        movies.record(figure, lambda i: plots.outline(ax, heights(i), EDGES), 10), tmp_path
    )
    assert frames.shape == (10, 240, 320, 3)
    moved = np.abs(frames[-1] - frames[0]).max(axis=2) > 60
    rows, columns = np.nonzero(moved)
    box = ax.get_window_extent()
    assert moved.sum() > 300
    assert columns.min() >= box.x0 - 4 and columns.max() <= box.x1 + 4
    assert rows.min() >= 240 - box.y1 - 4 and rows.max() <= 240 - box.y0 + 4


@pytest.mark.parametrize("size", [(320, 240), (321, 243)])
def test_last_frame_is_the_figure_drawn_directly(tmp_path, size):
    figure, ax = stage(*size)
    movie = movies.record(figure, lambda i: plots.outline(ax, heights(i), EDGES), 10)
    last = decode(movie, tmp_path)[-1][: size[1], : size[0]]
    direct, ax = stage(*size)
    plots.outline(ax, heights(9), EDGES)
    assert np.abs(last - pixels(direct)).mean() < 3
    assert np.corrcoef(last.ravel(), pixels(direct).ravel())[0, 1] > 0.97


def test_odd_sizes_are_filled_up_to_even_ones(tmp_path):
    figure, ax = stage(321, 243)
    movie = movies.record(figure, lambda i: plots.cut_line(ax, i / 4), 3)
    assert (movie.width, movie.height) == (322, 244)
    assert decode(movie, tmp_path).shape[1:3] == (244, 322)


def test_same_movie_same_bytes():
    def once():
        figure, ax = stage()
        return movies.record(figure, lambda i: plots.outline(ax, heights(i), EDGES), 10).mp4

    assert once() == once()


def test_pictures_of_earlier_frames_do_not_stay():
    figure, ax = stage()
    grid = np.add.outer(np.linspace(0, 1, 12), np.linspace(0, 1, 12)) / 2

    def update(i):
        return plots.decision_map(ax, grid**i, (0, 1, 0, 10)), plots.outline(ax, heights(i), EDGES)

    paint = movies.painter(figure, update)
    paint(1)
    first = paint(2).copy()
    paint(9)
    np.testing.assert_array_equal(paint(2), first)
    assert len(ax.collections) == 1 and len(ax.images) == 1 and len(ax.patches) == 1


def test_an_artist_made_before_is_hidden_when_not_returned_and_comes_back():
    figure, ax = stage()
    (line,) = plots.curve(ax, EDGES, EDGES)
    paint = movies.painter(figure, lambda shown: [line] if shown else [])
    shown = paint(True).copy()
    hidden = paint(False).copy()
    assert (shown != hidden).any()
    np.testing.assert_array_equal(paint(True), shown)


def test_what_changes_without_being_returned_is_drawn_all_the_same():
    figure, ax = stage()
    title = ax.set_title("0")
    (line,) = plots.curve(ax, EDGES, EDGES)

    def update(i):
        title.set_text(str(i))
        ax.set_ylim(0, 10 + i)
        ax.set_xlabel(f"{i} [GeV]")
        line.set_ydata(i * EDGES)

    painted = movies.painter(figure, update)(8)[..., :3].astype(int)
    direct, ax = plots.figure(320, 240)
    ax.set(xlim=(0, 1), ylim=(0, 18), title="8", xlabel="8 [GeV]")
    plots.curve(ax, EDGES, 8 * EDGES)
    np.testing.assert_array_equal(painted, pixels(direct))


def test_each_kind_of_forgotten_change_is_noticed():
    changes = {
        "title": lambda ax, i: ax.set_title(str(i)),
        "label": lambda ax, i: ax.set_ylabel(str(i)),
        "limits": lambda ax, i: ax.set_xlim(0, 1 + i),
        "text": lambda ax, i: ax.figure.suptitle(str(i)),
        "legend": lambda ax, i: plots.legend(ax, signal=str(i)),
        "cleared": lambda ax, i: (ax.cla(), ax.plot([0, i]), None)[-1],
    }
    for name, change in changes.items():
        figure, ax = stage()
        paint = movies.painter(figure, lambda i, ax=ax, change=change: change(ax, i) and None)
        paint(1)
        one = paint(1).copy()
        two = paint(2).copy()
        assert (two != one).any(), name
        np.testing.assert_array_equal(paint(2), two, err_msg=name)
        np.testing.assert_array_equal(paint(1), one, err_msg=name)


def test_a_second_movie_of_the_same_figure_has_no_ghosts():
    figure, ax = stage()
    first = movies.record(figure, lambda i: plots.outline(ax, heights(i), EDGES), 4)
    again = movies.record(figure, lambda i: plots.outline(ax, heights(i), EDGES), 4)
    assert first.mp4 == again.mp4
    assert len(ax.patches) == 1


def test_containers_and_single_artists_may_be_returned():
    figure, ax = stage()
    points = np.arange(3.0)

    def update(i):
        return ax.errorbar(points / 3, points + i, 0.5), ax.text(0.5, 5, str(i)), None

    paint = movies.painter(figure, update)
    one = paint(1).copy()
    assert (paint(2) != one).any()
    np.testing.assert_array_equal(paint(1), one)
    with pytest.raises(TypeError, match="return the artists that moved"):
        movies.painter(figure, lambda: 3.0)()


def test_nan_and_zero_events_are_recorded():
    figure, ax = stage()

    def update(i):
        return (
            plots.outline(ax, np.full(5, np.nan if i else 0.0), EDGES, uncertainty=np.zeros(5)),
            plots.events_2d(ax, {"signal": np.zeros((0, 2))}),
            plots.gradient_arrow(ax, 0.5, np.nan if i else 1.0, np.nan),
        )

    assert movies.record(figure, update, 3).frames == 3


def test_frames_may_be_a_history_and_must_not_be_empty():
    figure, ax = stage()
    seen = []

    def update(entry):
        seen.append(entry["threshold"])
        return plots.cut_line(ax, entry["threshold"])

    movie = movies.record(figure, update, ({"threshold": t} for t in (0.1, 0.2, 0.4)), fps=2)
    assert seen == [0.1, 0.2, 0.4] and repr(movie) == "Movie, 3 frames, 1.5 s"
    for nothing in (0, [], -3):
        with pytest.raises(ValueError, match="frames is empty"):
            movies.record(figure, update, nothing)
    with pytest.raises(ValueError, match="fps is 0"):
        movies.record(figure, update, 3, fps=0)


def test_an_error_names_its_frame_and_leaves_the_figure_clean():
    figure, ax = stage()

    def update(i):
        artists = plots.outline(ax, heights(i), EDGES)
        return artists if i < 2 else [*artists, 1 / (i - 2)]

    with pytest.raises(ZeroDivisionError) as caught:
        movies.record(figure, update, 5)
    assert "frame 2" in caught.value.__notes__[0]
    assert len(ax.patches) == 1
    assert movies.record(figure, lambda i: plots.cut_line(ax, 0.5), 2).frames == 2
    assert len(ax.patches) == 0


def test_a_movie_plays_by_itself_and_says_what_it_shows():
    figure, ax = stage()
    plots.caption(figure, 'Cuts "x" & <y>')
    movie = movies.record(figure, lambda i: plots.cut_line(ax, i / 4), 3)
    tag = re.match(r"<video ([^>]*)src=", movie._repr_html_()).group(1)
    for word in ("autoplay", "loop", "muted", "playsinline", "controls", "aria-label"):
        assert word in tag
    assert html.escape('Cuts "x" & <y>') in tag
    described = movies.record(figure, lambda i: plots.cut_line(ax, i / 4), 3, alt="A cut moves.")
    assert repr(described) == "Movie, 3 frames, 0.1 s: A cut moves."


def test_a_movie_is_small():
    figure, ax = stage(640, 360)
    movie = movies.record(figure, lambda i: plots.outline(ax, heights(i % 10), EDGES), 50)
    assert len(movie.mp4) < 60_000
