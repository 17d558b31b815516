"""Which runs may be compared with which, and under which names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.engine.optimizers.about import about, colour
from tasks.engine.records.metrics import Curve, Key
from tasks.engine.records.runs import Run

TRAIN_LOSS: tuple[Key, ...] = (("train", "loss"), ("train", "batch_loss"))
"""Where the training loss is looked for: evaluated on a fixed subset, else of the batches."""

# Not part of a run's settings proper: where it ran, how it was logged, which seed.
_IGNORED = (
    *("seed", "device", "data", "results", "logger", "hydra", "experiment"),
    *("imports", "tuned_for", "workload"),
)
# Settings that an honest comparison shares between its optimizers, apart from the optimizer.
_SHARED = ("task", "model", "solver", "dtype", "train")
# These say more than the numbers that go with them, and are named wherever they differ.
_TELLING = frozenset({"optim.rule", "horizon.rule", "horizon.T0"})
_MACHINE = ("device_name", "device", "threads", "cores", "processes", "torch")


@dataclass(frozen=True)
class Series:
    """One optimizer with one configuration: the same line in every figure.

    Attributes:
        label: the optimizer's name, with what sets it apart where it appears more than once.
        variant: 0 for an optimizer's first configuration, 1 for its second, ...
        runs: one a seed, sorted by seed.
    """

    label: str
    optim: str
    variant: int
    first_order: bool
    runs: tuple[Run, ...]

    @property
    def colour(self) -> str:
        """The optimizer's, the same in every figure, table and report."""
        return colour(self.optim, _optimizer(self.runs[0]))

    def curves(self, keys: Sequence[Key]) -> list[Curve]:
        """Each run's curve under the first of the keys that it has; runs without any left out."""
        return [curve for run in self.runs if (curve := find_curve(run, keys)) is not None]


