"""What is in the repository: small files, and links that lead somewhere."""

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "nbs/*.ipynb", "nbs/*.md", "talk/*.ipynb", "talk/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|(?:src|href)=[\"']([^\"']+)")
MEDIA = {".svg", ".png", ".jpg", ".gif", ".mp4", ".ipynb"}  # notebooks carry pictures and movies
PAPERS = {"arxiv.org": "arXiv:", "doi.org": "doi:"}


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def text(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links(path):
    return [first or second for first, second in LINK.findall(text(path))]


def anchors(path):
    """Jupyter and the book name a heading by its words, with hyphens in between."""
    headings = re.findall(r"^#{1,6} (.*)$", text(path), flags=re.MULTILINE)
    return {heading.replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def files():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: clone the repository")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_there_are_pages():
    assert {"README.md", "TEACHING.md", "talk.ipynb", "museum.ipynb"} <= {p.name for p in PAGES}


def test_links_lead_to_a_file_and_a_heading(page):
    for link in links(page):
        if not urlsplit(link).scheme:
            name, _, heading = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not heading or heading in anchors(target), link


def test_links_elsewhere_are_encrypted_and_complete(page):
    for link in links(page):
        address = urlsplit(link)
        if address.scheme not in ("", "data"):
            assert address.scheme == "https" and "." in address.netloc, link


def test_papers_are_called_what_they_are(page):
    for words, address in re.findall(r"\[([^\]]+)\]\((https://[^)\s]+)\)", text(page)):
        parts = urlsplit(address)
        if parts.netloc in PAPERS:
            number = parts.path.removeprefix("/abs/").removeprefix("/")
            number = number.replace("%28", "(").replace("%29", ")")
            assert words == PAPERS[parts.netloc] + number
            assert re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}|10\.\d{4,}/\S+", number)


def test_no_file_is_large(files):
    assert not [path for path in files if path.stat().st_size > 1_000_000]


def test_media_are_small_together(files):
    media = [path for path in files if path.suffix in MEDIA]
    assert len(media) > 10
    assert sum(path.stat().st_size for path in media) < 20_000_000
