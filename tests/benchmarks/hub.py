"""How much memory a class needs: many kernels that run the same notebook at the same time.

    python tests/benchmarks/hub.py 09_inferno 20

The sum counts memory that kernels share (libraries) once; Linux only.
"""

import asyncio
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "nbs"
SECONDS = 2.0  # between two looks


def proportional(pid: int) -> float:
    """Memory of a process in GB, with its share of what it has in common with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e6


def available() -> float:
    """What the machine has left, in GB."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6


async def watch(clients: list, before: float, peak: dict) -> None:
    while True:
        alive = [c.km.provisioner.pid for c in clients if c.km and c.km.has_kernel]
        each = [proportional(pid) for pid in alive]
        peak["sum"] = max(peak["sum"], sum(each))
        peak["one"] = max(peak["one"], max(each, default=0.0))
        peak["machine"] = max(peak["machine"], before - available())
        await asyncio.sleep(SECONDS)


async def run(client: NotebookClient, all_done: asyncio.Barrier) -> None:
    async with client.async_setup_kernel():
        for index, cell in enumerate(client.nb.cells):
            await client.async_execute_cell(cell, index)
        await all_done.wait()  # a participant leaves the kernel running


async def main(name: str, kernels: int) -> None:
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    where = {"metadata": {"path": str(NOTEBOOKS)}}
    clients = [
        NotebookClient(nbformat.reads(text, as_version=4), timeout=3600, resources=where)
        for _ in range(kernels)
    ]
    peak = {"sum": 0.0, "one": 0.0, "machine": 0.0}
    watching = asyncio.create_task(watch(clients, available(), peak))
    all_done = asyncio.Barrier(kernels)
    await asyncio.gather(*(run(client, all_done) for client in clients))
    watching.cancel()
    print(f"{kernels} kernels, {name}: {peak['sum']:.1f} GB together,", end=" ")
    print(f"{peak['one']:.2f} GB the largest; the machine had {peak['machine']:.1f} GB less free")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
