"""Reading what runs wrote: ``config.yaml``, ``run.json`` and ``metrics.jsonl`` of each folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tasks.common.files import sha256
from tasks.engine.records.metrics import Curve, Key, number, read_curves
from tasks.engine.records.record import FILES, FINISHED, RecordError, read_record

LOWER_IS_BETTER = ("loss", "nll", "error", "mse", "rmse", "mae", "bits", "perplexity")

UNKNOWN_PROVENANCE = "provenance not recorded"


class UnreadableRunError(ValueError):
    """A run's folder does not hold what a finished run leaves; the message says what is wrong."""


@dataclass(frozen=True)
class Run:
    """One training run as read from its folder; see the contract of the results folder.

    Attributes:
        provenance: what the data was ("complete", "first 5000 images", "synthetic").
        seconds: training clock at the end, on the wall; see :meth:`on_its_clock`.
        cpu_seconds: seconds on processors while it ran; NaN in files without them.
        metric: the task's headline metric.
        curves: every metric that was logged, by split and name.
        record: all that ``run.json`` holds, for what has no attribute here.
        warnings: what was odd about the files, one sentence each.
    """

    path: Path
    task: str
    model: str
    optim: str
    seed: int
    config_hash: str
    outcome: str
    message: str
    steps: int
    seconds: float
    cpu_seconds: float
    buckets: Mapping[str, float]
    environment: Mapping[str, Any]
    provenance: str
    metric: str
    higher_is_better: bool
    config: Mapping[str, Any]
    curves: Mapping[Key, Curve]
    record: Mapping[str, Any]
    warnings: tuple[str, ...] = field(default=())

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        """What tells it from all other runs."""
        return self.task, self.model, self.optim, self.config_hash, self.seed

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; 0 where the run did not say."""
        return int(self.record.get("steps_per_epoch") or 0)

    @property
    def nfe(self) -> float:
        """Field evaluations of the whole run, forward and backward."""
        return max((float(c.nfe[-1]) for c in self.curves.values() if len(c.nfe)), default=math.nan)

    @property
    def by_processors(self) -> bool:
        """Whether the run was limited by seconds on processors, not by those on the wall."""
        return bool(self.config.get("train", {}).get("clock") == "cpu")

    def on_its_clock(self) -> Run:
        """The run with all its seconds on the clock that limited it, wall or processors.

        Other work on the machine stretches the seconds on the wall of a run that ends by those on
        processors. Runs without a count of the latter stay as they are.
        """
        if not self.by_processors or math.isnan(self.cpu_seconds):
            return self
        share = self.cpu_seconds / self.seconds if self.seconds else 1.0
        return replace(
            self,
            seconds=self.cpu_seconds,
            buckets={name: share * seconds for name, seconds in self.buckets.items()},
            curves={key: replace(c, seconds=c.cpu_seconds) for key, c in self.curves.items()},
        )


@dataclass(frozen=True)
class SkippedRun:
    """A folder that looks like a run but is not in the report, and why."""

    path: Path
    reason: str


def read_runs(
    root: Path, *, tasks: Iterable[str] | None = None, partial: bool = False
) -> tuple[list[Run], list[SkippedRun]]:
    """Read every run below a folder, each with its seconds on its own clock.

    Args:
        root: a results folder, or any folder inside one.
        tasks: keep these tasks only; all by default.
        partial: keep interrupted runs and runs that are still going as well.

    Returns:
        The runs, sorted by identity, and the folders that were left out with the reason.
    """
    wanted = None if tasks is None else set(tasks)
    runs: dict[tuple[str, str, str, str, int], Run] = {}
    skipped: list[SkippedRun] = []
    for folder in run_folders(root):
        try:
            run = read_run(folder).on_its_clock()
        except UnreadableRunError as error:
            skipped.append(SkippedRun(folder, str(error)))
            continue
        if wanted is not None and run.task not in wanted:
            continue
        if not partial and run.outcome not in FINISHED:
            skipped.append(SkippedRun(folder, _unfinished(run)))
        elif run.identity in runs:
            skipped.append(SkippedRun(folder, f"the same run as {runs[run.identity].path}"))
        else:
            runs[run.identity] = run
    return [runs[key] for key in sorted(runs)], skipped


def run_folders(root: Path) -> Iterator[Path]:
    """Folders below ``root`` that hold any of a run's files, hidden folders left aside."""
    names = ("run.json", "metrics.jsonl", "config.yaml")
    found = {path.parent for name in names for path in root.rglob(name)}
    for folder in sorted(found):
        if not any(part.startswith(".") for part in folder.relative_to(root).parts):
            yield folder


