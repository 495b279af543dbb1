"""Snapshots of the averages that `sample --ema=LENGTH` reconstructs others from."""

from diffusion_jax.runs.workdir import snapshots
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.hooks import Moment
from diffusion_jax.train.state import TrainState


class Profiles:
    """Saves the power-function averages of the parameters; config is JSON, every the steps between two snapshots."""

    def __init__(self, snapshots: Checkpoints, config: str, every: int):
        self._snapshots, self._config, self._every = snapshots, config, every

    def run(self, moment: Moment) -> None:
        """Starts saving the averages of the state after a step."""
        snapshots.save(self._snapshots, moment.state, self._config)

    def resume(self, state: TrainState, resumed: int | None) -> None:
        """Deletes the snapshots of steps that are trained anew, and saves the one that a signal had prevented."""
        self._snapshots.drop_after(resumed or 0)
        if resumed and resumed % self._every == 0 and resumed not in self._snapshots.steps():
            snapshots.save(self._snapshots, state, self._config)
