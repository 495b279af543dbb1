"""How `diffusion-jax train` starts on clusters: templates of job files, and the code that fills them in."""
