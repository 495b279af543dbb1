"""Training: state, step, sharding, checkpoints, and the loop around the steps."""
