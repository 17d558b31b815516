"""Averages of the weights, for evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Set
from typing import Any

import torch
from torch import Tensor

from snopt.optim.update import follow


class Averages:
    """Polynomial-decay averages of the weights on their path, and the way into the model and back.

    After step t an average moves towards the weights by (k + 1) / (k + t): it is their mean over
    about the last 1 / (k + 1) of all steps, however many these are. Gradients are taken at the
    weights themselves. An average begins again where somebody else writes to a weight between two
    steps, as ``load_state_dict`` does, so that it does not mix what does not belong together. What
    is written to ``p.data`` leaves no mark: it is averaged, as the projections after each step that
    are often written so should be.

    Args:
        exponent: k, >= 0; ``None``: nothing is averaged.
        state: the optimizer's state by parameter, which holds the averages.

    Attributes:
        counts: of the points in each average.

    Source: Shamir and Zhang 2013, Stochastic gradient descent for non-smooth optimization, section
    4 (polynomial-decay averaging).
    """

    def __init__(self, exponent: float | None, state: MutableMapping[Tensor, Any]) -> None:
        self.exponent, self._state = exponent, state
        self.counts: dict[Tensor, int] = {}
        self._kept: dict[Tensor, Tensor] = {}
        self._marks: dict[Tensor, tuple[int, int]] = {}
        self._due = False

    @property
    def placed(self) -> bool:
        """Whether the model has the averages in place of its weights."""
        return bool(self._kept)

    def settle(self, what: str) -> None:
        """Take in the weights of the last step as they are now, which is where gradients are taken.

        Averages begin again of weights that somebody else has written to.

        Args:
            what: is about to happen.

        Raises:
            RuntimeError: the model has the averages in place of its weights.
        """
        self.require_weights(what)
        for p in self._written():
            self._forget(p)
        if self._due:
            self._due = False
            self._take_in()

    def update(self, parameters: Iterable[Tensor], moved: Set[Tensor]) -> None:
        """After a step: its weights are to come in.

        Args:
            parameters: all of the optimizer's.
            moved: those that the step has moved.
        """
        if self.exponent is None:
            return
        for p in parameters:
            entry = self._state[p]
            if p in moved and "average" not in entry:
                entry["average"], self.counts[p] = _precise(p).clone(), 0
            if "average" in entry:
                self._marks[p] = _mark(p)
        self._due = True

    def _take_in(self) -> None:
        assert self.exponent is not None  # or nothing would be due
        by_count: defaultdict[int, list[Tensor]] = defaultdict(list)
        for p in self._marks:
            if "average" not in self._state[p]:  # the user has cleared the state
                continue
            follow(self._state[p], _precise(p), "average")
            self.counts[p] += 1
            by_count[self.counts[p]].append(p)
        for count, those in by_count.items():
            averages = [self._state[p]["average"] for p in those]
            weight = (self.exponent + 1) / (self.exponent + count)
            torch._foreach_lerp_(averages, [_precise(p) for p in those], weight)

    def place(self) -> None:
        """Put the averages into the model, and keep its weights aside."""
        if self.placed:
            return
        self.settle("eval()")
        for p, entry in self._state.items():
            if "average" in entry:
                self._kept[p] = p.detach().clone()
                p.copy_(entry["average"])
                self._marks[p] = _mark(p)

    def replace(self) -> None:
        """Put the weights back, to the bit.

        Raises:
            RuntimeError: somebody has written to them meanwhile.
        """
        if self.placed and (self._written() or not self._untouched()):
            raise RuntimeError(
                "the model's weights were changed between optimizer.eval() and optimizer.train(), "
                "which would now put the earlier ones back: change them after train()"
            )
        for p, kept in self._kept.items():
            p.copy_(kept)
            self._marks[p] = _mark(p)
        self._kept.clear()

    def require_weights(self, what: str) -> None:
        """Refuse while the model has the averages in place of its weights.

        Raises:
            RuntimeError: it has; the message says what to call.
        """
        if self.placed:
            raise RuntimeError(
                f"{what} while the model has the averaged weights of optimizer.eval(): call "
                "optimizer.train() before"
            )

    def read(self, counts: Mapping[Tensor, int]) -> None:
        """Go on from a state that was read, before or after the model's.

        Args:
            counts: of the points in each average; those without begin again.
        """
        self._marks.clear()
        self._due, self.counts = False, dict(counts)
        for p in self._state.keys() - counts.keys():
            self._forget(p)

    def _forget(self, p: Tensor) -> None:
        self._state[p].pop("average", None)
        self.counts.pop(p, None)
        self._marks.pop(p, None)

    def _written(self) -> list[Tensor]:
        """Parameters that were written to since the last look."""
        return [p for p, mark in self._marks.items() if _mark(p) != mark]

    def _untouched(self) -> bool:
        """Whether the model has the averages to the bit: writes to ``p.data`` leave no mark."""
        return all(
            torch.allclose(p, self._state[p]["average"].to(p.dtype), 0.0, 0.0, equal_nan=True)
            for p in self._kept
        )


def _mark(p: Tensor) -> tuple[int, int]:
    """Changes when the tensor is written to in place, or has its data taken away."""
    return p._version, p.data_ptr()


def _precise(p: Tensor) -> Tensor:
    """The numbers that averages are made of: small moves would be lost in half precision."""
    return p.detach().to(torch.promote_types(p.dtype, torch.float32))
