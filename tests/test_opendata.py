"""Open data: what can go wrong on the way to the events, and what the events are."""

import gzip
import hashlib
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import needs
import numpy as np
import pandas
import pooch
import pytest
from published import DATA

from nablab.data import _downloads, opendata
from nablab.data.opendata import OpenDataError

FULL = "atlas-higgs-challenge-2014-v2.csv.gz"
SUBSET = "higgsml_subset.csv.gz"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No local data and an empty cache; returns the cache folder."""
    cache = tmp_path / "cache"
    monkeypatch.delenv("NABLAB_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache)
    return cache


needs_higgs = pytest.mark.needs(*needs.HIGGS_EVENTS)
needs_subset = pytest.mark.needs(needs.HIGGS_SUBSET)
needs_muons = pytest.mark.needs(needs.MUONS)


def real(name):
    """A file of the real ones."""
    return next(path for path in (DATA / name, DATA / "opendata" / name) if path.is_file())


def small_table(events=60, seed=3):
    """A table of the Higgs ML format with random entries."""
    generator = np.random.default_rng(seed)
    values = generator.exponential(50, (events, len(opendata.HIGGSML_FEATURES)))
    table = pandas.DataFrame(values.round(6), columns=opendata.HIGGSML_FEATURES)
    table.loc[::3, [name for name in table if "jet_leading" in name]] = -999.0
    table.loc[::2, [name for name in table if "subleading" in name]] = -999.0
    table.loc[1::5, "DER_mass_MMC"] = -999.0
    table["Weight"] = generator.uniform(0.1, 2, events)
    table["Label"] = np.where(np.arange(events) % 3 == 0, "s", "b")
    return table


def written(table, folder, name=SUBSET):
    path = folder / name
    table.to_csv(path, index=False)
    return path


# ---- Higgs ML events ------------------------------------------------------------------------


def assert_is_higgsml(events):
    assert events.features.shape == (len(events), 30)
    assert events.features.dtype == np.float64
    assert events.labels.dtype == bool
    assert len(events.names) == 30
    assert events.weights[events.labels].sum() == pytest.approx(691.988607712, rel=1e-12)
    assert events.weights[~events.labels].sum() == pytest.approx(410999.847322, rel=1e-12)
    assert not np.any(events.features == -999.0)


def test_small_file(tmp_path):
    table = small_table()
    events = opendata.higgsml(written(table, tmp_path))
    assert_is_higgsml(events)
    np.testing.assert_array_equal(events.labels, table["Label"] == "s")
    np.testing.assert_array_equal(events["PRI_met"], table["PRI_met"])
    np.testing.assert_array_equal(
        np.isnan(events["PRI_jet_leading_pt"]), table["PRI_jet_leading_pt"] == -999.0
    )
    # Within a class the weights keep their ratios.
    ratios = events.weights / table["Weight"].to_numpy()
    for label in (True, False):
        np.testing.assert_allclose(
            ratios[events.labels == label], ratios[events.labels == label][0]
        )
    with pytest.raises(KeyError, match="DER_mass_MCM"):
        events["DER_mass_MCM"]


@needs_higgs
def test_real_higgsml():
    start = time.perf_counter()
    events = opendata.higgsml()
    seconds = time.perf_counter() - start
    assert_is_higgsml(events)
    if len(events) < 30_000:
        assert len(events) == 22_888
        assert events.labels.sum() == 7816
        assert seconds < 5  # 0.25 s on two idle cores
    # Entries are missing for exactly three reasons.
    jets = events["PRI_jet_num"]
    missing = np.isnan(events.features)
    for name, reason in [("PRI_jet_leading", jets == 0), ("PRI_jet_subleading", jets < 2)]:
        for quantity in ("pt", "eta", "phi"):
            np.testing.assert_array_equal(np.isnan(events[f"{name}_{quantity}"]), reason)
    patterns = {tuple(column) for column in missing.T[:, :2000]} - {(False,) * 2000}
    assert len(patterns) == 3
    assert 0.1 < np.isnan(events["DER_mass_MMC"]).mean() < 0.2


@needs_subset
def test_real_weights_are_the_official_ones():
    """The two official weight columns, scaled to the luminosity, give the same weights."""
    file = real(SUBSET)
    events, table = opendata.higgsml(file), pandas.read_csv(file)
    assert set(table["KaggleSet"]) == {"t"}
    official = table["KaggleWeight"].to_numpy() * 250_000 / len(table)  # the training set's size
    sums = official[events.labels].sum(), official[~events.labels].sum()
    # A subset's own sums fluctuate: by 1 % for 7816 signal events, 0.6 % for the background.
    assert sums == pytest.approx((691.99, 410_999.8), rel=0.03)
    for label, total, want in zip((True, False), sums, (691.988607712, 410999.847322), strict=True):
        one = events.labels == label
        np.testing.assert_allclose(events.weights[one], official[one] * want / total, rtol=1e-10)


# ---- what can be wrong with a file ----------------------------------------------------------


def cut_gzip(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def web_page(path):
    path.write_bytes(gzip.compress(b"<html><body>404, not found</body></html>\n"))


def plain_web_page(path):
    path.write_bytes(b"<html><body>404, not found</body></html>\n")


def empty(path):
    path.write_bytes(b"")


def only_header(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).splitlines()[0]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_gzip, "truncated or damaged"),
        (flip_a_byte, "truncated or damaged"),
        (
            web_page,
            r"no column DER_mass_MMC.* and 29 more: it is not the expected table but one of ",
        ),
        (plain_web_page, "truncated or damaged"),
        (empty, "truncated or damaged"),
        (only_header, "no events"),
        (Path.unlink, "there is no file"),
    ],
)
def test_damaged_file(tmp_path, damage, message):
    path = written(small_table(), tmp_path)
    damage(path)
    with pytest.raises(OpenDataError, match=message) as caught:
        opendata.higgsml(path)
    assert SUBSET in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="PRI_met"), "no column PRI_met: it is not"),
        (lambda t: t.drop(columns=["Weight", "Label"]), "no column Weight, Label: it is not"),
        (lambda t: t.assign(PRI_met="much"), "much"),
        (lambda t: t.assign(Label=["?"] + ["s", "b"] * 29 + ["s"]), r"event 0: Label is '\?'"),
        (lambda t: t.assign(Label="b"), "no signal events"),
        (lambda t: t.assign(Label="s"), "no background events"),
        (lambda t: t.assign(PRI_met=t.PRI_met.where(t.index != 7)), r"event 7.*PRI_met"),
        (lambda t: t.assign(Weight=t.Weight.where(t.index != 9, np.inf)), r"event 9.*Weight"),
    ],
)
def test_wrong_table(tmp_path, change, message):
    with pytest.raises(OpenDataError, match=message):
        opendata.higgsml(written(change(small_table()), tmp_path))


def test_plain_csv_cut_in_a_line(tmp_path):
    header = ",".join(opendata.ZMUMU_COLUMNS)
    line = "165617,74969122,54.7,-0.43,2.57,1,-0.07,0.5,34.2,-0.98,-0.5,-1,0.07,3.42"
    path = tmp_path / "Zmumu.csv"
    path.write_text(f"{header}\n{line}\n{line}\n")
    assert opendata.zmumu(path)["pt1"].tolist() == [54.7, 54.7]
    path.write_text(f"{header}\n{line}\n{line[:40]}")
    with pytest.raises(OpenDataError, match=r"Zmumu\.csv.*truncated or damaged"):
        opendata.zmumu(path)


def test_another_table_is_not_called_damaged(tmp_path):
    """The file of electron pairs, which has other columns, was to be "got again"."""
    path = tmp_path / "Zee.csv"
    path.write_text("Run,Event,pt1,eta1,phi1,Q1,type1,pt2,eta2,phi2,Q2\n1,2,3,4,5,1,6,7,8,9,-1\n")
    with pytest.raises(OpenDataError) as caught:
        opendata.zmumu(path)
    for words in (
        "no column dxy1, iso1, dxy2 and 1 more",
        "but one of Run, Event, pt1 and 8 more",
        "read another table with pandas.read_csv",
        "if this one was cut",
    ):
        assert words in str(caught.value)


# ---- the folder NABLAB_DATA ------------------------------------------------------------------


def test_local_folder_and_its_precedence(tmp_path, monkeypatch, nowhere):
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path))
    (tmp_path / "opendata").mkdir()
    written(small_table(50), tmp_path / "opendata")
    assert len(opendata.higgsml()) == 50
    written(small_table(40), tmp_path)
    assert len(opendata.higgsml()) == 40  # the folder itself comes before its subfolder
    full = written(small_table(70), tmp_path, FULL)
    with pytest.raises(OpenDataError, match=r"damaged.*copy it again"):
        opendata.higgsml()  # the full file comes first, and its checksum is known
    checksum = hashlib.sha1(full.read_bytes()).hexdigest()
    monkeypatch.setitem(opendata.SOURCES, FULL, (opendata.SOURCES[FULL][0], checksum))
    assert len(opendata.higgsml()) == 70


def test_local_folder_without_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path))
    with pytest.raises(OpenDataError, match=f"has no {FULL} or {SUBSET}.*unset it"):
        opendata.higgsml()
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path / "typo"))
    with pytest.raises(OpenDataError, match=r"typo is not a folder: correct it"):
        opendata.zmumu()


# ---- downloads -------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves ``content`` as any file: whole, cut, with an error, or never."""

    daemon_threads = True
    content, mode, requests = b"", "whole", 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.server.mode == "hang":
            time.sleep(1)
            return
        self.send_response(503 if self.server.mode == "busy" else 200)
        self.send_header("Content-Length", str(len(self.server.content)))
        if "gzip" in self.headers["Accept-Encoding"]:
            # As web servers do: the client would unpack the file, and its checksum would be wrong.
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        size = len(self.server.content) // (2 if self.server.mode == "cut" else 1)
        self.wfile.write(self.server.content[:size])

    def log_message(self, *args):
        pass


