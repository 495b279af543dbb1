"""Checkpoints at intervals of steps, and where training ends."""

import time
from collections.abc import Callable

from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.guard import Guard
from diffusion_jax.train.hooks import Moment
from diffusion_jax.train.state import Params


class Saving:
    """Saves the state with the data's position; config is JSON.

    measure returns measures of the averaged parameters, such as the scale of an autoencoder's latents. While guard
    finds that training diverges, states are saved only where training ends.
    """

    def __init__(
        self, checkpoints: Checkpoints, config: str, measure: Callable[[Params], dict[str, float]], guard: Guard
    ):
        self._checkpoints, self._config, self._measure, self._guard = checkpoints, config, measure, guard
        self._seconds = 0.0

    def run(self, moment: Moment) -> None:
        """Starts a save, which ends in the background."""
        if self._guard.diverging and not moment.ending:
            return
        began = time.perf_counter()
        measured = self._measure(moment.state.ema)
        self._checkpoints.save(moment.state, position=moment.position, config=self._config, measured=measured)
        self._seconds += time.perf_counter() - began

    def drain(self) -> dict[str, float]:
        """{"save_stall_seconds": seconds by which saves delayed training since the last call}, or {} for none."""
        seconds, self._seconds = self._seconds, 0.0
        return {"save_stall_seconds": seconds} if seconds else {}
