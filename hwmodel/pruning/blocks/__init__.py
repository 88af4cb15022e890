"""Weight blocks of live models: what pruning them does, one fixed order, and masks that hold."""
