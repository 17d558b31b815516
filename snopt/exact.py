"""Theorem 1 and Proposition 2 for small models, under their public name."""

from snopt.curvature.exact import LowRank, SecondOrder, low_rank, second_order

__all__ = ["LowRank", "SecondOrder", "low_rank", "second_order"]
