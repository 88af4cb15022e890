"""What weights tell: checkpoints and live modules, masks, block shapes, number formats, narrowed layers."""
