"""Real events from the CERN Open Data portal, downloaded once, checked, and cached.

Where a file comes from, in this order:

1. the ``path`` you pass;
2. the folder named by the environment variable ``NABLAB_DATA`` (or its subfolder ``opendata``),
   and then nowhere else: nothing is downloaded while it is set;
3. the cache of an earlier download (``pooch.os_cache("nablab")``);
4. the portal. The download is checked before it enters the cache.

Whatever goes wrong on the way is an ``OpenDataError`` that says what to do.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, PRNGKeyArray

from nablab.extras import needs

if TYPE_CHECKING:
    import pandas

#: Missing entries of the Higgs ML file are stored as this number.
MISSING = -999.0

#: Expected events in the 2012 ATLAS data: the sum of the official weights of either class.
HIGGSML_YIELDS = {"signal": 691.988607712, "background": 410999.847322}

HIGGSML_FEATURES = (
    "DER_mass_MMC DER_mass_transverse_met_lep DER_mass_vis DER_pt_h DER_deltaeta_jet_jet "
    "DER_mass_jet_jet DER_prodeta_jet_jet DER_deltar_tau_lep DER_pt_tot DER_sum_pt "
    "DER_pt_ratio_lep_tau DER_met_phi_centrality DER_lep_eta_centrality PRI_tau_pt PRI_tau_eta "
    "PRI_tau_phi PRI_lep_pt PRI_lep_eta PRI_lep_phi PRI_met PRI_met_phi PRI_met_sumet PRI_jet_num "
    "PRI_jet_leading_pt PRI_jet_leading_eta PRI_jet_leading_phi PRI_jet_subleading_pt "
    "PRI_jet_subleading_eta PRI_jet_subleading_phi PRI_jet_all_pt"
).split()

#: Momenta and masses in GeV with long tails, of which a network sees the logarithm.
LONG_TAILED = (
    "DER_mass_MMC DER_mass_transverse_met_lep DER_mass_vis DER_pt_h DER_mass_jet_jet DER_pt_tot "
    "DER_sum_pt DER_pt_ratio_lep_tau PRI_tau_pt PRI_lep_pt PRI_met PRI_met_sumet "
    "PRI_jet_leading_pt PRI_jet_subleading_pt PRI_jet_all_pt"
).split()

#: One column for each of the three reasons why entries are missing: the mass estimate failed,
#: there is no jet, there is no second jet.
MISSING_INDICATORS = ("DER_mass_MMC", "PRI_jet_leading_pt", "PRI_jet_subleading_pt")

ZMUMU_COLUMNS = "Run Event pt1 eta1 phi1 Q1 dxy1 iso1 pt2 eta2 phi2 Q2 dxy2 iso2".split()

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
    """A data file cannot be had or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Events:
    """Simulated events of two classes, as numpy arrays.

    Attributes:
        features: one row per event, one column per name; missing entries are NaN.
        weights: events expected in the data for each simulated event (dimensionless).
        labels: true for signal.
        names: of the columns.
    """

    features: Float[np.ndarray, "events features"]
    weights: Float[np.ndarray, "events"]
    labels: Bool[np.ndarray, "events"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, name: str) -> Float[np.ndarray, "events"]:
        """The column called ``name``, for instance ``events["DER_mass_MMC"]`` in GeV."""
        if name not in self.names:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.names)}")
        return self.features[:, self.names.index(name)]


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


def _find(candidates: Sequence[str], path: str | os.PathLike | None) -> Path:
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


def _read_csv(path: Path, types: dict[str, type]) -> "pandas.DataFrame":
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


def _scaled_to(
    weights: Float[np.ndarray, "events"],
    labels: Bool[np.ndarray, "events"],
    signal: float,
    background: float,
) -> Float[np.ndarray, "events"]:
    """Weights scaled so that those of either class sum to the given yield."""
    sums = {"signal": weights[labels].sum(), "background": weights[~labels].sum()}
    for name, total in sums.items():
        if not total > 0:
            raise ValueError(f"there are no {name} events with a positive weight: use more events")
    return weights * np.where(labels, signal / sums["signal"], background / sums["background"])


def higgsml(path: str | os.PathLike | None = None) -> Events:
    """Events of the ATLAS Higgs machine-learning challenge 2014: H to tau tau and backgrounds.

    CERN Open Data record 328, doi 10.7483/OPENDATA.ATLAS.ZBP2.M5T8: 818,238 simulated events,
    62.6 MiB to download. In ``NABLAB_DATA`` the full ``atlas-higgs-challenge-2014-v2.csv.gz`` is
    taken if it is there, else a ``higgsml_subset.csv.gz`` with some of its lines.

    The weights are the official ``Weight``, scaled by class to the yields expected in the 2012 data
    (``HIGGSML_YIELDS``), whatever part of the file is read. The other official column,
    ``KaggleWeight``, is ``Weight`` normalised once in each ``KaggleSet`` (t: training, b and v: the
    leaderboards, u: unused). Within one set the two are proportional in either class, hence the
    same here; across sets only ``Weight`` gives equal events an equal weight.

    Args:
        path: read this file instead; its columns are checked, not its checksum.

    Returns:
        Events with 30 features (momenta and masses in GeV, angles in radians); entries that the
        file marks with -999 are NaN.

    Raises:
        OpenDataError: no file and no network, or a file that is damaged or of another kind.
    """
    file = _find(["atlas-higgs-challenge-2014-v2.csv.gz", "higgsml_subset.csv.gz"], path)
    types = dict.fromkeys([*HIGGSML_FEATURES, "Weight"], float) | {"Label": str}
    table = _read_csv(file, types)
    unknown = ~table["Label"].isin(["s", "b"]).to_numpy()
    if unknown.any():
        row = int(np.argmax(unknown))
        raise OpenDataError(
            f"{file}, event {row}: Label is {table['Label'][row]!r}, not s or b; get the file again"
        )
    features = table[HIGGSML_FEATURES].to_numpy(copy=True)
    features[features == MISSING] = np.nan
    labels = (table["Label"] == "s").to_numpy(bool)
    try:
        weights = _scaled_to(table["Weight"].to_numpy(), labels, **HIGGSML_YIELDS)
    except ValueError as error:
        raise OpenDataError(f"{file}: {error}") from None
    return Events(features, weights, labels, tuple(HIGGSML_FEATURES))


