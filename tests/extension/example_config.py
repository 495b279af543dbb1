"""A run all of whose parts are another package's."""

from diffusion_jax.config import base


def get_config():
    config = base("diffusion_jax_example.nets.Perceptron")
    config.data.source = "diffusion_jax_example.data.Corners(count=32)"
    config.schedule, config.prediction = "cosine(steps=50)", "v"
    config.objective = "diffusion_jax_example.training.bounded(limit=2.0)"
    config.spatial = ("diffusion_jax_example.conditions.Brightness(dropout=0.2)",)
    config.model.update(width=16, depth=1, num_classes=4)
    config.train.update(steps=4, batch_size=8)
    config.log_every, config.checkpoint.every = 2, 2
    config.sample.update(every=4, num=4, sampler="diffusion_jax_example.sampling.plain_euler(stretch=0.9)", steps=3)
    return config
