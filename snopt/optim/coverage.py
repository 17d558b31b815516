"""Which parameters a preconditioner reaches, and why it does not reach the others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Coverage:
    """What is preconditioned and what is not.

    Attributes:
        preconditioned: the layer of every preconditioned parameter, by parameter name.
        fallback: the reason for every other parameter, by parameter name.
        sizes: elements of every parameter, by name.
    """

    preconditioned: Mapping[str, str]
    fallback: Mapping[str, str]
    sizes: Mapping[str, int]

    @property
    def fraction(self) -> float:
        """Fraction of the parameters' elements that are preconditioned."""
        covered = sum(self.sizes[name] for name in self.preconditioned)
        return covered / max(1, sum(self.sizes.values()))

    @property
    def plain(self) -> Mapping[str, str]:
        """What :attr:`fallback` was called earlier."""
        warnings.warn(
            "coverage().plain is called coverage().fallback now.", DeprecationWarning, stacklevel=2
        )
        return self.fallback

    def __str__(self) -> str:
        lines = [f"{self.fraction:.1%} of {sum(self.sizes.values())} parameters preconditioned"]
        lines += [f"  {name}: layer {layer!r}" for name, layer in self.preconditioned.items()]
        lines += [f"  {name}: fallback update, {reason}" for name, reason in self.fallback.items()]
        return "\n".join(lines)
