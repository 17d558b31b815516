"""Train a Neural ODE: ``python run.py task=digits optim=snopt``; ``--help`` says the rest."""

import sys

from tasks.engine.training import signals

if __name__ == "__main__":
    signals.end_at_once()  # before the imports that take long
    from tasks.engine import cli

    cli.run(sys.argv[1:])
