"""Torch and timm models become traces. Importing this package does not import torch."""
