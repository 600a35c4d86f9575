"""Results that pass through ``jit``, ``vmap`` and ``grad``: frozen dataclasses as pytrees."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import dataclass_transform

import jax


@dataclass_transform(frozen_default=True)
def pytree(cls: type | None = None, *, static: tuple[str, ...] = (), **settings) -> type | Callable:
    """A frozen dataclass whose fields are branches of a pytree, but for the ``static`` ones.

    Static fields belong to the structure: they are hashable, and a program is compiled for each
    of their values. Further settings are those of ``dataclass``.
    """

    def register(cls: type) -> type:
        cls = dataclass(frozen=True, **settings)(cls)
        data = [f.name for f in fields(cls) if f.name not in static]
        return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=list(static))

    return register if cls is None else register(cls)
