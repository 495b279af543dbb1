"""The picture of the training loss."""

from diffusion_jax.report import pictures
from diffusion_jax.report.metrics import read_metrics
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.hooks import Moment


class LossCurve:
    """Draws loss.png from the workdir's metrics. draws=False, for processes other than the first, does nothing."""

    def __init__(self, workdir: Workdir, *, draws: bool = True):
        self._workdir, self._draws = workdir, draws

    def run(self, moment: Moment) -> None:
        """Draws the loss of all steps that are logged."""
        if not self._draws or not self._workdir.metrics.is_file():
            return
        records = read_metrics(self._workdir.metrics)
        if any("loss" in record for record in records):
            pictures.curve_png(self._workdir.loss_curve, records)
