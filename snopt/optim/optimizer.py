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
from snopt.layers.precision import without_autocast
from snopt.optim import update
from snopt.optim.averaged import Averages
from snopt.optim.carried import made_whole, with_whole
from snopt.optim.coverage import Coverage
from snopt.optim.damping import LevenbergMarquardt, damping_at
from snopt.optim.groups import listed, named_groups
from snopt.optim.members import Members
from snopt.optim.method import Method, Seen, Step
from snopt.optim.renamed import renamed
from snopt.optim.rules import Adam, GaussNewton, Rule, all_settings, made, split
from snopt.optim.saving import check_kind, read_groups, read_parameter, reading, saved_groups
from snopt.optim.scale_warnings import ScaleWarnings, loss_scale
from snopt.optim.settings import SHARED, kinds, validate

Model = nn.Module | Iterable[Mapping[str, Any]]


class SNOpt(Optimizer):
    """Second-order optimizer for models with ODE blocks, or without.

    Gradients are scaled in an eigenbasis for each layer. With ``basis="gradient"``, the default, it
    comes from running averages of products of the layer's gradients. With ``"curvature"``, as
    published, it comes from the layer's inputs and output cotangents, gathered while ``backward()``
    runs on refresh steps. The training loop is that of any torch optimizer. Frozen parameters may
    be in the groups; they are preconditioned once they are unfrozen.

    The default averages the weights for evaluation. ``optimizer.eval()`` puts the averages into the
    model, and ``optimizer.train()`` puts the weights back. Without these calls, you evaluate the
    weights themselves.

    Args:
        model: the model, or a list of parameter groups ``{"params": modules, "lr": ...}`` with a
            module, a list of modules or a mapping of names to modules. A later group leaves out
            what an earlier one has, so that ``[{"params": model.field, "lr": 1e-3}, {"params":
            model}]`` gives the field a learning rate of its own.
        lr: learning rate, >= 0.
        rule: how gradients become steps: ``"adam"`` (:class:`~snopt.optim.rules.Adam`), Adam in the
            eigenbasis; ``"paper"`` (:class:`~snopt.optim.rules.Paper`), the published update;
            ``"kfac"`` (:class:`~snopt.optim.rules.Kfac`), the factored inverse;
            ``"gauss_newton"`` (:class:`~snopt.optim.rules.GaussNewton`), a solve with per-sample
            gradients, which needs :meth:`curvature_pass` in the loop; or an object of such a class.
        weight_decay: >= 0; decoupled, or part of Gauss-Newton's solve. Default: 0.1 for
            ``rule="adam"``, otherwise 0.
        precondition: ``"all"`` layers, or only those inside ODE blocks (``"ode"``).
        fallback: update of all other parameters: ``"rule"`` (Adam for ``rule="adam"``, else SGD
            with momentum), or ``"adam"``.
        grad_scaler: the loop's ``GradScaler``, so that captured cotangents can be unscaled.
        seed: of the draws for ``curvature="fisher"``.
        process_group: the processes that average their gradients. Default: those of the
            ``DistributedDataParallel`` that holds the model. Pass a group if the loop averages them
            itself, ``False`` if every process trains its own model.
        **settings: the rule's, by name. ``None``: off for ``averaging``, ``kl_clip``, ``trust``;
            the default for others. With ``fallback="adam"``, also ``betas``, ``eps``, ``nesterov``.

    Raises:
        ValueError: an argument is outside its range.

    Source: Liu, Chen and Theodorou 2021; George et al. 2018; Vyas et al. 2024 (``rule="adam"``);
    Dozat 2016 (``nesterov``).
    """

    def __init__(
        self,
        model: Model,
        lr: float = 0.01,
        *,
        rule: str | Rule = "adam",
        weight_decay: float | None = None,
        precondition: str = "all",
        fallback: str = "rule",
        grad_scaler: Any = None,
        seed: int = 0,
        process_group: Any = None,
        **settings: Any,
    ) -> None:
        groups = [renamed(group) for group in listed(model)]
        settings = renamed(settings)
        fallback = settings.pop("fallback", fallback)  # by its earlier name
        beside, own = split(rule, settings) if fallback == "adam" else ({}, settings)
        self.rule = made(rule, own)
        decay = self.rule.weight_decay if weight_decay is None else weight_decay
        shared: dict[str, Any] = {"lr": lr, "weight_decay": decay}
        shared |= {"precondition": precondition, "fallback": fallback}
        self._kinds = {**SHARED, **kinds(Adam, groups=True), **kinds(self.rule, groups=True)}
        given = {**Adam.settings(), **beside, **vars(self.rule), **shared}
        self._defaults: dict[str, Any] = {name: given[name] for name in self._kinds}
        validate(self._defaults, self._kinds)
        named, modules = named_groups(groups, self._shown())
        # Schedulers that cycle momentum take the betas where there are any by default.
        unseen = ("betas",) if "momentum" in self._kinds else ()
        shown = {name: self._defaults[name] for name in self._shown() if name not in unseen}
        super().__init__([self._completed(group) for group in named], shown)
        self._fallbacks = {"rule": self.rule, "adam": Adam(cautious=False)}
        self._measured: dict[str, float] = {}
        scale = loss_scale(grad_scaler)
        self._scale_warnings = ScaleWarnings(self.rule, unscaled=scale is not None)
        self.members = Members(
            self.param_groups,
            modules,
            process_group,
            heard=getattr(self.rule, "basis", "") != "gradient",
            known=self._kinds,
            foreign=all_settings(self.rule),
            loss_scale=scale,
            seed=seed,
        )
        self.method: Method = self.rule.method(self.members.parts(modules))
        self._averages = Averages(self.rule.averaging, self.state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add modules, as a further parameter group.

        Args:
            param_group: ``{"params": modules, "lr": ...}``, as in a list of groups.

        Raises:
            TypeError: it is not made of modules.
            ValueError: a setting is wrong, no module is new, or the rule takes no more groups.
        """
        if "method" not in self.__dict__:  # while the optimizer is made
            self._take(param_group)
            return
        self.method.require_extensible()
        group, names = renamed(param_group), self.members.names
        named, modules = named_groups([group], self._shown(), names.keys(), set(names.values()))
        self._take(self._completed(named[0]))
        self.method.extend(self.members.extend(modules))

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
        with torch.enable_grad():
            loss: Any = None if closure is None else closure()
        if self.members.idle and not self.method.closed:
            return loss
        self._averages.settle("a step")
        method = self.method
        if not method.before_update(loss, closure):  # part of the last step was taken back instead
            self._averages.update(self.members.by_id.values(), set())
            method.prepare_next()
            return loss
        warmup = min(1.0, (method.steps + 1) / max(1, self.rule.warmup_steps))
        refreshing = bool(method.layers_to_refresh())
        step = self.directions()
        groups = self.members.in_force
        moves = update.moves_of(method, step, groups, self.state, self._fallbacks)
        if refreshing:
            self._measure(moves, groups)
        self._measured["damping"] = groups[0].get("damping", 0.0)
        update.apply(groups, self.state, moves, warmup, self.rule.cautious_decay)
        method.after_update(loss, closure)
        self._averages.update(self.members.by_id.values(), moves.moved)
        method.prepare_next()
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:  # GradScaler asks before each of its steps
        self._scale_warnings.scaler_steps()
        return False

    def directions(self) -> Step:
        """The step before momentum and learning rate; for :class:`SNOptPreconditioner`.

        Raises:
            RuntimeError: :meth:`curvature_pass` was not called and is needed, or :meth:`close` was.
        """
        if self.method.closed:
            raise RuntimeError("this optimizer was closed; build another SNOpt on the model")
        method, parameters = self.method, self.members.by_id.values()
        self.members.resolve(method.steps)
        method.gradient_scale = update.gradient_scale(parameters, self.rule.gradient_power)
        if method.needs_curvature_pass and method.missing_curvature_pass:
            raise RuntimeError(
                f"{method.needs_curvature_pass} needs optimizer.curvature_pass(outputs), with the "
                "outputs that the loss is made of, between the forward pass and backward(), and "
                "after zero_grad()"
            )
        with without_autocast(next(iter(parameters)).device):
            return method.step()

    def _measure(self, moves: update.Moves, groups: list[dict[str, Any]]) -> None:
        found = {**moves.directions, **moves.steps}
        self._measured = update.norm_ratio(found)
        self._scale_warnings.observe(self.method.layers.values(), found, groups)

    @property
    def averages(self) -> bool:
        """Whether weights are averaged for evaluation."""
        return self._averages.exponent is not None

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged weights into the model, to evaluate or to deploy it.

        ``model.state_dict()`` then has the averages. Before its next step, and before its state is
        saved, the optimizer needs :meth:`train`. Without ``averaging``, nothing happens.
        """
        self._averages.place()

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights themselves back into the model, bit for bit.

        Raises:
            RuntimeError: the model was changed since :meth:`eval`.
        """
        self._averages.replace()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and the curvature gathered with them."""
        super().zero_grad(set_to_none)
        self.method.clear()

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

        Call it between the forward pass and ``loss.backward()``; it leaves gradients alone. On
        refresh steps, ``curvature="fisher"`` takes one more backward pass and ``"ggn"`` one for
        each output. ``rule="gauss_newton"`` needs the call in every step, without further passes.

        Args:
            outputs: logits (N, K) for ``"categorical"``, means (N, ...) for ``"gaussian"``, logits
                (N, ...) of independent outcomes for ``"binary"``.
            likelihood: names the loss, which may be any positive multiple of it: ``"categorical"``
                is ``cross_entropy``, ``"gaussian"`` is ``mse_loss``, ``"binary"`` is
                ``binary_cross_entropy_with_logits``. Means and sums are told apart.
            targets: what the loss compares the outputs with. ``rule="gauss_newton"`` uses it to
                check the loss. Without targets and loss, ``"gaussian"`` means half the squared
                error, summed over outputs and averaged over samples; ``mse_loss`` is different.
            loss: the loss that ``backward()`` will be called on, to be checked in the same way.
                ``rows="outputs"`` needs it, and finds masks and weights with the help of targets.
            batch_dim: the outputs' sample dimension; 1 if time comes first. Layers may then see
                time first too, or time and samples flattened into one dimension.

        Raises:
            ValueError: the rule does not support this loss, or something between it and a layer.
        """
        choose("likelihood", likelihood, LIKELIHOODS)
        self.method.observe_outputs(Seen(outputs, likelihood, targets, loss, batch_dim))

    def close(self) -> None:
        """Remove all hooks and observers from the model, which then trains with any optimizer.

        Leaving a ``with SNOpt(model) as optimizer:`` block calls it. The optimizer can still be
        saved, but makes no more steps.
        """
        self.method.closed = True
        self.method.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- what it knows ----------------------------------------------------------------------------

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The Kronecker factors (A, B) of every layer, as of its last refresh.

        A has shape (in, in), with the bias last, and B (out, out). Grouped convolutions have a
        leading dimension of groups. docs/method.md says how the factors are normalised. With
        ``basis="gradient"``, a convolution's A is a product of factors over channels and positions,
        and what is wider than 512 is zero outside of blocks along the diagonal.
        """
        found = {}
        for name, factors in self.method.factors.items():
            a, b = map(dense, factors)
            found[name] = (a[0], b[0]) if a.shape[0] == 1 else (a, b)
        return found

    def coverage(self) -> Coverage:
        """Which parameters are preconditioned, and why the others are not."""
        method = self.method
        return self.members.coverage(method.layers.values(), method.left_to_fallback, method.whole)

    def diagnostics(self) -> dict[str, float]:
        """Damping, condition number, counts, and norms as of the last refresh, for logs."""
        damping = float(damping_at(self.param_groups[0].get("damping", 0.0), self.method.steps))
        return {**self.method.diagnostics(), "damping": damping, **self._measured}

    @property
    def curvature_seconds(self) -> float:
        """Time spent gathering curvature and decomposing it so far."""
        return self.method.stopwatch.seconds

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs, keyed by parameter and layer names."""
        self._averages.settle("state_dict()")
        names = self.members.names
        state = {
            "state": {names[id(p)]: dict(state) for p, state in self.state.items()},
            "param_groups": saved_groups(self.param_groups, self._kinds, self.method.steps),
            "preconditioner": self.method.state_dict(),
            "measured": dict(self._measured),
            "averaged": {names[id(p)]: n for p, n in self._averages.counts.items()},
            "rule": self.rule.name,
        }
        return with_whole(state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, on this or a freshly built model.

        Saved numbers replace the groups' settings, except for a damping that is a function here.
        Tensors go to the parameters' device.

        Raises:
            ValueError: the state belongs to a model with other parameters or groups, or to another
                rule, or is damaged. Nothing has been changed then.
        """
        self._averages.require_weights("load_state_dict()")
        state_dict = made_whole(state_dict)
        check_kind(state_dict, self.rule.name)
        with reading():
            # Earlier versions noted a momentum of zero where directions hold the momentum.
            early = isinstance(self.rule, GaussNewton) and "rule" not in state_dict
            groups = read_groups(
                self.param_groups,
                state_dict["param_groups"],
                self._kinds,
                {"momentum"} if early else (),
            )
            by_name = self.members.by_name
            state: dict[Tensor, Any] = {
                by_name[name]: read_parameter(name, entry, by_name[name])
                for name, entry in state_dict["state"].items()
            }
            measured = dict(state_dict["measured"])
            averaged = state_dict.get("averaged", {})  # earlier versions had none
            counts: dict[Tensor, int] = {by_name[n]: int(x) for n, x in averaged.items()}
        self.method.load_state_dict(state_dict["preconditioner"])
        for group, settings in zip(self.param_groups, groups, strict=True):
            damping = group.get("damping")
            if isinstance(damping, LevenbergMarquardt) and settings:
                damping.value = settings["damping"]
            kept = {"damping"} if callable(damping) else set()
            group.update({name: x for name, x in settings.items() if name not in kept})
        self.state.clear()
        self.state.update({p: {} for p in by_name.values()})
        self.state.update(state)
        self._measured = measured
        self._averages.read(counts)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "an SNOpt listens to one model and cannot be copied or pickled; build one on the "
            "copied model and give it state_dict()"
        )

    # -- inside -----------------------------------------------------------------------------------

    def _shown(self) -> list[str]:
        """Names of the groups' settings, without Adam's where nothing takes them."""
        own = {*SHARED, *kinds(self.rule, groups=True)}
        return [n for n in self._kinds if n in own or self._defaults["fallback"] == "adam"]

    def _completed(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group with the defaults of what it leaves open, checked."""
        found = {**self._defaults, **group}
        validate(found, self._kinds)
        return {**found, "betas": tuple(found["betas"])}
