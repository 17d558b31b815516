"""Imports torchvision's data sets beside any build of torch.

torchvision's wheel on the package index is built for CUDA. Beside a CPU build of torch its C++
extension cannot be loaded; torchvision carries on without it until, still during ``import
torchvision``, it registers shape functions for two operators that only the extension declares, and
dies with "operator torchvision::nms does not exist". The data sets and transforms use neither
operator, so declaring the two schemas, without an implementation, is enough.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# The declarations live as long as this object.
_declarations: list[torch.library.Library] = []


def torchvision_datasets() -> ModuleType:
    """The module ``torchvision.datasets``; schemas are declared only if its import needs them.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declarations:
            raise
    # What the failed import has left behind is half initialised.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _declarations.append(library)
    return importlib.import_module("torchvision.datasets")
