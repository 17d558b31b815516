"""What is asked of an optimizer as a whole: checked, and completed with its rule's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snopt.arguments import choose, number_of, whole_number
from snopt.curvature.loss_hessian import CURVATURES
from snopt.optim.damping import LevenbergMarquardt
from snopt.optim.preconditioner import BASES
from snopt.optim.rules import RULES

GAUSS_NEWTON = "gauss_newton"

#: The choices of a setting.
CHOICES = {
    "rule": RULES,
    "basis": BASES,
    "curvature": CURVATURES,
    "sampling": ("steps", "grid"),
}

_COUNTS = {"refresh_every": 1, "grid_points": 2, "warmup_steps": 0, "curvature_samples": 1}


def complete(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a whole optimizer.

    Args:
        asked: arguments of :class:`snopt.SNOpt` by name; ``None`` stands for the rule's own
            default.

    Raises:
        ValueError: a setting is outside its range, or the rule has no use for it.
    """
    for name, choices in CHOICES.items():
        choose(name, asked[name], choices)
    _refuse_unused(asked)
    own = RULES[asked["rule"]].defaults
    options = {name: own.get(name) if x is None else x for name, x in asked.items()}
    for name, low in _COUNTS.items():
        if options[name] is not None:
            whole_number(name, options[name], low)
    normalize, found = asked["normalize"], number_of(asked["normalize"])
    if isinstance(normalize, bool) or found is None or not 0.0 <= found <= 1.0:
        raise ValueError(f"normalize={normalize!r}; expected a number in [0, 1]")
    if asked["backtrack"] is not None and number_of(asked["backtrack"]) is None:
        raise ValueError(f"backtrack={asked['backtrack']!r}; expected a number > 0")
    return options


def _refuse_unused(asked: Mapping[str, Any]) -> None:
    rule = asked["rule"]
    if rule == GAUSS_NEWTON:
        unused = {
            "basis": asked["basis"] != "curvature",
            "curvature": asked["curvature"] != "empirical",
            "curvature_samples": asked["curvature_samples"] is not None,
            "refresh_every": asked["refresh_every"] is not None,
            "stagger": asked["stagger"],
        }
        if any(unused.values()):
            names = ", ".join(name for name, given in unused.items() if given)
            raise ValueError(f"rule={rule!r} has no use for the {names} given: leave it out")
    elif asked["backtrack"] is not None:
        given = asked["backtrack"]
        raise ValueError(f"backtrack={given!r} needs rule={GAUSS_NEWTON!r}, not {rule!r}")
    if asked["normalize"] and rule != "adam":
        raise ValueError(f"normalize={asked['normalize']!r} needs rule='adam', not {rule!r}")
    refuse_in_group(asked, rule)


def refuse_in_group(settings: Mapping[str, Any], rule: str) -> None:
    """Refuse settings of a group that the rule has no use for.

    Raises:
        ValueError: there is one; the message names it.
    """
    if settings["nesterov"] and rule != "adam":
        raise ValueError(f"nesterov={settings['nesterov']!r} needs rule='adam', not {rule!r}")
    if settings["momentum"] and rule == "adam":
        raise ValueError(
            f"momentum={settings['momentum']!r}: rule='adam' has its own, "
            f"betas={settings['betas']!r}"
        )
    if isinstance(settings["damping"], LevenbergMarquardt) and rule == GAUSS_NEWTON:
        raise ValueError(f"rule={rule!r} has no use for the damping given: leave it out")
