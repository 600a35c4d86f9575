"""The static deck and the book in a real browser, from a file and without a network."""

import re
from contextlib import contextmanager
from pathlib import Path

import lab
import nbformat
import pytest

import book
import slides

# Sphinx and its extensions use each other's old names.
pytestmark = [pytest.mark.needs("chromium")] + [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "PendingDeprecationWarning")
]

# MathJax tries these for the copy of each formula that screen readers get, and does without.
NOISE = re.compile(r"about:blank|MathJax_Script-Regular\.otf|net::ERR_F(?:AILED|ILE_NOT_FOUND)")
WIDTH, HEIGHT = 1280, 720
OVERFLOWING = """() => {
  const slide = Reveal.getCurrentSlide();
  return Array.from(slide.querySelectorAll("*")).filter(function (element) {
    if (element.closest("aside.notes, .MJX_Assistive_MathML, script, style")
        || element.parentElement.closest(".MathJax")) return false;
    const box = element.getBoundingClientRect();
    return box.width && box.height && (box.right > innerWidth + 1 || box.bottom > innerHeight + 1
                                       || box.left < -1 || box.top < -1);
  }).map(element => element.tagName + " " + element.textContent.slice(0, 40));
}"""
BLIND = """() => Array.from(document.querySelectorAll("img"))
  .filter(image => !(image.complete && image.naturalWidth && image.alt.split(" ").length > 3
                     && !image.alt.startsWith("No description")))
  .map(image => image.alt + " " + image.src.slice(0, 99))"""
SILENT = """() => Array.from(document.querySelectorAll("video"))
  .filter(movie => !(movie.readyState >= 2 && movie.duration > 0 && movie.videoWidth)).length"""
WAITING = """() => typeof MathJax === "undefined" || (MathJax.isReady
  && !MathJax.Hub.queue.pending && !MathJax.Hub.queue.running)"""


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    return lab.screenshots(tmp_path_factory.mktemp("screenshots"))


@contextmanager
def tab(chromium):
    """A tab without a network; fails if a page complains or asks for something elsewhere."""
    context = chromium.new_context(offline=True, viewport={"width": WIDTH, "height": HEIGHT})
    page, complaints = context.new_page(), []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: complaints.append(sent.url) if is_elsewhere(sent.url) else None)
    page.on("requestfailed", lambda sent: complaints.append(sent.url))
    yield page
    context.close()
    assert not [complaint for complaint in complaints if not NOISE.search(complaint)]


@pytest.fixture
def page(chromium):
    with tab(chromium) as page:
        yield page


def is_elsewhere(address):
    return not address.startswith(("file:", "data:", "blob:", "about:"))


def opened(page, path, fragment=""):
    page.goto(f"file://{path}{fragment}")
    page.wait_for_function(WAITING)
    return page


def formulas(page):
    """How many are set, and how many are still code."""
    set_ones = page.locator(".MathJax").count()
    return set_ones, page.locator("body").inner_text().count("\\(")


def slide_along(page, sweep):
    """Drag its first slider to the other end; the picture must change with it."""
    picture, handle = sweep.locator("img"), sweep.locator("input[type=range]").first
    before, said = picture.get_attribute("src"), sweep.locator("output").first.inner_text()
    box = handle.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 3, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, middle, steps=5)
    page.mouse.up()
    assert picture.get_attribute("src") != before
    assert sweep.locator("output").first.inner_text() != said


@pytest.fixture(scope="module")
def deck(chromium, tmp_path_factory):
    return slides.write(tmp_path_factory.mktemp("deck"))


def test_every_slide_of_the_deck_fits(deck, page, screenshots):
    opened(page, deck)
    total = page.evaluate("Reveal.getTotalSlides()")
    assert total == page.locator("section section").count() >= 25
    for number in range(total):
        page.evaluate("number => Reveal.slide(number)", number)
        page.wait_for_function(WAITING)
        page.screenshot(path=screenshots / f"deck-{number:02}.png")
        assert not page.evaluate(OVERFLOWING), f"slide {number}"
    assert not page.evaluate(BLIND) and not page.evaluate(SILENT)
    set_ones, left = formulas(page)
    assert set_ones > 10 and not left


