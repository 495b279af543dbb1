"""A package of somebody else's for diffusion_jax: a network family, an objective, a condition, a sampler, a data set."""
