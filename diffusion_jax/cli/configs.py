"""The configs that come with the package: lists them, shows one, or copies one to change it.

diffusion-jax configs
diffusion-jax configs show digits
diffusion-jax configs copy digits --out=mine.py
diffusion-jax train --config=digits --workdir=runs/digits      # by name, or --config=mine.py
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from diffusion_jax import shipped_configs
from diffusion_jax.errors import UserError

TAKES_WORDS = True


def define(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The command's flags."""
    values.set_gnu_getopt(True)  # show and copy come first
    flags.DEFINE_string("out", None, "Of copy: the new file; NAME.py if left out.", flag_values=values)


def run(values: flags.FlagValues, words: Sequence[str] = ()) -> None:
    """Lists, shows or copies."""
    if not words:
        names = shipped_configs.names()
        width = max(map(len, names))
        print(*(f"{name:{width}}  {shipped_configs.summary(name)}" for name in names), sep="\n")
        return
    if words[0] not in ("show", "copy") or len(words) != 2:
        raise UserError(f"configs is followed by nothing, show NAME or copy NAME; got {' '.join(words)}")
    source = shipped_configs.path_of(words[1])
    if words[0] == "show":
        print(source.read_text(encoding="utf-8"), end="")
        return
    out = Path(values.out or source.name)
    if out.exists():
        raise UserError(f"{out} is there already; give another file by --out")
    shutil.copyfile(source, out)
    print(f"{out}: train it with diffusion-jax train --config={out} --workdir=FOLDER")
