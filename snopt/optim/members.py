"""The parameters of an optimizer: their names and groups, the layers they make, the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from torch import nn

from snopt.curvature.processes import Processes
from snopt.layers.base import Layer
from snopt.ode.block import ODEBlock
from snopt.optim.coverage import Coverage
from snopt.optim.groups import require_whole, whole_parameters
from snopt.optim.method import ModelView
from snopt.optim.selection import FROZEN, select_layers, uncalled
from snopt.optim.settings import Kind, in_force


class Members:
    """What belongs to an optimizer.

    Args:
        groups: the optimizer's parameter groups, which stay its own: what is written there counts.
        modules: all modules by name.
        process_group: the processes that average gradients, see :class:`snopt.SNOpt`.
        heard: whether layers are known by being called, not by their gradients alone.
        known: settings of the groups.
        foreign: other settings, of any rule.
        beside: what else a method is told, see :class:`snopt.optim.method.ModelView`.

    Attributes:
        names: of the parameters, by ``id``.
        in_force: the groups with plain numbers for settings, as of the last :meth:`resolve`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        modules: list[tuple[str, nn.Module]],
        process_group: Any,
        heard: bool,
        known: Mapping[str, Kind],
        foreign: Set[str],
        **beside: Any,
    ) -> None:
        self._process_group, self._known, self._beside = process_group, known, beside
        self._foreign = foreign - known.keys()
        self._groups, self._modules, self._heard = groups, modules, heard
        self._reasons: dict[str, str] = {}
        self.names: dict[int, str] = {}
        self._places: dict[int, int] = {}
        self.in_force: list[dict[str, Any]] = []

    @property
    def by_id(self) -> dict[int, nn.Parameter]:
        """The parameters by ``id``, frozen ones too."""
        return {id(p): p for group in self._groups for p in group["params"]}

    @property
    def by_name(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return {self.names[i]: p for i, p in self.by_id.items()}

    @property
    def idle(self) -> bool:
        """Whether no parameter has a gradient.

        Raises:
            ValueError: gradients go to parameters that have been spread over processes.
        """
        idle = all(p.grad is None for p in self.by_id.values())
        if idle:
            self._require_whole()
        return idle

    def _require_whole(self) -> None:
        whole_parameters(self._modules)
        for name, p in self.by_name.items():
            require_whole(name, p)

    def parts(self, modules: Iterable[tuple[str, nn.Module]]) -> ModelView:
        """What a method needs of these modules, and of all blocks and parameters."""
        for place, group in enumerate(self._groups):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                self.names[id(p)], self._places[id(p)] = name, place
        self._chosen = [group["precondition"] for group in self._groups]
        self.resolve(0)
        blocks = {n: m for n, m in self._modules if isinstance(m, ODEBlock)}
        in_field = {id(m) for block in blocks.values() for m in block.field.modules()}

        def left_out(name: str, module: nn.Module) -> str | None:
            place = self._places.get(id(module.weight))
            ode = place is not None and self._groups[place]["precondition"] == "ode"
            if ode and id(module) not in in_field:
                return "it lies outside the ODE blocks (precondition='ode')"
            return None

        layers, reasons = select_layers(modules, self.names, left_out)
        self._reasons.update(reasons)
        by_name = self.by_name
        processes = Processes(by_name.values(), self._process_group)
        every = [module for _, module in self._modules]
        return ModelView(
            layers, blocks, by_name, every, self.settings, self._groups, processes, **self._beside
        )

    def extend(self, modules: list[tuple[str, nn.Module]]) -> ModelView:
        """As :meth:`parts`, for the modules of a group that was added."""
        self._modules += modules
        return self.parts(modules)

    def resolve(self, step: int) -> None:
        """Read the groups for the coming step.

        Raises:
            ValueError: what is written there is no number, or is not to be changed, or a model was
                spread over processes before its first step.
        """
        if not step:
            self._require_whole()
        if len(self._chosen) != len(self._groups):
            raise ValueError(
                f"the optimizer was made with {len(self._chosen)} parameter groups and has "
                f"{len(self._groups)}: add one with add_param_group(); to train fewer, set "
                "requires_grad_(False) on their parameters, or their lr to 0"
            )
        if self._chosen != [group["precondition"] for group in self._groups]:
            raise ValueError(
                "a group's precondition was changed, but layers are chosen when the optimizer is "
                "made: make it again, and give it state_dict() if its layers are the same"
            )
        for group in self._groups:
            for name in self._foreign & group.keys():
                raise ValueError(
                    f"a group's {name} was set, which this rule does not use; its settings are "
                    + ", ".join(self._known)
                    + "; what is one for all groups is an argument of SNOpt"
                )
        self.in_force = [in_force(group, self._known, step) for group in self._groups]

    def settings(self, layer: Layer) -> Mapping[str, Any]:
        """The settings of a layer in force."""
        return self.in_force[self._places[id(layer.weight)]]

    def coverage(
        self, layers: Iterable[Layer], left_to_fallback: Mapping[str, str], whole: bool = False
    ) -> Coverage:
        """Which parameters that are trained now these layers have, and why not the others.

        Args:
            layers: those that are preconditioned.
            left_to_fallback: why some are not, by layer name.
            whole: whether all parameters are, whatever has them.
        """
        silent = uncalled(self._modules) if self._heard else ()
        covered, reasons = {}, dict(self._reasons)
        for layer in layers:
            unheard = "its layer is used without being called" if id(layer.module) in silent else ""
            why = (unheard or left_to_fallback.get(layer.name, "")) if layer.trains else FROZEN
            for p in layer.parameters:
                if id(p) not in self.names:
                    continue  # a bias that the module was given later is no parameter of ours
                if why:
                    reasons[self.names[id(p)]] = why
                else:
                    covered[self.names[id(p)]] = layer.name
        sizes = {self.names[i]: p.numel() for i, p in self.by_id.items() if p.requires_grad}
        if whole:
            covered = {name: name.rpartition(".")[0] for name in sizes}
        fallback = {
            n: reasons.get(n, "its module was not found") for n in sizes if n not in covered
        }
        return Coverage(covered, fallback, sizes)
