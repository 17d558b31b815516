"""Readers of the image data sets: digits, MNIST, SVHN and CIFAR-10."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.cifar10 import OFFICIAL, read_cifar10_files, require_cifar10
from tasks.data.download import obtain
from tasks.data.errors import DataError, brief
from tasks.data.integrity import require_classes, require_shape, verify
from tasks.data.splits import stratified_thirds
from tasks.data.torchvision_compat import torchvision_datasets
from tasks.data.unpack import gunzip

#: Checksums of MNIST's files unpacked; torchvision has those of the archives only.
MNIST_UNPACKED = {
    "train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
}

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Labelled images as the source splits them.

    Attributes:
        train: pixels, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,).
        test: likewise.
        brightest: the pixel value that counts as 1.
        provenance: one sentence on where the data come from.
    """

    train: tuple[Pixels, Labels]
    test: tuple[Pixels, Labels]
    brightest: float = 255.0
    provenance: str = "complete"


def read_digits(root: Path) -> Images:
    """The 1797 handwritten digits, 8x8 with 17 grey levels, that ship inside scikit-learn.

    The source has no split; 15% of every class make the test part.

    Args:
        root: not read.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 1, 8, 8).astype(np.uint8)
    labels = labels.astype(np.int64)
    train, valid, test = stratified_thirds(labels, "digits")
    rest = np.sort(np.concatenate([train, valid]))
    return Images(
        (images[rest], labels[rest]),
        (images[test], labels[test]),
        brightest=16.0,
        provenance="complete; split by us, the source has no test part",
    )


def read_mnist(root: Path) -> Images:
    """MNIST, 60000 and 10000 images of 28x28, through torchvision's class.

    Args:
        root: has ``MNIST/raw`` with the four official files, compressed or not; missing ones are
            downloaded there.

    Raises:
        DataError: a file is missing and cannot be had, damaged, or not MNIST.
    """
    mnist: Any = torchvision_datasets().MNIST
    raw = root / "MNIST" / "raw"
    # torchvision would unpack beside the archives, where we may have no right to write.
    with tempfile.TemporaryDirectory() as folder:
        for name, md5 in mnist.resources:
            packed, plain = raw / name, raw / Path(name).stem
            unpacked = Path(folder) / "MNIST" / "raw" / plain.name
            if plain.is_file() and not packed.is_file():
                verify(plain, MNIST_UNPACKED[plain.name], _again(plain))
                unpacked.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(plain, unpacked)  # links need rights on Windows
            else:
                gunzip(
                    obtain([url + name for url in mnist.mirrors], packed, f"md5:{md5}"), unpacked
                )
        parts = [_read_mnist_part(mnist, folder, raw, train) for train in (True, False)]
    return Images(parts[0], parts[1])


def _read_mnist_part(mnist: Any, folder: str, raw: Path, train: bool) -> tuple[Pixels, Labels]:
    try:
        part = mnist(folder, train=train, download=False)
        pixels, labels = part.data.numpy()[:, None], part.targets.numpy()
    except Exception as error:  # torchvision checks with assert, slices and views
        raise DataError(f"{raw}: not in MNIST's format ({brief(error)}). {_again(raw)}") from error
    require_shape(raw, pixels, (60000 if train else 10000, 1, 28, 28))
    return _checked(raw, pixels, labels)


def read_svhn(root: Path) -> Images:
    """Street View House Numbers, cropped digits, 73257 and 26032 images of 3x32x32.

    Args:
        root: has ``svhn/train_32x32.mat`` and ``svhn/test_32x32.mat``; missing ones are downloaded.

    Raises:
        DataError: a file is missing and cannot be had, damaged, or not SVHN.
    """
    svhn: Any = torchvision_datasets().SVHN
    parts = {}
    for split in ("train", "test"):
        url, name, md5 = svhn.split_list[split]
        path = root / "svhn" / name
        obtain([url], path, f"md5:{md5}")
        try:
            part = svhn(path.parent, split=split, download=False)
        except Exception as error:  # whatever SciPy makes of a broken MATLAB file
            raise DataError(
                f"{path}: not in SVHN's format ({brief(error)}). {_again(path)}"
            ) from error
        require_shape(path, part.data, (None, 3, 32, 32))
        parts[split] = _checked(path, part.data, part.labels)
    return Images(parts["train"], parts["test"])


def read_cifar10(root: Path) -> Images:
    """CIFAR-10, 50000 and 10000 images of 3x32x32.

    Args:
        root: has ``cifar-10-batches-py/``, or ``cifar-10-python.tar.gz``, or
            ``cifar10/cifar10_first5000.npz`` (the first 5000 and 1000 images, which the provenance
            then says); otherwise the archive is downloaded.

    Raises:
        DataError: a file is missing and cannot be had, damaged, or not CIFAR-10.
    """
    train, test, provenance = read_cifar10_files(root)
    images = Images(_checked(root, *train), _checked(root, *test), provenance=provenance)
    if provenance != OFFICIAL:
        require_cifar10(root, images.train, images.test)
    return images


def _checked(where: Path, pixels: NDArray[Any], labels: NDArray[Any]) -> tuple[Pixels, Labels]:
    require_shape(where, labels, (len(pixels),))
    for what, values in (("pixels", pixels), ("labels", labels)):
        if not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"{where}: {what} must be integers, found {values.dtype}.")
    if pixels.min() < 0 or pixels.max() > 255:
        raise DataError(
            f"{where}: pixels must be 0 to 255, found {pixels.min()} to {pixels.max()}."
        )
    labels = labels.astype(np.int64)
    require_classes(where, labels, 10)
    return np.ascontiguousarray(pixels, dtype=np.uint8), labels


def _again(path: Path) -> str:
    return f"Delete {path} and run again with a network, and it is downloaded."


READERS: dict[str, Callable[[Path], Images]] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "svhn": read_svhn,
    "cifar10": read_cifar10,
}
