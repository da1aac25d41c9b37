"""Prompts to text, by every strategy that an objective allows."""
