"""A workdir: where a run keeps everything, and enough by itself to resume, sample, evaluate or export it.

config.json      the resolved config
parameters.txt   every array's shape, type and layout on the mesh
checkpoints/     one directory a step
metrics.jsonl    one line a log interval; the same in tensorboard/
samples/         a grid of samples a sample interval
loss.png         the loss curve
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.report.atomic import replace_file


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
    def metrics(self) -> Path:
        """One line a log interval."""
        return self.root / "metrics.jsonl"

    @property
    def loss_curve(self) -> Path:
        """The loss curve."""
        return self.root / "loss.png"

    def sample_grid(self, step: int) -> Path:
        """The grid of samples drawn after `step` steps."""
        return self.root / "samples" / f"{step:08d}.png"

    def read_config(self) -> ConfigDict:
        """The config of the run that was started here; raises UserError where there is none."""
        if not self.config.is_file():
            raise UserError(f"{self.root} is not a workdir: it has no {self.config.name}; check --workdir")
        return configs.from_json(self.config.read_text())

    def write_config(self, config: ConfigDict) -> None:
        """Records the config, all of it or nothing."""
        self.root.mkdir(parents=True, exist_ok=True)
        replace_file(self.config, configs.to_json(config).encode())
