"""Five hundred command lines from one seed: what was asked ran, or was refused in a few words."""

import random
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tasks.engine import cli
from tasks.engine.config import composing
from tests.support import console

SEED, COMMANDS, CHUNKS = 20260417, 500, 10
GROUPS = ("optim", "model", "solver", "horizon", "logger", "tuned", "experiment", "arch")
VALUES = (
    *("0", "1", "2", "-1", "1.5", "1e-3", "1e30", "1e400", "nan", "inf", "-inf", "٣"),
    *("null", "true", "false", "yes", "", "''", "' '", "None", "text", "'a b'", "a b", "müller"),
    *("../../x", "/proc/x", "a/b", "..", ".", "-x", "a=b", "a,b", "'a,b'", "a:b", "x" * 300),
    *("[]", "[1]", "[0.9]", "[1,2,3]", "[a]", "{}", "{a:1}", "${nope}", "${seed}", "${task.name}"),
    *("(", ")", "[", "{", "'", '"', "\\", "a\\", "#", "@", "${", "~", "🙂", "%d", "<x>"),
)
GOOD = (
    *("0", "1", "2", "3", "0.5", "0.1", "1e-2", "1e-5", "true", "false", "null", "[0.9,0.99]"),
    *("cosine", "linear", "euler", "rk4", "adjoint", "skip_step", "cpu", "float64", "[valid]"),
)
"""What is right for some keys."""
SWEEPS = (
    *("glob(*)", "glob(ad*)", "glob(*zzz)", "choice(1,2)", "choice()", "range(0,2)", "range(2,0)"),
    *("range(0,1,0)", "interval(0,1)", "shuffle(1,2)", "sort(2,1)", "1,2", "adam,sgd", "1,a", "a,"),
    *("tag(x,choice(1))", "glob()", "range(a,b)", "nope(1)"),
)
HYDRA = (
    *("hydra.run.dir=here", "hydra.sweep.dir=here", "hydra.output_subdir=here", "hydra.verbose=x"),
    *("hydra.job.chdir=true", "hydra/launcher=nope", "hydra.launcher.n_jobs=2", "hydra.nope=1"),
    *("hydra/sweeper=nope", "~hydra", "hydra=1", "hydra.mode=nope"),
)
#: Where a right value would take long, or go to the network.
LEFT_ALONE = ("solver.compile", "results.root", "train.max_seconds", "task._target_")


def leaves(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        nested = isinstance(value, DictConfig) and len(value)
        found += leaves(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return found


@pytest.fixture(scope="module")
def keys() -> list[str]:
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = compose("config", ["task=digits"])
        everything = [*leaves(config), *config, "nope", "optim.nope", "solver.options.nope"]
    return [key for key in everything if key not in LEFT_ALONE]


def command(draw: random.Random, keys: list[str]) -> list[str]:
    """One command line with one to three things that are probably wrong."""
    given = ["-m"] if draw.random() < 0.3 else []
    for _ in range(draw.choice((1, 1, 1, 2))):
        form, key = draw.random(), draw.choice(keys)
        value = draw.choice(GOOD if draw.random() < 0.6 else VALUES)
        if form < 0.55:
            given.append(f"{key}={value}")
        elif form < 0.65:
            given.append(f"{draw.choice(('+', '++'))}{key}={value}")
        elif form < 0.72:
            given.append(f"~{key}")
        elif form < 0.84:
            given.append(f"{draw.choice((key, *GROUPS))}={draw.choice(SWEEPS)}")
        elif form < 0.92:
            given.append(f"{draw.choice(GROUPS)}={draw.choice(VALUES)}")
        elif form < 0.96:
            given.append(draw.choice(HYDRA))
        else:
            given.append(draw.choice(("nope", "=", "=1", "é=1", "a.b.=1", "..=1", "+", "~", "--x")))
    return given


def asked(given: list[str], config: dict) -> list[str]:
    """Overrides whose value is not what the run's configuration has."""
    missed = []
    for text in given:
        try:
            override = OverridesParser.create().parse_override(composing._readable(text))
        except (HydraException, cli.ConfigError):
            missed.append(f"{text} cannot be read")
            continue
        key, value = override.key_or_group, override.value()
        if key in (*GROUPS, "task") or override.is_delete() or override.is_hydra_override():
            continue
        if "$" not in text and OmegaConf.select(OmegaConf.create(config), key) != value:
            missed.append(text)
    return missed


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_commands(chunk, keys, tmp_path, monkeypatch) -> None:
    threads = torch.get_num_threads()
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    draw = random.Random(SEED + chunk)
    faults = []
    for number in range(COMMANDS // CHUNKS):
        root = tmp_path / f"runs{number}"
        given = command(draw, keys)
        base = ("train.max_seconds=2", f"results.root={root}", f"data.root={home}")
        try:
            answer = console.run(*console.ONE_STEP, *base, *given)
        except BaseException as error:  # whatever it is, which command it was is what matters
            faults.append(f"{given}: {type(error).__name__}: {str(error)[:300]}")
            continue
        finally:
            torch.set_num_threads(threads)
        faults += [f"{given}: {fault}" for fault in wrong(answer, given, root)]
    outside = {path.name for path in tmp_path.iterdir()} - {"home"}
    outside = {name for name in outside if not name.startswith("runs")}
    assert not faults, "\n".join(faults)
    assert not outside
    assert not list(home.iterdir())


def wrong(answer: console.Answer, given: list[str], root: Path) -> list[str]:
    found = []
    if "Traceback" in answer.text:
        found.append(f"traceback: {answer.text[-300:]}")
    if answer.code not in cli.CODES:
        found.append(f"code {answer.code}")
    if answer.code == cli.REFUSED and "usage:" not in answer.text:
        said = [line for line in answer.text.splitlines() if "seed 0: " not in line]
        if not said or len(said) > 14 or len(answer.text) > 6000:
            found.append(f"{len(said)} lines: {answer.text[-400:]}")
    if answer.code == 0 and "-m" not in given:
        configs = [path for path in root.rglob("config.yaml") if ".sweeps" not in path.parts]
        if len(configs) != 1:
            found.append(f"{len(configs)} runs: {answer.text[-300:]}")
        else:
            missed = asked(given, yaml.safe_load(configs[0].read_text()))
            found += [f"ran without {text}" for text in missed]
    return found
