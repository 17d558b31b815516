"""SNOpt, a ``torch.optim.Optimizer`` for models with ODE blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snopt.arguments import choose
from snopt.curvature.kronecker import dense
from snopt.curvature.likelihoods import LIKELIHOODS
from snopt.optim import update
from snopt.optim.carried import made_whole, with_whole
from snopt.optim.coverage import Coverage
from snopt.optim.damping import Damping, LevenbergMarquardt, controller_at, damping_at
from snopt.optim.gauss_newton import GaussNewton
from snopt.optim.groups import GROUP_SETTINGS, listed, named_groups, validate
from snopt.optim.members import Members
from snopt.optim.method import Core
from snopt.optim.options import GAUSS_NEWTON, complete, refuse_in_group
from snopt.optim.preconditioner import Preconditioner
from snopt.optim.rules import RULES, Adam, Rule
from snopt.optim.saving import check_kind, read_groups, read_parameter, reading, saved_groups
from snopt.optim.stillness import Stillness

Model = nn.Module | Iterable[Mapping[str, Any]]


class SNOpt(Optimizer):
    """Second-order optimizer whose curvature comes from the backward solve.

    On a refresh step the layers' inputs and output cotangents are gathered while ``backward()``
    runs; in between, gradients are scaled in the eigenbasis found then. The training loop is that
    of any torch optimizer, and so are the parameters that move: those with a gradient. What is
    frozen belongs to the groups all the same, and is preconditioned from the day it is thawed.

    Args:
        model: the model, or a list of parameter groups ``{"params": modules, "lr": ...}`` with a
            module, a list of modules or a mapping of names to modules; what an earlier group has is
            left out of later ones, so that ``[{"params": model.field, "lr": 1e-3}, {"params":
            model}]`` gives the field a learning rate of its own.
        lr: learning rate, > 0.
        momentum: of the direction, in [0, 1); default 0.9 for ``rule="kfac"`` and
            ``"gauss_newton"`` (how much of the last step the solve stays near), else 0.
        weight_decay: decoupled, >= 0; for ``rule="gauss_newton"`` part of the solve, fading with
            the loss.
        damping: added to the curvature: a number >= 0, a function of the step, or a
            :class:`~snopt.LevenbergMarquardt`. Default 0.05 (paper), 1e-3 (kfac), 1e-2
            (gauss_newton).
        refresh_every: steps between two refreshes, >= 1; default 100, and 20 for ``rule="adam"``.
        alpha: decay of the second moment of ``rule="paper"``, in [0, 1).
        betas: decays of the two moments of ``rule="adam"``.
        eps: added to the root of the second moment of ``rule="adam"``.
        nesterov: for ``rule="adam"``: look ahead with the first moment, as NAdam does.
        normalize: for ``rule="adam"``: the power, in [0, 1], of the whole gradient's norm by which
            gradients are divided before anything is made of them. Where a training set is fitted
            the norm falls as the loss does: with 1/2 what is descended is the loss' root, whose
            moments lag half as far behind. Default 0: not at all.
        rule: ``"paper"``: Ghat / (M + damping); ``"adam"``: Adam in the eigenbasis; ``"kfac"``: the
            factored inverse; steps of ``"paper"`` and ``"kfac"`` shrink as the loss grows: give
            them a mean, not a sum. ``"gauss_newton"``: no factors, but a solve with the gradients
            of single samples (:mod:`snopt.optim.gauss_newton`); needs :meth:`curvature_pass` in the
            loop, and no other backward passes in training mode between :meth:`zero_grad` and
            :meth:`step`.
        basis: ``"curvature"``: eigenbases of the backward solve's factors; ``"gradient"``: of
            running averages of G G^T and G^T G, without any capture; ``"both"``: of their mean.
        precondition: ``"all"`` layers, or only those inside ODE blocks (``"ode"``).
        plain: update of all other parameters: ``"rule"`` (Adam for ``rule="adam"``, else SGD with
            momentum), or ``"adam"``.
        curvature: ``"empirical"`` gradients, ``"fisher"`` (sampled from the model's predictive
            distribution) or ``"ggn"``; the latter two need :meth:`curvature_pass` in the loop.
        curvature_samples: samples of a batch that enter the factors, the first ones; default all.
        sampling: ``"steps"``: quadrature on the solver's own steps; ``"grid"``: on ``grid_points``
            equally spaced times, as in the paper.
        grid_points: nodes of ``sampling="grid"``, both ends included.
        carry_over: rotate second moments into a new basis instead of starting from its eigenvalues
            (paper) or from zero (adam); default True for adam.
        stagger: refresh the layers one after another within the period, so that no step spikes.
        kl_clip: trust region: bound on lr^2 times the direction's product with the gradient;
            default 1e-3 for kfac, else none.
        trust: largest norm of a group's update, over that of its parameters; default 0.2 for
            gauss_newton, else none.
        backtrack: for ``rule="gauss_newton"``: standard errors by which the next batch's mean loss
            may exceed the last one's; beyond, the last step is halved instead of taking another
            (:mod:`snopt.optim.backtracking`). Default 2; infinity: steps always stand.
        warmup_steps: steps over which the learning rate rises linearly; default 10 for adam,
            else 0.
        grad_scaler: the loop's ``GradScaler``, so that captured cotangents can be unscaled.
        seed: of the draws for ``curvature="fisher"``.
        process_group: the processes that average their gradients. Default: those of the
            ``DistributedDataParallel`` that holds the model, whenever it was wrapped. A group where
            the loop averages them itself; ``False`` where every process trains its own model.

    Raises:
        ValueError: an argument is outside its range.

    Source: Liu, Chen and Theodorou 2021; George et al. 2018; Vyas et al. 2024 (``rule="adam"``);
    Dozat 2016 (``nesterov``).
    """

    def __init__(
        self,
        model: Model,
        lr: float = 0.02,
        *,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        damping: Damping | None = None,
        refresh_every: int | None = None,
        alpha: float = 0.75,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        nesterov: bool = False,
        normalize: float = 0.0,
        rule: str = "paper",
        basis: str = "curvature",
        precondition: str = "all",
        plain: str = "rule",
        curvature: str = "empirical",
        curvature_samples: int | None = None,
        sampling: str = "steps",
        grid_points: int = 100,
        carry_over: bool | None = None,
        stagger: bool = False,
        kl_clip: float | None = None,
        trust: float | None = None,
        backtrack: float | None = None,
        warmup_steps: int | None = None,
        grad_scaler: Any = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        # The arguments by name, as they were given.
        asked = {name: x for name, x in locals().items() if name not in ("self", "__class__")}
        asked["loss_scale"] = None if grad_scaler is None else grad_scaler.get_scale
        groups = listed(asked.pop("model"))
        options = complete(asked)
        self.rule: Rule = RULES[rule]()
        self._rule_name = rule
        self._defaults = {name: options[name] for name in GROUP_SETTINGS}
        named, modules = named_groups(groups)
        # Schedulers that cycle momentum take the betas where there are any by default.
        unseen = () if rule == "adam" else ("betas",)
        shown = {name: x for name, x in self._defaults.items() if name not in unseen}
        super().__init__([self._completed(group) for group in named], shown)
        self.normalize = float(options["normalize"])
        self.warmup_steps = options["warmup_steps"]
        self._adam: Rule = self.rule if isinstance(self.rule, Adam) else Adam()
        self._measured: dict[str, float] = {}
        self._closed = False
        self._stillness = Stillness(rule)
        self.members = Members(self.param_groups, modules, process_group, basis != "gradient")
        core = GaussNewton if rule == GAUSS_NEWTON else Preconditioner
        parts = self.members.parts(modules)
        self.preconditioner: Core = core.build(parts, self.rule, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in more modules.

        Args:
            param_group: ``{"params": modules, "lr": ...}``, as in a list of groups.

        Raises:
            TypeError: it is not made of modules.
            ValueError: a setting is wrong, nothing of it is new, or the rule takes no more groups.
        """
        if "preconditioner" not in self.__dict__:  # while the optimizer is made
            self._take(param_group)
            return
        if self.preconditioner.whole:
            raise ValueError(
                f"rule={self._rule_name!r} takes no more groups: make it anew with all"
            )
        names = self.members.names
        named, modules = named_groups([param_group], names, set(names.values()))
        self._take(self._completed(named[0]))
        self.preconditioner.extend(self.members.extend(modules))

    def _take(self, group: dict[str, Any]) -> None:
        super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            self.state[p] = {}  # distributed checkpoints make a step with an optimizer without any

    # -- the training loop ------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: clears gradients, computes the loss and its gradient, returns the loss.

        Returns:
            The closure's loss, ``None`` without one.
        """
        loss: Any = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        core = self.preconditioner
        if self._closed:
            raise RuntimeError("this optimizer was closed; build another SNOpt on the model")
        if all(p.grad is None for p in self.members.by_id.values()):
            return loss
        core.told(loss)
        if core.step_halved():
            core.arm()
            return loss
        controller = controller_at(self.param_groups, core.steps, closure)
        warmup = min(1.0, (core.steps + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        refreshing = bool(core.due())
        found, groups = self.preconditioned(), self.members.in_force
        rules = {"rule": self.rule, "adam": self._adam}
        directions = update.directions_of(core, found, groups, self.state, rules)
        if refreshing:
            self._measured = update.norm_ratio(directions)
            self._stillness.observe(core.layers.values(), directions, groups)
        self._measured["damping"] = groups[0]["damping"]
        if controller is None or closure is None:
            with core.update():
                update.apply_directions(groups, self.state, directions, warmup, whole=core.whole)
        else:
            before = {p: p.clone() for p in directions}
            update.apply_directions(groups, self.state, directions, warmup)
            moves = {p: p - old for p, old in before.items()}
            update.judge(controller, core, moves, float(loss), closure)
        core.arm()
        return loss

    def preconditioned(self) -> dict[str, Tensor]:
        """Directions of the layers, by layer name; for :class:`SNOptPreconditioner`.

        Raises:
            RuntimeError: :meth:`curvature_pass` was not called and is needed.
        """
        core = self.preconditioner
        self.members.resolve(core.steps)
        core.gradient_scale = update.gradient_scale(self.members.by_id.values(), self.normalize)
        if core.asks and core.forgotten:
            raise RuntimeError(
                f"{core.asks} needs optimizer.curvature_pass(outputs) between the forward pass "
                "and backward(), and after zero_grad()"
            )
        return core.directions()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and with them the curvature gathered beside them."""
        super().zero_grad(set_to_none)
        self.preconditioner.clear()

    def curvature_pass(
        self,
        outputs: Tensor,
        likelihood: str = "categorical",
        *,
        targets: Tensor | None = None,
        loss: Tensor | None = None,
        batch_dim: int = 0,
    ) -> None:
        """Gather curvature from the model's predictive distribution, or the losses of the samples.

        Call it between the forward pass and ``loss.backward()`` for ``curvature="fisher"`` (one
        more backward pass on refresh steps) or ``"ggn"`` (one for each output), and on every step
        for ``rule="gauss_newton"`` (none: it listens to the coming one). Gradients are left alone.

        Args:
            outputs: logits (N, K) for ``"categorical"``, means (N, ...) for ``"gaussian"``, logits
                (N, ...) of independent outcomes for ``"binary"``.
            likelihood: what the loss is a positive multiple of: ``"categorical"``:
                ``cross_entropy``; ``"gaussian"``: ``mse_loss``; ``"binary"``:
                ``binary_cross_entropy_with_logits``. Means over samples or over all numbers and
                sums are told apart, and the factor is part of the loss.
            targets: what the loss compares the outputs with. ``rule="gauss_newton"`` checks the
                loss by it; a Gaussian without targets and loss is taken to be the mean over samples
                of half the squared error summed over outputs, which ``mse_loss`` is not.
            loss: the loss that ``backward()`` will be called on, to be checked in the same way.
            batch_dim: the outputs' dimension of samples; 1 where time comes first. Layers that see
                time first, or time and samples as one dimension, are then read so.

        Raises:
            ValueError: the loss, or the way to it, is not what the rule can take.
        """
        choose("likelihood", likelihood, LIKELIHOODS)
        parameters = list(self.members.by_id.values())
        self.preconditioner.look(
            outputs, likelihood, parameters, targets=targets, loss=loss, batch_dim=batch_dim
        )

    def close(self) -> None:
        """Take all hooks and observers off the model, which then trains with any optimizer.

        A ``with SNOpt(model) as optimizer:`` block ends in it. Saving still works; steps do not.
        """
        self._closed = True
        self.preconditioner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- what it knows ----------------------------------------------------------------------------

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) of every layer as of its last refresh, the bias in A's last row and column.

        A has shape (in, in), B (out, out); with a leading dimension of groups for grouped
        convolutions. docs/method.md says how they are normalised. With ``basis="gradient"``
        A of a convolution is a product of one factor over channels and one over positions.
        """
        found = {}
        for name, factors in self.preconditioner.factors.items():
            a, b = dense(factors.a), factors.b
            found[name] = (a[0], b[0]) if a.shape[0] == 1 else (a, b)
        return found

    def coverage(self) -> Coverage:
        """Which parameters are preconditioned, and why the others are not."""
        return self.members.coverage(
            self.preconditioner.layers.values(), getattr(self.preconditioner, "plain", {})
        )

    def diagnostics(self) -> dict[str, float]:
        """Damping, condition number, counts, and norms as of the last refresh, for logs."""
        damping = float(damping_at(self.param_groups[0]["damping"], self.preconditioner.steps))
        return {**self.preconditioner.diagnostics(), "damping": damping, **self._measured}

    @property
    def curvature_seconds(self) -> float:
        """Time spent gathering curvature and decomposing it so far."""
        return self.preconditioner.stopwatch.seconds

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on, keyed by parameter and layer names."""
        names = self.members.names
        state = {
            "state": {names[id(p)]: dict(state) for p, state in self.state.items()},
            "param_groups": saved_groups(self.param_groups, self.preconditioner.steps),
            "preconditioner": self.preconditioner.state_dict(),
            "measured": dict(self._measured),
            "rule": self._rule_name,
        }
        return with_whole(state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, on this or a freshly built model.

        What was saved as a number takes the place of the groups' settings, but for a damping that
        is a function here. Tensors go to the parameters' device.

        Raises:
            ValueError: it belongs to a model with other parameters or groups, to another rule, or
                is damaged; nothing has been changed then.
        """
        state_dict = made_whole(state_dict)
        check_kind(state_dict, self._rule_name)
        with reading():
            # Earlier versions noted a momentum of zero where directions hold the momentum.
            unsaid = {"momentum"} if self.preconditioner.whole and "rule" not in state_dict else ()
            groups = read_groups(self.param_groups, state_dict["param_groups"], unsaid)
            by_name = self.members.by_name
            state: dict[Tensor, Any] = {
                by_name[name]: read_parameter(name, entry, by_name[name])
                for name, entry in state_dict["state"].items()
            }
            measured = dict(state_dict["measured"])
        self.preconditioner.load_state_dict(state_dict["preconditioner"])
        for group, settings in zip(self.param_groups, groups, strict=True):
            if isinstance(group["damping"], LevenbergMarquardt) and settings:
                group["damping"].value = settings["damping"]
            kept = {"damping"} if callable(group["damping"]) else set()
            group.update({name: x for name, x in settings.items() if name not in kept})
        self.state.clear()
        self.state.update({p: {} for p in by_name.values()})
        self.state.update(state)
        self._measured = measured

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "an SNOpt listens to one model and cannot be copied or pickled; build one on the "
            "copied model and give it state_dict()"
        )

    # -- inside -----------------------------------------------------------------------------------

    def _completed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group with the defaults of what it leaves open, checked."""
        found = {**self._defaults, **group}
        validate(found)
        refuse_in_group(found, self._rule_name)
        found["betas"] = tuple(found["betas"])
        return found
