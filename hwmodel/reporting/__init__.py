"""Estimates as tables, figures and a self-contained page."""
