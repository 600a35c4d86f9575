"""How long a slider's move takes from the key to the pixels, in JupyterLab in a headless Chromium.

Run on an idle computer (``python tests/benchmarks/browser.py``, or with the names of some
notebooks); prints Markdown tables. The clock runs from the browser's time stamp of a key press, or
of a click on a button, until the new picture is painted. The kernel's part is the time between its
two messages that it is busy and that it is idle.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import lab
from conftest import CHROMIUM

MOVES = 20

# Once for a page: when the input came, and how long the kernel was busy.
WATCH = f"""() => {{
    window.started = window.inKernel = 0; window.painted = [];
    for (const kind of ['keydown', 'click'])
        addEventListener(kind, event => {{ started = event.timeStamp; }}, true);
    const busySince = {{}};
    {lab.KERNEL}.iopubMessage.connect((_, message) => {{
        const time = Date.parse(message.header.date), id = message.parent_header.msg_id;
        if (message.content.execution_state === 'busy') busySince[id] = time;
        if (message.content.execution_state === 'idle') inKernel += time - busySince[id];
    }});
}}"""
PAINTED = """picture => picture.addEventListener('load', () => requestAnimationFrame(() => {
    const afterPaint = new MessageChannel();
    afterPaint.port1.onmessage = () => painted.push(performance.now() - started);
    afterPaint.port2.postMessage(null);
}))"""


def moves(explorer, move) -> list[list[float]]:
    """Milliseconds from input to picture, and those in the kernel, for calls ``move(number)``.

    A move that leaves the picture as it is does not count.
    """
    found = []
    for number in range(MOVES):
        lab.picture(explorer)  # all that came before is answered
        explorer.page.evaluate("painted.length = inKernel = 0")
        move(number)
        lab.settle(explorer.page)
        found += explorer.page.evaluate("painted.map(time => [time, inKernel]).slice(0, 1)")
    return found


def press_key(slider):
    """From near the right end of the track ten steps to the left, and back."""
    lab.drag(slider, 0.85)
    handle = slider.locator(".noUi-handle")
    return lambda number: handle.press("ArrowLeft" if number < MOVES // 2 else "ArrowRight")


def click(control):
    """On the button that is not chosen, or on the tick box, as fast as a hand."""
    other = control.locator("button:not(.mod-active), input").first
    return lambda number: other.click(delay=80)


def explorer_rows(name, number, explorer):
    """A row of the table for each control."""
    explorer.locator("> img").evaluate(PAINTED)
    inputs = explorer.locator(".widget-slider, .widget-toggle-buttons, .widget-checkbox")
    for control in inputs.all():
        has_handle = control.locator(".noUi-handle").count()
        found = moves(explorer, press_key(control) if has_handle else click(control))
        times = [f"{len(found)}"]
        if found:
            total, kernel = np.transpose(found)
            times += [f"{t:.0f}" for t in (*np.quantile(total, (0.5, 0.9)), np.median(kernel))]
        label = control.locator(".widget-label:visible, .widget-label-basic").first.inner_text()
        yield [name, f"{number}", label, *times]


def first_output(browser, address):
    """Seconds until JupyterLab is there with a kernel, and from then to the first printed line."""
    start = time.perf_counter()
    with lab.opened(browser, address, "nbs/00_start_here.ipynb") as page:
        ready = time.perf_counter()
        page.locator(".jp-CodeCell").first.click()
        for _ in range(3):  # the imports, a text, the cell that says whether all is there
            page.keyboard.press("Shift+Enter")
        page.wait_for_function(f"({lab.CELLS})().filter(cell => cell.count !== null).length === 2")
        return ready - start, time.perf_counter() - ready


def print_table(*rows):
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print("|", " | ".join(row), "|", flush=True)
    print()


def main():
    names = sys.argv[1:] or sorted(path.name for path in (lab.ROOT / "nbs").glob("*.ipynb"))
    with (
        tempfile.TemporaryDirectory() as folder,
        lab.server(Path(folder)) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        print(f"Chromium {browser.version}, {os.cpu_count()} cores")
        print(f"load of the last minute: {os.getloadavg()[0]:.2f} before\n")
        starts = [[f"{t:.1f}" for t in first_output(browser, address)] for _ in range(2)]
        print_table(["opened, s", "first output, s"], *starts)
        rows = []
        for name in names:
            with lab.opened(browser, address, f"nbs/{name}") as page:
                lab.run_all(page)
                page.evaluate(WATCH)
                for number, explorer in enumerate(lab.explorers(page), start=1):
                    rows += explorer_rows(name.removesuffix(".ipynb"), number, explorer)
        times = ["moves", "median, ms", "90 %, ms", "in the kernel, ms"]
        print_table(["notebook", "explorer", "control", *times], *rows)
        print(f"load of the last minute: {os.getloadavg()[0]:.2f} after")


if __name__ == "__main__":
    main()
