"""Settings that every test shares."""

from __future__ import annotations

from hypothesis import settings

# The same examples every time, and no deadline: machines are shared and slow at times.
settings.register_profile("hwmodel", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("hwmodel")
