"""Published numbers to set beside ours, each with where it comes from. None was measured here.

Source: Liu, Chen and Theodorou, Second-Order Neural ODE Optimizer, NeurIPS 2021. The tables and
curves were read in the authors' slides of the conference, which show the manuscript's Tables 2 and
6, and checked against the settings of the released code. The paper's own appendix was not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """The paper's numbers for one task.

    Attributes:
        metric: what Table 2 measures, in our name for it.
        test: test metric by optimizer, in the metric's unit (accuracy as a share, NLL in nats). No
            spread and no number of seeds is printed; the released scripts run seed 0.
        seconds: Table 6: Adam's seconds an iteration, on the authors' machine.
        cost: Table 6: SNOpt's seconds an iteration over Adam's.
        time_ratio: SNOpt's seconds to the *training* loss at which the better of Adam and SGD
            ends, over that optimizer's own, digitised from the curves (within 5 to 10%); ``None``
            where no curve could be read.
        notes: what a reader has to know to compare.
    """

    metric: str
    test: Mapping[str, float]
    seconds: float
    cost: float
    time_ratio: float | None = None
    notes: tuple[str, ...] = ()

    def shown(self, optim: str) -> str:
        """The test metric with the two decimals that are printed; empty where there is none."""
        value = self.test.get(optim)
        if value is None:
            return ""
        return f"{100 * value:.2f}%" if self.metric == "accuracy" else f"{value:.2f}"


def _accuracy(adam: float, sgd: float, snopt: float) -> dict[str, float]:
    return {name: x / 100 for name, x in (("adam", adam), ("sgd", sgd), ("snopt", snopt))}


def _nll(adam: float, sgd: float, snopt: float) -> dict[str, float]:
    return {"adam": adam, "sgd": sgd, "snopt": snopt}


PUBLISHED: Mapping[str, Published] = {
    "mnist": Published("accuracy", _accuracy(98.83, 98.68, 98.99), 0.15, 1.00),
    "svhn": Published(
        "accuracy",
        _accuracy(91.92, 93.34, 95.77),
        0.78,
        0.87,
        0.37,
        (
            "the released loader scores SVHN on its training split, and the curve's last training "
            "loss fits that: most likely these are training accuracies",
        ),
    ),
    "cifar10": Published("accuracy", _accuracy(77.41, 76.42, 79.11), 0.17, 1.16, 0.42),
    "spoken_arabic_digits": Published(
        "accuracy",
        _accuracy(94.64, 97.70, 97.41),
        5.24,
        0.99,
        1.0,
        ("the released test loader drops its last batch: 1000 of 1320 cases are scored",),
    ),
    "articulary_word_recognition": Published(
        "accuracy",
        _accuracy(84.14, 85.82, 90.23),
        9.95,
        1.01,
        0.49,
        ("the released loader drops the last batch of an epoch: 600 epochs are 600 iterations",),
    ),
    "character_trajectories": Published(
        "accuracy",
        _accuracy(93.29, 95.93, 96.63),
        14.79,
        1.01,
        0.34,
        ("the curve is drawn for 500 epochs, the released script has 400",),
    ),
    "circle": Published(
        "nll",
        _nll(0.90, 0.94, 0.86),
        0.34,
        2.75,
        None,
        ("circle's network and settings are not published, and ours are a guess",),
    ),
    "gas": Published(
        "nll",
        _nll(-6.42, -4.58, -7.55),
        2.25,
        1.93,
        0.64,
        ("the released code takes a random tenth of every split",),
    ),
    "miniboone": Published(
        "nll",
        _nll(13.10, 13.75, 12.50),
        0.65,
        1.60,
        0.41,
        ("the published curve is a training NLL, 3.5 at its end",),
    ),
}
"""Table 2, Table 6 and the curves, by task."""

SOURCE = "Liu et al. 2021, Table 2, one run each as far as is known"
"""Stands below every table that shows these numbers."""
