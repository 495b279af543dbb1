"""How `diffusion-jax train` starts on clusters: templates, and what fills them in."""
