"""Folders that look like runs, with made-up numbers, for the tests of the report."""

import json
import math
from pathlib import Path

import yaml

from tasks.engine.records.runs import read_runs
from tasks.engine.report.comparison import compare
from tasks.engine.report.summary import Table, tabulate

BUCKETS = {
    "data": 0.01,
    "forward": 0.4,
    "backward": 0.5,
    "curvature": 0.0,
    "optimizer": 0.05,
    "compile": 0.0,
    "evaluation": 0.2,
    "logging": 0.02,
    "other": 0.01,
}


def made_up_run(
    root: Path,
    *,
    task="digits",
    model="node",
    optim="adam",
    seed=0,
    losses=None,
    rate=0.02,
    floor=0.02,
    step_seconds=0.1,
    steps=400,
    every=20,
    outcome="budget",
    config_hash="0a1b2c3d",
    provenance="synthetic, made up by a test",
    metric="accuracy",
    optim_settings=None,
    shares=None,
    extra=None,
    processors=None,
    **overrides,
):
    """Write one run and return its folder.

    ``losses`` gives the training loss at 0, every, 2 * every, ... steps; without it, an exponential
    decay to ``floor`` at ``rate`` a step, a little different for every seed. ``processors`` is the
    share of the seconds that were spent on processors, of a run that is limited by those.
    """
    marks = range(0, steps + 1, every)
    if losses is None:
        wobble = [1 + 0.15 * math.sin(1.7 * seed + 0.09 * step) for step in marks]
        losses = [
            (floor + 2.3 * math.exp(-rate * s)) * w for s, w in zip(marks, wobble, strict=True)
        ]
    folder = root / task / model / optim / f"{config_hash}-s{seed}"
    folder.mkdir(parents=True)
    rows = []
    for step, loss in zip(marks, losses, strict=False):
        values = {
            ("train", "loss"): loss,
            ("train", "batch_loss"): loss * 1.1,
            ("valid", metric): 1 / (1 + loss * 1.05),
            ("test", metric): 1 / (1 + loss),
            ("test", "loss"): loss * 1.2,
            **{key: f(step) for key, f in (extra or {}).items()},
        }
        rows += [
            {
                "step": step,
                "epoch": step // 100,
                "split": split,
                "metric": name,
                "value": value if math.isfinite(value) else None,
                "seconds": step * step_seconds,
                "wall": step * step_seconds * 1.3,
                **({"cpu_seconds": step * step_seconds * processors} if processors else {}),
                "nfe_forward": 14 * step,
                "nfe_backward": 16 * step,
            }
            for (split, name), value in values.items()
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = max(row["step"] for row in rows)
    record = {
        "task": task,
        "model": model,
        "optim": optim,
        "seed": seed,
        "config_hash": config_hash,
        "outcome": outcome,
        "message": f"Made up: {outcome}.",
        "steps": last,
        "seconds": last * step_seconds,
        "buckets": {k: v * last * step_seconds for k, v in (BUCKETS | (shares or {})).items()},
        "metric": metric,
        "higher_is_better": True,
        "provenance": provenance,
        "environment": {"device_name": "made-up", "threads": 2, "snopt": "0123abc"},
        "final": {},
        "best": None,
        **({"cpu_seconds": last * step_seconds * processors} if processors else {}),
        **overrides,
    }
    (folder / "run.json").write_text(json.dumps(record))
    config = {
        "seed": seed,
        "device": "cpu",
        "task": {"name": task},
        "model": {"name": model},
        "optim": {"name": optim, "lr": 0.01, **(optim_settings or {})},
        "solver": {"method": "dopri5", "rtol": 1e-3},
        "train": {"max_seconds": 40, **({"clock": "cpu"} if processors else {})},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def made_up_suite(root: Path, seeds=(0, 1, 2)):
    """Three optimizers on two tasks, two SNOpt variants and one diverged run."""
    for task, scale in (("digits", 1.0), ("japanese_vowels", 1.6)):
        for seed in seeds:
            common = {"task": task, "seed": seed}
            made_up_run(root, optim="sgd", rate=0.008 * scale, floor=0.12, **common)
            made_up_run(root, optim="adam", rate=0.014 * scale, floor=0.03, **common)
            made_up_run(
                root,
                optim="snopt",
                rate=0.04 * scale,
                floor=0.004,
                step_seconds=0.115,
                steps=340,
                config_hash="aaaaaaaa",
                optim_settings={"rule": "adam"},
                shares={"curvature": 0.09},
                extra={("train", "optimizer/damping"): lambda s: 0.05 / (1 + s)},
                **common,
            )
        made_up_run(
            root,
            task=task,
            optim="snopt",
            rate=0.02 * scale,
            floor=0.02,
            config_hash="bbbbbbbb",
            optim_settings={"rule": "paper"},
            shares={"curvature": 0.02},
        )
    made_up_run(root, optim="adamw", losses=[2.3, 1.1, 0.9, 1.7, math.nan], outcome="diverged")


def tables_of(root: Path, metric: str | None = None) -> list[Table]:
    """The tables of the report on the runs below a folder, without its pictures and files."""
    return [tabulate(comparison) for comparison in compare(read_runs(root)[0], metric=metric)]
