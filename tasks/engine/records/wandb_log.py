"""The same rows to Weights & Biases, which may fail without the run taking notice."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.engine.records.metrics import Measurement, finite

logger = logging.getLogger(__name__)


class WandbLog:
    """Sends rows to wandb; the first failure is said once, and ends the sending, not the run.

    Without a key the run is kept offline in the run's folder; ``wandb sync`` uploads it later.

    Args:
        config: the ``logger`` part of the configuration: ``project``, ``entity``, ``group``,
            ``tags`` and ``mode``.
        folder: where wandb keeps its files.
        identity: unique and the same when the run resumes.
        names: task, model and optimizer.
        hyperparameters: the run's configuration.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        identity: str,
        names: tuple[str, str, str],
        hyperparameters: Mapping[str, Any],
    ) -> None:
        self._run: Any = None
        mode: Any = config.get("mode") or os.environ.get("WANDB_MODE") or _default_mode()

        def start() -> None:
            import wandb

            self._run = wandb.init(
                project=config.get("project"),
                entity=config.get("entity"),
                group=config.get("group") or "/".join(names[:2]),
                name=f"{names[2]}-{identity}",
                id="-".join((*names, identity)),
                tags=list(config.get("tags") or ()),
                config=dict(hyperparameters),
                dir=str(folder),
                mode=mode,
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            )
            self._run.define_metric("training_seconds")
            for split in ("train", "valid", "test"):
                self._run.define_metric(f"{split}/*", step_metric="training_seconds")

        self._guard(start)

    def append(self, rows: Iterable[Measurement]) -> None:
        """Send rows of one step."""
        rows = list(rows)
        if self._run is None or not rows:
            return
        values: dict[str, Any] = {f"{row['split']}/{row['metric']}": row["value"] for row in rows}
        last = rows[-1]
        values |= {"training_seconds": last["seconds"], "epoch": last["epoch"]}
        values |= {key: last[key] for key in ("nfe_forward", "nfe_backward")}
        self._guard(lambda: self._run.log(finite(values), step=last["step"]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the totals and end the wandb run."""
        if self._run is None:
            return
        kept = ("outcome", "message", "steps", "epochs", "seconds", "wall", "buckets", "best")
        values = finite({key: summary[key] for key in kept if key in summary})
        self._guard(lambda: self._run.summary.update(values))
        if self._run is not None:
            self._guard(lambda: self._run.finish())

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever wandb raises, training goes on
            self._run = None
            logger.warning("wandb is left out from here on: %s", error)


def _default_mode() -> str:
    """``online`` where a key is configured, else ``offline``."""
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return "offline"
    return "online" if any("wandb" in host for host in hosts) else "offline"
