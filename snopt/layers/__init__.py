"""What can be preconditioned: a class for each layer kind, and the table of kinds."""
