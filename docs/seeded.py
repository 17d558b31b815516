"""What every example of the gallery begins with: the same seed, and figures of one style."""

import matplotlib
import torch


def reset_module(gallery_conf, fname):
    """Called by sphinx-gallery before and after every example."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    matplotlib.rcParams.update({"figure.dpi": 110, "axes.grid": True, "grid.alpha": 0.3})
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
