"""States as ``torch.distributed.checkpoint`` carries them.

Its ``get_state_dict`` keeps ``"state"`` and ``"param_groups"`` alone, and has numbers for names;
its ``load`` fills what it finds in a fresh optimizer's state, which has learned nothing yet, and
leaves out the rest. But a tuple goes through both unopened. So the first group holds the whole
state in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snopt.optim.saving import reading

_WHOLE = "whole"


def with_whole(state: dict[str, Any]) -> dict[str, Any]:
    """A state that holds itself in its first group."""
    # Copies of what get_state_dict() writes its numbers into.
    groups = [dict(group) for group in state["param_groups"]]
    inner = {**state, "state": dict(state["state"]), "param_groups": groups}
    state["param_groups"][0][_WHOLE] = (inner,)
    return state


def made_whole(state: Any) -> Any:
    """The state as it was before it was carried; settings in its groups stay as they are now.

    Raises:
        ValueError: it is damaged.
    """
    if not isinstance(state, Mapping) or not state.get("param_groups"):
        return state
    with reading():
        groups = [dict(group) for group in state["param_groups"]]
        whole = groups[0].pop(_WHOLE, None)
        if whole is None:
            return state
        (inner,) = whole
        if state.get("preconditioner") is not inner["preconditioner"]:
            state = inner
            if len(groups) == len(inner["param_groups"]):
                for group, saved in zip(groups, inner["param_groups"], strict=True):
                    group["params"] = saved["params"]
    return {**state, "param_groups": groups}