@pytest.fixture
def portal(nowhere, monkeypatch, tmp_path):
    """A local server in place of the portal, holding a small Higgs ML file."""
    server = Server(("127.0.0.1", 0), Handler)
    server.content = written(small_table(), tmp_path, FULL).read_bytes()
    checksum = hashlib.sha1(server.content).hexdigest()
    address = f"http://127.0.0.1:{server.server_port}/{FULL}"
    monkeypatch.setitem(opendata.SOURCES, FULL, (address, checksum))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield server
    server.shutdown()
    server.server_close()


def test_download_once(portal, nowhere):
    first = opendata.higgsml()
    second = opendata.higgsml()
    assert portal.requests == 1
    np.testing.assert_array_equal(first.features, second.features)
    assert [path.name for path in nowhere.iterdir()] == [FULL]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("cut", r"cannot download .* check the network"),
        ("busy", r"cannot download .*\(HTTPError\)"),
        ("hang", r"cannot download .* set NABLAB_DATA"),
    ],
)
def test_failed_download_leaves_no_trace(portal, nowhere, monkeypatch, mode, message):
    monkeypatch.setattr(_downloads, "TIMEOUT", (0.3, 0.3))
    portal.mode = mode
    with pytest.raises(OpenDataError, match=message):
        opendata.higgsml()
    assert list(nowhere.iterdir()) == []
    portal.mode = "whole"
    monkeypatch.setattr(_downloads, "TIMEOUT", (5, 5))
    assert len(opendata.higgsml()) == 60


