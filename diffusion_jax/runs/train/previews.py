"""Previews while a model trains: a picture of samples, their sounds, and measures of the averaged parameters."""

from diffusion_jax.report import pictures
from diffusion_jax.report.metrics import MetricWriter, NullWriter
from diffusion_jax.report.progress import Progress
from diffusion_jax.runs.train.parts import Run
from diffusion_jax.train.hooks import Moment


class Previews:
    """Writes the task's measures and its preview to the workdir and to writer, and prints a note beside the bar."""

    def __init__(self, run: Run, writer: MetricWriter | NullWriter, bar: Progress):
        self._run, self._writer, self._bar = run, writer, bar
        self._first = True

    def run(self, moment: Moment) -> None:
        """Measures and draws with the averaged parameters."""
        task, step = self._run.task, moment.step
        if measures := task.measure(moment.state.ema):
            self._writer.scalars(step, measures)
            self._bar.note(f"after {step} steps: " + ", ".join(f"{k} {v:.4g}" for k, v in measures.items()))
        if task.draw is None:
            return
        options = self._run.config.sample
        compiling = "compiling, then " if self._first else ""
        samples = f"{options.num} samples, {options.sampler}, {options.steps:,} steps"
        with self._bar.doing(f"{compiling}drawing a grid: {samples}"):
            preview = task.draw(moment.state.ema)
        self._first = False
        file = self._run.workdir.sample_grid(step)
        if self._run.first:
            pictures.save_png(file, preview.picture)
        self._writer.images(step, {"samples": preview.picture})
        self._writer.sounds(step, {f"samples/{i}": sound for i, sound in enumerate(preview.sounds)})
        self._bar.note(f"samples after {step} steps: {file}")
