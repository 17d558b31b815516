"""Optimizers by their ``_target_``, and those that no package has."""
