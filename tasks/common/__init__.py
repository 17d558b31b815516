"""What tasks and the engine share: checks of settings, random streams, whole files."""
