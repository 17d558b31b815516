"""A workload of the benchmark that takes a moment, and an optimizer from outside."""

from collections.abc import Iterable

from scripts.ranking.entrants import Choice, Entrant, Tried, make
from scripts.ranking.workloads import Target

TOY = """
# @package _global_
defaults:
  - override /task: digits
  - override /tuned: none
task:
  hidden: 4
threads: 1
train:
  max_epochs: null
  max_seconds: 0.2
  clock: cpu
  eval_every_epochs: null
  eval_every_seconds: 0.02
  eval_splits: [valid, test]
  eval_test_samples: 50
workload:
  about: A net that is too small, for a moment.
  target: null  # made by a test
"""


MINE = """
import torch


class Signum(torch.optim.SGD):
    def __init__(self, params, lr=0.1, *, beta=0.0):
        super().__init__(params, lr=lr, momentum=beta)
"""


OF_MINE = ("optim._target_=signum_of_mine.Signum", "optim.beta=0.9")


def decided(entrant: Entrant, seeds: Iterable[int] = ()) -> None:
    """What ``make`` does, but the first rate is chosen without a run that tries it."""
    settings = entrant.point(entrant.about.rates[0], 1.0)
    entrant.keep(Choice((Tried(settings, 101, (1.0, 2.0)),)))
    make(entrant, [*seeds], lambda line: None)


def fixed(loss: float = 2.2) -> Target:
    return Target(loss, 2.1, 2.3, "adamw", "2026-11-25", "made up")
