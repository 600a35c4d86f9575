"""Fetch the public data that tests and the notebook on real input read: ``make data``.

They go to the folder that ``NABLAB_DATA`` names, else to ``build/data``. Files that are there are
left alone, so that an interrupted run is continued. Downloads are checked and kept in the cache of
``nablab.data.opendata``: after ``make clean`` nothing is fetched again.
"""

import gzip
import io
import os
import sys
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GITHUB = "https://raw.githubusercontent.com"
SBOTTOM = "workspaces/atlas-sbottom-multib/RegionA"
TTBAR = "workspaces/atlas-ttbar-ljets/ttbar_ljets_xsec_inclusive_pruned.json"
MUONS = "opendata/Zmumu_Run2011A.csv"
HIGGS_SUBSET = "opendata/higgsml_subset.csv.gz"
POINTS = (
    "600_280_150 800_450_60 900_250_60 900_550_60 1000_950_60 "
    "1300_205_60 1300_850_60 1300_950_60 1400_950_60 1500_850_60"
).split()
HIGGS = "atlas-higgs-challenge-2014-v2.csv.gz"
EVENTS = 22_888  # of 818,238: those that the notebook takes


def whole(path: Path, name: str) -> bytes:
    """The download as it is."""
    return path.read_bytes()


def member(path: Path, name: str) -> bytes:
    """The part of a tar archive that becomes ``name``; there it has one folder."""
    with tarfile.open(path) as archive:
        return archive.extractfile("/".join(name.split("/")[-2:])).read()


def first_events(path: Path, name: str) -> bytes:
    """The header and the first events of the Higgs ML file, compressed again."""
    packed = io.BytesIO()
    with gzip.open(path) as lines, gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as part:
        part.writelines(islice(lines, 1 + EVENTS))
    return packed.getvalue()


class Source(NamedTuple):
    """A download, and the files that come out of it."""

    name: str  # in the cache
    addresses: tuple[str, ...]  # asked in turn
    checksum: str
    files: tuple[str, ...]  # in the folder
    content: Callable[[Path, str], bytes]  # of each file


def sources() -> list[Source]:
    """Of everything; with whose it is."""
    from nablab.data import opendata  # not above: see folder()

    address, sha1 = opendata.SOURCES[HIGGS]
    return [
        # ATLAS, arXiv:1908.03122, HEPData ins1748602 (10.17182/hepdata.89408.v1/r2). Scikit-HEP
        # keeps a copy for the tests of pyhf, which pin the same checksum.
        Source(
            "pyhf-ins1748602-probability-models.tar.gz",
            (
                "https://www.hepdata.net/record/resource/997020?view=true",
                f"{GITHUB}/scikit-hep/scikit-hep-testdata/f51b8fb0aa3b3609996375a745eac8084472245f"
                "/src/skhep_testdata/data/pyhf-ins1748602-probability-models.tar.gz",
            ),
            "sha256:9089b0e5fabba335bea4c94545ccca8ddd21289feeab2f85e5bcc8bada37be70",
            (f"{SBOTTOM}/BkgOnly.json", *(f"{SBOTTOM}/patch.sbottom_{p}.json" for p in POINTS)),
            member,
        ),
        # ATLAS, on HEPData; in this form an example of bayesian_pyhf, MIT.
        Source(
            "ttbar_ljets_xsec_inclusive_pruned.json",
            (
                f"{GITHUB}/malin-horstmann/bayesian_pyhf/4d7dc79f4243c1fe11e34c270adc61b4361d152c"
                "/examples/ttbar_ljets_xsec_inclusive_pruned.json",
            ),
            "sha256:c350b7e9b9713311a5420a7085a4633cbf414abf9ccabf62c9d50e833b076d7a",
            (TTBAR,),
            whole,
        ),
        # CMS Open Data record 545, CC0; in this form teaching material, CC BY 4.0.
        Source(
            "Zmumu_Run2011A.csv",
            (
                f"{GITHUB}/cms-opendata-education/cms-jupyter-materials-english"
                "/fd23734a71b863d944d44f7dbe9c0d0261c5302b/Data/Zmumu_Run2011A.csv",
            ),
            "sha256:034523c045a55633a91fb5df6b67638636c389e20e66a03b7361309058bf02a8",
            (MUONS,),
            whole,
        ),
        # ATLAS, CERN Open Data record 328.
        Source(HIGGS, (address,), f"sha1:{sha1}", (HIGGS_SUBSET,), first_events),
    ]


def folder() -> Path:
    """Where the data are, or will be: $NABLAB_DATA, a folder beside the repository, build/data.

    conftest.py asks this before nablab may be imported, for then nobody would check annotations.
    """
    if named := os.environ.get("NABLAB_DATA"):
        return Path(named).expanduser().resolve()
    beside = ROOT.parent / "shared" / "data"
    return beside if (beside / "opendata").is_dir() else ROOT / "build" / "data"


def fetch(source: Source, target: Path) -> list[str]:
    """Put what is absent of a source into the folder; returns the names of these files.

    Raises:
        OpenDataError: no address answered, or the disk is full; the message says what to do.
    """
    from nablab.data import opendata

    absent = [name for name in source.files if not (target / name).is_file()]
    if not absent:
        return []
    for address in source.addresses:
        try:
            path = opendata.retrieve(address, source.checksum, source.name)
            break
        except opendata.OpenDataError:
            if address == source.addresses[-1]:
                raise
    try:
        for name in absent:
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            # Under its own name a file is whole.
            part = file.with_name(f"{file.name}.part")
            part.write_bytes(source.content(path, name))
            part.replace(file)
    except OSError as error:
        raise opendata.OpenDataError(
            f"cannot write into {target} ({error}): make room there, or set NABLAB_DATA to "
            "another folder"
        ) from None
    return absent


def main() -> int:
    import pooch

    from nablab.data.opendata import OpenDataError

    pooch.get_logger().setLevel("WARNING")
    target, failures = folder(), []
    for source in sources():
        try:
            fetched = fetch(source, target)
        except OpenDataError as error:
            failures.append(error)
        else:
            print(f"{'fetched' if fetched else 'here'}: {source.name}", flush=True)
    if failures:
        print(
            f"{len(failures)} of {len(sources())} downloads failed: {failures[0]}", file=sys.stderr
        )
        return 1
    print(f"The data are in {target}; 'make test' reads them there.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
