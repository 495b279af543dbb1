"""A run at Weights & Biases, by its package `wandb`; WANDB_MODE=offline keeps it in the workdir, for `wandb sync`."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.report.trackers.remote import State
from diffusion_jax.report.trackers.tracker import RunName


class WeightsAndBiases:
    """The run at W&B, which the run of an earlier start goes on as.

    Rows of its history are numbered through all starts, since it drops a row whose number it has had. The horizontal
    axis of every chart is the entry "step".
    """

    def __init__(self, run: RunName, state: State | None):
        import wandb

        self._wandb = wandb
        project = (state or {}).get("place") or run.project or os.environ.get("WANDB_PROJECT") or "diffusion_jax"
        self._run = wandb.init(
            project=project,
            dir=str(run.root),
            id=state["id"] if state else None,
            name=run.name,
            resume="allow" if state and os.environ.get("WANDB_MODE") != "offline" else None,  # offline only warns
            reinit="create_new",  # a sweep has a run for each of its trials at once
            settings=wandb.Settings(console="off", silent=True),  # the progress bar is no text for a log
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.state: State = {"id": self._run.id, "place": project}
        where = self._run.url if not self._run.offline else f"offline; wandb sync {Path(self._run.dir).parent} sends it"
        self.line = f"W&B: run {self._run.id} of project {project}, {where}"

    def scalars(self, row: int, step: int, values: Mapping[str, float]) -> None:
        """Adds a row of numbers."""
        self._run.log({"step": step, **values}, step=row, commit=True)

    def images(self, row: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds a row of pictures uint8 [H, W, C]."""
        shown = {name: self._wandb.Image(image) for name, image in images.items()}
        self._run.log({"step": step, **shown}, step=row, commit=True)

    def sounds(self, row: int, step: int, sounds: Mapping[str, bytes]) -> None:
        """Adds a row of WAV files."""
        with tempfile.TemporaryDirectory() as folder:
            heard = {}
            for i, (name, data) in enumerate(sounds.items()):
                file = Path(folder, f"{i}.wav")
                file.write_bytes(data)
                heard[name] = self._wandb.Audio(str(file))  # copied into the run's folder as the row is added
            self._run.log({"step": step, **heard}, step=row, commit=True)

    def config(self, values: Mapping[str, object], text: str) -> None:
        """Sets the config; keys that a resumed run has changed are replaced."""
        self._run.config.update(dict(values), allow_val_change=True)

    def checkpoint(self, step: int, provenance: Mapping[str, object]) -> None:
        """Adds a version of the artifact checkpoint-ID: provenance.json, without the arrays."""
        import json

        artifact = self._wandb.Artifact(f"checkpoint-{self._run.id}", type="checkpoint", metadata=dict(provenance))
        with artifact.new_file("provenance.json") as file:
            file.write(json.dumps(provenance, indent=2))
        self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])
        self._run.summary["checkpoint"] = dict(provenance)

    def close(self) -> None:
        """Waits until all is sent or, offline, written."""
        self._run.finish()
