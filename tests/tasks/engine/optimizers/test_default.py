"""``optim=snopt`` is what ``SNOpt(model)`` is."""

import dataclasses

from hydra import compose, initialize_config_dir
from torch import nn

from snopt import SNOpt
from tasks.engine.config import composing
from tasks.engine.optimizers.build import build_optimizer


def test_the_suite_s_default_is_the_library_s() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        config = composing.plain(compose("config", overrides=["task=digits", "tuned=none"]))
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    suite, library = build_optimizer(config["optim"], model), SNOpt(model)
    assert isinstance(suite, SNOpt)
    # Without captured curvature, as by default, no sample is captured.
    assert library.rule.basis == "gradient"
    assert dataclasses.replace(suite.rule, curvature_samples=None) == library.rule
    for ours, theirs in zip(suite.param_groups, library.param_groups, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == theirs[key] for key in ours if key != "params")
