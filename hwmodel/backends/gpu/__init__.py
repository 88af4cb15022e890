"""GPUs: any NVIDIA board described by a card, from an A100 to a Jetson module."""

from hwmodel.backends.gpu.backend import Gpu

__all__ = ["Gpu"]
