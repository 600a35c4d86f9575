"""Physics analysis as a differentiable program.

The rooms, in the order in which data flows through them::

    data  ->  relax  ->  infer  ->  train  ->  show

A room imports only from the rooms to its left.
"""

import jax

from nablab import memory

# Likelihood fits need double precision: in float32 they "converge" to the wrong place.
jax.config.update("jax_enable_x64", True)

memory.give_back_after_compilations()

__version__ = "0.1.0"
