"""Freed memory goes back to the system after long compilations, and only then."""

import jax
import jax.numpy as jnp

from nablab import memory


def test_long_compilations_give_memory_back(monkeypatch):
    trims, listeners = [], []

    class Libc:
        malloc_trim = staticmethod(trims.append)

    monkeypatch.setattr(memory, "_gives_back", False)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Libc)
    monkeypatch.setattr(
        memory.jax.monitoring, "register_event_duration_secs_listener", listeners.append
    )
    memory.give_back_after_compilations()
    memory.give_back_after_compilations()
    (on_event,) = listeners
    on_event("/jax/core/compile/backend_compile_duration", 0.01)
    on_event("/jax/core/something_else", 10.0)
    assert trims == []
    on_event("/jax/core/compile/backend_compile_duration", 1.0)
    assert trims == [0]


def test_jax_reports_compilations_under_that_name():
    seen = []

    def listen(event, seconds, **_):
        seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: jnp.sin(x) * 1.2345)(jnp.arange(7.0))
    assert any(event.endswith("backend_compile_duration") for event in seen)
