"""python -m diffusion_jax is the same as diffusion-jax."""

from diffusion_jax.cli.entry import entry

if __name__ == "__main__":
    entry()
