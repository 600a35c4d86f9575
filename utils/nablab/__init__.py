"""Physics analysis as a differentiable program.

The rooms, in the order in which data flows through them::

    data  ->  relax  ->  infer  ->  train  ->  show

A room imports only from the rooms to its left.
"""

import jax

from nablab import memory

# Likelihood fits need double precision: in float32 they "converge" to the wrong place.
jax.config.update("jax_enable_x64", True)
# A small fit is over before another thread has woken up: run it on the thread that asks for it.
# Programs with loops are known to wait for ever otherwise (jax-ml/jax#25861).
jax.config.update("jax_cpu_enable_async_dispatch", False)

memory.give_back_after_compilations()

__version__ = "0.1.0"
