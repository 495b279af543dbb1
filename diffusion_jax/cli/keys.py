"""Prints the keys of a config with default, type, range and meaning, or a list of what can be chosen by name.

diffusion-jax keys                      # all of them
diffusion-jax keys sample               # those with "sample" in their name, or a pattern: 'ema.*'
diffusion-jax keys guidance
diffusion-jax keys --of=samplers        # each sampler with its arguments; also `sample --help=samplers`
"""

from collections.abc import Sequence

from absl import flags

from diffusion_jax.errors import UserError
from diffusion_jax.runs.help.choices import LISTS, lines_of

TAKES_WORDS = True


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    values.set_gnu_getopt(True)  # the pattern comes first
    flags.DEFINE_string("of", "", f"A list: {', '.join(LISTS)}.", flag_values=values)
    flags.DEFINE_string("network", "unet", "Family whose options are the keys of model.", flag_values=values)


def run(values: flags.FlagValues, words: Sequence[str] = ()) -> None:
    """Prints."""
    if len(words) > 1:
        raise UserError(f"keys takes one pattern; got {' '.join(words)}; quote one with spaces or *")
    if values.of:
        print(*lines_of(values.of), sep="\n")
        return
    from diffusion_jax.runs.help.keys import lines

    print(*lines(words[0] if words else "", values.network), sep="\n")