def zmumu(path: str | os.PathLike | None = None) -> dict[str, np.ndarray]:
    """Real collisions of 2011 with two muons of mass 60 to 120 GeV, recorded by CMS.

    CERN Open Data record 545 (CC0), ``Zmumu.csv``, 10,000 events, 0.9 MiB to download. In
    ``NABLAB_DATA`` the file ``Zmumu_Run2011A.csv`` of the CMS teaching material will do as well:
    the same events with more digits, and 583 more.

    Args:
        path: read this file instead; its columns are checked, not its checksum.

    Returns:
        One array per column: ``Run``, ``Event``; for either muon (1, 2) ``pt`` in GeV, ``eta``,
        ``phi`` in radians, the charge ``Q``, the impact parameter ``dxy`` in cm, the isolation
        ``iso`` in GeV.

    Raises:
        OpenDataError: no file and no network, or a file that is damaged or of another kind.
    """
    integers = ("Run", "Event", "Q1", "Q2")
    types = {name: int if name in integers else float for name in ZMUMU_COLUMNS}
    table = _read_csv(_find(["Zmumu.csv", "Zmumu_Run2011A.csv"], path), types)
    return {name: table[name].to_numpy() for name in ZMUMU_COLUMNS}


def select(
    events: Events, rows: Int[np.ndarray, "selected"] | Bool[np.ndarray, "events"]
) -> Events:
    """The events with these row numbers, or where the mask is true; weights are not rescaled."""
    return replace(
        events,
        features=events.features[rows],
        weights=events.weights[rows],
        labels=events.labels[rows],
    )


def split(
    events: Events,
    key: int | PRNGKeyArray,
    *,
    fractions: Sequence[float] = (0.5, 0.25, 0.25),
) -> tuple[Events, ...]:
    """Random parts, for instance for training, validation and test, each worth the full yields.

    Either class is divided in the given fractions, and its weights in each part are scaled so that
    they sum to the same yield as in ``events``: a yield belongs to a luminosity, not to a sample.

    Args:
        events: to be divided; every event enters exactly one part.
        key: random key, or a seed for one.
        fractions: size of each part, positive, with sum 1.

    Raises:
        ValueError: fractions that do not sum to 1, or a part without events of a class.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions are {tuple(fractions)}: they must be positive with sum 1")
    key = jax.random.key(key) if isinstance(key, int) else key
    order = np.asarray(jax.random.permutation(key, len(events)))
    part = np.empty(len(events), int)
    for members in (order[events.labels[order]], order[~events.labels[order]]):
        cuts = np.rint(np.cumsum(fractions)[:-1] * len(members)).astype(int)
        for number, chunk in enumerate(np.split(members, cuts)):
            part[chunk] = number
    signal, background = events.weights[events.labels].sum(), events.weights[~events.labels].sum()
    parts = [select(events, order[part[order] == number]) for number in range(len(fractions))]
    return tuple(
        replace(one, weights=_scaled_to(one.weights, one.labels, signal, background))
        for one in parts
    )


def inputs(train: Events) -> Callable[[Events], Float32[np.ndarray, "events inputs"]]:
    """The function that turns events into network inputs, with the statistics of ``train`` alone.

    Columns of ``LONG_TAILED`` are replaced by ``log(1 + x)``. Then every column is shifted and
    scaled to mean 0 and standard deviation 1 over the present entries of ``train``, missing entries
    become 0, and for each column of ``MISSING_INDICATORS`` a column is appended that is 1 where the
    entry was missing: 33 inputs for the 30 features of ``higgsml``.

    Args:
        train: the training sample; held-out events must not be in it.

    Returns:
        A function from events (with the columns of ``train``) to float32 inputs. It raises
        ``ValueError`` for other columns.
    """
    logarithmic = np.isin(train.names, LONG_TAILED)
    indicators = [train.names.index(name) for name in MISSING_INDICATORS if name in train.names]

    def logarithms(events: Events) -> Float[np.ndarray, "events features"]:
        values = events.features.copy()
        values[:, logarithmic] = np.log1p(np.maximum(values[:, logarithmic], 0))
        return values

    present = np.ma.masked_invalid(logarithms(train))
    means = np.ma.filled(present.mean(axis=0), 0.0)
    widths = np.ma.filled(present.std(axis=0), 0.0)
    widths = np.where(widths > 0, widths, 1.0)  # a constant column becomes 0

    def to_inputs(events: Events) -> Float32[np.ndarray, "events inputs"]:
        if events.names != train.names:
            raise ValueError(
                f"the events have columns {', '.join(events.names)}, "
                f"the training sample {', '.join(train.names)}: select the same ones in both"
            )
        values = logarithms(events)
        missing = np.isnan(values)
        standard = np.where(missing, 0.0, (values - means) / widths)
        return np.hstack([standard, missing[:, indicators]]).astype(np.float32)

    return to_inputs
