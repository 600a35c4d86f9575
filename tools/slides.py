"""The talk as a static deck that needs no network: ``make slides`` writes build/slides.

The notebook is run, its sliders are drawn beforehand (``nablab.show.sweeps``), and reveal.js and
MathJax are copied beside the page, from the Python packages that carry them.
"""

import os
import re
import shutil
from copy import deepcopy
from pathlib import Path

from nbconvert import SlidesExporter
from traitlets.config import Config

import execute

ROOT = Path(__file__).resolve().parent.parent
TALK = ROOT / "talk" / "talk.ipynb"
DECK = ROOT / "build" / "slides"
VENDOR = {
    "revealjs": ("sphinx_revealjs", "_static/revealjs"),
    "mathjax": ("jupyter_server_mathjax", "static"),
}
# What nbconvert would load from elsewhere: scripts, styles, and a module for diagrams.
OUTSIDE = re.compile(
    r'<(?:script|link)[^>]*(?:src|href)="https?://[^>]*>(?:</script>)?'
    r'|<script type="module">\s*import mermaid.*?</script>',
    re.DOTALL,
)
# nbconvert starts reveal.js through require.js, which is one more thing to take along.
STARTED_BY_REQUIRE = re.compile(r"<script>\s*require\(.*?</script>", re.DOTALL)
START = """<script src="vendor/revealjs/dist/reveal.js"></script>
<script src="vendor/revealjs/plugin/notes/notes.js"></script>
<script>
Reveal.initialize({
  width: 1280, height: 720, margin: 0.04, center: false, hash: true, transition: "none",
  slideNumber: "c/t", plugins: [RevealNotes],
});
// What MathJax has set on a hidden slide has no size yet.
Reveal.on("slidechanged", function (event) {
  MathJax.Hub.Queue(["Rerender", MathJax.Hub, event.currentSlide]);
});
</script>"""
LOOK = """<script type="text/x-mathjax-config">
MathJax.Hub.Config({ "HTML-CSS": { availableFonts: [], webFont: "STIX-Web" } });
</script>
<style>
.reveal .slides section { text-align: left; height: 100%; }
.reveal .jp-RenderedHTMLCommon { font-size: 34px; line-height: 1.35; }
.reveal .jp-RenderedHTMLCommon h1 { font-size: 60px; text-transform: none; margin-top: 150px; }
.reveal .jp-RenderedHTMLCommon h2 { font-size: 44px; text-transform: none; margin: 0 0 20px; }
.reveal .jp-RenderedHTMLCommon table { font-size: 32px; margin: 10px 0 20px; }
.reveal .jp-RenderedHTMLCommon th, .reveal .jp-RenderedHTMLCommon td { padding: 6px 22px; }
.reveal .jp-InputArea-editor pre, .reveal .jp-OutputArea-output pre {
  font-size: 24px; line-height: 1.3; width: 100%; margin: 0; box-shadow: none;
}
.reveal .jp-OutputPrompt, .reveal .jp-InputPrompt { display: none; }
.reveal img, .reveal video { max-width: 100%; max-height: 540px; margin: 0; }
.reveal .jp-OutputArea img, .reveal video {
  width: 100%; height: 530px !important; object-fit: contain; object-position: left;
}
.nablab-sweep { font-size: 26px; }
</style>"""


def deck(notebook) -> str:
    """The executed talk as one HTML page that names nothing outside its folder."""
    notebook = deepcopy(notebook)
    execute.describe(notebook)
    settings = Config()
    settings.SlidesExporter.reveal_url_prefix = "vendor/revealjs"
    settings.SlidesExporter.mathjax_url = (
        "vendor/mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"
    )
    settings.SlidesExporter.reveal_theme = "white"
    settings.SlidesExporter.exclude_input_prompt = True
    settings.SlidesExporter.exclude_output_prompt = True
    settings.TagRemovePreprocessor.enabled = True
    settings.TagRemovePreprocessor.remove_input_tags = {"remove-input"}
    page, _ = SlidesExporter(config=settings).from_notebook_node(
        notebook, resources={"metadata": {"name": "Physics analysis as a differentiable program"}}
    )
    page = STARTED_BY_REQUIRE.sub(lambda _: START, OUTSIDE.sub("", page))
    return page.replace("</head>", f"{LOOK}\n</head>", 1)


def write(folder: Path) -> Path:
    """Run the talk and write the deck with all that it needs; returns the page to open."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    notebook = execute.with_sweeps(TALK)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(deck(notebook), encoding="utf-8")
    shutil.copytree(TALK.parent / "figures", folder / "figures")
    for name, (package, part) in VENDOR.items():
        execute.copy_from_package(package, part, folder / "vendor" / name)
    return folder / "index.html"


if __name__ == "__main__":
    print(f"the deck is {write(DECK)}; copy the folder to take it along")
