"""Train a Neural ODE: ``python run.py task=digits optim=snopt``; ``--help`` says the rest."""

import sys

import hydra
from omegaconf import DictConfig

from tasks import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Check the composed configuration, build what it names, and train it."""
    cli.main(config)


if __name__ == "__main__":
    cli.check_arguments(sys.argv[1:])
    main()
