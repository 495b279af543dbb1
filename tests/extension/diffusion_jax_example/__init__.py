"""A package of somebody else's: a network family, an objective, a sampler and a data set for diffusion_jax."""
