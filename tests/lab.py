"""JupyterLab for the tests in a browser: a server of its own, and hands on its pages.

The server reads a copy of the notebooks, with settings, workspaces and all else that Jupyter keeps
in a temporary folder: nothing is written into the repository or a user's home.
"""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, TimeoutExpired
from urllib.parse import urlsplit

import nbformat
from nbformat.sign import NotebookNotary

ROOT = Path(__file__).resolve().parent.parent
# What notebooks read of the repository, besides each other.
COPIED = ("nbs", "talk", "requirements.lock", "Makefile", "tests/benchmarks")
MINUTE = 60_000  # ms, as playwright counts

# The end of this process, however it comes, closes the server's standard input, and that ends the
# server. Kernels watch the server in the same way.
SERVE = """
import os, signal, threading
def follow():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=follow, daemon=True).start()
from jupyterlab.labapp import main
main()
"""


def copy_notebooks(folder: Path, notary: NotebookNotary) -> None:
    """The repository as far as notebooks need it; no cell has a count, so that one tells it ran.

    Notebooks are signed, so that stored movies are shown as if they had just been made.
    """
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb*"))
        else:
            shutil.copy(ROOT / name, folder / name)
    for path in folder.glob("*/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = None
        nbformat.write(notebook, path)
        notary.sign(notebook)


@contextmanager
def server(folder: Path, presenting: bool = False):
    """The address of a JupyterLab on loopback that serves ``folder / "root"``.

    Settings are those that come with the repository, ``presenting`` with those of ``make talk``.
    """
    (folder / "data").mkdir()
    copy_notebooks(folder / "root", NotebookNotary(data_dir=str(folder / "data")))
    shutil.copytree(ROOT / "binder", folder / "lab", ignore=shutil.ignore_patterns("*.yml"))
    if presenting:
        shutil.copytree(ROOT / "talk" / "presenting", folder / "settings")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    environment |= {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    arguments = [
        *"--no-browser --allow-root --ip=127.0.0.1 --ServerApp.port=0".split(),
        f"--ServerApp.root_dir={folder / 'root'}",
        f"--LabApp.app_settings_dir={folder / 'lab'}",
        "--LabApp.expose_app_in_browser=True",
    ]
    command = [sys.executable, "-c", SERVE, *arguments]
    with (
        (folder / "server.log").open("wb") as log,
        Popen(command, stdin=PIPE, stdout=log, stderr=STDOUT, env=environment) as process,
    ):
        try:
            yield wait_for_server(process, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except TimeoutExpired:
                process.kill()


def wait_for_server(process: Popen, folder: Path) -> str:
    """The server's address with its token, as soon as it has written them down."""
    path = folder / "runtime" / f"jpserver-{process.pid}.json"
    for _ in range(600):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return f"{told['url']}{{}}?reset&token={told['token']}"
        except (FileNotFoundError, json.JSONDecodeError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    log = (folder / "server.log").read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"no JupyterLab: {log[-2000:]}")


@contextmanager
def opened(browser, address: str, name: str, height: int = 1000, mode: str = "lab"):
    """The page of the notebook ``name`` with a kernel that is ready; both are gone afterwards.

    ``page.complaints`` collects errors of the console and of scripts, and requests to elsewhere.
    ``mode`` is "lab", or "doc" for the notebook without JupyterLab's panels.
    """
    context = browser.new_context(viewport={"width": 1280, "height": height})
    page = context.new_page()
    page.set_default_timeout(MINUTE)
    page.complaints = []
    page.on("console", lambda said: page.complaints.extend(console_error(said)))
    page.on("pageerror", lambda error: page.complaints.append(f"script: {error}"))
    page.on("request", lambda request: page.complaints.extend(elsewhere(request.url)))
    page.on("websocket", lambda socket: page.complaints.extend(elsewhere(socket.url)))
    try:
        page.goto(address.format(f"{mode}/tree/{name}"))
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
        page.wait_for_function(KERNEL_READY)
        page.evaluate(WATCH)
        yield page
    finally:
        page.evaluate("window.jupyterapp?.serviceManager.sessions.shutdownAll()")
        context.close()


def console_error(said) -> list[str]:
    """What the page wrote as an error into its console, or nothing."""
    return [f"console: {said.text} ({said.location['url']})"] if said.type == "error" else []


def elsewhere(url: str) -> list[str]:
    """An address that is not this machine, or nothing."""
    here = url.startswith(("data:", "blob:")) or urlsplit(url).hostname == "127.0.0.1"
    return [] if here else [f"request: {url[:200]}"]


KERNEL_READY = """async () => {
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.revealed;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    return true;
}"""
KERNEL = "jupyterapp.shell.currentWidget.sessionContext.session.kernel"
# Which messages the kernel has not yet answered. Moves of a slider are not answered in turn with
# cells, and the last of several quick moves is only sent when the first is answered.
WATCH = f"""() => {{
    window.unanswered = new Set();
    {KERNEL}.anyMessage.connect((_, {{msg, direction}}) => {{
        if (direction === 'send' && msg.channel === 'shell') unanswered.add(msg.header.msg_id);
        if (msg.content.execution_state === 'idle') unanswered.delete(msg.parent_header.msg_id);
    }});
}}"""
RUN = """places => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.deselectAll();
    notebook.activeCellIndex = places[0];
    for (const place of places) notebook.select(notebook.widgets[place]);
    jupyterapp.commands.execute('notebook:run-cell');
}"""
QUIET = "() => { window.quiet = unanswered.size ? 0 : quiet + 1; return quiet > 5; }"
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code' && cell.model.sharedModel.source.trim() !== '')
    .map(cell => {
        const outputs = cell.model.outputs.toJSON();
        const words = outputs.map(output => output.data?.['text/plain'] ?? '');
        return {
            source: cell.model.sharedModel.source,
            count: cell.model.executionCount,
            errors: (cell.model.getMetadata('tags') ?? []).includes('raises-exception') ? [] :
                outputs.filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`),
            explorers: words.filter(word => word.startsWith('Explorer, ')).length,
            movies: words.filter(word => word.startsWith('Movie, ')).length,
        };
    })"""


def cells(page) -> list[dict]:
    """Of each code cell its source, count, errors, and numbers of explorers and movies."""
    return page.evaluate(CELLS)


def run_all(page) -> None:
    """Run > Run All Cells, until every cell has a count or one fails."""
    page.locator('.lm-MenuBar-itemLabel:text-is("Run")').click()
    page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")').click()
    wait_until_run(page)


def run(page, places: list[int]) -> None:
    """Select the cells at these places of the notebook and run them; the others stay as stored."""
    page.evaluate(RUN, places)
    wait_until_run(page, len(places))


def wait_until_run(page, number: int | None = None) -> None:
    """Wait until so many cells, or all, have a count, or one has failed, and nothing runs."""
    page.wait_for_function(
        f"""number => {{
            const cells = ({CELLS})();
            const wanted = number ?? cells.length;
            return cells.filter(cell => cell.count !== null).length >= wanted ||
                cells.some(cell => cell.errors.length);
        }}""",
        arg=number,
        polling=500,
        timeout=10 * MINUTE,
    )
    settle(page)


def settle(page) -> None:
    """Wait until the kernel has answered everything for a tenth of a second."""
    page.evaluate("window.quiet = 0")
    page.wait_for_function(QUIET, polling=20)


def explorers(page) -> list:
    """The explorers in the notebook, or on the slide, from top to bottom."""
    return page.locator(".widget-vbox:has(> img.widget-image):visible").all()


PIXELS = """picture => {
    if (!picture.complete || !picture.naturalWidth) return null;
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    canvas.getContext('2d').drawImage(picture, 0, 0);
    return canvas.toDataURL();
}"""


def picture(explorer) -> str:
    """The pixels of an explorer's picture, after the kernel has answered all moves so far."""
    settle(explorer.page)
    explorer.page.wait_for_function(PIXELS, arg=explorer.locator("> img").element_handle())
    return explorer.locator("> img").evaluate(PIXELS)


def drag(slider, place: float) -> None:
    """Drag a slider by mouse to a place between 0, its left end, and 1."""
    slider.scroll_into_view_if_needed()
    handle, track = (slider.locator(f".noUi-{part}").bounding_box() for part in ("handle", "base"))
    height = handle["y"] + handle["height"] / 2
    mouse = slider.page.mouse
    mouse.move(handle["x"] + handle["width"] / 2, height)
    mouse.down()
    mouse.move(track["x"] + place * track["width"], height, steps=5)
    mouse.up()


def readout(slider) -> str:
    """The number that a slider shows."""
    return slider.locator(".widget-readout").inner_text()


def wait_for_movies(page) -> list[dict]:
    """Scroll to each movie, in the notebook or on the slide, and wait until it plays.

    Returned are their sizes in pixels and lengths in seconds.
    """
    movies = page.locator(".jp-OutputArea-output video:visible")
    for movie in movies.all():
        movie.scroll_into_view_if_needed()
        page.wait_for_function(
            "movie => movie.readyState >= 2 && movie.currentTime > 0", arg=movie.element_handle()
        )
    return movies.evaluate_all(
        "all => all.map(m => ({seconds: m.duration, width: m.videoWidth, height: m.videoHeight}))"
    )


def too_wide(page) -> list[str]:
    """The words of explorers and movies that get a scroll bar, and of buttons that are cut off."""
    boxes = ".widget-vbox:visible, .jp-OutputArea-output:has(video), .widget-toggle-button"
    return page.locator(boxes).evaluate_all(
        "boxes => boxes.filter(b => b.scrollWidth > b.clientWidth + 1).map(b => b.textContent)"
    )


def screenshots(otherwise: Path) -> Path:
    """The folder for screenshots: $NABLAB_SCREENSHOTS, if set."""
    folder = Path(os.environ.get("NABLAB_SCREENSHOTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
