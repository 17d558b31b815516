"""Solving: the block, the solvers, and the gradients through them."""
