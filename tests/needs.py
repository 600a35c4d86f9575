"""What some tests need beside the installed packages, and how to get it.

``@pytest.mark.needs("chromium")`` asks for a browser, ``needs("opendata/x.csv", ...)`` for one of
these files of the public data. Where it is absent the test is skipped, and the last line of the
summary says what that leaves untested.
"""

import functools
import re
import shutil
import subprocess
from collections import Counter

import fetch_data
from fetch_data import HIGGS, HIGGS_SUBSET, MUONS

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
INSTALL_BROWSER = "install Chromium (on Debian, as root, 'apt-get install chromium')"
HIGGS_EVENTS = (HIGGS_SUBSET, f"opendata/{HIGGS}")
NOTEBOOKS = {"12_open_data.ipynb": [HIGGS_EVENTS, (MUONS,)]}
FETCH_DATA = "run 'make data' once, with a network"


@functools.cache
def chromium() -> str | None:
    """The browser, if the system has one that starts: Ubuntu's chromium may be a mere hint."""
    for path in filter(None, map(shutil.which, BROWSERS)):
        try:
            if not subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode:
                return path
        except (OSError, subprocess.TimeoutExpired):
            pass
    return None


def has(name: str) -> bool:
    """Whether the folder with the public data has a file; NABLAB_DATA may name a flat one."""
    folder = fetch_data.folder()
    return (folder / name).is_file() or (folder / name.removeprefix("opendata/")).is_file()


def reason_to_skip(*wanted: str) -> str | None:
    """None if the browser, or one of the files, is there; else what is not, and the cure."""
    if wanted == ("chromium",):
        return None if chromium() else f"no browser here: {INSTALL_BROWSER}"
    if any(map(has, wanted)):
        return None
    return f"no {' or '.join(wanted)} in {fetch_data.folder()}: {FETCH_DATA}"


def not_tested(reasons: list[str]) -> str:
    """One line for the reasons why tests were skipped, by cure."""
    cures = Counter(re.sub("^Skipped: ", "", reason).rpartition(": ")[2] for reason in reasons)
    said = "; ".join(f"{number} until you {cure}" for cure, number in cures.most_common())
    return f"Not tested here: {said}."