@dataclass(frozen=True)
class Comparison:
    """Runs of one task, model and data: what differs is how they were trained.

    Attributes:
        notes: what a reader must know before comparing, one sentence each.
    """

    task: str
    model: str
    provenance: str
    metric: str
    higher_is_better: bool
    series: tuple[Series, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Task and model, as a heading."""
        return f"{self.task} · {self.model}"

    @property
    def slug(self) -> str:
        """Task and model, as a part of a file name."""
        return f"{self.task}-{self.model}".replace("/", "_")


def find_curve(run: Run, keys: Sequence[Key]) -> Curve | None:
    """The run's curve under the first key that it logged."""
    return next((run.curves[key] for key in keys if key in run.curves), None)


def compare(runs: Iterable[Run], *, metric: str | None = None) -> list[Comparison]:
    """Group runs into comparisons.

    Runs on different data (a subset, synthetic data) never share a comparison, whatever their
    task's name.

    Args:
        runs: finished runs.
        metric: the test metric to show instead of each task's own headline metric.
    """
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[(run.task, run.model, run.provenance)].append(run)
    return [_comparison(key, members, metric) for key, members in sorted(groups.items())]


def _comparison(
    key: tuple[str, str, str], members: Sequence[Run], metric: str | None
) -> Comparison:
    series = _series(members)
    chosen = metric or members[0].metric
    return Comparison(
        task=key[0],
        model=key[1],
        provenance=key[2],
        metric=chosen,
        higher_is_better=_direction(members, chosen),
        series=series,
        notes=tuple(_notes(members)),
    )


def _direction(members: Sequence[Run], metric: str) -> bool:
    for run in members:
        if run.metric == metric:
            return run.higher_is_better
    return metric in ("accuracy", "cosine", "success_rate")


def _series(members: Sequence[Run]) -> tuple[Series, ...]:
    by_optim: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in members:
        by_optim[run.optim][run.config_hash].append(run)
    result = []
    first_order = {run.optim: is_first_order(run) for run in members}
    for optim in sorted(by_optim, key=lambda name: _order(name, first_order[name])):
        labels = _labels(optim, by_optim[optim])
        for variant, config_hash in enumerate(sorted(labels, key=lambda h: labels[h])):
            runs = sorted(by_optim[optim][config_hash], key=lambda r: r.seed)
            first = is_first_order(runs[0])
            result.append(Series(labels[config_hash], optim, variant, first, tuple(runs)))
    return tuple(result)


def _order(optim: str, first_order: bool) -> tuple[int, str]:
    """SNOpt first, then the first-order methods, then the rest."""
    return (0 if optim == "snopt" else 1 if first_order else 2, optim)


def is_first_order(run: Run) -> bool:
    """Whether a run's optimizer is one of those that targets are taken from."""
    return about(run.optim, _optimizer(run)).first_order


def _optimizer(run: Run) -> Mapping[str, Any]:
    settings = run.config.get("optim")
    return settings if isinstance(settings, Mapping) else {}


def _labels(optim: str, by_hash: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """A name for each configuration of one optimizer, from the settings that tell them apart."""
    if len(by_hash) == 1:
        return dict.fromkeys(by_hash, optim)
    flat = {h: flatten(_settings(runs[0].config)) for h, runs in by_hash.items()}
    differing = _differing(flat.values())
    labels: dict[str, str] = {}
    fewest = max(1, len(_TELLING.intersection(differing)))
    for most in range(fewest, 4):  # as few settings as tell them apart
        for config_hash, settings in flat.items():
            parts = [f"{k.removeprefix('optim.')}={settings.get(k)}" for k in differing[:most]]
            labels[config_hash] = f"{optim} ({', '.join(parts)})" if parts else ""
        if len(set(labels.values())) == len(labels):
            break
    else:
        # More differs than a label can say: the hash is in the folder's name.
        labels = {h: f"{optim} [{h}]" for h in by_hash}
    return labels


def _differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = list(settings)
    names = sorted({name for row in rows for name in row}, key=_by_importance)
    return [n for n in names if len({repr(row.get(n)) for row in rows}) > 1]


def _by_importance(name: str) -> tuple[bool, bool, str]:
    return (not name.startswith("optim."), name not in _TELLING, name)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in config.items() if k not in _IGNORED}
    if isinstance(kept.get("optim"), Mapping):
        kept["optim"] = {k: v for k, v in kept["optim"].items() if k != "about"}
    return kept


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def _notes(members: Sequence[Run]) -> list[str]:
    """What an honest comparison would share and these runs do not."""
    notes = []
    shared = [flatten({k: r.config.get(k) for k in _SHARED if k in r.config}) for r in members]
    for name in _differing(shared):
        values = sorted({str(row.get(name)) for row in shared})
        notes.append(f"Not the same for all runs: {name} = {' / '.join(values)}.")
    machines = [flatten({k: r.environment.get(k) for k in _MACHINE}) for r in members]
    for name in _differing(machines):
        values = sorted({str(row.get(name)) for row in machines})
        notes.append(f"Seconds may not compare: {name} = {' / '.join(values)}.")
    if all(run.by_processors for run in members):
        notes.append("Seconds are those on processors, by which these runs were limited.")
    for split, said in (
        ("valid", "Validation values, and what is chosen by them, are of {} validation samples."),
        ("test", "Test values before the last are of {} test samples, the last of all."),
    ):
        parts = {_get(r.config, "train", f"eval_{split}_samples") for r in members} - {None}
        if parts:
            notes.append(said.format(" / ".join(str(size) for size in sorted(parts))))
    batches = {r.optim for r in members if find_curve(r, TRAIN_LOSS[:1]) is None}
    if batches:
        notes.append(
            f"Training losses of {', '.join(sorted(batches))} are of single batches, not of the "
            "split, and so are times to them: train.eval_splits leaves out train."
        )
    commits = sorted({str(r.environment.get("snopt")) for r in members})
    if len(commits) > 1:
        notes.append(f"Not made by the same version of the code: {' / '.join(commits)}.")
    by_optim: dict[str, set[int]] = defaultdict(set)
    for run in members:
        by_optim[run.optim].add(run.seed)
    if len({frozenset(seeds) for seeds in by_optim.values()}) > 1:
        texts = (f"{o}: {_listed(seeds)}" for o, seeds in sorted(by_optim.items()))
        notes.append(f"Seeds differ ({'; '.join(texts)}).")
    notes.extend(f"{run.path}: {warning}." for run in members for warning in run.warnings)
    return notes


def _get(config: Mapping[str, Any], section: str, key: str) -> Any:
    part = config.get(section)
    return part.get(key) if isinstance(part, Mapping) else None


def _listed(seeds: set[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))
