"""Pruning of real torch models: what leaves a model that runs, and that extraction reads like any other."""
