"""The contract with a field: how it is called, and what it must return.

A solver adds slopes to states. A slope of another shape would be broadcast and mix samples, one of
another dtype would change the state's; so every evaluation compares them, which reads nothing from
the device. The first of a solve also looks whether the state was changed in place.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from snopt.ode.packing import Layout, batch_size
from snopt.ode.runge_kutta import Field
from snopt.ode.signature import explain


class FlatField:
    """A module's field over one tensor, under the autocast that held when it was made.

    Args:
        module: called as ``module(t, x)``.
        layout: the shapes behind the tensor.
        like: a tensor of the dtype and device that states are carried in.
        seen: the dtype in which the module sees time and state; that of ``like`` by default.

    Raises:
        TypeError: from a call, the module returned something else than slopes of ``seen``.
        ValueError: from a call, a slope has another shape or device than its part of the state, or
            the module changed the state in place.
    """

    def __init__(
        self, module: nn.Module, layout: Layout, like: Tensor, seen: torch.dtype | None = None
    ) -> None:
        self.module, self.layout, self.dtype = module, layout, like.dtype
        self.seen = seen or like.dtype
        self.device, self.device_type = like.device, like.device.type
        self.autocast = torch.is_autocast_enabled(self.device_type)
        self.autocast_dtype = torch.get_autocast_dtype(self.device_type) if self.autocast else None
        self.plain = not self.autocast and self.seen is self.dtype
        self.single = self.plain and layout.shapes is None
        self.checked = False

    @property
    def key(self) -> tuple[object, ...]:
        """What a compiled step over this field is made for."""
        shapes = self.layout.shapes or ()
        return (self.module, *shapes, self.dtype, self.seen, self.device, self.autocast_dtype)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at (t, y), of y's shape and dtype."""
        if self.checked and self.single:
            slope = self.module(t, y)
            same = type(slope) is Tensor and slope.shape == y.shape and slope.dtype is self.dtype
            return slope if same else self._verified(slope, y)
        if self.plain:
            return self._slope(t, y)
        if self.autocast:
            with torch.autocast(self.device_type, dtype=self.autocast_dtype):
                return self._slope(t, y).to(self.dtype)
        return self._slope(t.to(self.seen), y.to(self.seen)).to(self.dtype)

    def _slope(self, t: Tensor, y: Tensor) -> Tensor:
        x = self.layout.unpack(y)
        if self.checked:
            return self._verified(self.module(t, x), y)
        before = _version(y)
        try:
            slope = self._verified(self.module(t, x), y)
        except Exception as error:
            explain(self.module, error, t, x)
            raise
        if _version(y) != before:
            raise ValueError(
                f"field {self._name} changed its state in place, which the solver still needs: "
                "make a first layer such as nn.ReLU(inplace=True) one with inplace=False, and "
                "write x = x + ... for x += ..., or begin the field with x = x.clone()"
            )
        self.checked = not torch.compiler.is_compiling()
        return slope

    def _verified(self, parts: Any, y: Tensor) -> Tensor:
        """What the module returned, as one tensor."""
        shapes = self.layout.shapes
        if shapes is None:
            self._check(parts, y.shape, y)
            return parts  # type: ignore[no-any-return]
        if not isinstance(parts, tuple | list):
            self._refuse_type(parts, f"a tuple of {len(shapes)} tensors, as the state is")
        if len(parts) != len(shapes):
            raise ValueError(
                f"field {self._name} returned {len(parts)} parts for a state of {len(shapes)}: it "
                "must return one slope for each part, zeros (torch.zeros_like) for what stays"
            )
        for i, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
            self._check(part, shape, y, i)
        return self.layout.pack(tuple(parts))

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def _check(self, slope: Any, shape: torch.Size, y: Tensor, part: int | None = None) -> None:
        if (
            isinstance(slope, Tensor)
            and slope.shape == shape
            and slope.dtype is self.seen
            and slope.device == self.device
        ):
            return
        self._refuse(slope, shape, y, "" if part is None else f" for part {part}")

    def _refuse(self, slope: Any, shape: torch.Size, y: Tensor, which: str) -> None:
        if not isinstance(slope, Tensor):
            self._refuse_type(slope, f"a tensor of shape {tuple(shape)}{which}")
        if slope.shape != shape:
            raise ValueError(
                f"field {self._name} returned a slope of shape {tuple(slope.shape)}{which}, "
                f"expected {tuple(shape)}, the state's: broadcasting would mix samples; reshape "
                "it, or slope.expand_as(x) if all samples share it"
            )
        if slope.device != y.device:
            raise ValueError(
                f"field {self._name} returned a slope on {slope.device}{which}, expected "
                f"{y.device}, where the state is: move the field there, field.to(x.device)"
            )
        if not (self.autocast and slope.is_floating_point()):
            raise TypeError(
                f"field {self._name} returned a slope of {slope.dtype}{which}, expected {y.dtype}, "
                "the state's: convert the field (field.to(x.dtype)), or return slope.to(x.dtype)"
            )

    def _refuse_type(self, got: object, expected: str) -> NoReturn:
        missing = " (does its forward end with a return?)" if got is None else ""
        raise TypeError(
            f"field {self._name} returned {_described(got)}{missing}, expected {expected}"
        )


def _version(y: Tensor) -> int:
    """How often a tensor was changed in place; 0 where nobody counts."""
    uncounted = torch.compiler.is_compiling() or y.is_inference()
    return 0 if uncounted else y._version


def _described(got: object) -> str:
    if isinstance(got, Tensor):
        return f"one tensor of shape {tuple(got.shape)}"
    if isinstance(got, tuple | list):
        return f"a {type(got).__name__} of {len(got)}"
    return "None" if got is None else f"a {type(got).__name__}"


def with_own_times(field: FlatField) -> Field:
    """A field whose samples have times of their own, for callers that know one for all."""

    def called(t: Tensor, y: Tensor) -> Tensor:
        return field(t if t.ndim else t.expand(batch_size(field.layout.unpack(y))), y)

    return called
