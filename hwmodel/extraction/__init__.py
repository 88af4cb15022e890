"""From a torch or timm model to a trace, and recipes applied to a trace."""
