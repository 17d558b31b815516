"""Theorem 1 and Proposition 2 of the paper, solved in full, for small models."""

from snopt.curvature.exact import LowRank, SecondOrder, low_rank, second_order

__all__ = ["LowRank", "SecondOrder", "low_rank", "second_order"]
