"""The experiment suite: tasks, their data and models, the runner, results and report."""
