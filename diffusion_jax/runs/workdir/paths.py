"""A workdir: where a run keeps everything, and enough by itself to resume, sample, evaluate or export it.

config.json      the resolved config
parameters.txt   every array's shape, type and layout on the mesh
checkpoints/     one directory a step; one that does not verify is moved to STEP.damaged
snapshots/       one directory a step: profiles of the parameters' average, of a run that keeps some
metrics.jsonl    one line a log interval; the same in tensorboard/
samples/         a grid of samples a sample interval
loss.png         the loss curve
classes.json     of a model that is told classes: their names, in the order of their numbers
tokenizer.json   of a model that is told captions
autoencoder/     of a model of latents: the config and checkpoint of the autoencoder it was trained with
examples/        with data.log_examples: which examples each step was given, a file a process
nonfinite.jsonl  the steps whose loss was not finite, with what it takes to repeat them
stacks.txt       of a run that hung: what every thread was at
text_encoder/    of a model with a published text encoder: a copy of it
mirror.json      of a run that is mirrored elsewhere: by which it knows its mirror
imported.json    of a workdir that `import` made: where its weights come from, with their SHA-256s
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file that a command wrote; raises UserError where it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise UserError(f"{file} is damaged: {error}; restore a copy of it") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object but {str(found)[:40]!r}; restore a copy of it")
    return found


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The paths of a run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config, as JSON."""
        return self.root / "config.json"

    @property
    def parameters(self) -> Path:
        """Every array's shape, type and layout."""
        return self.root / "parameters.txt"

    @property
    def checkpoints(self) -> Path:
        """One directory a step."""
        return self.root / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Of the averages that `sample --ema=LENGTH` reconstructs others from; one directory a step."""
        return self.root / "snapshots"

    @property
    def metrics(self) -> Path:
        """One line a log interval."""
        return self.root / "metrics.jsonl"

    @property
    def loss_curve(self) -> Path:
        """The loss curve."""
        return self.root / "loss.png"

    @property
    def classes(self) -> Path:
        """The names of the classes, in the order of their numbers."""
        return self.root / "classes.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of a model that is told captions."""
        return self.root / "tokenizer.json"

    @property
    def autoencoder(self) -> Path:
        """A workdir of its own, with one checkpoint."""
        return self.root / "autoencoder"

    @property
    def text_encoder(self) -> Path:
        """A copy of a published text encoder."""
        return self.root / "text_encoder"

    @property
    def imported(self) -> Path:
        """Where imported weights come from."""
        return self.root / "imported.json"

    @property
    def examples(self) -> Path:
        """Which examples each step was given."""
        return self.root / "examples"

    def sample_grid(self, step: int) -> Path:
        """The grid of samples drawn after `step` steps."""
        return self.root / "samples" / f"{step:08d}.png"

    def read_config(self, *, quiet: bool = False) -> ConfigDict:
        """The config of the run that was started here; raises UserError where there is none.

        Unless quiet, it says which keys of an earlier version's config are completed.
        """
        if not self.config.is_file():
            raise UserError(f"{self.root} is not a workdir: it has no {self.config.name}; check --workdir")
        read_json(self.config)  # raises where it is damaged
        text = self.config.read_text(encoding="utf-8")
        try:
            config, newer = configs.from_json(text), configs.newer(text)
        except UserError as error:
            raise UserError(f"{self.config}: {error}") from error
        if newer and not quiet:
            says = f"an earlier version wrote {self.config}, without {', '.join(newer)}: all stays as it was then"
            print(f"diffusion-jax: {says}", file=sys.stderr)
        return config

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is one of any step, damaged or not."""
        return self.checkpoints.is_dir() and any(path.name.isdecimal() for path in self.checkpoints.iterdir())

    def write_config(self, config: ConfigDict) -> None:
        """Records the config, all of it or nothing."""
        self.root.mkdir(parents=True, exist_ok=True)
        replace_file(self.config, configs.to_json(config).encode())


def as_trained(config: ConfigDict, workdir: Workdir) -> ConfigDict:
    """config with what an earlier version did, where that trained the parameters which a run in workdir starts with.

    They are those of its checkpoints or, where it has none, of the run that config.init_from names. An open
    `data.shape` is that of the run in workdir.
    """
    if workdir.has_checkpoints and workdir.config.is_file() and not config.data.shape:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data.shape = configs.from_json(workdir.config.read_text()).data.shape
    if not workdir.has_checkpoints and config.init_from:
        workdir = Workdir(Path(config.init_from))
    if not (workdir.has_checkpoints and workdir.config.is_file()):
        return config
    return configs.as_trained(config, workdir.config.read_text())
