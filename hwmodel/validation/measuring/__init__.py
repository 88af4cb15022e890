"""Timing operators on the machine at hand, into the tidy layout of a measured file."""
