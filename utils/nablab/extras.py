"""Packages that only one room needs, and that ``pip install nablab`` leaves out."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: say in one sentence which extra has the package that is not installed.

    Raises:
        ModuleNotFoundError: with this sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("nablab"):
            raise
        message = f"{error.name} is not installed: install the extra, nablab[{extra}]"
        raise ModuleNotFoundError(message, name=error.name) from None
