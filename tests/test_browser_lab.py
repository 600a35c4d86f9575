"""Every notebook in JupyterLab, in a browser: cells run, sliders move pictures, movies play.

That all cells run is tested with nbval; here those that sliders need do, and all of the first.
"""

import cells
import lab
import nbformat
import needs
import pytest

pytestmark = pytest.mark.needs("chromium")
FIRST = "00_start_here.ipynb"
NOTEBOOKS = sorted(path.name for path in (lab.ROOT / "nbs").glob("*.ipynb"))
WITH_NEEDS = [
    pytest.param(name, marks=[pytest.mark.needs(*files) for files in needs.NOTEBOOKS.get(name, [])])
    for name in NOTEBOOKS
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with lab.server(tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture
def screenshots(tmp_path):
    return lab.screenshots(tmp_path)


@pytest.mark.parametrize("name", WITH_NEEDS)
def test_sliders_move_and_movies_play(name, chromium, address, screenshots):
    notebook = nbformat.read(lab.ROOT / "nbs" / name, as_version=4)
    with lab.opened(chromium, address, f"nbs/{name}") as page:
        needed = cells.needed(notebook, "Explorer, ")
        if name == FIRST:
            lab.run_all(page)
        elif needed:
            lab.run(page, needed)
        shown = lab.cells(page)
        ran = sum(cell["count"] is not None for cell in shown)
        assert ran == (len(shown) if name == FIRST else len(needed))
        assert [error for cell in shown if cell["count"] for error in cell["errors"]] == []
        explorers = lab.explorers(page)
        assert len(explorers) == sum(cell["explorers"] for cell in shown)
        for number, explorer in enumerate(explorers, start=1):
            path = screenshots / f"{name.removesuffix('.ipynb')}_{number}.png"
            explorer.scroll_into_view_if_needed()
            assert explorer.get_by_role("img").and_(explorer.locator("[aria-label]")).count() == 1
            explorer.screenshot(path=path.with_stem(f"{path.stem}_start"))
            move_everything(explorer)
            explorer.screenshot(path=path)
        movies = lab.wait_for_movies(page)
        assert len(movies) == sum(cell["movies"] for cell in shown)
        assert all(min(movie.values()) > 0 for movie in movies)
        assert lab.too_wide(page) == []
        assert page.complaints == []


def move_everything(explorer):
    """Sliders by mouse, buttons and tick boxes: each changes the picture for some setting."""
    sliders = explorer.locator(".widget-slider").all()
    buttons = explorer.locator(".widget-toggle-button, .widget-label-basic").element_handles()
    without_effect, picture = [*sliders, *buttons], lab.picture(explorer)
    assert without_effect
    for place in (0.85, 0.6, 0.15):
        for control in [*sliders, *buttons]:
            shown = control.inner_text()
            if control in sliders:
                lab.drag(control, place)
            elif "mod-active" not in (control.get_attribute("class") or ""):
                control.click()
            before, picture = picture, lab.picture(explorer)
            assert explorer.locator(".widget-html-content").inner_text() == ""
            has_moved = control in buttons or control.inner_text() != shown
            if picture != before and has_moved and control in without_effect:
                without_effect.remove(control)
    assert [control.inner_text() for control in without_effect] == []
