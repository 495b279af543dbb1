"""Snapshots of averages of the parameters, from which `sample --ema=LENGTH` reconstructs other averages."""

from diffusion_jax.runs.workdir import snapshots
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.hooks import Moment
from diffusion_jax.train.state import TrainState


class Profiles:
    """Saves the power-function averages of the parameters; config is JSON, every is the steps between snapshots."""

    def __init__(self, snapshots: Checkpoints, config: str, every: int):
        self._snapshots, self._config, self._every = snapshots, config, every

    def run(self, moment: Moment) -> None:
        """Starts saving the averages of the state after a step."""
        snapshots.save(self._snapshots, moment.state, self._config)

    def resume(self, state: TrainState, resumed: int | None) -> None:
        """Deletes the snapshots after the step `resumed`, and saves that step's if a signal had prevented it."""
        self._snapshots.drop_after(resumed or 0)
        if resumed and resumed % self._every == 0 and resumed not in self._snapshots.steps():
            snapshots.save(self._snapshots, state, self._config)
