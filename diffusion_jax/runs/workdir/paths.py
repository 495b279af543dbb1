"""A workdir: the folder of a run, which alone is enough to resume, sample, evaluate and export it.

config.json      the resolved config
parameters.txt   shape, type and layout on the mesh of every array
checkpoints/     a directory for each step; one that does not verify is moved to STEP.damaged
snapshots/       a directory for each step, with profiles of the parameters' average, if the run has some
metrics.jsonl    a line for each log interval; the same in tensorboard/, unless log.to leaves it out
samples/         a grid of samples for each sample interval
loss.png         the loss curve
events.jsonl     each start, roll-back and end of the run: when, by which command and code, on which devices
trackers.json    for a run that W&B or MLflow is given: which run it is there, and what has been sent
classes.json     for a model with classes: their names in the order of their numbers
tokenizer.json   for a model with captions
autoencoder/     for a model of latents: config and checkpoint of the autoencoder with which it was trained
teacher/         for a model that learns from another: a copy of what is read of the other's workdir
examples/        with data.log_examples: the examples of each step, in a file for each process
nonfinite.jsonl  the steps whose loss was not finite, with what is needed to repeat them
trace/           with --profile: what the devices did in some steps, for XProf and Perfetto
stacks.txt       for a run that hung: the stacks of all threads
text_encoder/    for a model with a published text encoder: a copy of it
mirror.json      for a run with a mirror: the identity of the run
imported.json    for a workdir that `import` made: the origin of its weights, with their SHA-256s
"""

import dataclasses
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file


def read_json(file: Path) -> dict[str, object]:
    """The object in a JSON file that a command wrote. Raises UserError where the file is damaged."""
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
        """The table of all arrays with shape, type and layout."""
        return self.root / "parameters.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder with a directory for each step."""
        return self.root / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """The folder with a directory of averages for each step, from which `sample --ema=LENGTH` makes others."""
        return self.root / "snapshots"

    @property
    def trace(self) -> Path:
        """The folder of the trace that `train --profile` records."""
        return self.root / "trace"

    @property
    def metrics(self) -> Path:
        """The file with a line for each log interval."""
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """The file with a line for each start, roll-back and end of the run."""
        return self.root / "events.jsonl"

    @property
    def loss_curve(self) -> Path:
        """The picture of the loss curve."""
        return self.root / "loss.png"

    @property
    def classes(self) -> Path:
        """The file with the names of the classes in the order of their numbers."""
        return self.root / "classes.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of a model with captions."""
        return self.root / "tokenizer.json"

    @property
    def autoencoder(self) -> Path:
        """The workdir of the autoencoder, with one checkpoint."""
        return self.root / "autoencoder"

    @property
    def teacher(self) -> Path:
        """The workdir of the model from which the objective learns, with one checkpoint."""
        return self.root / "teacher"

    @property
    def text_encoder(self) -> Path:
        """The folder with a copy of a published text encoder."""
        return self.root / "text_encoder"

    @property
    def imported(self) -> Path:
        """The file that names the origin of imported weights."""
        return self.root / "imported.json"

    @property
    def examples(self) -> Path:
        """The folder with the examples of each step."""
        return self.root / "examples"

    def sample_grid(self, step: int) -> Path:
        """The picture of samples after `step` steps."""
        return self.root / "samples" / f"{step:08d}.png"

    def read_config(self, *, quiet: bool = False) -> ConfigDict:
        """The config of the run in this workdir. Raises UserError where there is none, and where it is damaged.

        Keys that an earlier version did not have are added. Unless quiet, stderr names them.
        """
        if not self.config.is_file():
            raise UserError(f"{self.root} is not a workdir: it has no {self.config.name}; check the path")
        read_json(self.config)  # raises where the file is damaged
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
        """Whether there is a checkpoint of any step, damaged or not."""
        return self.checkpoints.is_dir() and any(path.name.isdecimal() for path in self.checkpoints.iterdir())

    def write_config(self, config: ConfigDict) -> None:
        """Writes the config, whole or not at all."""
        self.root.mkdir(parents=True, exist_ok=True)
        replace_file(self.config, configs.to_json(config).encode())


def as_trained(config: ConfigDict, workdir: Workdir) -> ConfigDict:
    """config with the behaviour of the earlier version that trained the parameters from which a run in workdir starts.

    They are those of its checkpoints or, where it has none, those of the run that config.init_from names. Where this
    version trained them, it is config itself. An open `data.shape` is that of the run in workdir.
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
