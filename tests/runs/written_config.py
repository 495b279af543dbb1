"""What `diffusion-jax new` writes, read back, and machines to write it for."""

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.runs.new.fitting import Machine

TWO_CORES, EIGHT_GPUS = Machine("cpu", 1, "cpu", 2), Machine("gpu", 8, "H100", 16)


def read(text: str) -> ConfigDict:
    """The checked config of a config file's text."""
    scope = {}
    exec(compile(text, "my.py", "exec"), scope)
    return configs.check(scope["get_config"]())
