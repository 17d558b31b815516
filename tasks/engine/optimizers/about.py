"""What the suite knows of an optimizer: the part ``about`` of its file in ``conf/optim``.

It says how runs are compared, drawn and searched, and is no part of what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from tasks.common.checks import ConfigError

FOLDER = Path(__file__).resolve().parents[3] / "conf" / "optim"

_SPARE = ("#A6761D", "#17BECF", "#BCBD22", "#7F7F7F", "#393B79")
"""Colours of optimizers that name none."""

_FIRST_ORDER = frozenset({"adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta"})
"""Classes of torch that have no file here and are first-order all the same."""


@dataclass(frozen=True)
class About:
    """What is known of an optimizer.

    Attributes:
        first_order: whether the target of a comparison is found among its runs.
        colour: in every figure, table and report; ``None``: a spare one, by its name.
        search: by setting, ``{"from": a, "to": b}`` for a log-uniform range or ``{"among": [...]}``
            for equally likely values; ``lr`` is the learning rate.
        rates: the four learning rates that the benchmark's default track chooses from.
        schedule: that track's schedule: cosine to zero, or constant after the warm-up.
    """

    first_order: bool = False
    colour: str | None = None
    search: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rates: Sequence[float] = (3e-3, 1e-2, 3e-2, 0.1)
    schedule: Literal["cosine", "constant"] = "cosine"

    @classmethod
    def read(cls, part: Mapping[str, Any]) -> About:
        """From a configuration.

        Raises:
            ConfigError: it has another key.
        """
        try:
            return cls(**part)
        except TypeError as error:
            raise ConfigError(
                f"optim.about: has {', '.join(x.name for x in fields(cls))}, and nothing else "
                f"(given: {', '.join(map(str, part))})."
            ) from error


@cache
def known() -> Mapping[str, About]:
    """The optimizers of ``conf/optim``, by the name of the file."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        # A file that sets more than the optimizer has its part below.
        found[path.stem] = About.read(content.get("optim", content).get("about", {}))
    return found


def about(name: str, config: Mapping[str, Any]) -> About:
    """What is known of the optimizer of a run.

    Args:
        name: the run's; a file of ``conf/optim`` is called so, or its class is.
        config: its part ``optim`` of the configuration. Earlier runs have no ``about`` in it.
    """
    if isinstance(config.get("about"), Mapping):
        return About.read(config["about"])
    kind = str(config.get("_target_", "")).rpartition(".")[2].lower()
    found = known().get(name) or known().get(kind) or About()
    first = found.first_order or any(
        x in _FIRST_ORDER or (x in known() and known()[x].first_order) for x in (name, kind)
    )
    return replace(found, first_order=first, colour=found.colour if name in known() else None)


def colour(name: str, config: Mapping[str, Any]) -> str:
    """An optimizer's colour; one without always gets the same spare one. Arguments as above."""
    return about(name, config).colour or _SPARE[sum(name.encode()) % len(_SPARE)]
