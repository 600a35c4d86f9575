"""Settings of the tests, which the kernels of the tested notebooks inherit."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent
NEEDS_OPEN_DATA = ("12_open_data.ipynb",)

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def open_data_folder() -> Path | None:
    """Where the open-data files are: $NABLAB_DATA, or a folder beside the repository."""
    if os.environ.get("NABLAB_DATA"):
        return Path(os.environ["NABLAB_DATA"]).resolve()
    beside = REPOSITORY.parent / "shared" / "data"
    return beside if (beside / "opendata").is_dir() else None


folder = open_data_folder()
if folder is not None:
    # Absolute, because a notebook's kernel works in the notebook's folder.
    os.environ["NABLAB_DATA"] = str(folder)


def pytest_collection_modifyitems(items):
    if folder is not None:
        return
    reason = "set NABLAB_DATA to a folder with the open-data files to test this notebook"
    for item in items:
        if item.path.name in NEEDS_OPEN_DATA:
            item.add_marker(pytest.mark.skip(reason=reason))