def test_wrong_content_is_not_kept(portal, nowhere):
    good, portal.content = portal.content, b"<html>maintenance</html>"
    with pytest.raises(OpenDataError, match=r"not the published file.*nothing was kept"):
        opendata.higgsml()
    assert list(nowhere.iterdir()) == []
    portal.content = good
    assert len(opendata.higgsml()) == 60


def test_damaged_cache_is_replaced(portal, nowhere):
    opendata.higgsml()
    flip_a_byte(nowhere / FULL)
    assert len(opendata.higgsml()) == 60
    assert portal.requests == 2


def test_unwritable_cache(portal, nowhere):
    nowhere.write_text("a file in the place of the folder")
    with pytest.raises(OpenDataError, match=r"cannot write .* into the cache"):
        opendata.higgsml()


def test_no_network_fails_fast(nowhere, monkeypatch):
    monkeypatch.setitem(
        opendata.SOURCES, "Zmumu.csv", ("https://portal.invalid/Zmumu.csv", "0" * 40)
    )
    start = time.perf_counter()
    with pytest.raises(OpenDataError, match=r"check the network .* set NABLAB_DATA"):
        opendata.zmumu()
    assert time.perf_counter() - start < 20


# ---- the muons -------------------------------------------------------------------------------


@needs_muons
def test_z_peak():
    muons = opendata.zmumu()
    assert set(muons) == set(opendata.ZMUMU_COLUMNS)
    assert len(muons["pt1"]) in (10_000, 10_583)
    assert muons["Event"].dtype.kind == "i"
    angles = np.cosh(muons["eta1"] - muons["eta2"]) - np.cos(muons["phi1"] - muons["phi2"])
    mass = np.sqrt(2 * muons["pt1"] * muons["pt2"] * angles)  # GeV, muon masses neglected
    assert mass.min() > 59.9
    assert mass.max() < 120.1
    counts, edges = np.histogram(mass, np.arange(60, 120.5, 0.5))
    peak = edges[np.argmax(counts)] + 0.25
    assert peak == pytest.approx(91.19, abs=1.0)
    assert np.mean(muons["Q1"] * muons["Q2"] == -1) > 0.95


