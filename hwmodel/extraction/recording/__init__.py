"""From a module to a recording of its operators: torch.export, ATen calls, lowerings, roles and names."""
