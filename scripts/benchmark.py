"""Rank optimizers on Neural ODEs: ``python -m scripts.benchmark --track default``.

Every optimizer runs on every workload (``conf/target``). What counts is the training time until
the validation loss that the best tuned first-order optimizer reaches; docs/benchmark.md has the
definitions. On the default track each optimizer has one configuration for all workloads and four
learning rates; on the tuned track settings are searched, all in equal seconds. Targets that are
missing are fixed first, by tuning the first-order optimizers. Finished runs are kept and
interrupted ones resumed, so the command can be stopped at any time and given again. Tables, curves
and a page go to ``--out``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from scripts.entry import MISTAKES, at_least, require_ranges_of_files, status
from scripts.pool import run_all
from scripts.ranking import workloads
from scripts.ranking.entrants import NO_SETTINGS, TRACKS, Entrant
from scripts.ranking.outcomes import Outcome
from scripts.ranking.page import write
from scripts.ranking.ratios import RATIOS, kept
from scripts.ranking.scores import Entry
from scripts.ranking.workloads import Target, Workload
from scripts.search import parsed, ranges
from tasks.common.checks import ConfigError, require_choice
from tasks.engine import cli
from tasks.engine.config import composing
from tasks.engine.optimizers.build import check_optimizer, import_modules
from tasks.engine.report.console import console
from tasks.engine.training.signals import INTERRUPTED

#: Who runs where by default, and with how many seeds.
FIELD = {
    "default": [
        *("sgd", "adam", "adamw", "schedulefree", "soap", "muon", "kron"),
        *("snopt", "snopt_paper"),
    ],
    "tuned": ["adamw", "soap", "muon", "snopt", "snopt_paper"],
}
SEEDS = {"default": 5, "tuned": 3}
#: Who fixes a target, with how many seeds.
FIRST_ORDER, TARGET_SEEDS = ("sgd", "adam", "adamw", "schedulefree"), 5
#: An optimizer from outside the repository, beside the field.
OWN = "optim=custom"
#: What an optimizer of one's own brings along; the workload and the track have the rest.
BROUGHT = ("optim.", "solver.", "imports")
#: Wall seconds for a second of the training clock, before any run tells: evaluation, mostly.
OVERHEAD = 1.4


class Benchmark:
    """What is asked for, and where it stands.

    Args:
        options: of the command line.
        out: the console.
    """

    def __init__(self, options: argparse.Namespace, out: Console) -> None:
        self._options, self._out = options, out
        self.tracks: list[str] = [options.track] if options.track else list(TRACKS)
        self._deadline = time.monotonic() + options.budget if options.budget else None

    def entrants(self, track: str, workload: Workload) -> list[Entrant]:
        """Everybody who runs on a workload."""
        named = self._options.optims or [*FIELD[track], *self._options.further]
        return [self._entrant(track, workload, optim) for optim in named]

    def missing(self) -> list[tuple[Entrant, int]]:
        """Entrants with something left to do, and how many of their runs count."""
        found = []
        for workload in workloads.read(self._options.workloads):
            for track in self.tracks:
                seeds = self._options.seeds or SEEDS[track]
                entrants = self.entrants(track, workload)
                found += [(e, seeds) for e in entrants if not e.finals(range(seeds))]
        return found

    def untargeted(self) -> list[Workload]:
        """Workloads whose target is still to be fixed."""
        return [one for one in workloads.read(self._options.workloads) if one.target is None]

    def rivals(self, workload: Workload) -> list[Entrant]:
        """The first-order optimizers, one of which fixes the target."""
        return [self._entrant("tuned", workload, optim) for optim in FIRST_ORDER]

    def searches(self) -> list[tuple[Entrant, int]]:
        """Searches that are missing before targets can be fixed; none of their runs count."""
        every = [rival for workload in self.untargeted() for rival in self.rivals(workload)]
        return [(rival, 0) for rival in every if rival.choice() is None]

    def fix_targets(self) -> bool:
        """Fix what targets are missing; whether it was not stopped.

        An optimizer that finds no settings cannot be the best. Where none finds any, the target
        stays missing.
        """
        if not self._run(self.searches()):
            return False
        best = []
        for workload in self.untargeted():
            rivals = self.rivals(workload)
            chosen = [(choice.merit, e) for e in rivals if (choice := e.choice()) is not None]
            if chosen:
                best.append((min(chosen, key=lambda pair: pair[0])[1], TARGET_SEEDS))
        if not self._run([(e, n) for e, n in best if not e.finals(range(n))]):
            return False
        for entrant, seeds in best:
            self._fix(entrant, entrant.finals(range(seeds)))
        return True

    def race(self) -> bool:
        """Make what is missing of the tracks; whether it was not stopped."""
        return self._run([pair for pair in self.missing() if pair[0].workload.target is not None])

    def entries(self, track: str, workload: Workload) -> list[Entry]:
        """Everybody whose runs are all there; nobody where a first-order optimizer's are not."""
        found = []
        for entrant in self.entrants(track, workload):
            folders = entrant.finals(range(self._options.seeds or SEEDS[track]))
            choice = entrant.choice()
            if folders and choice is not None:
                outcomes = tuple(map(Outcome.read, folders))
                first = entrant.about.first_order
                found.append(Entry(entrant.label, first, entrant.colour, choice.settings, outcomes))
            elif entrant.about.first_order:  # it may be the one that ratios are over
                return []
        return found

    def price(self, pairs: Sequence[tuple[Entrant, int]]) -> float:
        """Wall seconds that entrants take at most, one after the other."""
        total = 0.0
        for entrant, seeds in pairs:
            cpu, wall = entrant.spent()
            factor = wall / cpu if cpu > 0.5 * entrant.workload.seconds else OVERHEAD
            total += max(0.0, entrant.price(seeds) - cpu) * factor
        return total

    def _entrant(self, track: str, workload: Workload, optim: str) -> Entrant:
        overrides = tuple(self._options.overrides) if optim == "custom" else ()
        return Entrant(track, workload, optim, self._options.results, overrides)

    def _run(self, pairs: Sequence[tuple[Entrant, int]]) -> bool:
        """Several entrants, some at a time; whether all were run that have settings to run with."""
        jobs = self._options.jobs
        if not pairs:
            return True
        commands = []
        for entrant, seeds in pairs:
            program = [sys.executable, "-m", "scripts.ranking.entrants"]
            names = [entrant.track, entrant.workload.name, entrant.optim, *entrant.overrides]
            flags = [f"--seeds={seeds}", f"--results={entrant.root.resolve()}"]
            commands.append([*program, *names, *flags])

        def begin(index: int) -> None:
            entrant = pairs[index][0]
            left = self.price(pairs[index:]) / jobs / 60
            self._out.print(
                f"[{index + 1}/{len(pairs)}] {entrant.track} {entrant.workload.name} "
                f"{entrant.label}; about {left:.0f} min left",
                markup=False,
                highlight=False,
            )

        codes = run_all(commands, jobs, begin, deadline=self._deadline)
        failed = [
            f"{pair[0].track} {pair[0].workload.name} {pair[0].label}"
            for pair, code in zip(pairs, codes, strict=True)
            if code not in (0, NO_SETTINGS, None, INTERRUPTED)
        ]
        if failed:
            raise ConfigError(f"did not end well: {'; '.join(failed)}. What they said is above.")
        return all(code in (0, NO_SETTINGS) for code in codes)

    def _fix(self, entrant: Entrant, folders: Sequence[Path]) -> None:
        losses = sorted(Outcome.read(folder).best for folder in folders)
        target = Target(
            loss=workloads.rounded_up(losses[len(losses) // 2]),
            low=float(f"{losses[0]:.4g}"),
            high=float(f"{losses[-1]:.4g}"),
            optim=entrant.optim,
            date=datetime.now(UTC).date().isoformat(),
            command=f"python -m scripts.benchmark --workloads {entrant.workload.name}",
        )
        workloads.fix(entrant.workload, target)
        self._out.print(
            f"{entrant.workload.name}: target {target.loss:g} [{target.low:g}, {target.high:g}], "
            f"of {target.optim}",
            markup=False,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and draw; returns the exit status."""
    options = _parser().parse_intermixed_args(arguments)
    out, err = console(), console(stderr=True)
    try:
        _check(options)
        benchmark = Benchmark(options, out)
        if options.dry_run:
            _print_plan(benchmark, options.jobs, out)
            return 0
        whole = options.draw_only or (benchmark.fix_targets() and benchmark.race())
        written = write(
            {
                track: [
                    (workload, benchmark.entries(track, workload))
                    for workload in workloads.read(options.workloads)
                ]
                for track in benchmark.tracks
            },
            options.out,
        )
    except MISTAKES as error:
        err.print(str(error), markup=False)
        return cli.REFUSED
    for line in written:
        out.print(line, markup=False, highlight=False)
    if not whole:
        err.print("stopped; the same command continues where it was.")
        return INTERRUPTED
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be, and take ``optim=custom`` for an optimizer beside the field."""
    options.further = []
    if OWN in options.overrides:  # as for run.py
        options.overrides.remove(OWN)
        if options.optims is None:
            options.further = ["custom"]
        elif "custom" not in options.optims:
            raise ConfigError(f"{OWN}: --optims={','.join(options.optims)} leaves it out.")
    known = sorted(path.stem for path in (composing.CONF / "optim").glob("*.yaml"))
    for optim in options.optims or []:
        require_choice("--optims", optim, known)
    if options.track != "default":
        for optim in options.optims or []:
            if optim not in ranges():
                raise ConfigError(
                    f"--optims={optim}: conf/optim/{optim}.yaml has no about.search, which the "
                    "tuned track needs. Add --track default."
                )
    given = [override.partition("=")[0] for override in options.overrides]
    custom = "custom" in (options.optims or options.further)
    if custom != ("optim._target_" in given):
        raise ConfigError(
            f"an optimizer of your own: {OWN} optim._target_=package.module.Class, and beside a "
            "few others --optims adamw,custom optim._target_=package.module.Class"
        )
    if given and not custom:
        raise ConfigError(
            f"{options.overrides[0]}: overrides are for {OWN}; the other optimizers run "
            "with what conf/optim and the track give them."
        )
    require_ranges_of_files(given)
    if custom:
        options.overrides = composing.check_overrides([OWN, *options.overrides])[1:]
        _check_own(options.overrides)
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise ConfigError(f"--budget={options.budget:g}: seconds, above 0.")
    kept(options.out / RATIOS)  # read at the end: a damaged file is refused before hours of runs


def _check_own(overrides: Sequence[str]) -> None:
    """Refuse settings that the others do not run with, and a class that cannot make a step."""
    for key in parsed(overrides):
        if key == "optim.lr":
            raise ConfigError("optim.lr: is chosen on each workload, see optim.about.rates=[...].")
        if not key.startswith(BROUGHT):
            raise ConfigError(
                f"{key}: is the same for all optimizers. One of your own brings optim.*, solver.* "
                "and imports; optim.about.schedule=constant leaves out the annealing."
            )
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(compose("config", overrides=[OWN, *overrides]))
    import_modules(config["imports"])
    check_optimizer(config["optim"])


def _print_plan(benchmark: Benchmark, jobs: int, out: Console) -> None:
    grid = Table("track", "workload", "optimizer", "spent, s", "at most left, s", box=None)
    pairs = [*benchmark.searches(), *benchmark.missing()]
    for entrant, seeds in pairs:
        row = [entrant.track, entrant.workload.name, entrant.label]
        price = benchmark.price([(entrant, seeds)])
        grid.add_row(*row, f"{entrant.spent()[1]:.0f}", f"{price:.0f}")
    out.print(grid)
    hours = benchmark.price(pairs) / 3600
    out.print(
        f"\n{len(pairs)} to run: at most {hours:.1f} h of one core, {hours / jobs:.1f} h here"
    )
    if any(entrant.track == "tuned" for entrant, _ in pairs):
        out.print("A search that has to be widened costs what it cost once more.")


def _names(typed: str) -> list[str]:
    names = list(dict.fromkeys(name for name in typed.split(",") if name))
    if not names:
        raise argparse.ArgumentTypeError("names nothing; leave the flag out for the default")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--track", choices=TRACKS, help="one of two (both)")
    parser.add_argument("--workloads", type=_names, help="separated by commas (all)")
    parser.add_argument("--optims", type=_names, help="separated by commas (the track's field)")
    parser.add_argument("--seeds", type=at_least(1), help="runs that count (5 default, 3 tuned)")
    parser.add_argument("--budget", type=float, metavar="S", help="stop after so many seconds")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="optimizers at a time (1)")
    parser.add_argument("--dry-run", action="store_true", help="only list what would run")
    parser.add_argument("--draw-only", action="store_true", help="only draw what is there")
    results, out = Path("results/benchmark"), Path("results/reference/benchmark")
    parser.add_argument("--results", type=Path, default=results, help=f"folder of runs ({results})")
    parser.add_argument("--out", type=Path, default=out, help=f"folder of tables ({out})")
    parser.add_argument("overrides", nargs="*", help=f"{OWN} and its settings, as for run.py")
    return parser


if __name__ == "__main__":
    sys.exit(status(main))
