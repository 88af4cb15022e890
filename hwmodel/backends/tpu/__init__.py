"""What the TPU backend needs besides the systolic array itself: its parameters, the silicon model and its energy."""
