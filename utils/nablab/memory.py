"""Give memory back: what compilations have freed, and what was compiled for functions now gone.

XLA's compiler frees most of what it used (100 MB or more for a likelihood with its fit), but the
C library keeps it for later: a notebook with some ten compilations then holds twice the memory it
needs. This matters where a kernel has 2 GB, as on Binder, or where many share one hub.
"""

import ctypes
import inspect
import sys
import weakref
from collections.abc import Callable

import jax

LONG_COMPILATION = 0.2  # seconds; the shorter ones leave little behind
_gives_back = False


def give_back_after_compilations() -> None:
    """From now on, return freed memory to the system after each long compilation (Linux only).

    Called once more, it changes nothing.
    """
    global _gives_back
    if _gives_back or not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is None:
        return

    def on_event(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration") and seconds > LONG_COMPILATION:
            trim(0)

    _gives_back = True
    jax.monitoring.register_event_duration_secs_listener(on_event)


_compiled: dict[tuple, Callable] = {}


def compiled(build: Callable, functions: tuple[Callable, ...], *settings) -> Callable:
    """What ``build`` returns, compiled once, and kept as long as all the functions live.

    A user's function as a static argument of ``jax.jit`` would be kept for ever, with the arrays
    it has captured and what was compiled for them.

    Args:
        build: a function of references and ``settings``. Called, a reference gives the function
            that it stands for: what ``build`` returns must hold nothing else of it.
        functions: what the references stand for; whoever calls the compiled function must hold
            them.
        settings: constants that can be compared.
    """
    key = (build, *map(_identity, functions), *settings)
    if key not in _compiled:
        try:
            references = [_reference(f, lambda _: _compiled.pop(key, None)) for f in functions]
        except TypeError:  # a class that allows no weak references
            return jax.jit(build(*(lambda f=f: f for f in functions), *settings))
        _compiled[key] = jax.jit(build(*references, *settings))
    return _compiled[key]


def _identity(function):
    """A bound method is another object each time it is looked up."""
    bound = inspect.ismethod(function)
    return (id(function.__self__), function.__func__) if bound else id(function)


def _reference(function, when_gone):
    kind = weakref.WeakMethod if inspect.ismethod(function) else weakref.ref
    return kind(function, when_gone)
