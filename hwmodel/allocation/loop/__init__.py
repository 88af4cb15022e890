"""The closed loop: sensitivities, allocation, a pruned model, its reloaded checkpoint, and what that costs."""
