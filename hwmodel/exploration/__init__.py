"""Sweeps over cards and recipes, Pareto fronts, clusters."""
