"""What several of the suite's tests need: annotated shapes checked, real data, a bad web server."""

from __future__ import annotations

import gc
import inspect
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from omegaconf import OmegaConf

from tasks.data import spline
from tasks.models import cnf, convnet, family_rnn, ode_rnn, trajectory_net
from tests.support import devices
from tests.support.bad_server import BadServer

ANNOTATED = (spline, cnf, convnet, family_rnn, ode_rnn, trajectory_net)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _parsed_once() -> Iterator[None]:
    """Hydra parses some 15 files a composition; a file with the same text is parsed once.

    Files with mistakes are parsed each time.
    """
    load = OmegaConf.load
    known: dict[str, bytes] = {}

    def kept(file: Any) -> Any:
        if not hasattr(file, "seek"):
            return load(file)
        text = file.read()
        if text not in known:
            file.seek(0)
            known[text] = pickle.dumps(load(file))
        return pickle.loads(known[text])  # six times faster than a deep copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(kept))
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs CUDA where there is none, unless it shall run on another device."""
    missing = devices.DEVICE == "cuda" and not torch.cuda.is_available()
    if missing and item.get_closest_marker("gpu"):
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of official data that SNOPT_DATA names; tests that need it are skipped without."""
    root = os.environ.get("SNOPT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip(
            "needs official data files: set SNOPT_DATA to a folder laid out as docs/suite.md says"
        )
    return Path(root)


@pytest.fixture
def bad_server() -> Iterator[BadServer]:
    """A local web server that misbehaves as a test asks."""
    with BadServer() as server:
        yield server


@pytest.fixture
def checked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the annotated shapes of the networks at every call.

    For tests that ask: the checks cannot be compiled, so they are not on for all.
    """
    for module in ANNOTATED:
        classes = [c for c in vars(module).values() if isinstance(c, type)]
        for owner in (module, *(c for c in classes if c.__module__ == module.__name__)):
            for name, value in list(vars(owner).items()):
                own = getattr(value, "__module__", None) == module.__name__
                if inspect.isfunction(value) and own and name != "__init__":
                    monkeypatch.setattr(owner, name, jaxtyped(value, typechecker=beartype))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tests out of the user's cache folder."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws from a stream of its own, whatever ran before it."""
    torch.manual_seed(0)
