"""Measured data against predictions: the scoreboard that every error band comes from."""
