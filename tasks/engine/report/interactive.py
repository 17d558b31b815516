"""Curves to point at: hover, hide an optimizer, switch the axis. Needs the extra ``report``.

The figure is plotly's; its script is a file beside the page, which the page loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.engine.records.metrics import Axis, Curve
from tasks.engine.report.palette import TARGET
from tasks.engine.report.statistics import band, spans_decades

_DASHES = ("solid", "dash", "dashdot", "dot")


@dataclass(frozen=True)
class Line:
    """An optimizer in every panel.

    Attributes:
        label: its name in the legend.
        colour: the same as in the pictures.
        dashes: which dashes, counted from 0, solid.
        curves: for each panel one curve a seed.
        diverged: those of runs that diverged; each gets a cross where it was finite last.
    """

    label: str
    colour: str
    dashes: int
    curves: Sequence[Sequence[Curve]]
    diverged: Sequence[Sequence[Curve]] = ()


@dataclass(frozen=True)
class Quantity:
    """What a panel shows.

    Attributes:
        name: beside its vertical axis.
        target: a dashed line across it.
        rises: towards a ceiling, so that a logarithmic axis would show nothing.
    """

    name: str
    target: float | None = None
    rises: bool = False


def available() -> bool:
    """Whether plotly is installed: ``pip install 'snopt[report]'``."""
    return find_spec("plotly") is not None


def script_files() -> dict[str, bytes]:
    """Plotly's script by its name beside the page; nothing where plotly is not installed."""
    if not available():
        return {}
    from plotly.offline import get_plotlyjs

    return {"plotly.min.js": get_plotlyjs().encode()}


def interactive_curves(
    name: str,
    quantities: Sequence[Quantity],
    lines: Sequence[Line],
    axes: Sequence[tuple[Axis, str]],
) -> str:
    """A piece of HTML: medians and ranges over seeds in a panel a quantity, side by side.

    Args:
        name: of the piece, unique in its page.
        quantities: one a panel.
        lines: one an optimizer.
        axes: what the curves can be drawn against, and how it is called; the first is shown.
    """
    from plotly.graph_objects import Figure

    logs = [_is_log(index, quantity, lines) for index, quantity in enumerate(quantities)]
    by_axis = {
        axis: [
            trace
            for line in lines
            for index in range(len(quantities))
            for trace in _traces(line, index, axis, log=logs[index])
        ]
        for axis, _ in axes
    }
    figure = Figure(data=by_axis[axes[0][0]])
    panels = range(len(quantities))
    figure.update_layout(
        grid={"rows": 1, "columns": len(quantities), "pattern": "independent"},
        template="plotly_white",
        height=460,
        margin={"t": 60, "r": 20, "b": 60, "l": 60},
        legend={"orientation": "h", "y": -0.2},
        updatemenus=[_switch([_button(by_axis[a], a, text, panels) for a, text in axes])],
        **{f"xaxis{_number(i)}": {"title": axes[0][1], "rangemode": "tozero"} for i in panels},
        **{
            f"yaxis{_number(i)}": {
                "title": f"{quantities[i].name}{' (log)' if logs[i] else ''}",
                "type": "log" if logs[i] else "linear",
            }
            for i in panels
        },
        shapes=[_target(i, q.target) for i, q in enumerate(quantities) if q.target is not None],
    )
    piece = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True},
    )
    return str(piece)


def _is_log(index: int, quantity: Quantity, lines: Iterable[Line]) -> bool:
    return not quantity.rises and spans_decades(c for line in lines for c in line.curves[index])


def _number(index: int) -> str:
    """What plotly appends to an axis' name: nothing for the first."""
    return "" if index == 0 else str(index + 1)


def _traces(line: Line, index: int, axis: Axis, *, log: bool) -> list[dict[str, Any]]:
    """Range over seeds, median and crosses: as many on every axis, so that they can be switched."""
    shown = band(line.curves[index], axis, log=log)
    ends = [c.take(np.arange(len(c.values)) == len(c.values) - 1) for c in _finite(line, index)]
    common: dict[str, Any] = {
        **{"xaxis": f"x{_number(index)}", "yaxis": f"y{_number(index)}"},
        **{"type": "scatter", "legendgroup": line.label, "name": line.label},
        "showlegend": False,
    }
    return [
        {
            **common,
            "x": _numbers(np.concatenate([shown.x, shown.x[::-1]])),
            "y": _numbers(np.concatenate([shown.high, shown.low[::-1]])),
            "fill": "toself",
            "fillcolor": line.colour,
            "opacity": 0.16,
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
        },
        {
            **common,
            "x": _numbers(shown.x),
            "y": _numbers(shown.median),
            "mode": "lines",
            "line": {"color": line.colour, "dash": _DASHES[line.dashes % len(_DASHES)]},
            "hovertemplate": "%{y:.4g} at %{x:.4g}",
            "showlegend": index == 0,
        },
        {
            **common,
            "x": _numbers(np.concatenate([np.empty(0), *(c.along(axis) for c in ends)])),
            "y": _numbers(np.concatenate([np.empty(0), *(c.values for c in ends)])),
            "mode": "markers",
            "marker": {"symbol": "x", "size": 9, "color": line.colour},
            "hovertemplate": "diverged after %{y:.4g} at %{x:.4g}",
        },
    ]


def _finite(line: Line, index: int) -> list[Curve]:
    return [curve.finite() for curve in line.diverged[index]] if line.diverged else []


def _numbers(values: NDArray[np.float64]) -> list[float]:
    """Six digits of each: more make the page larger and nothing clearer."""
    return [float(f"{value:.6g}") for value in values]


def _target(index: int, value: float) -> dict[str, Any]:
    number = _number(index)
    return {
        "type": "line",
        "xref": f"x{number} domain",
        "yref": f"y{number}",
        **{"x0": 0, "x1": 1, "y0": value, "y1": value},
        "line": {"color": TARGET, "width": 1, "dash": "dash"},
    }


def _button(
    traces: Sequence[dict[str, Any]], axis: Axis, text: str, panels: Iterable[int]
) -> dict[str, Any]:
    """Puts every trace on another axis; what is hidden stays hidden."""
    data = {"x": [trace["x"] for trace in traces], "y": [trace["y"] for trace in traces]}
    layout: dict[str, Any] = {}
    for index in panels:
        layout[f"xaxis{_number(index)}.title.text"] = text
        layout[f"xaxis{_number(index)}.autorange"] = True
    return {"method": "update", "label": _SHORT[axis], "args": [data, layout]}


_SHORT: dict[Axis, str] = {
    "seconds": "seconds",
    "cpu_seconds": "processor seconds",
    "steps": "steps",
    "nfe": "evaluations",
}


def _switch(buttons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    place = {"x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
    return {"type": "buttons", "direction": "right", "buttons": list(buttons), **place}
