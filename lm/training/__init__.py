"""State, step, optimizer, budget, checkpoints and metrics."""
