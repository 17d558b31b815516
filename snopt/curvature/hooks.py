"""Forward hooks that copies of a module do not have, and outputs that can be hooked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor


class UncopiedHook:
    """A forward hook that becomes a no-op when its module is deep-copied."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        """Pass on what the hook was given."""
        return self.call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return UncopiedHook, (_ignore,)


def _ignore(*args: Any) -> None:
    pass


def have_hooks_guarded() -> None:
    """Have torch.compile notice hooks that come and go.

    By default it does not look, and what it compiled while there were none also runs when there are
    some. Nothing is done while the compiler is not imported.
    """
    config: Any = sys.modules.get("torch._dynamo.config")
    if getattr(config, "skip_nnmodule_hook_guards", False):
        config.skip_nnmodule_hook_guards = False


def hookable(output: Tensor) -> Tensor:
    """An output whose node in the graph is reached whatever is done to the output in place.

    Changing a view (a linear layer's output for an input with locations) rewrites its history and
    leaves out the node that is there now; a copy's stays.
    """
    return output.clone() if output._is_view() else output
