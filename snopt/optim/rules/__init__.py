"""Update rules: a file each, and the table of their names.

A rule of one's own is a subclass of :class:`~snopt.optim.rule.Rule` or, in the eigenbasis,
:class:`~snopt.optim.rules.eigenbasis.EigenbasisRule`: pass an object of it,
``SNOpt(model, rule=Mine())``, or add the class to :data:`RULES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snopt.optim.rule import Rule
from snopt.optim.rules.adam import Adam
from snopt.optim.rules.eigenbasis import EigenbasisRule
from snopt.optim.rules.gauss_newton import GaussNewton
from snopt.optim.rules.kfac import Kfac
from snopt.optim.rules.paper import Paper
from snopt.optim.settings import kinds

__all__ = [
    "RULES",
    "Adam",
    "EigenbasisRule",
    "GaussNewton",
    "Kfac",
    "Paper",
    "Rule",
    "all_settings",
    "made",
    "split",
    "without_defaults_of_others",
]

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Paper, Adam, Kfac, GaussNewton)}


def all_settings(*rules: Rule) -> set[str]:
    """Names of the settings of any rule, and of further ones."""
    return {name for rule in (*RULES.values(), *rules) for name in kinds(rule)}


def made(rule: str | Rule, asked: Mapping[str, Any]) -> Rule:
    """The rule that an optimizer was asked for.

    Args:
        rule: a name, or a rule.
        asked: settings by name; ``None`` stands for none where a setting may be that, else for the
            rule's own default.

    Raises:
        TypeError: no rule has such a setting, or a rule was given and settings beside it.
        ValueError: there is no such rule, it lacks a setting, or a value is outside its range.
    """
    if isinstance(rule, Rule):
        if asked:
            names = ", ".join(sorted(asked))
            raise TypeError(f"{names}: pass it to the rule, {type(rule).__name__}({names}=...)")
        return rule
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"rule={rule!r}; choose one of {', '.join(RULES)}, or pass a rule")
    kind = RULES[rule]
    own = kind.settings()
    for name, value in asked.items():
        if name not in own and value is not None:
            known = any(name in other.settings() for other in RULES.values())
            raise (ValueError if known else TypeError)(
                f"{name}={value!r}: rule={rule!r} has no such setting; its settings are "
                + ", ".join(sorted(own))
            )
    none = {name for name, allowed in kinds(kind).items() if getattr(allowed, "optional", False)}
    return kind(
        **{n: _plain(x) for n, x in asked.items() if n in own and (x is not None or n in none)}
    )


def split(rule: str | Rule, asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of Adam as the fallback update, where the rule has none of that name, and the rest.

    Args:
        rule: a name, or a rule.
        asked: settings by name.
    """
    named = RULES.get(rule, Adam) if isinstance(rule, str) else Adam
    kind = type(rule) if isinstance(rule, Rule) else named
    beside = kinds(Adam, groups=True).keys() - kind.settings().keys()
    fallback = {n: x for n, x in asked.items() if n in beside and x is not None}
    return fallback, {n: x for n, x in asked.items() if n not in fallback}


def without_defaults_of_others(rule: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of other rules that ask for nothing, for files that list them all.

    Args:
        rule: a name.
        asked: settings by name.
    """
    kind = RULES.get(rule)
    if kind is None:
        return dict(asked)
    others = [other.settings() for other in RULES.values()]
    return {
        name: value
        for name, value in asked.items()
        if name in kind.settings()
        or not any(name in other and _plain(value) == other[name] for other in others)
    }


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
