"""Published numbers to set beside ours, each with where it comes from.

None of them was measured here. The paper's own were noted from memory of its tables and have not
been checked against the print; the tables that show them say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Published:
    """One source's numbers for one task.

    Attributes:
        metric: what they measure, in our name for it.
        values: by optimizer, in the metric's own unit (accuracy as a share, NLL in nats).
        source: where they come from, and how sure that is.
    """

    metric: str
    values: Mapping[str, float]
    source: str


_PAPER = "Liu et al. 2021, mean over seeds, from memory, unchecked"


def _paper(metric: str, adam: float, sgd: float, snopt: float) -> Published:
    return Published(metric, {"adam": adam, "sgd": sgd, "snopt": snopt}, _PAPER)


PUBLISHED: Mapping[str, Published] = {
    "mnist": _paper("accuracy", 0.988, 0.987, 0.990),
    "svhn": _paper("accuracy", 0.919, 0.933, 0.958),
    "cifar10": _paper("accuracy", 0.774, 0.764, 0.791),
    "spoken_arabic_digits": _paper("accuracy", 0.946, 0.977, 0.974),
    "articulary_word_recognition": _paper("accuracy", 0.841, 0.858, 0.902),
    "character_trajectories": _paper("accuracy", 0.933, 0.959, 0.966),
    "circle": replace(
        _paper("nll", 0.90, 0.94, 0.86),
        source=f"{_PAPER}; circle's network and settings are not published, and ours are a guess",
    ),
    "gas": _paper("nll", -6.4, -4.6, -7.6),
    "miniboone": _paper("nll", 13.1, 13.8, 12.5),
}
