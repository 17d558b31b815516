"""Runs that were stopped half-way, for tests that damage what they left."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.engine.records import checkpoint
from tests.support import fake

ADAM = {"_target_": "torch.optim.Adam", "name": "adam", "lr": 0.01}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": ADAM,
    "sgd": {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.05, "momentum": 0.9},
    "lbfgs": {"_target_": "torch.optim.LBFGS", "name": "lbfgs", "lr": 0.1, "max_iter": 2},
    "snopt": {"_target_": "snopt.SNOpt", "name": "snopt", "lr": 0.02, "refresh_every": 4},
}


class StopError(Exception):
    """Ends a process in the middle of a step."""


def settings(name: str = "adam", **changes: Any) -> dict[str, Any]:
    """A run of 12 steps with a checkpoint every 4."""
    train = {"max_steps": 12, "checkpoint_every_steps": 4, "eval_every_epochs": 1}
    return {"optim": OPTIMIZERS[name], "train": train, **changes}


def stopped(root: Path, **changes: Any) -> Path:
    """The folder of a run that was stopped after its second checkpoint, in step 10."""
    forward = fake.Rings.forward
    saves: list[Path] = []
    save = checkpoint.save

    def counted(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        saves.append(path)

    def stopping(self: Any, model: Any, batch: Any, noise: Any) -> Any:
        if model.training and len(saves) == 2 and self.calls % 2 == 0:
            raise StopError
        return forward(self, model, batch, noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake.Rings, "forward", stopping)
        patch.setattr(checkpoint, "save", counted)
        with pytest.raises(StopError):
            fake.train(root, **changes)
    return fake.folder(root, **changes)


def as_before_seals(folder: Path) -> None:
    """Give a run's files the form that they had in versions that did not seal them."""
    path = folder / "checkpoint.pt"
    state = checkpoint.load(path)
    assert state is not None
    kept = {k: v for k, v in state.items() if k not in ("identity", "metrics_sha256")}
    kept["solver"] = {
        name: {k: v for k, v in block.items() if k != "one_sample"}
        for name, block in state["solver"].items()
    }
    torch.save({**kept, "format": 1}, path)
    record = json.loads((folder / "run.json").read_text())
    record = {k: v for k, v in record.items() if k not in ("files", "seal")}
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")


def flipped(content: bytes, draw: random.Random) -> bytes:
    """The same bytes with one bit turned."""
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every entry of a nested value lies."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple) and len(value) < 100:
        items = enumerate(value)
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(state: dict[str, Any], place: tuple[Any, ...], how: str) -> dict[str, Any]:
    """A copy of a checkpoint's content with one entry removed or replaced."""
    result: Any = copy.deepcopy(state)
    return _changed(result, place, how)


def _changed(value: Any, place: tuple[Any, ...], how: str) -> Any:
    key, *rest = place
    if rest:
        item = _changed(value[key], tuple(rest), how)
    elif how == "removed":
        if isinstance(value, dict):
            return {k: v for k, v in value.items() if k != key}
        return type(value)(v for i, v in enumerate(value) if i != key)
    else:
        item = {"text": "text", "null": None, "list": [1, 2], "tensor": torch.ones(7, 5)}[how]
    if isinstance(value, tuple):
        return tuple(item if i == key else v for i, v in enumerate(value))
    value[key] = item
    return value
