"""GPUs: any NVIDIA board described by a card, from an A100 to a Jetson module."""

from hwmodel.backends.gpu.advice import SlowLayer, find_slow_layers, slow_layers, told
from hwmodel.backends.gpu.backend import Gpu

__all__ = ["Gpu", "SlowLayer", "find_slow_layers", "slow_layers", "told"]
