"""What runs the tasks: configuration, optimizers, training, records and the report."""
