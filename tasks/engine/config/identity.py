"""What makes two runs the same computation: a hash of the configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tasks.engine.config.settings import SPLITS, HorizonSettings

#: Parts of the configuration that do not change what is computed, and so not a run's identity.
NOT_IDENTITY = ("data", "results", "seed", "logger", "imports", "workload", "tuned_for")

#: Values of later keys that leave everything as it was, identities included, by section.
_ADDED_LATER = {
    "train": (
        ("clock", "wall"),
        ("drop_last", False),
        ("eval_valid_samples", None),
        ("eval_test_samples", None),
        ("eval_splits", list(SPLITS)),
    ),
    "task": (("stride", 1), ("initial_horizon", 1.0), ("horizon_growth", 0.5), ("shooting", None)),
    "solver": (("evaluation", None),),
}

#: The same of some tasks alone, by ``_target_``: others had the key from the beginning.
_ADDED_TO_TASK = {
    "tasks.series.SeriesClassification": (("train_samples", None),),
    "tasks.dynamics.PlaneVibration": (("train_samples", None),),
    "tasks.dynamics.Silverbox": (("train_samples", None),),
}

#: Names of a ``_target_`` that moved, and where it is now. Runs from before are found by the first.
MOVED = {
    "tasks.by_part.ByPart": "tasks.engine.optimizers.by_part.ByPart",
    "tasks.muon.muon": "tasks.engine.optimizers.muon.muon",
}
_FIRST_NAMES = {now: then for then, now in MOVED.items()}

#: Settings of an optimizer that were renamed, by what they are called now.
_FIRST_KEYS = {"fallback": "plain"}


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that identify what is computed, apart from the seed."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    optim = {k: v for k, v in kept["optim"].items() if k != "about"}
    kept["optim"] = {_FIRST_KEYS.get(k, k): v for k, v in optim.items()}
    of_task = _ADDED_TO_TASK.get(kept["task"].get("_target_"), ())
    for part, added in [*_ADDED_LATER.items(), ("task", of_task)]:
        kept[part] = {k: v for k, v in kept[part].items() if (k, v) not in added}
    if kept.get("probe") == {"every": None}:  # as if there were no such part
        del kept["probe"]
    if not HorizonSettings(**kept.get("horizon", {})).asked_for:
        kept.pop("horizon", None)
    kept = _by_first_names(kept)
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _by_first_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _by_first_names(entry) for key, entry in value.items()}
    return _FIRST_NAMES.get(value, value) if isinstance(value, str) else value
