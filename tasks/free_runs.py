"""Pictures of a driven system's free run: measured beside simulated, and the error along it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from snopt import SolverError
from tasks.common.figures import new_figure
from tasks.data.measurements import Floats
from tasks.task import Trained

_SHOWN = 200
"""Samples at the run's end that are drawn."""
_PIECES = 50
"""Pieces of a run whose errors are drawn, one after the other."""
_STYLES = ("-", "--", "-.", ":")


def free_run(one: Trained) -> Floats | None:
    """What a model simulates over the test part, normalised, (L, K); None where its solve fails."""
    past, forcing, _ = one.splits.test
    try:
        with torch.no_grad():
            outputs = one.model.eval()(past[:1], forcing[:1])
    except (SolverError, RuntimeError):  # memory too
        return None
    found: Floats = outputs[0].double().numpy()
    return found


def free_run_figure(title: str, trained: Sequence[Trained], names: Sequence[str]) -> Figure | None:
    """The last samples of every output, and the root mean square error of piece after piece.

    All in standard deviations of the training part.

    Args:
        title: above all.
        trained: models; one whose solve fails is left out.
        names: of the outputs.
    """
    shown = [(one, found) for one in trained if (found := free_run(one)) is not None]
    if not shown:
        return None
    truth = shown[0][0].splits.test[-1][0].double().numpy()
    samples = np.arange(1, len(truth) + 1)
    figure = new_figure(9.0, 2.0 * (len(names) + 1) + 0.8)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    *outputs, growth = figure.subplots(len(names) + 1, 1)
    for k, (axes, name) in enumerate(zip(outputs, names, strict=True)):
        axes.plot(samples[-_SHOWN:], truth[-_SHOWN:, k], color="#b0b0b0", linewidth=2.5)
        axes.set_ylabel(name, fontsize=9)
        margin = 1.4 * np.abs(truth[-_SHOWN:, k]).max()
        axes.set_ylim(-margin, margin)  # a run that explodes leaves the picture
    seen: list[str] = []
    for one, found in shown:
        style = _STYLES[seen.count(one.colour) % len(_STYLES)]  # rules of one optimizer share it
        seen.append(one.colour)
        how = {"color": one.colour, "linestyle": style, "linewidth": 1.2}
        for k, axes in enumerate(outputs):
            axes.plot(samples[-_SHOWN:], found[-_SHOWN:, k], **how)
        errors = np.square(found - truth).mean(axis=1)
        pieces = np.array_split(errors, min(_PIECES, len(errors)))
        ends = np.cumsum([len(piece) for piece in pieces])
        roots = [np.sqrt(piece.mean()) for piece in pieces]
        growth.semilogy(ends, roots, **how, label=one.caption("rmse").replace("\n", ", "))
    growth.set_ylabel("RMSE", fontsize=9)
    growth.set_xlabel(
        "samples of the free run; grey: measured; all in deviations of the training part",
        fontsize=9,
    )
    growth.legend(fontsize=7)
    for axes in (*outputs, growth):
        axes.tick_params(which="both", labelsize=8)
    return figure
