"""Shows two evaluations side by side. It refuses two that were not measured in the same way.

diffusion-jax evaluate compare --a=runs/digits/evaluations/A.json --b=runs/digits_plain/evaluations/B.json
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.errors import UserError


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("a", None, "JSON that evaluate wrote.", flag_values=values)
    flags.DEFINE_string("b", None, "Another.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Compares."""
    if not values.a or not values.b:
        raise UserError("evaluate compare needs --a=A.json and --b=B.json")
    from diffusion_jax.runs.evaluate.comparison import compare

    compare(Path(values.a), Path(values.b))
