"""Image readers: official files, small ones in their format, broken ones that are refused."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from tasks.data import cifar10, download, images
from tasks.data.errors import DataError
from tasks.data.images import read_cifar10, read_digits, read_mnist, read_svhn
from tasks.data.torchvision_compat import torchvision_datasets
from tests.support import console
from tests.support.bad_server import BadServer, unreachable

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: Patch) -> None:
    defaults = {"timeout": 1.0, "attempts": 2, "pause": 0.0}
    monkeypatch.setattr(download.fetch, "__kwdefaults__", defaults)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_digits(tmp_path: Path) -> None:
    images = read_digits(tmp_path)
    assert images.train[0].shape == (1527, 1, 8, 8)
    assert images.test[0].shape == (270, 1, 8, 8)
    assert images.train[0].max() == images.brightest == 16
    shares = np.bincount(images.test[1]) / np.bincount(
        np.concatenate([images.train[1], images.test[1]])
    )
    np.testing.assert_allclose(shares, 0.15, atol=0.01)


# MNIST


def idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def write_mnist(root: Path, monkeypatch: Patch, train: int = 60000, labels: int = 10) -> Path:
    raw = root / "MNIST" / "raw"
    for name, count in (("train", train), ("t10k", 10000)):
        idx(raw / f"{name}-images-idx3-ubyte.gz", np.zeros((count, 28, 28), np.uint8))
        idx(raw / f"{name}-labels-idx1-ubyte.gz", (np.arange(count) % labels).astype(np.uint8))
    mnist = torchvision_datasets().MNIST
    resources = [(name, md5(raw / name)) for name, _ in mnist.resources]
    monkeypatch.setattr(mnist, "resources", resources)
    monkeypatch.setattr(mnist, "mirrors", [unreachable() + "/"])
    return raw


def test_official_mnist(real_data: Path) -> None:
    images = read_mnist(real_data)
    assert images.train[0].shape == (60000, 1, 28, 28)
    assert images.test[0].shape == (10000, 1, 28, 28)
    # The statistics that everybody standardises MNIST with.
    assert images.train[0].mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert images.train[0].std() / 255 == pytest.approx(0.3081, abs=1e-4)
    np.testing.assert_array_equal(images.train[1][:5], [5, 0, 4, 1, 9])


def test_mnist_leaves_its_folder_alone(tmp_path: Path, monkeypatch: Patch) -> None:
    raw = write_mnist(tmp_path, monkeypatch)
    before = sorted(raw.iterdir())
    read_mnist(tmp_path)
    assert sorted(raw.iterdir()) == before


def test_mnist_unpacked(tmp_path: Path, monkeypatch: Patch) -> None:
    raw = write_mnist(tmp_path, monkeypatch)
    for packed in list(raw.glob("*.gz")):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    known = {path.name: f"md5:{md5(path)}" for path in raw.iterdir()}
    assert known.keys() == images.MNIST_UNPACKED.keys()
    monkeypatch.setattr(images, "MNIST_UNPACKED", known)
    assert read_mnist(tmp_path).train[0].shape == (60000, 1, 28, 28)
    part = raw / "train-images-idx3-ubyte"
    content = bytearray(part.read_bytes())
    content[5000] = 1  # one pixel
    part.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged or not the official file.*Delete"):
        read_mnist(tmp_path)


def test_checksums_of_mnist_unpacked(real_data: Path) -> None:
    for name, known in images.MNIST_UNPACKED.items():
        packed = real_data / "MNIST" / "raw" / f"{name}.gz"
        assert known == f"md5:{hashlib.md5(gzip.decompress(packed.read_bytes())).hexdigest()}"


def test_truncated_mnist(tmp_path: Path, monkeypatch: Patch) -> None:
    raw = write_mnist(tmp_path, monkeypatch)
    part = raw / "train-images-idx3-ubyte.gz"
    expected = md5(part)
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(DataError) as caught:
        read_mnist(tmp_path)
    for said in (str(part), f"md5:{expected}", f"md5:{md5(part)}", "curl -L"):
        assert said in str(caught.value)


def test_missing_mnist_without_a_network(tmp_path: Path, monkeypatch: Patch) -> None:
    raw = write_mnist(tmp_path, monkeypatch)
    part = raw / "t10k-labels-idx1-ubyte.gz"
    part.unlink()
    with pytest.raises(DataError, match=f"{part}.*missing and could not be downloaded"):
        read_mnist(tmp_path)
    assert not part.exists()


def test_mnist_downloads_what_is_missing(
    tmp_path: Path, monkeypatch: Patch, bad_server: BadServer
) -> None:
    raw = write_mnist(tmp_path, monkeypatch)
    part = raw / "train-labels-idx1-ubyte.gz"
    bad_server.content = part.read_bytes()
    part.unlink()
    mirrors = [bad_server.url("missing/"), bad_server.url("good/")]
    monkeypatch.setattr(torchvision_datasets().MNIST, "mirrors", mirrors)
    read_mnist(tmp_path)
    assert part.read_bytes() == bad_server.content


@pytest.mark.parametrize(
    ("change", "said"), [({"train": 59999}, "shape"), ({"labels": 9}, r"no sample of class \[9\]")]
)
def test_mnist_that_is_something_else(
    tmp_path: Path, monkeypatch: Patch, change: dict[str, int], said: str
) -> None:
    write_mnist(tmp_path, monkeypatch, **change)
    with pytest.raises(DataError, match=said):
        read_mnist(tmp_path)


# SVHN


def write_svhn(root: Path, monkeypatch: Patch, labels: Callable[[int], int] = lambda i: i) -> Path:
    folder = root / "svhn"
    folder.mkdir(parents=True)
    svhn = torchvision_datasets().SVHN
    changed = {}
    for split, count in (("train", 40), ("test", 20)):
        _, name, _ = svhn.split_list[split]
        pixels = np.arange(32 * 32 * 3 * count, dtype=np.uint64).astype(np.uint8)
        digits = np.array([labels(i % 10) or 10 for i in range(count)], np.uint8)[:, None]
        # As in the official files: sample last, and 10 for zero.
        content = {"X": pixels.reshape(32, 32, 3, count), "y": digits}
        scipy.io.savemat(folder / name, content, do_compression=True)
        changed[split] = [unreachable(), name, md5(folder / name)]
    monkeypatch.setattr(svhn, "split_list", changed)
    return folder


def test_svhn_in_the_official_format(tmp_path: Path, monkeypatch: Patch) -> None:
    write_svhn(tmp_path, monkeypatch)
    images = read_svhn(tmp_path)
    assert images.train[0].shape == (40, 3, 32, 32)
    assert images.test[0].shape == (20, 3, 32, 32)  # the test part, not the training part again
    np.testing.assert_array_equal(images.test[1], np.arange(20) % 10)
    pixels = np.arange(32 * 32 * 3 * 20, dtype=np.uint64).astype(np.uint8).reshape(32, 32, 3, 20)
    np.testing.assert_array_equal(images.test[0], pixels.transpose(3, 2, 0, 1))


def test_truncated_svhn(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = write_svhn(tmp_path, monkeypatch)
    part = folder / "train_32x32.mat"
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(DataError, match="damaged or not the official file"):
        read_svhn(tmp_path)


def test_svhn_without_a_class(tmp_path: Path, monkeypatch: Patch) -> None:
    write_svhn(tmp_path, monkeypatch, labels=lambda i: max(i, 1))
    with pytest.raises(DataError, match=r"no sample of class \[0\]"):
        read_svhn(tmp_path)


# CIFAR-10

ROWS = 20


@pytest.fixture
def small_batches(monkeypatch: Patch) -> None:
    monkeypatch.setattr(cifar10, "ROWS", ROWS)


def batch(seed: int, labels: int = 10) -> dict[Any, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (ROWS, 3072), np.uint8)
    return {b"data": pixels, b"labels": [i % labels for i in range(ROWS)]}


def write_cifar10(root: Path, monkeypatch: Patch, *, official: bool) -> Path:
    cifar = torchvision_datasets().CIFAR10
    folder = root / cifar.base_folder
    folder.mkdir(parents=True)
    for index, (name, _) in enumerate(cifar.train_list + cifar.test_list):
        content = batch(index)
        if official:  # torchvision reads Python 2's strings as text
            content = {key.decode(): value for key, value in content.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"label_names": list("abcdefghij")}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    monkeypatch.setattr(cifar, "url", unreachable())
    if official:
        for part in ("train_list", "test_list"):
            known = [[name, md5(folder / name)] for name, _ in getattr(cifar, part)]
            monkeypatch.setattr(cifar, part, known)
        monkeypatch.setitem(cifar.meta, "md5", md5(folder / "batches.meta"))
    return folder


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("official", [True, False])
def test_cifar10_official_and_rebuilt(tmp_path: Path, monkeypatch: Patch, official: bool) -> None:
    write_cifar10(tmp_path, monkeypatch, official=official)
    images = read_cifar10(tmp_path)
    assert images.provenance.startswith("complete")
    assert ("rebuilt" in images.provenance) is not official
    for index in range(5):
        part = images.train[0][index * ROWS : (index + 1) * ROWS]
        np.testing.assert_array_equal(part, batch(index)[b"data"].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(images.test[0].reshape(ROWS, -1), batch(5)[b"data"])
    np.testing.assert_array_equal(images.test[1], batch(5)[b"labels"])


@pytest.mark.usefixtures("small_batches")
def test_cifar10_out_of_the_official_archive(
    tmp_path: Path, monkeypatch: Patch, bad_server: BadServer
) -> None:
    folder = write_cifar10(tmp_path / "source", monkeypatch, official=True)
    cifar = torchvision_datasets().CIFAR10
    packed = tmp_path / cifar.filename
    with tarfile.open(packed, "w:gz") as file:
        file.add(folder, arcname=cifar.base_folder)
    bad_server.content = packed.read_bytes()
    monkeypatch.setattr(cifar, "url", bad_server.url("once"))
    monkeypatch.setattr(cifar, "tgz_md5", md5(packed))
    packed.unlink()
    assert read_cifar10(tmp_path).provenance == "complete"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/dev/null",))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("content", [Malicious(), {b"data": Malicious()}, {b"data": 3}, [1]])
def test_rebuilt_cifar10_executes_nothing(
    tmp_path: Path, monkeypatch: Patch, content: object
) -> None:
    folder = write_cifar10(tmp_path, monkeypatch, official=False)
    (folder / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match="data_batch_2: not a CIFAR-10 batch"):
        read_cifar10(tmp_path)


@pytest.mark.usefixtures("small_batches")
def test_official_cifar10_archive_in_a_folder_that_is_read_only(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    folder = write_cifar10(tmp_path / "source", monkeypatch, official=True)
    cifar = torchvision_datasets().CIFAR10
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / cifar.filename, "w:gz") as file:
        file.add(folder, arcname=cifar.base_folder)
    monkeypatch.setattr(cifar, "tgz_md5", md5(root / cifar.filename))
    root.chmod(0o555)
    try:
        assert read_cifar10(root).provenance == "complete"
    finally:
        root.chmod(0o755)
    assert [path.name for path in root.iterdir()] == [cifar.filename]


@pytest.mark.parametrize(
    ("pixels", "labels", "said"),
    [
        (lambda x: x.astype(float), lambda y: y, "pixels must be integers, found float64"),
        (lambda x: x.astype(int) + 1, lambda y: y, "pixels must be 0 to 255, found 1 to 256"),
        (lambda x: x, lambda y: y + 0.5, "labels must be integers, found float64"),
    ],
)
def test_numbers_that_are_no_pixels(
    tmp_path: Path, pixels: Callable[[Any], Any], labels: Callable[[Any], Any], said: str
) -> None:
    path = tmp_path / cifar10.SUBSET
    path.parent.mkdir()
    x, y = np.full((20, 3, 32, 32), 255, np.uint8), np.arange(20) % 10
    x[0] = 0
    np.savez(path, x_train=pixels(x), y_train=labels(y), x_test=x, y_test=y)
    with pytest.raises(DataError, match=said):
        read_cifar10(tmp_path)


@pytest.mark.usefixtures("small_batches")
def test_truncated_cifar10(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = write_cifar10(tmp_path, monkeypatch, official=True)
    part = folder / "test_batch"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DataError, match="test_batch: not a CIFAR-10 batch"):
        read_cifar10(tmp_path)


def test_official_cifar10_subset(real_data: Path) -> None:
    images = read_cifar10(real_data)
    if "subset" in images.provenance:
        assert images.train[0].shape == (5000, 3, 32, 32)
        assert images.test[0].shape == (1000, 3, 32, 32)
    # The first labels of the official order: frog, truck, truck, deer, automobile.
    np.testing.assert_array_equal(images.train[1][:5], [6, 9, 9, 4, 1])


def test_truncated_cifar10_subset(tmp_path: Path) -> None:
    path = tmp_path / cifar10.SUBSET
    path.parent.mkdir()
    with path.open("wb") as file:
        np.savez(file, x_train=np.zeros((5, 3, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"cannot be read.*y_train"):
        read_cifar10(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="cannot be read"):
        read_cifar10(tmp_path)


def test_bad_file_at_the_console(tmp_path: Path) -> None:
    path = tmp_path / "data" / cifar10.SUBSET
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    places = [f"data.root={tmp_path / 'data'}", f"results.root={tmp_path / 'results'}"]
    answer = console.run("task=cifar10", "optim=adam", *places)
    assert answer.code == 2
    assert str(path) in answer.text
    assert "Traceback" not in answer.text
