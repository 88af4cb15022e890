"""Pruning a trace without weights: recipes and their files, structure, tokens, dead work."""
