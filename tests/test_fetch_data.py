"""``make data``: what is fetched once, checked, unpacked and found again, and what can go wrong."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import needs
import pooch
import pytest
import requests
from published import DATA

import fetch_data

HIGGS_LINES = [b"EventId,Weight\n", *(b"%d,0.5\n" % event for event in range(100))]
CONTENT = {f"RegionA/patch.sbottom_{point}.json": point.encode() for point in fetch_data.POINTS}
CONTENT["RegionA/BkgOnly.json"] = b"{}"


def archive():
    """What HEPData has for sbottom, but small."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as members:
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def internet(tmp_path, monkeypatch):
    """What each address answers, as a dict; an empty cache, and an empty folder for the data."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(fetch_data, "EVENTS", 3)
    higgs = gzip.compress(b"".join(HIGGS_LINES))
    answers, small = {}, []
    contents = archive(), b"{}", b"pt1\n1.0\n", higgs
    for source, content in zip(fetch_data.sources(), contents, strict=True):
        answers |= dict.fromkeys(source.addresses, content)
        small.append(source._replace(checksum=f"sha256:{hashlib.sha256(content).hexdigest()}"))
    monkeypatch.setattr(fetch_data, "sources", lambda: small)

    def download(address, file, _):
        if address not in answers:
            raise requests.ConnectionError
        Path(file).write_bytes(answers[address])

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **settings: download)
    return answers


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_everything_lies_where_the_tests_look_for_it(internet, tmp_path, capsys):
    assert fetch_data.main() == 0
    assert capsys.readouterr().out.count("fetched: ") == 4
    found = files(tmp_path / "data")
    assert gzip.decompress(found.pop(fetch_data.HIGGS_SUBSET)) == b"".join(HIGGS_LINES[:4])
    assert found.pop(fetch_data.TTBAR) == b"{}" and found.pop(fetch_data.MUONS) == b"pt1\n1.0\n"
    assert found == {
        f"workspaces/atlas-sbottom-multib/{name}": content for name, content in CONTENT.items()
    }
    for files_of_notebook in needs.NOTEBOOKS["12_open_data.ipynb"]:
        assert needs.reason_to_skip(*files_of_notebook) is None


def test_what_is_there_is_not_fetched_again(internet, tmp_path, capsys):
    fetch_data.main()
    first = files(tmp_path / "data")
    internet.clear()
    (tmp_path / "data" / fetch_data.HIGGS_SUBSET).unlink()
    (tmp_path / "data" / fetch_data.SBOTTOM / "BkgOnly.json").unlink()
    capsys.readouterr()
    assert fetch_data.main() == 0  # from the cache, to the same bytes
    assert files(tmp_path / "data") == first
    said = capsys.readouterr().out
    assert said.count("fetched: ") == 2 and said.count("here: ") == 2


def test_another_address_is_asked(internet, tmp_path):
    first, _ = fetch_data.sources()[0].addresses
    del internet[first]
    assert fetch_data.main() == 0
    assert len(files(tmp_path / "data")) == len(CONTENT) + 3


def test_a_damaged_download_is_not_kept_and_the_others_come(internet, tmp_path, capsys):
    (address,) = fetch_data.sources()[2].addresses
    internet[address] = b"<html>maintenance</html>"
    assert fetch_data.main() == 1
    said = capsys.readouterr().err
    assert said.startswith(f"1 of 4 downloads failed: what came from {address}")
    assert "is not the published file" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "cache" / "Zmumu_Run2011A.csv").exists()
    assert fetch_data.MUONS not in files(tmp_path / "data")
    assert len(files(tmp_path / "data")) == len(CONTENT) + 2


def test_without_a_network_there_is_one_sentence(internet, tmp_path, capsys):
    internet.clear()
    assert fetch_data.main() == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("4 of 4 downloads failed: cannot download https://")
    assert "(ConnectionError): check the network and try again" in said
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_written(internet, tmp_path, capsys):
    (tmp_path / "data").write_text("a file in the place of the folder")
    assert fetch_data.main() == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "cannot write into" in said and "set NABLAB_DATA to another folder" in said


def test_which_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_data, "ROOT", tmp_path / "nablab")
    monkeypatch.delenv("NABLAB_DATA", raising=False)
    assert fetch_data.folder() == tmp_path / "nablab" / "build" / "data"
    (tmp_path / "shared" / "data" / "opendata").mkdir(parents=True)
    assert fetch_data.folder() == tmp_path / "shared" / "data"
    monkeypatch.setenv("NABLAB_DATA", str(tmp_path))
    assert fetch_data.folder() == tmp_path


def test_addresses_stay_the_same():
    """Each with a checksum; those in a repository with the commit."""
    for source in fetch_data.sources():
        assert source.checksum.partition(":")[0] in ("sha1", "sha256")
        for address in source.addresses:
            assert address.startswith("https://")
            if address.startswith(fetch_data.GITHUB):
                commit = address.removeprefix(fetch_data.GITHUB).split("/")[3]
                assert len(commit) == 40 and int(commit, 16)


@pytest.mark.needs(fetch_data.TTBAR)
@pytest.mark.needs(fetch_data.MUONS)
def test_checksums_are_those_of_the_files():
    for source in fetch_data.sources():
        if source.content is fetch_data.whole:
            (name,) = source.files
            assert f"sha256:{pooch.file_hash(DATA / name)}" == source.checksum
