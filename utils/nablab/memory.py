"""Give memory back that a compilation has freed.

XLA's compiler frees most of what it used (100 MB or more for a likelihood with its fit), but the
C library keeps it for later: a notebook with some ten compilations then holds twice the memory it
needs. This matters where a kernel has 2 GB, as on Binder, or where many share one hub.
"""

import ctypes
import sys

import jax

LONG_COMPILATION = 0.2  # seconds; the shorter ones leave little behind


def give_back_after_compilations() -> None:
    """From now on, return freed memory to the system after each long compilation (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is None:
        return

    def on_event(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration") and seconds > LONG_COMPILATION:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(on_event)
