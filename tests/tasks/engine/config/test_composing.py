"""What is typed is composed and checked: mistakes are explained, what is right passes as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tasks.common.checks import ConfigError
from tasks.engine.config import composing

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=digit"], r"task=digit: no such choice\. Did you mean digits\? Choices: .*mnist"),
        (
            ["optim=sdg"],
            r"optim=sdg: no such choice\. Did you mean sgd\? Choices: adahessian, adam, ",
        ),
        (["trian.max_steps=3"], r"trian: no such key\. Did you mean train\? Keys: data, device"),
        (["train.max_step=3"], r"train\.max_step: .*Did you mean max_steps\? Keys of train: "),
        (["optim=sgd", "optim.momentun=0"], r"optim\.momentun: .*momentum\? Keys of optim: "),
        (["train.max_steps=-1"], r"train\.max_steps=-1: must be at least 1"),
        (["results=here"], r"results=here: results is a section; .*results\.root="),
        (["train=5"], r"train=5: train is a section; .*train\.max_steps="),
        (["seed=-1"], r"seed=-1: must be an integer, at least 0"),
        (["threads=0"], r"threads=0: must be an integer, at least 1, or null"),
        (["device=gpu"], r"device=gpu: no such choice\. .*Choices: auto, cpu, cuda"),
        (["train.max_steps=("], r"train\.max_steps=\(: not an override\. Write key=value"),
        (["seed=1,2"], r"seed=1,2: several values\. Add -m"),
    ],
)
def test_mistakes_are_explained(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        composing.check_overrides(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=digits,mnits"], r"task=mnits: .*Did you mean mnist"),
        (["optim=sgd,adam", "optim.momentum=0.5"], r"optim\.momentum: no such key"),
        (["train.max_steps=5,-5"], r"train\.max_steps=-5"),
        (["seed=0,1", "schedule.gamma=0.1"], r"schedule\.gamma=0\.1: is of name=multistep"),
        (["schedule.name=constant,cosine", "schedule.gamma=0.1"], r"gamma=0\.1: is of name=multi"),
    ],
)
def test_mistakes_in_a_later_job_of_a_sweep(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        composing.check_overrides(overrides, sweep=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=digits", "optim=adam", "seed=0,1,2", "hydra/launcher=joblib"],
        ["task=digits", "optim=sgd,adam", "optim.lr=1e-3,1e-2", "tuned=none"],
        ["optim=sgd", "+optim.maximize=true", "train.max_epochs=null", "train.max_seconds=3"],
        ["schedule.name=constant,cosine", "schedule.final_factor=0.1"],
    ],
)
def test_what_is_right_passes(overrides) -> None:
    composing.check_overrides(overrides, sweep=True)


def test_a_check_does_not_import_torch() -> None:
    code = (
        "import sys, tasks.engine.cli; from tasks.engine.config.composing import check_overrides; "
        "check_overrides(['task=digits']); print(*sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = answer.stdout.split()
    assert "hydra" in loaded
    assert "torch" not in loaded


#: Found while the command is composed, without torch.
TYPED = [
    (["optim=glob(ad*)"], r"several values\. Add -m"),
    (["-m", "optim=glob(*zzz)"], r"stands for no value\. Choices of optim: adahessian"),
    (["-m", "seed=range(5,1)"], r"seed=range\(5,1\): stands for no value"),
    (["-m", "seed=range(0,1,0)"], r"must not be zero"),
    (["-m", "optim.lr=interval(0,1)"], r"an interval has no end of values"),
    (["results.root=/tmp/a,b"], r"\"results\.root='/tmp/a,b'\""),
    (["results.root=/tmp/a(1)"], r"\"results\.root='/tmp/a\(1\)'\""),
    (["=3"], r"not an override\. Write key=value"),
    (["é=3"], r"not an override"),
    (["optim.name=../../x"], r"optim\.name='\.\./\.\./x': names the folder"),
    (["optim.name=.."], r"optim\.name='\.\.': names the folder"),
    (["task.name="], r"task\.name='': names the folder"),
    (["model.name=a/b"], r"model\.name='a/b': names the folder"),
    (["model.name=é"], r"model\.name='é': names the folder"),
    (["model.name=1e30"], r"model\.name=1e\+30: names the folder"),
    (["results.root="], r"results\.root='': must name a folder"),
    (["results.root=null"], r"results\.root=null: must name a folder"),
    (["results.root=true"], r"results\.root=True: must name a folder"),
    (["results.root=1.5"], r"results\.root=\./1\.5"),
    (["data.root=5"], r"data\.root=5: expected str \| null"),
    (["hydra.run.dir=/proc/x"], r"hydra\.run\.dir: runs write below results\.root"),
    (["hydra.output_subdir=x"], r"hydra\.output_subdir: runs write below"),
    (["hydra.job.chdir=true"], r"hydra\.job\.chdir: runs write below"),
    (["solver.steps=0"], r"solver\.steps=0: must be at least 1"),
    (["solver.max_steps=0"], r"solver\.max_steps=0: must be at least 1"),
    (["solver.compile='a b'"], r"solver\.compile='a b': expected bool"),
    (["solver.warm_start=yes"], r"solver\.warm_start='yes': expected bool"),
    (["solver.rtol=nan"], r"solver\.rtol=nan: must be finite"),
    (["solver.gradient=adjont"], r"solver\.gradient=adjont: .*Did you mean adjoint"),
    (["+solver.options.steps=3"], r"solver\.options\.steps: .*write solver\.steps"),
    (["logger.name=wadnb"], r"logger\.name=wadnb: .*Did you mean wandb"),
    (["logger=wandb", "logger.mode=nonsense"], r"logger\.mode=nonsense: .*offline, online"),
    (["logger=wandb", "logger.tags=one"], r"logger\.tags='one': expected tuple\[str, \.\.\.\]"),
    (["+logger.mode=offline"], r"logger\.mode: is for wandb"),
    (["logger.progress=loud"], r"logger\.progress=loud: no such choice"),
    (["optim=1"], r"optim=1: no such choice"),
    (["tuned=null"], r"tuned=null: no such choice"),
    (["logger=false"], r"logger=false: no such choice"),
    (["optim=[sgd,adam]"], r"optim=\[sgd,adam\]: no such choice"),
    (["~seed"], r"~seed: no run can do without"),
    (["~solver"], r"~solver: no run can do without"),
    (["~train"], r"~train: no run can do without"),
    (["~logger.name"], r"logger\.name: is missing"),
    (["seed=${nope}"], r"nope"),
    (["seed=1.5"], r"seed=1\.5: must be an integer"),
    (["threads=100000"], r"threads=100000: .*at most 1024"),
    (["device=gpu0"], r"device=gpu0: no such choice"),
    (["dtype=float16"], r"dtype=float16: no such choice"),
    (["+foo=1"], r"foo: no such key"),
    (["+data.foo=1"], r"data\.foo: no such key"),
    (["train.max_epochs=0"], r"train\.max_epochs=0: must be at least 1"),
    (["train.max_seconds=inf"], r"train\.max_seconds=inf: must be finite"),
    (["train.eval_splits=[]"], r"train\.eval_splits=\[\]: name one"),
    (["schedule.milestones=[0]"], r"schedule\.milestones=\[0\]: epochs must be"),
    (["schedule.gamma=0"], r"schedule\.gamma=0: must be greater"),
    (["experiment=paper/images"], r"Choices: paper/images/cifar10-adam"),
    (["--cfg", "job", "optim=1"], r"optim=1: no such choice"),
]


@pytest.mark.parametrize(("arguments", "message"), TYPED, ids=[" ".join(x[0]) for x in TYPED])
def test_refused_before_anything_is_imported(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        composing.checked(["task=digits", *arguments] if arguments[0][0] != "-" else arguments)
    assert len(str(refusal.value).splitlines()) <= 4


@pytest.mark.parametrize(
    ("typed", "root"),
    [
        ("/tmp/müller", "/tmp/müller"),
        ("/tmp/a=b", "/tmp/a=b"),
        ("/tmp/a b", "/tmp/a b"),
        ("~/x#1", "~/x#1"),
        ("'/tmp/a,b'", "/tmp/a,b"),
    ],
)
def test_folders_of_any_letters(typed, root) -> None:
    (override,) = composing.checked([f"results.root={typed}"])
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        assert compose("config", [override]).results.root == root


@pytest.mark.parametrize("text", ["a'b", "a,b", "ü ü", "[1]", "a\\", "a\\'b", "1e3"])
def test_quoted_text_is_read_as_it_is(text) -> None:
    override = composing.OverridesParser.create().parse_override(composing.quoted("key", text))
    assert override.value() == text
