"""The static deck: all slides and notes of the talk, and nothing that needs a network."""

import re

import nbformat
import pytest

import slides


@pytest.fixture(scope="module")
def talk():
    return nbformat.read(slides.TALK, as_version=4)


@pytest.fixture(scope="module")
def page(talk):
    return slides.deck(talk)


def test_one_section_for_each_slide(talk, page):
    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in talk.cells]
    # nbconvert puts every slide into a section of its own section.
    assert page.count("<section>") == 2 * kinds.count("slide")
    assert page.count('<aside class="notes">') == kinds.count("notes")


def test_nothing_is_loaded_from_elsewhere(page):
    loaded = re.findall(r'<(?:script|link|img|video|iframe)[^>]*(?:src|href)="([^"]+)"', page)
    assert "vendor/revealjs/dist/reveal.js" in loaded
    elsewhere = [address for address in loaded if re.match(r"(?:https?:)?//", address)]
    assert not elsewhere
    assert "import mermaid" not in page and "require(" not in page
    local = [a for a in loaded if not a.startswith(("data:", "vendor/"))]
    assert not [a for a in local if not (slides.TALK.parent / a).exists()]


def test_code_behind_pictures_is_left_out(talk, page):
    text = re.sub(r"<[^>]+>", "", page)
    hidden = [c for c in talk.cells if "remove-input" in c.metadata.get("tags", [])]
    skipped = [c for c in talk.cells if c.metadata.get("slideshow", {}).get("slide_type") == "skip"]
    assert hidden and skipped
    assert "def show_bandwidth" not in text and "import jax.numpy" not in text
    assert "def soft_histogram" in text


def test_movies_and_pictures_are_inside(page):
    assert page.count("data:video/mp4;base64,") == 2
    assert page.count("data:image/png;base64,") >= 6
