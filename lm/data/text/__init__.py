"""Characters, words, scripts and rules of cleaning."""
