"""Peak memory of a call, as torch's own allocator sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that tensors took during a call, beyond what was taken before it.

    On the CPU this adds up the allocator's own events, recorded by torch's profiler: exact,
    repeatable and blind to what the process did before, which the resident size is not. It does not
    see buffers that a library such as oneDNN allocates for itself. On a GPU it is
    ``torch.cuda.max_memory_allocated``.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    inner = record.profiler
    results = None if inner is None else inner.kineto_results
    if results is None:
        raise RuntimeError("torch's profiler recorded nothing")
    events = [event for event in results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
