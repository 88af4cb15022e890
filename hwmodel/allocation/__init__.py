"""Allocation: which layer loses how many weight blocks, so that a budget on real machines is met with least distortion."""