@needs_muons
def test_checksum_of_the_portals_muons():
    """The portal's file is the first 10,000 lines of the teaching material's, with 4 decimals."""
    text = pandas.read_csv(real("Zmumu_Run2011A.csv"))[:10_000].to_csv(
        index=False, float_format="%.4f", lineterminator="\n"
    )
    assert hashlib.sha1(text.encode()).hexdigest() == opendata.SOURCES["Zmumu.csv"][1]


# ---- parts and network inputs ----------------------------------------------------------------


@pytest.fixture
def events(tmp_path):
    return opendata.higgsml(written(small_table(600), tmp_path))


def test_split_keeps_the_yields_of_every_part(events):
    parts = opendata.split(events, key=7, fractions=(0.5, 0.3, 0.2))
    assert [len(part) for part in parts] == [300, 180, 120]
    for part in parts:
        assert_is_higgsml(part)
        assert part.labels.mean() == pytest.approx(1 / 3)
    # Every event is in exactly one part, with its own label and weight.
    met = np.concatenate([part["PRI_met"] for part in parts])
    np.testing.assert_array_equal(np.sort(met), np.sort(events["PRI_met"]))
    row = {value: number for number, value in enumerate(events["PRI_met"])}
    for part in parts:
        rows = [row[value] for value in part["PRI_met"]]
        np.testing.assert_array_equal(part.labels, events.labels[rows])
        for label in (True, False):
            ratio = (part.weights / events.weights[rows])[part.labels == label]
            np.testing.assert_allclose(ratio, ratio[0])


def test_split_is_random_and_repeatable(events):
    first, again = opendata.split(events, key=7), opendata.split(events, key=jax.random.key(7))
    other = opendata.split(events, key=8)
    np.testing.assert_array_equal(first[0].features, again[0].features)
    assert not np.array_equal(first[0]["PRI_met"], other[0]["PRI_met"])
    assert not np.array_equal(first[0]["PRI_met"], events["PRI_met"][:300])


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.5, 0.4), "sum 1"),
        ((1.2, -0.2), "positive"),
        ((0.9999, 0.0001), "no signal events"),
    ],
)
def test_split_that_cannot_be(events, fractions, message):
    with pytest.raises(ValueError, match=message):
        opendata.split(events, key=7, fractions=fractions)


def test_select(events):
    chosen = opendata.select(events, events["PRI_met"] > 50)
    assert 0 < len(chosen) < len(events)
    assert chosen["PRI_met"].min() > 50


def test_inputs(events):
    train, held_out = opendata.split(events, key=7, fractions=(0.5, 0.5))
    to_inputs = opendata.inputs(train)
    values = to_inputs(train)
    assert values.shape == (300, 33)
    assert values.dtype == np.float32
    present = np.ma.masked_array(values[:, :30], np.isnan(train.features))
    np.testing.assert_allclose(present.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(present.std(axis=0), 1, rtol=1e-5)
    # Missing entries are 0, and flagged by the last three columns.
    assert np.all(values[:, :30][np.isnan(train.features)] == 0)
    for column, name in zip((30, 31, 32), opendata.MISSING_INDICATORS, strict=True):
        np.testing.assert_array_equal(values[:, column], np.isnan(train[name]))
    # The logarithm is taken of the long tails: order kept, and a known value reproduced.
    met = np.log1p(train["PRI_met"])
    column = train.names.index("PRI_met")
    np.testing.assert_allclose(values[:, column], (met - met.mean()) / met.std(), atol=1e-5)
    assert np.isfinite(to_inputs(held_out)).all()


def test_inputs_use_the_training_sample_only(events):
    """Other held-out events do not change the inputs of an event."""
    train, held_out = opendata.split(events, key=7, fractions=(0.5, 0.5))
    to_inputs = opendata.inputs(train)
    together = to_inputs(held_out)
    few = to_inputs(opendata.select(held_out, np.arange(5)))
    np.testing.assert_array_equal(few, together[:5])
    assert abs(together[:, train.names.index("PRI_tau_eta")].mean()) > 1e-6


def test_inputs_with_a_column_that_is_constant_or_missing(events):
    features = events.features.copy()
    features[:, 3] = 12.0
    features[:, 4] = np.nan
    values = opendata.inputs(replace(events, features=features))(events)
    assert np.isfinite(values).all()


def test_inputs_of_other_columns(events):
    fewer = replace(events, features=events.features[:, :5], names=events.names[:5])
    assert opendata.inputs(fewer)(fewer).shape == (600, 6)
    with pytest.raises(ValueError, match="select the same ones"):
        opendata.inputs(events)(fewer)


@needs_higgs
def test_real_inputs():
    train, _, test = opendata.split(opendata.higgsml(), key=1)
    values = opendata.inputs(train)(test)
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 20
