"""A run in MLflow, by its package `mlflow-skinny`: at a tracking server, in a database or in a folder."""

import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.report.trackers.remote import State
from diffusion_jax.report.trackers.tracker import RunName

_LONGEST = 6000  # characters of a parameter's value
_MOST = 100  # parameters in one call, by MLflow's limits


class Mlflow:
    """The run in MLflow, which the run of an earlier start goes on as.

    It is where MLFLOW_TRACKING_URI says or, without it, where the earlier start was or, for a new run, where MLflow
    itself would put it. The experiment is log.project, MLFLOW_EXPERIMENT_NAME or diffusion_jax.
    """

    def __init__(self, run: RunName, state: State | None):
        import mlflow

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # each table that it makes
        self._mlflow = mlflow
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (state or {}).get("place") or mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if state:
            self._id = state["id"]
            self._check_there(uri, run)
            self._client.update_run(self._id, status="RUNNING")
        else:
            experiment = self._experiment(run.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "diffusion_jax")
            self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        self.state: State = {"id": self._id, "place": uri}
        self.line = f"MLflow: run {self._id} at {uri}"

    def scalars(self, row: int, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers."""
        now = round(1000 * time.time())
        metrics = [self._mlflow.entities.Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def images(self, row: int, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures uint8 [H, W, C], which MLflow shows by step."""
        for name, image in images.items():
            self._client.log_image(self._id, image, key=_name(name), step=step)

    def sounds(self, row: int, step: int, sounds: Mapping[str, bytes]) -> None:
        """Adds WAV files as artifacts sounds/STEP/NAME.wav."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in sounds.items():
                file = Path(folder, f"{_name(name).replace('/', '-')}.wav")
                file.write_bytes(data)
            self._client.log_artifacts(self._id, folder, f"sounds/{step:08d}")

    def config(self, values: Mapping[str, object], text: str) -> None:
        """Sets config.json, and a parameter for each key.

        A parameter cannot change: where a resumed run has another value, the tag config.KEY has it.
        """
        texts = {key: str(value)[:_LONGEST] for key, value in values.items()}
        before = self._client.get_run(self._id).data.params
        new = [self._mlflow.entities.Param(key, value) for key, value in texts.items() if key not in before]
        for part in _parts(new):
            self._client.log_batch(self._id, params=part)
        for key, value in texts.items():
            if key in before and before[key] != value:
                self._client.set_tag(self._id, f"config.{key}", value)
        self._client.log_text(self._id, text, "config.json")

    def checkpoint(self, step: int, provenance: Mapping[str, object]) -> None:
        """Adds checkpoints/STEP.json, without the arrays."""
        self._client.log_dict(self._id, dict(provenance), f"checkpoints/{step:08d}.json")

    def close(self) -> None:
        """Marks the run as finished; a run that goes on is marked as running again."""
        self._client.set_terminated(self._id)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def _check_there(self, uri: str, run: RunName) -> None:
        try:
            self._client.get_run(self._id)
        except self._mlflow.exceptions.MlflowException as error:
            raise UserError(
                f"the MLflow run {self._id} of {run.root} is not at {uri}; set MLFLOW_TRACKING_URI to where it is, or "
                f"remove the entry mlflow from {run.root}/trackers.json for a new one"
            ) from error


def _name(name: str) -> str:
    """The name with - in place of what MLflow does not take."""
    return re.sub(r"[^\w\-. /:]", "-", name)


def _parts(params: list) -> Iterator[list]:
    for first in range(0, len(params), _MOST):
        yield params[first : first + _MOST]
