"""What a bug report needs: versions, devices, memory, flags, caches and free disk. Works without a device, too.

diffusion-jax doctor
"""

from collections.abc import Sequence

from absl import flags


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """No flags."""


def run(values: flags.FlagValues) -> None:
    """Prints."""
    from diffusion_jax.runs.help.doctor import report

    print(*report(), sep="\n")
