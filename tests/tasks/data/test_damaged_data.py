"""Data that are not the published ones, or were damaged, end in one sentence, and soon."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data import cifar10, maf, measurements, ts_file
from tasks.data.cache import prepared
from tasks.data.errors import DataError
from tasks.data.images import read_cifar10
from tasks.data.measurements import read_plane_vibration, read_silverbox, read_walker2d
from tasks.data.tables import read_miniboone
from tasks.data.uea import ANOTHER_COPY, FACTS, Facts, read_uea
from tests.support import damaged
from tests.support.ts_files import write_ts

# --- MINIBOONE ------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).normal(3.0, 2.0, (200, 43))


def constant(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[:, 7] = 1.5
    return rows


BAD_ROWS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "int": (lambda rows: rows.astype(np.int64), "expected floating-point numbers, found int64"),
    "bool": (lambda rows: rows > 3, "expected floating-point numbers, found bool"),
    "constant": (constant, r"column 7 is 1\.5 in all"),
    "NaN": (lambda rows: np.where(rows == rows[3, 4], np.nan, rows), "NaN or infinite"),
    "shape": (lambda rows: rows[:, :42], "expected an array of shape"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
@pytest.mark.parametrize("name", ["data.npy", "val.npy"])
def test_miniboone_of_another_kind(tmp_path, monkeypatch, what, name) -> None:
    monkeypatch.setattr(maf, "MINIBOONE_ROWS", 200)
    monkeypatch.setattr(maf, "MINIBOONE_VALID", 200)
    (tmp_path / "miniboone").mkdir()
    change, said = BAD_ROWS[what]
    np.save(tmp_path / "miniboone" / "test.npy", ROWS)
    np.save(tmp_path / "miniboone" / name, change(ROWS))
    with pytest.raises(DataError, match=said):
        read_miniboone(tmp_path, 0)


@pytest.mark.parametrize("name", ["val", "test"])
def test_other_rows_of_miniboones_size(real_data: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(real_data / "miniboone", tmp_path / "miniboone")
    path = tmp_path / "miniboone" / f"{name}.npy"
    path.chmod(0o644)
    np.save(path, np.load(path)[::-1])  # the same, in another order
    with pytest.raises(DataError, match=f"{name}.npy: the .* rows are not those of MAF's"):
        read_miniboone(tmp_path, 0)


# --- measurements ---------------------------------------------------------------------------------


def test_walker2d_of_integers(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(measurements, "WALKER_ROLLOUTS", 2)
    (tmp_path / "walker2d").mkdir()
    data = np.arange(8 * 17).reshape(8, 17)
    np.savez(tmp_path / "walker2d" / "walker2d_float32.npz", data=data, lengths=[3, 5])
    with pytest.raises(DataError, match="expected floating-point numbers, found int64"):
        read_walker2d(tmp_path)


def test_walker2d_of_other_numbers(tmp_path) -> None:
    (tmp_path / "walker2d").mkdir()
    data = np.random.default_rng(0).normal(size=(400 * 131, 17)).astype(np.float32)
    path = tmp_path / "walker2d" / "walker2d_float32.npz"
    np.savez(path, data=data, lengths=np.full(400, 131))
    with pytest.raises(DataError, match="the values are not the published ones"):
        read_walker2d(tmp_path)


def test_silverbox_of_other_numbers(tmp_path) -> None:
    (tmp_path / "silverbox").mkdir()
    text = '"V1","V2"\n' + "0.5,1\n" * measurements.SILVERBOX_ROWS
    (tmp_path / "silverbox" / "SNLS80mV.csv").write_text(text)
    with pytest.raises(DataError, match="the values are not the published ones"):
        read_silverbox(tmp_path)


def bomb(path: Path, head: bytes, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(size >> 20):
            file.write(b"\n" * (1 << 20))
    return path


@pytest.mark.parametrize("head", [b"", b'"V1","V2"\n', b'"V1","V2"\n1,2\n'])
def test_a_small_file_that_unpacks_to_much(tmp_path, head) -> None:
    path = bomb(tmp_path / "silverbox" / "SNLS80mV.csv.gz", head, 300 << 20)
    assert path.stat().st_size < 2 << 20
    begin = time.monotonic()
    with pytest.raises(DataError, match="holds more than 16777216 bytes; refused"):
        read_silverbox(tmp_path)
    assert time.monotonic() - begin < 5


def test_lines_of_nothing(tmp_path) -> None:
    bomb(tmp_path / "f16" / "F16Data_FullMSine_Level1.csv.gz", b"", 1 << 20)
    with pytest.raises(DataError, match="expected columns Force"):
        read_plane_vibration(tmp_path)
    bomb(tmp_path / "silverbox" / "SNLS80mV.csv.gz", b'"V1","V2"\n', 1 << 20)
    with pytest.raises(DataError, match="has no rows below its header"):
        read_silverbox(tmp_path)


@pytest.mark.parametrize("what", ["walker2d/walker2d_float32.npz", "cifar10/cifar10_first5000.npz"])
def test_a_numpy_archive_that_unpacks_to_much(tmp_path, monkeypatch, what) -> None:
    monkeypatch.setattr(measurements, "MOST_NPZ", 1 << 16)
    monkeypatch.setattr(cifar10, "MOST_NPZ", 1 << 16)
    (tmp_path / what).parent.mkdir()
    np.savez_compressed(tmp_path / what, data=np.zeros(1 << 14), lengths=[1])
    with pytest.raises(DataError, match=r"claims \d+ bytes unpacked, more than the 65536"):
        (read_walker2d if what.startswith("walker") else read_cifar10)(tmp_path)


# --- series ---------------------------------------------------------------------------------------

SMALL = Facts(((2, 2),), channels=2, classes=2, longest=3)


def uea_zip(root: Path, more: str = "") -> Path:
    path = root / "uea" / "Small.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for part in ("TRAIN", "TEST"):
            source = write_ts(
                root / "unpacked" / f"Small_{part}.ts", ["1,2,3:4,5,6:a", "7,8:9,10:b"]
            )
            file.writestr(source.name, source.read_text() + more)
    return path


@pytest.mark.parametrize("size", [80 << 20, 1 << 20])
def test_a_series_archive_that_unpacks_to_much(tmp_path, monkeypatch, size) -> None:
    monkeypatch.setitem(FACTS, "Small", SMALL)
    uea_zip(tmp_path, "\n" * size)
    said = "claims .* bytes; refused" if size > ts_file.MOST_BYTES else "lines; refused"
    begin = time.monotonic()
    with pytest.raises(DataError, match=said):
        read_uea("Small", tmp_path)
    assert time.monotonic() - begin < 5


def test_official_series_with_one_value_changed_are_named(real_data: Path, monkeypatch) -> None:
    from tasks.data import uea

    parse = uea._parse

    def changed(*args: Any) -> Any:
        arrays = parse(*args)
        arrays["values"][3, 2, 1] += 1e-9
        return arrays

    assert ANOTHER_COPY not in read_uea("BasicMotions", Path("/nowhere")).provenance
    monkeypatch.setattr(uea, "_parse", changed)
    assert read_uea("BasicMotions", Path("/nowhere")).provenance.endswith(ANOTHER_COPY)


# --- CIFAR-10 -------------------------------------------------------------------------------------


def write_cifar10(root: Path, *, train: int = 40, test: int = 20, same: bool = False) -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (train, 3, 32, 32), dtype=np.uint8)
    z = x[:test] if same else draw.integers(0, 256, (test, 3, 32, 32), dtype=np.uint8)
    path = root / cifar10.SUBSET
    path.parent.mkdir(parents=True, exist_ok=True)
    y = np.arange(train) % 10
    np.savez(path, x_train=x, y_train=y, x_test=z, y_test=y[:test])


def test_cifar10_that_is_tested_on_what_it_is_trained_on(tmp_path) -> None:
    write_cifar10(tmp_path)
    read_cifar10(tmp_path)
    write_cifar10(tmp_path, same=True)
    with pytest.raises(DataError, match="20 of 20 test images are training images too"):
        read_cifar10(tmp_path)


def test_cifar10_of_other_images(tmp_path) -> None:
    write_cifar10(tmp_path, train=5000)
    with pytest.raises(DataError, match="the values are not the published ones"):
        read_cifar10(tmp_path)


# --- what was prepared ----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["NaN", "other source", "without a digest", "turned bit", "cut"])
def test_a_cache_that_is_not_what_was_kept_is_made_again(tmp_path, what, caplog) -> None:
    arrays = {"rows": np.arange(300.0).reshape(100, 3), "count": np.array(3)}
    prepared(tmp_path, "key", lambda: arrays)
    path = tmp_path / ".prepared" / "key.npz"
    with np.load(path) as stored:
        kept = {name: stored[name] for name in stored.files}
    if what == "NaN":
        kept["rows"][5] = np.nan
        np.savez(path, **kept)
    elif what == "other source":
        prepared(tmp_path, "other", lambda: {"rows": np.zeros((100, 3)), "count": np.array(3)})
        (tmp_path / ".prepared" / "other.npz").replace(path)
    elif what == "without a digest":
        np.savez(path, **arrays)
    elif what == "turned bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 4
        path.write_bytes(content)
    else:
        path.write_bytes(path.read_bytes()[:-200])
    again = prepared(tmp_path, "key", lambda: arrays)
    assert "made again" in caplog.text
    np.testing.assert_array_equal(again["rows"], arrays["rows"])
    kept_now = prepared(tmp_path, "key", lambda: pytest.fail("made once more"))
    np.testing.assert_array_equal(kept_now["rows"], arrays["rows"])


# --- campaigns ------------------------------------------------------------------------------------


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file that was cut, overwritten in part, had a bit turned, or a piece twice or left out."""
    a, b = sorted(draw.randrange(len(content)) for _ in range(2))
    return draw.choice(
        [
            lambda: content[:a],
            lambda: content[:a] + bytes(draw.randrange(256) for _ in range(30)) + content[a + 30 :],
            lambda: damaged.flipped(content, draw),
            lambda: content[:b] + content[a:],
            lambda: content[:a] + content[b:],
        ]
    )()


