"""Physics analysis as a differentiable program.

The rooms, in the order in which data flows through them::

    data  ->  relax  ->  model  ->  infer  ->  train  ->  judge  ->  show

A room imports only from the rooms to its left. Importing one switches 64-bit floats of JAX on, and
its asynchronous dispatch on CPUs off, as far as the process allows; nothing else changes.
"""

from importlib import metadata

from nablab import jax_settings

jax_settings.apply()

try:
    __version__ = metadata.version("nablab")
except metadata.PackageNotFoundError:  # on the path, but not installed
    __version__ = "unknown"
