"""Runs a script and leaves without shutting the interpreter down: ``left_at_once.py SCRIPT``.

A thread of gloo's that asks for the interpreter while it shuts down aborts the process.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    runpy.run_path(sys.argv[1], run_name="__main__")
    sys.stdout.flush()
    os._exit(0)
