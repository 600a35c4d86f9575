"""Execute notebooks in place, so that an unchanged notebook gives an unchanged file.

    python tools/execute.py nbs/03_smooth_cuts.ipynb ...

What changes from run to run (timings, widget state) is not stored; a widget leaves behind the
picture and the text that it offers beside its live view.
"""

import argparse
import html
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

REPOSITORY = Path(__file__).resolve().parent.parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python"}


def without_folder(line: str) -> str:
    """Make the repository's paths in a traceback relative: they differ between computers."""
    written_by_ipython = str(REPOSITORY).replace(str(Path.home()), "~", 1)
    return line.replace(f"{REPOSITORY}/", "").replace(f"{written_by_ipython}/", "")


def tidy(notebook):
    """Drop from an executed notebook, in place, all that differs between two equal runs."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.kernelspec = dict(KERNEL)
    notebook.metadata.language_info = dict(LANGUAGE)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
            if output.output_type == "error":
                output.traceback = [without_folder(line) for line in output.traceback]


def peak_memory(pid) -> float | None:
    """The largest memory that a living process has held, in MB; None where only Linux knows."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1000


def run(notebook, folder) -> float | None:
    """Run every cell in a fresh kernel that works in `folder`; returns the peak memory in MB."""
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name=KERNEL["name"],
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        coalesce_streams=True,  # how printed text is split into outputs depends on the timing
        resources={"metadata": {"path": str(folder)}},
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        return peak_memory(client.km.provisioner.pid)


def with_sweeps(path: Path):
    """The notebook after a run in which its sliders leave pages that work without a kernel."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["NABLAB_SWEEPS"] = "1"  # the kernel inherits it
    try:
        run(notebook, path.parent)
    finally:
        del os.environ["NABLAB_SWEEPS"]
    tidy(notebook)
    return notebook


def describe(notebook):
    """Give every picture the words it came with, in place: page makers leave them out."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data and "text/html" not in data:
                words = output.metadata.get("image/png", {}).get("alt") or data["text/plain"]
                picture = f"data:image/png;base64,{data['image/png'].strip()}"
                data["text/html"] = f'<img alt="{html.escape(words)}" src="{picture}">'


def copy_from_package(package: str, part: str, target: Path) -> None:
    """Copy a folder that an installed Python package carries, such as MathJax."""
    installed = Path(find_spec(package).submodule_search_locations[0])
    shutil.copytree(installed / part, target)


def execute(path: Path) -> str:
    """Execute one notebook, write it if it changed, and describe what it took."""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    start = time.perf_counter()
    memory = run(notebook, path.parent)
    seconds = time.perf_counter() - start
    tidy(notebook)
    after = nbformat.writes(notebook) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8", newline="\n")
    return "  ".join(
        [
            f"{path.name:32}",
            f"{seconds:6.1f} s",
            f"{memory:6.0f} MB" if memory is not None else "     ? MB",
            f"{len(after.encode()) / 1000:5.0f} kB",
            "changed" if after != before else "unchanged",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute notebooks in place.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    # The figures that are stored are those that the tests compare: made on a CPU.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    failed = 0
    for path in parser.parse_args().notebooks:
        try:
            print(execute(path), flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name} stopped, and is left as it was:\n{error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
