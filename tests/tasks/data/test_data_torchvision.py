"""torchvision's data sets import beside this build of torch, whichever it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.data.torchvision_compat import torchvision_datasets


def test_data_sets_are_there_and_again() -> None:
    assert torchvision_datasets().MNIST.resources
    assert torchvision_datasets() is torchvision_datasets()


def test_after_somebody_elses_import_failed() -> None:
    code = """
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::" in str(error), error
from tasks.data.torchvision_compat import torchvision_datasets
assert torchvision_datasets().CIFAR10.tgz_md5
import torchvision.transforms
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("tasks.data.torchvision_compat.importlib.import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_datasets()
