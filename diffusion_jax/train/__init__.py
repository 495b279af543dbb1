"""Training: the state, the step, its sharding, its checkpoints and the loop around them."""
