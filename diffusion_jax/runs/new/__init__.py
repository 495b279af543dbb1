"""`diffusion-jax new`: a user's own data to a config that suits it and this machine."""
