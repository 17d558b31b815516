"""Runs a script and leaves without shutting the interpreter down: ``left_at_once.py SCRIPT``.

A thread of gloo's that asks for the interpreter while it shuts down aborts the process.
"""

import gc
import os
import runpy
import sys
from typing import NoReturn

import torch.distributed as dist


def leave() -> NoReturn:
    """End this process here."""
    sys.stdout.flush()
    os._exit(0)


def leave_together() -> NoReturn:
    """End all processes of the default group, once each is done."""
    gc.collect()  # wrapped networks go before the group they talk through
    dist.barrier()
    dist.destroy_process_group()
    leave()


if __name__ == "__main__":
    runpy.run_path(sys.argv[1], run_name="__main__")
    leave()
