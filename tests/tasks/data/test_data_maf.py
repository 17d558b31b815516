"""GAS and MINIBOONE: MAF's preparation, and a pickle that nobody opens without its checksum."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.data import download, maf
from tasks.data.errors import DataError
from tasks.data.tables import read_gas, read_miniboone
from tests.support import python2_pickle
from tests.support.bad_server import BadServer, unreachable
from tests.support.python2_pickle import Named

Patch = pytest.MonkeyPatch
OFFICIAL = {name: getattr(maf, name) for name in ("MINIBOONE_VALID", "MINIBOONE_TEST")}


@pytest.fixture(autouse=True)
def _small_and_impatient(monkeypatch: Patch) -> None:
    monkeypatch.setattr(maf, "MINIBOONE_ROWS", 1000)
    monkeypatch.setattr(maf, "MINIBOONE_VALID", 200)
    monkeypatch.setattr(maf, "MINIBOONE_TEST", 100)
    monkeypatch.setattr(maf, "URLS", (unreachable(),))
    defaults = {"timeout": 1.0, "attempts": 1, "pause": 0.0}
    monkeypatch.setattr(download.fetch, "__kwdefaults__", defaults)


def miniboone_rows() -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, (1000, 43))


def gas_frame() -> pd.DataFrame:
    """Eight independent sensors, two that follow others, and the columns that are dropped."""
    generator = np.random.default_rng(0)
    sensors = {f"s{i}": generator.normal(i, 1 + i, 500) for i in range(8)}
    sensors["s0 again"] = 3.0 * sensors["s0"] + 0.01 * generator.normal(size=500)
    sensors["s4 again"] = sensors["s4"] + 0.01 * generator.normal(size=500)
    rest = {name: np.arange(500.0) for name in ("Meth", "Eth", "Time")}
    return pd.DataFrame({**rest, **sensors})


def archive(root: Path, monkeypatch: Patch | None, **members: bytes) -> Path:
    path = root / "maf" / maf.ARCHIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(f"data/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    if monkeypatch is not None:
        found = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setattr(maf, "ARCHIVE_MD5", f"md5:{found}")
    return path


def npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def gas_archive(root: Path, monkeypatch: Patch | None, content: bytes | None = None) -> Path:
    pickled = pickle.dumps(gas_frame()) if content is None else content
    return archive(root, monkeypatch, **{"gas/ethylene_CO.pickle": pickled})


@pytest.mark.parametrize("folder", ["maf/miniboone", "miniboone"])
def test_miniboone_is_divided_and_standardised_as_in_maf(tmp_path: Path, folder: str) -> None:
    rows = miniboone_rows()
    (tmp_path / folder).mkdir(parents=True)
    np.save(tmp_path / folder / "data.npy", rows)
    table = read_miniboone(tmp_path, 0)
    assert [len(table.train), len(table.valid), len(table.test)] == [810, 90, 100]
    known = np.concatenate([table.train, table.valid])
    np.testing.assert_allclose(known.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(known.std(axis=0), 1.0)
    expected = (rows[-100:] - rows[:900].mean(axis=0)) / rows[:900].std(axis=0)
    np.testing.assert_allclose(table.test, expected)
    assert table.provenance == "complete"


def test_miniboone_out_of_the_archive(
    tmp_path: Path, monkeypatch: Patch, bad_server: BadServer
) -> None:
    packed = archive(tmp_path, monkeypatch, **{"miniboone/data.npy": npy(miniboone_rows())})
    bad_server.content = packed.read_bytes()
    monkeypatch.setattr(maf, "URLS", (bad_server.url("missing"), bad_server.url("good")))
    packed.unlink()
    first = read_miniboone(tmp_path, 0)
    packed.unlink()  # no longer needed
    np.testing.assert_array_equal(read_miniboone(tmp_path, 0).train, first.train)


def test_what_was_downloaded_to_a_new_folder_is_kept_there(
    tmp_path: Path, monkeypatch: Patch, bad_server: BadServer
) -> None:
    packed = archive(
        tmp_path / "source", monkeypatch, **{"miniboone/data.npy": npy(miniboone_rows())}
    )
    bad_server.content = packed.read_bytes()
    monkeypatch.setattr(maf, "URLS", (bad_server.url("good"),))
    read_miniboone(tmp_path / "root", 0)
    assert len(list((tmp_path / "root" / "maf" / ".prepared").glob("miniboone-*.npz"))) == 1


def test_miniboone_out_of_a_folder_that_is_read_only(tmp_path: Path, monkeypatch: Patch) -> None:
    packed = archive(tmp_path, monkeypatch, **{"miniboone/data.npy": npy(miniboone_rows())})
    packed.parent.chmod(0o555)
    try:
        assert len(read_miniboone(tmp_path, 0).train) == 810
    finally:
        packed.parent.chmod(0o755)
    assert [path.name for path in packed.parent.iterdir()] == [packed.name]


def test_miniboone_subset_says_so(tmp_path: Path) -> None:
    (tmp_path / "miniboone").mkdir()
    for name, part in (("val", miniboone_rows()[:200]), ("test", miniboone_rows()[200:300])):
        np.save(tmp_path / "miniboone" / f"{name}.npy", part)
    table = read_miniboone(tmp_path, 0)
    np.testing.assert_array_equal(
        np.concatenate([table.train, table.valid]), miniboone_rows()[:200]
    )
    np.testing.assert_array_equal(table.test, miniboone_rows()[200:300])
    assert "subset" in table.provenance
    assert "not its training rows" in table.provenance


def test_official_miniboone_subset(real_data: Path, monkeypatch: Patch) -> None:
    for name, value in OFFICIAL.items():
        monkeypatch.setattr(maf, name, value)
    if not (real_data / "miniboone" / "val.npy").is_file():
        pytest.skip("the whole of MINIBOONE is there")
    table = read_miniboone(real_data, 0)
    assert [len(table.train), len(table.valid), len(table.test)] == [2956, 328, 3648]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "shape"),
        (lambda rows: rows + 1j, "complex128"),
        (lambda rows: np.rec.fromarrays([rows[:, 0]]), "no NumPy array"),
        (lambda rows: rows[:, :-1], "shape"),
        (lambda rows: np.where(rows == rows[7, 3], np.nan, rows), r"NaN.*index \(7, 3\)"),
    ],
)
def test_bad_miniboone(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "miniboone" / "data.npy"
    path.parent.mkdir()
    np.save(path, change(miniboone_rows()))
    with pytest.raises(DataError, match=said) as caught:
        read_miniboone(tmp_path, 0)
    assert str(path) in str(caught.value)


def test_truncated_or_pickled_miniboone(tmp_path: Path) -> None:
    path = tmp_path / "miniboone" / "data.npy"
    path.parent.mkdir()
    path.write_bytes(npy(miniboone_rows())[:-8])
    with pytest.raises(DataError, match="truncated"):
        read_miniboone(tmp_path, 0)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="no NumPy array"):
        read_miniboone(tmp_path, 0)
    for content in (b"PK\x03\x04 and no zip", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no NumPy array"):
            read_miniboone(tmp_path, 0)


def test_miniboone_subset_of_other_rows(tmp_path: Path) -> None:
    (tmp_path / "miniboone").mkdir()
    np.save(tmp_path / "miniboone" / "val.npy", miniboone_rows()[:200])
    np.save(tmp_path / "miniboone" / "test.npy", miniboone_rows()[:7])
    with pytest.raises(DataError, match=r"test.npy: expected an array of shape \(100, 43\)"):
        read_miniboone(tmp_path, 0)


def test_gas_as_in_maf(tmp_path: Path, monkeypatch: Patch) -> None:
    path = gas_archive(tmp_path, monkeypatch)
    table = read_gas(tmp_path, 0)
    frame = gas_frame()
    names = [f"s{i}" for i in (1, 2, 3, 5, 6, 7)] + ["s0 again", "s4 again"]
    kept = frame[names]
    expected = ((kept - kept.mean()) / kept.std()).to_numpy()
    np.testing.assert_allclose(np.concatenate([table.train, table.valid, table.test]), expected)
    assert [len(table.train), len(table.valid), len(table.test)] == [405, 45, 50]

    path.unlink()  # what was prepared is kept
    np.testing.assert_array_equal(read_gas(tmp_path, 0).train, table.train)


@pytest.mark.parametrize(
    ("base", "rows"),
    [
        ("pandas.indexes.base", Named("pandas.indexes.range", "RangeIndex")),
        ("pandas.core.indexes.base", Named("pandas.core.indexes.range", "RangeIndex")),
        ("pandas.core.indexes.base", Named("pandas.core.indexes.numeric", "Int64Index")),
        ("pandas.core.index", Named("pandas.core.index", "Int64Index")),
    ],
)
def test_gas_as_pandas_wrote_it_under_python_2(
    tmp_path: Path, monkeypatch: Patch, base: str, rows: Named
) -> None:
    gas_archive(tmp_path / "new", monkeypatch)
    expected = read_gas(tmp_path / "new", 0)
    gas_archive(tmp_path / "old", monkeypatch, python2_pickle.pickled(gas_frame(), base, rows))
    np.testing.assert_array_equal(read_gas(tmp_path / "old", 0).train, expected.train)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickle_of_an_unknown_archive_is_not_opened(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = gas_archive(tmp_path, None, pickle.dumps(Malicious(trap)))
    with pytest.raises(DataError, match="expected md5:9b9c9b03") as caught:
        read_gas(tmp_path, 0)
    assert str(path) in str(caught.value)
    assert not trap.exists()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_gas_pickle_that_pandas_cannot_read(tmp_path: Path, monkeypatch: Patch) -> None:
    gas_archive(tmp_path, monkeypatch, b"no pickle")
    with pytest.raises(DataError, match=r"ethylene_CO.pickle cannot be read by pandas"):
        read_gas(tmp_path, 0)
    assert not list((tmp_path / "maf").glob(".prepared/*"))


def test_missing_gas_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing and could not be downloaded.*curl -L"):
        read_gas(tmp_path, 0)
