"""`diffusion-jax report`: one page about a training run."""