def test_sliders_of_the_deck_move(deck, page, screenshots):
    opened(page, deck)
    sweeps = page.locator(".nablab-sweep")
    assert sweeps.count() == 2
    for k in range(sweeps.count()):
        page.evaluate(
            "k => { const s = document.querySelectorAll('.nablab-sweep')[k].closest('section');"
            " const at = Reveal.getIndices(s); Reveal.slide(at.h, at.v); }",
            k,
        )
        slide_along(page, sweeps.nth(k))
        page.screenshot(path=screenshots / f"deck-slider-{k}.png")


def test_keys_turn_the_pages_of_the_deck(deck, page):
    opened(page, deck)
    for expected in (1, 2):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("Reveal.getIndices().h") == expected
    page.wait_for_function("location.hash === '#/2'")  # loaded again, it stays where it was


RUN = "01_moving_gaussian"


@pytest.fixture(scope="module")
def pages(chromium, tmp_path_factory):
    """The book of the stored notebooks; one of them is run, for its sliders."""
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in book.NOTEBOOKS}
    (path,) = (path for path in book.NOTEBOOKS if path.stem == RUN)
    notebooks[RUN] = book.with_sliders(path)
    return book.build(notebooks, tmp_path_factory.mktemp("book")).parent


def test_pages_of_the_book_show_everything(pages, chromium, screenshots, subtests):
    for path in book.NOTEBOOKS:
        with subtests.test(path.stem), tab(chromium) as page:
            opened(page, pages / "nbs" / f"{path.stem}.html")
            page.screenshot(path=screenshots / f"book-{path.stem}.png")
            set_ones, left = formulas(page)
            assert set_ones and not left
            assert not page.evaluate(BLIND) and not page.evaluate(SILENT)
            assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
            outputs = page.locator(".cell_output")
            stored = nbformat.read(path, as_version=4).cells
            assert outputs.count() == sum(bool(cell.get("outputs")) for cell in stored)


def test_slider_of_the_book_moves(pages, page, screenshots):
    opened(page, pages / "nbs" / f"{RUN}.html")
    sweep = page.locator(".nablab-sweep").first
    sweep.scroll_into_view_if_needed()
    slide_along(page, sweep)
    page.screenshot(path=screenshots / "book-slider.png")


def test_book_can_be_read_from_page_to_page(pages, page):
    opened(page, pages / "index.html")
    read = []
    while page.locator("a.right-next").count():
        page.locator("a.right-next").click()
        page.wait_for_load_state()
        page.wait_for_function(WAITING)
        read.append(Path(page.url).relative_to(f"file:{pages}").with_suffix("").as_posix())
    wanted = [f"nbs/{path.stem}" for path in book.NOTEBOOKS] + ["nbs/TEACHING"]
    assert read == wanted + [f"api/{room}" for room in book.ROOMS]


def test_book_can_be_searched(pages, page, screenshots):
    opened(page, pages / "search.html", "?q=kde_counts")
    page.locator("#search-results li a").first.wait_for()
    page.screenshot(path=screenshots / "book-search.png")
    found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
    assert any("api/relax" in address for address in found)
    assert any("nbs/02_soft_histograms" in address for address in found)


def test_docstrings_are_in_the_book(pages, page, screenshots):
    opened(page, pages / "api" / "relax.html", "#nablab.relax.histograms.kde_counts")
    page.screenshot(path=screenshots / "book-api.png")
    text = page.locator("body").inner_text()
    assert "x: Column" in text and "bandwidth: Float[Numbers, '']" in text
    assert "Raises" in text
    assert "Alias for field" not in text and "jaxlib" not in text
