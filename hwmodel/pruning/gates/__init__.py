"""Tokens and attention heads of live models: what removing one does to the loss, which go, and layers without them."""
