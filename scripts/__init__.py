"""Thin entry points: ``python -m scripts.report``, ``reproduce``, ``bench``, ``tune``."""
