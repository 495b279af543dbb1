"""The text of a new config, Python that the user will edit."""

import math
import textwrap

from diffusion_jax.runs.new.fitting import Fit
from diffusion_jax.runs.new.survey import Survey

_CACHED = 2**28
"""The most values of a data set that is held in memory."""


def config_text(found: Survey, fit: Fit, name: str) -> str:
    """A config file with the reasons in its docstring; name is the file's, for the lines that use it."""
    guided = bool(found.num_classes or found.captions)
    stem = name.removesuffix(".py")
    flag = f" --label={_word(next(iter(found.classes)))}" if found.classes else ""
    flag = f" --prompt={_word(found.captions[0])}" if found.captions else flag
    reasons = "\n".join(textwrap.fill(f"- {reason}", 116, subsequent_indent="  ") for reason in fit.reasons)
    head = (
        f"{found.count:,} {found.noun} of {found.source}.\n\n"
        f"diffusion-jax train --config={name} --workdir=runs/{stem}\n"
        f"diffusion-jax sample --workdir=runs/{stem} --out=samples --num=16{flag}\n\n"
        f"Written by `diffusion-jax new` for what it found:\n\n{reasons}\n\n"
        "`diffusion-jax keys` says what every key means."
    )
    lines = [
        f"config.data.source = {fit.source!r}",
        f"config.data.shape = {fit.shape}  # {fit.axes}",
        f"config.data.cache = {found.count * math.prod(fit.shape) < _CACHED}  # decoded {found.noun} stay in memory",
    ]
    if fit.modality:
        lines.append(f'config.data.modality = "{fit.modality}"  # {fit.modality_comment}')
    if fit.flips:
        lines.append(
            "config.data.flip = False  # True mirrors half of the images: more variety, where left and right are alike"
        )
    if fit.corrupt_limit:
        replaced = f"# of so many {fit.corrupt} {found.noun} others take the place"
        lines.append(f"config.data.corrupt_limit = {fit.corrupt_limit}  {replaced}")
    if found.caption != "text":
        lines.append(f"config.data.caption = {found.caption!r}")
    if found.num_classes:
        lines.append(f"config.model.num_classes = {found.num_classes}")
    if found.captions:
        length = min(77, max(8, 2 * max(len(caption.split()) for caption in found.captions) + 2))
        lines.append(
            f'config.text = "transformer(length={length}, vocabulary=512, width=64, layers=2, heads=4)"'
            "  # longer captions are cut"
        )
    net, process = fit.net, fit.process
    options = (fit.options and f", {fit.options}") + (", pooled_text=True" if found.captions else "")
    lines += [
        *process.training,
        "config.model.update(",
        f"    patch={net.patch}, channels={net.channels}, multipliers={net.multipliers}, blocks={net.blocks},",
        f"    attention=({net.halvings},), heads=4, groups=8{options},",
        ")",
        f'config.optimizer.update(learning_rate={_digits(fit.learning_rate)}, warmup=100, decay="cosine")',
        "config.ema.decay = 0.995",
        f"config.train.update(steps={fit.steps}, batch_size={fit.batch_size})",
        "config.log_every = 25",
        f"config.checkpoint.every = {fit.steps // 4}",
        f'config.sample.update(every={fit.steps // 4}, num={_shown(found)}, sampler="{process.sampler}", '
        f"steps={process.steps}, guidance={2.0 if guided else 1.0})",
        *process.sampling,
        "return config",
    ]
    body = "\n".join(f"    {line}" for line in lines)
    quoted = head.replace("\\", "\\\\").replace('"""', r"\"\"\"")
    return (
        f'"""{quoted}\n"""\n\nfrom ml_collections import ConfigDict\n\nfrom diffusion_jax.config import base\n\n\n'
        f"def get_config() -> ConfigDict:\n    config = base()\n{body}\n"
    )


def _shown(found: Survey) -> int:
    """The number of samples in a grid while training: the same for each class."""
    classes = found.num_classes
    return 16 if not classes else classes * max(16 // classes, 1) if classes <= 64 else 64


def _digits(number: float) -> str:
    """A number in the form 1e-3."""
    digits, exponent = f"{number:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _word(text: str) -> str:
    """Text as a word of a shell."""
    plain = text[:60].replace("'", "'\\''")
    return plain if plain.replace("_", "").isalnum() else f"'{plain}'"
