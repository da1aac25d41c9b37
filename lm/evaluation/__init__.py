"""Held-out text: passages, scorers, validation and baselines."""