def mutate_files(root: Path, files: list[str], read: Callable[[], Any], count: int) -> None:
    """Damage one of the files at a time: a DataError, or what the whole files give."""
    draw = random.Random(" ".join(files))
    whole, contents = read(), {name: (root / name).read_bytes() for name in files}
    refused = longest = 0
    for _ in range(count):
        name = draw.choice(files)
        (root / name).write_bytes(changed_bytes(contents[name], draw))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read()
        except DataError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        else:
            for one, other in zip(found, whole, strict=True):
                np.testing.assert_array_equal(one, other)
        (root / name).write_bytes(contents[name])
    assert refused > count // 2
    assert longest < 800


def packed(root: Path, monkeypatch: Any) -> dict[str, tuple[list[str], Callable[[], Any]]]:
    """Small files of each kind, with the fingerprints of what is in them."""
    from tasks.data.integrity import fingerprint

    draw = np.random.default_rng(0)
    table = draw.normal(size=(50, 2)).round(4)
    lines = "".join(f"{a},{b}\n" for a, b in table)
    silverbox = root / "silverbox" / "SNLS80mV.csv.gz"
    silverbox.parent.mkdir(parents=True)
    silverbox.write_bytes(gzip.compress(f'"V1","V2"\n{lines}'.encode()))
    monkeypatch.setattr(measurements, "SILVERBOX_ROWS", 50)
    monkeypatch.setattr(measurements, "SILVERBOX", {50: fingerprint(table)})

    frames = draw.normal(size=(12, 17)).astype(np.float32)
    (root / "walker2d").mkdir()
    walker = "walker2d/walker2d_float32.npz"
    np.savez(root / walker, data=frames, lengths=np.array([5, 7]))
    monkeypatch.setattr(measurements, "WALKER_ROLLOUTS", 2)
    monkeypatch.setattr(measurements, "WALKER", {2: fingerprint(frames, np.array([5, 7]))})

    monkeypatch.setattr(cifar10, "FIRST_TRAIN", (20, ""))
    write_cifar10(root, train=20, test=10)
    with np.load(root / cifar10.SUBSET) as stored:
        known = [fingerprint(stored[f"x_{p}"], stored[f"y_{p}"]) for p in ("train", "test")]
    monkeypatch.setattr(cifar10, "FIRST_TRAIN", (20, known[0]))
    monkeypatch.setattr(cifar10, "FIRST_TEST", (10, known[1]))

    monkeypatch.setitem(FACTS, "Small", SMALL)
    uea_zip(root)

    def images() -> Any:
        found = read_cifar10(root)
        return [*found.train, *found.test]

    def series() -> Any:
        found = read_uea("Small", root)
        return [found.values, found.lengths, found.labels]

    return {
        "silverbox": ([str(silverbox.relative_to(root))], lambda: [read_silverbox(root)]),
        "walker2d": ([walker], lambda: read_walker2d(root)),
        "cifar10": ([str(cifar10.SUBSET)], images),
        "uea": (["uea/Small.zip"], series),
    }


KINDS = ("silverbox", "walker2d", "cifar10", "uea")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_as_they_were(tmp_path, monkeypatch, kind) -> None:
    mutate_files(tmp_path, *packed(tmp_path, monkeypatch)[kind], 15)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_five_hundred_damaged_files(tmp_path, monkeypatch, kind) -> None:
    mutate_files(tmp_path, *packed(tmp_path, monkeypatch)[kind], 125)


def test_numbers_changed_in_an_undamaged_archive(tmp_path, monkeypatch) -> None:
    packed(tmp_path, monkeypatch)
    path = tmp_path / "walker2d" / "walker2d_float32.npz"
    with np.load(path) as stored:
        data, lengths = stored["data"], stored["lengths"]
    for change in (data * 2, data[::-1], np.zeros_like(data), data.astype(np.float16)):
        buffer = io.BytesIO()
        np.savez(buffer, data=change, lengths=lengths)
        path.write_bytes(buffer.getvalue())
        with pytest.raises(DataError, match="not the published ones"):
            read_walker2d(tmp_path)
