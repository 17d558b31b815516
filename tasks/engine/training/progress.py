"""What a person at the console sees: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from tasks.engine.config.settings import Style

logger = logging.getLogger(__name__)


class Progress:
    """Progress of one run, redrawn a few times a second at most.

    Args:
        title: what is being trained.
        style: ``bar``, ``plain`` lines, ``off``, or ``auto``: a bar where stderr is a terminal.
        every: seconds between two plain lines.
    """

    def __init__(self, title: str, style: Style = "auto", every: float = 10.0) -> None:
        if style == "auto":
            style = "bar" if sys.stderr.isatty() else "plain"
        self._style = style
        self._every = 0.25 if style == "bar" else every
        self._drawn = time.monotonic()
        self._rate: tuple[float, int] | None = None
        self._measured = ""
        self._said = 0.0
        if style == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=1.0, status="")
            self._bar.start()

    def due(self) -> bool:
        """Whether it is time to draw again."""
        return self._style != "off" and time.monotonic() - self._drawn >= self._every

    def draw(
        self, step: int, epoch: int, loss: float, nfe: tuple[int, int], done: float, seconds: float
    ) -> None:
        """Show where the run is.

        Args:
            step: steps made.
            epoch: epochs completed.
            loss: training loss of the last batch.
            nfe: forward and backward function evaluations of the last step.
            done: fraction of the run that lies behind, from 0 to 1.
            seconds: since the run began, evaluations included; what a person waits.
        """
        since, before = self._rate or (0.0, 0)
        speed = (step - before) / max(seconds - since, 1e-9)
        left = seconds * (1.0 - done) / done if done > 0 else float("inf")
        status = (
            f"step {step} epoch {epoch} loss {loss:.4g}{self._measured} "
            f"{speed:.3g} steps/s nfe {nfe[0]}/{nfe[1]} eta {_duration(left)}"
        )
        self._rate = (seconds, step)
        self._drawn = time.monotonic()
        if self._style == "bar":
            self._bar.update(self._task, completed=done, status=status)
            self._bar.refresh()
        else:
            logger.info("%3.0f%% %s", 100 * done, status)

    def measured(self, step: int, final: Mapping[str, Mapping[str, float]], metric: str) -> None:
        """Take note of an evaluation, and say it where there is no bar, once a second at most.

        Args:
            step: steps made.
            final: values by split and metric.
            metric: the task's headline metric.
        """
        names = dict.fromkeys(("loss", metric))
        texts = {
            split: f"{split} " + " ".join(f"{name} {values[name]:.4g}" for name in names)
            for split, values in final.items()
        }
        self._measured = f" {texts['valid']}" if "valid" in texts else ""
        if self._style == "plain" and time.monotonic() - self._said >= 1.0:
            self._said = time.monotonic()
            train = [f"train loss {final['train']['loss']:.4g}"] if "train" in final else []
            logger.info("step %d: %s", step, " ".join([*train, *self._measured.split()]))

    def close(self) -> None:
        """Remove the bar."""
        if self._style == "bar":
            self._bar.stop()


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
