"""The benchmark of optimizers: workloads, who runs on them, how they are ranked and shown."""
