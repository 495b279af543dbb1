"""`diffusion-jax new`: from a user's data to a config that suits the data and this machine."""
