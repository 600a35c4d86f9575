"""What likelihood fits want of JAX, and what a user has decided otherwise."""

import os
import warnings

import jax


def apply() -> None:
    """Switch 64-bit floats on and asynchronous dispatch on CPUs off, where that is still possible.

    ``JAX_ENABLE_X64=0`` in the environment is respected: models then refuse to be built.
    """
    # Likelihood fits need double precision: in float32 they "converge" to the wrong place.
    if os.environ.get("JAX_ENABLE_X64", "").strip().lower() not in ("0", "false", "f", "no", "off"):
        jax.config.update("jax_enable_x64", True)
    # A small fit is over before another thread has woken up: run it on the thread that asks for it.
    # Programs with loops are known to wait for ever otherwise (jax-ml/jax#25861).
    if not jax.config.read("jax_cpu_enable_async_dispatch"):
        return
    if not _running():
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    elif jax.default_backend() == "cpu":
        warnings.warn(
            "JAX has computed before nablab was imported, and keeps its asynchronous dispatch on "
            "CPUs, with which loops are known to hang: import nablab first, or begin with "
            'jax.config.update("jax_cpu_enable_async_dispatch", False)',
            RuntimeWarning,
            stacklevel=3,
        )


def _running() -> bool:
    """Whether JAX has started a backend, which reads the setting only once."""
    try:
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:  # not public: where it is gone, the setting comes too late unnoticed
        return False
    return backends_are_initialized()
