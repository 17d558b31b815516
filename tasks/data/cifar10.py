"""Reads CIFAR-10 in each of the forms it is found in.

The official files are pickles. Those with the official checksum are opened by torchvision. Others,
rebuilt from lossless images, differ in their bytes though not in their pixels; they are parsed by
an unpickler that can build arrays and plain containers and call nothing else.
"""

from __future__ import annotations

import codecs
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.common.files import may_write
from tasks.data.download import obtain
from tasks.data.errors import DataError, brief
from tasks.data.integrity import digest, require_published, require_shape
from tasks.data.torchvision_compat import torchvision_datasets
from tasks.data.unpack import read_npz, unpack

Part = tuple[NDArray[np.uint8], NDArray[Any]]
ROWS = 10000  # of a batch file
SUBSET = Path("cifar10") / "cifar10_first5000.npz"
OFFICIAL = "complete"  # what is said of files with the official checksums
MOST_NPZ = 256 << 20  # bytes unpacked; all 60000 images have 184 MB
#: The first so many images and labels of each part, and their fingerprint.
FIRST_TRAIN, FIRST_TEST = (5000, "64bd0def3d079fa6"), (1000, "42fb616b55a5d63d")


def read_cifar10_files(root: Path) -> tuple[Part, Part, str]:
    """Training part, test part and a sentence on their provenance.

    Each part is pixels, uint8 of shape (N, 3, 32, 32), and labels of shape (N,).

    Raises:
        DataError: a file is missing and cannot be had, damaged, or not CIFAR-10.
    """
    cifar: Any = torchvision_datasets().CIFAR10
    folder = root / cifar.base_folder
    archive = root / cifar.filename
    if not folder.is_dir() and not archive.is_file() and (root / SUBSET).is_file():
        train, test = _subset(root / SUBSET)
        counts = f"the first {len(train[1])} training and {len(test[1])} test images"
        return train, test, f"subset: {counts}, in the official order"
    files = dict(cifar.train_list + cifar.test_list + [(cifar.meta["filename"], cifar.meta["md5"])])
    batches = [name for name, _ in cifar.train_list + cifar.test_list]
    if all((folder / name).is_file() for name in batches):
        return _from_batches(root, cifar, files, batches)
    obtain([cifar.url], archive, f"md5:{cifar.tgz_md5}")
    with tempfile.TemporaryDirectory() as temporary:
        base = root if may_write(root) else Path(temporary)
        members = {f"{cifar.base_folder}/{name}" for name in files}
        unpack(archive, {member: base / member for member in members})
        return _from_batches(base, cifar, files, batches)


def _from_batches(
    root: Path, cifar: Any, files: Mapping[str, str], batches: Sequence[str]
) -> tuple[Part, Part, str]:
    folder = root / cifar.base_folder
    official = all(
        (folder / name).is_file() and digest(folder / name, "md5") == f"md5:{md5}"
        for name, md5 in files.items()
    )
    if official:
        parts = [cifar(root, train=train, download=False) for train in (True, False)]
        train, test = [(p.data.transpose(0, 3, 1, 2), np.asarray(p.targets)) for p in parts]
        return train, test, OFFICIAL
    read = [_batch(folder / name) for name in batches]
    train = np.concatenate([b[0] for b in read[:-1]]), np.concatenate([b[1] for b in read[:-1]])
    return train, read[-1], "complete; rebuilt files, not the official bytes"


def _subset(path: Path) -> tuple[Part, Part]:
    try:
        arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"), MOST_NPZ)
    except DataError as error:
        raise DataError(
            f"{error} Delete it, and the whole of CIFAR-10 is downloaded instead."
        ) from error
    for pixels in arrays[::2]:
        require_shape(path, pixels, (None, 3, 32, 32))
    return (arrays[0], arrays[1]), (arrays[2], arrays[3])


def require_cifar10(where: Path, train: Part, test: Part) -> None:
    """Raise a :class:`DataError` where images without an official checksum are not CIFAR-10's."""
    for (pixels, labels), (count, known) in ((train, FIRST_TRAIN), (test, FIRST_TEST)):
        if len(pixels) >= count:
            require_published(where, known, pixels[:count], labels[:count])
    known_images = {image.tobytes() for image in train[0]}
    shared = sum(image.tobytes() in known_images for image in test[0])
    if shared > 0.01 * len(test[0]):
        raise DataError(
            f"{where}: {shared} of {len(test[0])} test images are training images too, so it is "
            "not CIFAR-10. Delete it, and the whole of CIFAR-10 is downloaded instead."
        )


_BUILDING_BLOCKS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; anything else in a pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _BUILDING_BLOCKS:
            return _BUILDING_BLOCKS[module, name]
        # NumPy 1 and 2 name the same function differently.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]  # not in the stubs
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def _batch(path: Path) -> Part:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        # Bytes where Python 2 wrote the file, as officially; text where Python 3 did.
        fields = {key.decode() if isinstance(key, bytes) else key: content[key] for key in content}
        pixels, labels = np.asarray(fields["data"]), np.asarray(fields["labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{path}: not a CIFAR-10 batch ({brief(error)}). Delete {path.parent} "
            "and run again with a network, and it is downloaded."
        ) from error
    require_shape(path, pixels, (ROWS, 3072))
    require_shape(path, labels, (ROWS,))
    return pixels.reshape(-1, 3, 32, 32), labels
