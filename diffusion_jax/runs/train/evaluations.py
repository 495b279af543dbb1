"""The hook that evaluates while a model trains; the best checkpoints are chosen by its scores."""

import jax

from diffusion_jax.report.metrics import MetricWriter, NullWriter, read_metrics
from diffusion_jax.report.progress import Progress
from diffusion_jax.runs.evaluate import results
from diffusion_jax.runs.evaluate.real_images import Interrupted
from diffusion_jax.runs.train import training_evaluation
from diffusion_jax.runs.train.parts import Run
from diffusion_jax.runs.train.training_evaluation import Evaluate
from diffusion_jax.train.hooks import Moment
from diffusion_jax.train.state import TrainState


class Evaluations:
    """Evaluates the averaged parameters: writes a result file and scalars, and rates the step."""

    def __init__(self, run: Run, evaluation: Evaluate, writer: MetricWriter | NullWriter, bar: Progress):
        self._run, self._evaluation, self._writer, self._bar = run, evaluation, writer, bar

    def run(self, moment: Moment) -> None:
        """Evaluates the state after a step."""
        self._evaluate(moment.state, moment.step)

    def resume(self, state: TrainState, resumed: int | None) -> None:
        """Rates the steps whose scores are in the metrics file, and repeats an evaluation that a signal stopped."""
        if resumed is None:
            return
        config, workdir = self._run.config, self._run.workdir
        known = training_evaluation.scores(read_metrics(workdir.metrics) if self._run.first else [])
        training_evaluation.rate(self._run.rating, config, known)
        if resumed % config.evaluate.every == 0 and resumed not in known and jax.process_count() == 1:
            self._evaluate(state, resumed)

    def _evaluate(self, state: TrainState, step: int) -> None:
        run = self._run
        # Processes draw together: one alone cannot stop.
        stopped = lambda: run.stop.signal is not None and jax.process_count() == 1  # noqa: E731
        try:
            with self._bar.doing(f"evaluating {', '.join(run.config.evaluate.metrics)}"):
                result = self._evaluation(state.ema, step, stopped=stopped, phase=run.watchdog.phase)
        except Interrupted as done:
            self._bar.note(f"evaluation after {step} steps: stopped by {run.stop.signal} after {done}")
            return
        scores = {name: entry["value"] for name, entry in result["metrics"].items()}
        training_evaluation.rate(run.rating, run.config, {step: scores})
        self._writer.scalars(step, {f"{training_evaluation.PREFIX}{k}": v for k, v in scores.items()})
        if run.first:
            results.write(result, run.workdir.root / "evaluations")
        for entry in result["metrics"].values():
            self._bar.note(f"after {step} steps: {results.line(entry)}")
