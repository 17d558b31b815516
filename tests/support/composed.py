"""Settings as the command line composes them."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from tasks.engine.config import composing
from tasks.engine.config.settings import Settings


def read(*overrides: str) -> Settings:
    """The settings that overrides stand for."""
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        return Settings.read(composing.plain(compose("config", overrides=list(overrides))))
