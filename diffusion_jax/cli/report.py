"""Writes one page about a run, an HTML file that needs no other: curves, grids, evaluations, how to repeat it.

diffusion-jax report runs/digits --out=digits.html

It may be under way, stopped or done.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax.errors import UserError

TAKES_WORDS = True


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    values.set_gnu_getopt(True)  # the workdir comes first
    flags.DEFINE_string("workdir", None, "Folder of the run; the word after report is it too.", flag_values=values)
    flags.DEFINE_string("out", None, "HTML file to write; WORKDIR/report.html if left out.", flag_values=values)


def run(values: flags.FlagValues, words: Sequence[str] = ()) -> None:
    """Writes the page."""
    given = [*words, *([values.workdir] if values.workdir else [])]
    if len(given) != 1:
        raise UserError(f"report takes one workdir, as in report runs/digits; got {' '.join(given) or 'none'}")
    from diffusion_jax.runs.report.run import report

    root = Path(given[0])
    print(report(root, Path(values.out) if values.out else root / "report.html"))
