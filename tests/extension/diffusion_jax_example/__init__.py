"""A package of somebody else's: a network, an objective, a condition, a sampler and a data set for diffusion_jax."""