def read_run(folder: Path) -> Run:
    """Read one run; its ``seconds`` are those on the wall, as in its files.

    Raises:
        UnreadableRunError: a file is missing or damaged, or the run measured nothing.
    """
    record = _read_record(folder / "run.json")
    config = _read_config(folder / "config.yaml")
    curves, warnings = _read_metrics(folder / "metrics.jsonl")
    try:
        if failed := int(record.get("refresh_failures") or 0):
            warnings.append(
                f"curvature could not be factorized {failed} times, and was left out or replaced"
            )
        outcome = str(record.get("outcome") or "unfinished")
        if outcome in FINISHED:
            _require_unchanged(folder, record)
            _require_whole(record, curves)
        metric, higher = _headline(record, config, curves)
        return Run(
            path=folder,
            task=str(record["task"]),
            model=str(record["model"]),
            optim=str(record["optim"]),
            seed=int(record["seed"]),
            config_hash=str(record["config_hash"]),
            outcome=outcome,
            message=str(record.get("message") or ""),
            steps=int(record.get("steps") or 0),
            seconds=number(record.get("seconds")),
            cpu_seconds=number(record.get("cpu_seconds")),
            buckets={str(k): number(v) for k, v in (record.get("buckets") or {}).items()},
            environment=dict(record.get("environment") or {}),
            provenance=str(record.get("provenance") or UNKNOWN_PROVENANCE),
            metric=metric,
            higher_is_better=higher,
            config=config,
            curves=curves,
            record=record,
            warnings=tuple(warnings),
        )
    except UnreadableRunError:
        raise
    except KeyError as error:
        raise UnreadableRunError(f"run.json has no {error.args[0]!r}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UnreadableRunError(f"run.json holds something unexpected: {error}") from error


def _unfinished(run: Run) -> str:
    sentence = f": {run.message}" if run.message else ""
    return f"{run.outcome} at step {run.steps}, not a result (--partial shows it){sentence}"


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return read_record(path)
    except FileNotFoundError:
        raise UnreadableRunError("no run.json: the run has not ended, or was killed") from None
    except RecordError as error:
        raise UnreadableRunError(str(error)) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableRunError("no config.yaml") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableRunError(f"config.yaml cannot be read: {reason}") from error
    if not isinstance(config, dict):
        raise UnreadableRunError("config.yaml is empty or not a mapping")
    for part in ("task", "model", "optim", "solver", "train"):
        if not isinstance(config.get(part, {}), dict):
            raise UnreadableRunError(
                f"config.yaml holds something unexpected: {part} is no mapping"
            )
    return config


def _read_metrics(path: Path) -> tuple[dict[Key, Curve], list[str]]:
    """Curves by split and metric, and a warning where lines are damaged."""
    try:
        curves, damaged = read_curves(path.read_bytes())
    except OSError as error:
        raise UnreadableRunError(f"metrics.jsonl cannot be read: {error.strerror}") from error
    if not curves:
        raise UnreadableRunError("metrics.jsonl has no readable row")
    warnings = [f"{damaged} unreadable line(s) in metrics.jsonl ignored"] if damaged else []
    return curves, warnings


def _require_unchanged(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise unless the files beside ``run.json`` have the digests that it notes."""
    for name, noted in (record.get(FILES) or {}).items():
        content = (folder / name).read_bytes()
        if noted not in (sha256(content), sha256(content.replace(b"\r\n", b"\n"))):
            raise UnreadableRunError(f"{name} was changed or damaged after the run wrote it")


def _require_whole(record: Mapping[str, Any], curves: Mapping[Key, Curve]) -> None:
    """Raise unless the curves end with what the run noted at its end."""
    for split, values in (record.get("final") or {}).items():
        for metric, value in values.items():
            curve = curves.get((split, metric))
            last = math.nan if curve is None else curve.final
            noted = number(value)
            if not (last == noted or (math.isnan(last) and math.isnan(noted))):
                raise UnreadableRunError(
                    f"metrics.jsonl is not whole: its last {split} {metric} is {last:.6g}, "
                    f"the run ended with {noted:.6g}"
                )


def _headline(
    record: Mapping[str, Any], config: Mapping[str, Any], curves: Mapping[Key, Curve]
) -> tuple[str, bool]:
    """The headline metric and its direction, as recorded or else as the names suggest."""
    task = config.get("task")
    settings = task if isinstance(task, Mapping) else {}
    named = record.get("metric") or settings.get("metric")
    if named is None:
        tested = sorted(name for split, name in curves if split == "test" and name != "loss")
        named = "accuracy" if "accuracy" in tested else (tested or ["loss"])[0]
    metric = str(named)
    higher = record.get("higher_is_better", settings.get("higher_is_better"))
    if higher is None:
        higher = not any(word in metric.lower() for word in LOWER_IS_BETTER)
    return metric, bool(higher)
