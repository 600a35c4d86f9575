"""Files of the CERN Open Data portal, downloaded once, checked, and cached.

Where a file comes from, in this order:

1. the ``path`` you pass;
2. the folder named by the environment variable ``NABLAB_DATA`` (or its subfolder ``opendata``),
   and only there: nothing is downloaded while it is set;
3. the cache of an earlier download (``pooch.os_cache("nablab")``);
4. the portal. The download is checked before it enters the cache.
"""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nablab.extras import needs

if TYPE_CHECKING:
    import pandas

#: Download address and SHA-1 of the two files, as in the portal's records 328 and 545.
SOURCES = {
    "atlas-higgs-challenge-2014-v2.csv.gz": (
        "https://opendata.cern.ch/record/328/files/atlas-higgs-challenge-2014-v2.csv.gz",
        "639b1dbd97a709a739122a9a5dcd99b49d55d86c",
    ),
    "Zmumu.csv": (
        "https://opendata.cern.ch/record/545/files/Zmumu.csv",
        "6c4240d2053407e6eacf42ea741381e3771727ca",
    ),
}

#: Seconds to wait for a connection, and for the next piece of a download.
TIMEOUT = (5, 30)


class OpenDataError(RuntimeError):
    """A data file is not available or not usable; the message says what to do."""


def _download(name: str) -> Path:
    """The file ``name`` of ``SOURCES`` from the cache, where it is put first if need be."""
    url, sha1 = SOURCES[name]
    return retrieve(url, f"sha1:{sha1}", name)


def retrieve(url: str, checksum: str, name: str) -> Path:
    """The file at ``url`` from the cache, where it is put first if need be, under ``name``.

    Raises:
        OpenDataError: no network, another file than the checksum says, or no room.
    """
    with needs("opendata"):
        import pooch
        import requests

    cache = pooch.os_cache("nablab")
    by_hand = "get it by any other way, put it into a folder and set NABLAB_DATA to that folder"
    downloader = pooch.HTTPDownloader(
        progressbar=True,
        chunk_size=2**18,
        timeout=TIMEOUT,
        # The checksum is that of the file as it lies on the server, still compressed.
        headers={"Accept-Encoding": "identity"},
    )
    try:
        # pooch downloads beside the target and moves it there only after the checksum agrees.
        return Path(pooch.retrieve(url, checksum, name, cache, downloader=downloader))
    except requests.RequestException as error:
        raise OpenDataError(
            f"cannot download {url} ({type(error).__name__}): check the network and try again, "
            f"or {by_hand}"
        ) from None
    except ValueError:
        raise OpenDataError(
            f"what came from {url} is not the published file (its checksum differs); nothing was "
            f"kept: try again, or {by_hand}"
        ) from None
    except OSError as error:
        raise OpenDataError(
            f"cannot write {name} into the cache {cache} ({error}): make room there, or {by_hand}"
        ) from None


def find(candidates: Sequence[str], path: str | os.PathLike | None) -> Path:
    """The first of the files ``candidates`` that is there; the first one is downloaded if none."""
    with needs("opendata"):
        import pooch

    if path is not None:
        if not Path(path).is_file():
            raise OpenDataError(f"there is no file {path}: correct the path, or leave it out")
        return Path(path)
    folder = os.environ.get("NABLAB_DATA")
    if not folder:
        return _download(candidates[0])
    folder = Path(folder).expanduser()
    for name in candidates:
        for place in (folder / name, folder / "opendata" / name):
            if place.is_file():
                if name in SOURCES and pooch.file_hash(place, alg="sha1") != SOURCES[name][1]:
                    raise OpenDataError(
                        f"{place} is damaged (its SHA-1 is not {SOURCES[name][1]}): copy it again "
                        f"from {SOURCES[name][0]}"
                    )
                return place
    state = f"has no {' or '.join(candidates)}" if folder.is_dir() else "is not a folder"
    raise OpenDataError(
        f"NABLAB_DATA={folder} {state}: correct it, or unset it to download {candidates[0]}"
    )


def read_csv(path: Path, types: dict[str, type]) -> "pandas.DataFrame":
    """The columns named in ``types``, all filled, or an ``OpenDataError``."""
    with needs("opendata"):
        import pandas

    try:
        header = list(pandas.read_csv(path, nrows=0).columns)
        absent = [name for name in types if name not in header]
        if absent:
            lacks, has = (
                ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
                for names in (absent, header)
            )
            raise OpenDataError(
                f"{path} has no column {lacks}: it is not the expected table but one of {has}; "
                "read another table with pandas.read_csv, or get the file again if this one was cut"
            )
        table = pandas.read_csv(path, usecols=list(types), dtype=types)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        # Truncated gzip, wrong gzip or unreadable, damaged gzip, and not a table of numbers.
        raise OpenDataError(
            f"{path} cannot be read to its end as a table ({error}): it is truncated or damaged; "
            "get it again"
        ) from None
    if table.empty:
        raise OpenDataError(f"{path} has a header but no events: get it again")
    holes = table.isna() | table.isin([np.inf, -np.inf])
    if holes.to_numpy().any():
        row, column = np.argwhere(holes.to_numpy())[0]
        raise OpenDataError(
            f"{path}, event {row}: no usable number in column {table.columns[column]}; the file is "
            "truncated or damaged, get it again"
        )
    return table
