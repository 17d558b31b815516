"""Checkpoints: everything that decides what a run computes next, in one file."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.results import ResultsError, write_atomically

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint, whole or not at all.

    Args:
        path: the checkpoint file.
        state: tensors, numbers, strings and nested dicts, lists and tuples of them.

    Raises:
        ResultsError: it could not be written; the one before is intact.
    """

    def write(file: Any) -> None:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:
            # A full disk breaks torch's archive writer, which hides the cause one level down.
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else error) from None

    write_atomically(path, write)


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or ``None`` where there is none.

    Raises:
        ResultsError: the file is not a checkpoint that this version can read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ResultsError(
            f"could not read the checkpoint {path}: {error}. Remove the folder {path.parent} to "
            "begin the run anew."
        ) from error
    if state.get("format") != FORMAT:
        raise ResultsError(
            f"{path} has checkpoint format {state.get('format')}, this version reads {FORMAT}. "
            f"Remove the folder {path.parent} to begin the run anew."
        )
    return state


def seed_globally(seed: int) -> None:
    """Seed the generators that belong to no stream: torch's, Python's and numpy's own."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state(noise: torch.Generator) -> dict[str, Any]:
    """The state of every generator that training may draw from.

    Args:
        noise: the task's own stream.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "noise": noise.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def load_random_state(state: dict[str, Any], noise: torch.Generator) -> None:
    """Set every generator to what :func:`random_state` returned."""
    noise.set_state(state["noise"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
