"""The talk as ``make talk`` shows it, in a browser: every slide fits, sliders move, movies play.

The cells that sliders need run; the others show what is stored.
"""

import cells
import lab
import nbformat
import pytest

pytestmark = pytest.mark.needs("chromium")
TALK = nbformat.read(lab.ROOT / "talk" / "talk.ipynb", as_version=nbformat.NO_CONVERT)
WIDTH, HEIGHT = 1280, 720

SLIDE = """() => jupyterapp.shell.currentWidget.content.widgets
    .map((cell, index) => cell.node.matches('.jp-deck-mod-onscreen') ? index : -1)
    .filter(index => index >= 0)"""
# What is beyond the edges of the screen, and what is cut off by a box around it, with the number of
# pixels. MathJax cuts what is for screen readers, and pieces of long braces, on purpose.
OVERFLOW = f"""() => [...document.querySelectorAll('.jp-Cell.jp-deck-mod-onscreen *')]
    .filter(part => part.checkVisibility({{checkVisibilityCSS: true}}))
    .filter(part => !part.closest('mjx-assistive-mml, mjx-ext'))
    .map(part => {{
        const box = part.getBoundingClientRect();
        const beyond = part.childElementCount || !(box.width * box.height) ? 0 :
            Math.max(-box.left, -box.top, box.right - {WIDTH}, box.bottom - {HEIGHT});
        const cut = getComputedStyle(part).overflow === 'visible' ? 0 : Math.max(
            part.scrollWidth - part.clientWidth, part.scrollHeight - part.clientHeight);
        return [Math.max(beyond, cut), part.tagName, part.className, part.textContent.slice(0, 50)];
    }})
    .filter(([pixels]) => pixels > 1)"""


def slides() -> list[list[int]]:
    """For each slide which cells it shows."""
    shown = []
    for number, cell in enumerate(TALK.cells):
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind == "slide":
            shown.append([])
        if kind not in ("skip", "notes"):
            shown[-1].append(number)
    return shown


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """The talk, presenting."""
    with lab.server(tmp_path_factory.mktemp("talk"), presenting=True) as address:
        with lab.opened(chromium, address, "talk/talk.ipynb", height=HEIGHT, mode="doc") as page:
            page.locator(".jp-Deck-Remote .jp-deck-mod-stop").click()
            lab.run(page, cells.needed(TALK, "Explorer, "))
            page.locator(".jp-Notebook .jp-Cell").first.click()
            page.locator('[data-command="deck:toggle"]').click()
            page.wait_for_function(f"({SLIDE})().length > 0")
            yield page


def next_slide(page):
    """One press of the arrow key for each cell that the slide shows."""
    before = page.evaluate(SLIDE)
    for _ in before:
        page.keyboard.press("ArrowRight")
    page.wait_for_function(f"before => ({SLIDE})().join() !== before.join()", arg=before)


def test_slide_by_slide(page, tmp_path):
    ran = lab.cells(page)
    assert [error for cell in ran for error in cell["errors"]] == []
    folder, beyond, explorers, movies = lab.screenshots(tmp_path), {}, [], []
    for number, shown in enumerate(slides(), start=1):
        if number > 1:
            next_slide(page)
        assert page.evaluate(SLIDE) == shown
        movies += lab.wait_for_movies(page)
        page.screenshot(path=folder / f"talk_{number:02}.png")
        assert not page.locator(".jp-deck-mod-onscreen .jp-InputPlaceholder:visible").count()
        if overflow := page.evaluate(OVERFLOW):
            beyond[TALK.cells[shown[0]].source.partition("\n")[0]] = overflow
        for explorer in lab.explorers(page):
            explorers.append(explorer)
            for slider in explorer.locator(".widget-slider").all():
                picture = lab.picture(explorer)
                lab.drag(slider, 0.8)
                assert lab.picture(explorer) != picture
            page.screenshot(path=folder / f"talk_{number:02}_moved.png")
            # Or the slider would still get the next arrow key.
            page.locator(".jp-deck-mod-onscreen h2:visible").click()
    assert beyond == {}
    assert len(explorers) == sum(cell["explorers"] for cell in ran) > 0
    assert len(movies) == sum(cell["movies"] for cell in ran) > 0
    assert page.complaints == []
