"""W&B and MLflow, both offline, and what they are given by runs that resume, roll back and lose their connection."""

import contextlib
import io
import json
import math
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.report import trackers
from diffusion_jax.report.metrics import MetricWriter
from diffusion_jax.report.trackers import Kind, Trackers
from diffusion_jax.report.trackers.remote import Remote

GRID = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


class Recorder:
    """A service that keeps what it is sent, through all connections, and may lose its connection."""

    def __init__(self):
        self.ids, self.rows, self.sent, self.checkpoints, self.lost = [], [], [], [], False

    def connect(self, run, state):
        self.ids.append(state["id"] if state else f"run{len(self.ids)}")
        self.state, self.line = {"id": self.ids[-1], "place": "here"}, f"at {self.ids[-1]}"
        return self

    def scalars(self, row, step, values):
        if self.lost:
            raise ConnectionError("no route")
        self.rows.append(row)
        self.sent += [(step, name, value) for name, value in values.items()]

    images = sounds = scalars

    def config(self, values, text):
        self.values = values

    def checkpoint(self, step, provenance):
        self.checkpoints.append(step)

    def close(self):
        pass


@pytest.fixture
def service(monkeypatch):
    recorder = Recorder()
    kind = Kind("json", lambda run: Remote("recorder", run, recorder.connect))
    monkeypatch.setitem(trackers.TRACKERS, "recorder", kind)
    return recorder


@contextlib.contextmanager
def run(root, resumed=None, to=("recorder",)):
    with contextlib.closing(Trackers(to, root)) as given, MetricWriter(root, resumed, given) as writer:
        yield writer, given


def log(writer, steps, loss):
    for step in steps:
        writer.scalars(step, {"loss": loss})


def test_a_run_that_resumes_is_one_run_with_each_step_once(tmp_path, service):
    """It is killed after step 60 and goes on from step 30; then another checkpoint is resumed from once more."""
    with run(tmp_path) as (writer, given):
        log(writer, range(10, 70, 10), loss=1.0)
        writer.images(20, {"samples": GRID})
        given.checkpoint(30, {})
    with run(tmp_path, resumed=30) as (writer, given):
        given.checkpoint(30, {})
        log(writer, range(40, 90, 10), loss=1.0)
        writer.images(40, {"samples": GRID})
        given.checkpoint(60, {})
    assert service.ids == ["run0", "run0"]
    assert [step for step, name, _ in service.sent if name == "loss"] == list(range(10, 90, 10))
    assert [step for step, name, _ in service.sent if name == "samples"] == [20, 40]
    assert service.rows == list(range(len(service.rows)))
    assert service.checkpoints == [30, 60]


def test_a_roll_back_within_a_start_keeps_the_run_and_sends_no_step_twice(tmp_path, service):
    with contextlib.closing(Trackers(["recorder"], tmp_path)) as given:
        with MetricWriter(tmp_path, None, given) as writer:
            log(writer, [10, 20, 30, 40], loss=1.0)
        with MetricWriter(tmp_path, 20, given) as writer:
            log(writer, [30, 40, 50], loss=2.0)
    assert service.ids == ["run0"]
    assert service.sent == [(10 * i, "loss", 1.0 if i < 5 else 2.0) for i in range(1, 6)]


def test_a_new_run_in_the_same_workdir_is_a_new_run(tmp_path, service):
    for _ in range(2):
        with run(tmp_path) as (writer, _):
            log(writer, [10], loss=1.0)
    assert service.ids == ["run0", "run1"]
    assert [step for step, *_ in service.sent] == [10, 10]


def test_a_start_that_ended_before_its_first_step_leaves_no_run_behind(tmp_path, service):
    for _ in range(2):
        with run(tmp_path):
            pass
    assert service.ids == ["run0", "run0"]


def test_a_lost_connection_is_told_once_and_the_next_start_sends_what_is_missing(tmp_path, service, capsys):
    with run(tmp_path) as (writer, _):
        log(writer, [10], loss=1.0)
        service.lost = True
        log(writer, [20, 30], loss=1.0)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no route" in error
    service.lost = False
    with run(tmp_path, resumed=30) as (writer, _):
        log(writer, [40], loss=1.0)
    assert [step for step, *_ in service.sent] == [10, 20, 30, 40]


def test_a_tracker_that_is_added_at_a_resume_has_the_whole_history(tmp_path, service):
    with run(tmp_path, to=()) as (writer, _):
        log(writer, [10, 20], loss=1.0)
        writer.scalars(20, {"bad": math.nan})
    with run(tmp_path, resumed=20) as (writer, _):
        log(writer, [30], loss=1.0)
    assert [step for step, name, _ in service.sent if name == "loss"] == [10, 20, 30]
    assert math.isnan(next(value for _, name, value in service.sent if name == "bad"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wandbb"], "Did you mean 'wandb'?"),
        (["away"], "pip install 'diffusion-jax\\[away\\]'"),
    ],
)
def test_what_cannot_be_given_anything_is_said_in_one_sentence(tmp_path, monkeypatch, names, message):
    monkeypatch.setitem(trackers.TRACKERS, "away", Kind("package_that_is_not_there", lambda run: None))
    with pytest.raises(UserError, match=message):
        Trackers(names, tmp_path)


def test_a_service_that_refuses_is_said_in_one_sentence(tmp_path, service, monkeypatch):
    monkeypatch.setattr(service, "connect", None)
    monkeypatch.setitem(
        trackers.TRACKERS, "recorder", Kind("json", lambda run: Remote("recorder", run, lambda run, state: 1 / 0))
    )
    with pytest.raises(UserError, match="recorder cannot be opened: division by zero"), run(tmp_path):
        pass


def test_a_damaged_record_of_the_runs_is_named(tmp_path, service):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "trackers.json").write_text('{"recorder": {"rows"')
    with pytest.raises(UserError, match=r"trackers\.json is damaged"), run(tmp_path, resumed=10):
        pass


def whole_run(root, name):
    """Two starts of a run, the second from step 10 on; the config changes between them."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as written:
        written.setparams((1, 2, 8000, 0, "NONE", ""))
        written.writeframes(bytes(200))
    with run(root, to=[name]) as (writer, given):
        given.config({"train.steps": 20, "seed": 3}, '{"seed": 3}')
        log(writer, [10, 20], loss=0.5)
        writer.images(20, {"samples": GRID})
        given.checkpoint(10, {"step": 10, "manifest_sha256": "abc"})
    with run(root, resumed=10, to=[name]) as (writer, given):
        given.config({"train.steps": 30, "seed": 3}, '{"seed": 3, "more": 1}')
        log(writer, [20, 30], loss=0.5)
        writer.scalars(30, {"eval/fd": math.inf})
        writer.images(20, {"samples": GRID})
        writer.sounds(30, {"samples/0": sound.getvalue()})
        given.checkpoint(20, {"step": 20, "manifest_sha256": "def"})


def wandb_records(folder):
    """Every record of the file that an offline run of W&B wrote, in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    data, at, part = file.read_bytes(), 7, b""  # behind the header of the file
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's rest has no room for a header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def test_wandb_offline_has_one_run_with_scalars_grids_sounds_config_and_provenance(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    whole_run(tmp_path, "wandb")
    wandb.teardown()  # its process writes the last block as it ends
    history, config, artifacts, ids = [], {}, [], set()
    for folder in sorted((tmp_path / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns):
        for record in wandb_records(folder):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                history.append(items)
            elif kind == "run":
                ids.add(record.run.run_id)
                config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
            elif kind == "config":
                config |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.config.update}
            elif kind == "artifact":
                artifacts.append(json.loads(record.artifact.metadata))
    assert ids == {json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]}
    assert [(row["step"], row["loss"]) for row in history if "loss" in row] == [(10, 0.5), (20, 0.5), (30, 0.5)]
    rows = [row["_step"] for row in history]
    assert rows == list(range(len(rows)))
    assert [row["step"] for row in history if row.get("samples/_type") == "image-file"] == [20]
    assert [row["step"] for row in history if row.get("samples/0/_type") == "audio-file"] == [30]
    (picture,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), GRID)
    assert [row["eval/fd"] for row in history if "eval/fd" in row] == [math.inf]
    assert config["train.steps"] == 30
    assert [each["manifest_sha256"] for each in artifacts] == ["abc", "def"]


@pytest.mark.parametrize("store", ["file://{}/store", pytest.param("sqlite:///{}/mlflow.db", marks=pytest.mark.slow)])
def test_mlflow_has_one_run_with_scalars_grids_sounds_config_and_provenance(tmp_path, monkeypatch, store):
    """In a folder, which is soon made, and in the database that MLflow takes where nothing is said."""
    mlflow = pytest.importorskip("mlflow")
    uri = store.format(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)  # where a database without a server puts artifacts
    root = tmp_path / "digits"
    whole_run(root, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("diffusion_jax").experiment_id])
    name = found.info.run_id
    assert found.info.run_name == "digits"
    assert found.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(name, "loss")] == [(10, 0.5), (20, 0.5), (30, 0.5)]
    assert client.get_metric_history(name, "eval/fd")[0].value > 1e300
    assert found.data.params == {"train.steps": "20", "seed": "3"}
    assert found.data.tags["config.train.steps"] == "30"
    files = {path: Path(client.download_artifacts(name, path)) for path in ("config.json", "checkpoints", "sounds")}
    assert json.loads(files["config.json"].read_text())["more"] == 1
    provenance = [json.loads(file.read_text()) for file in sorted(files["checkpoints"].iterdir())]
    assert [each["manifest_sha256"] for each in provenance] == ["abc", "def"]
    assert [file.name for file in files["sounds"].rglob("*.wav")] == ["samples-0.wav"]
    shown = [each.path for each in client.list_artifacts(name, "images") if each.path.endswith(".png")]
    (picture,) = [Path(client.download_artifacts(name, path)) for path in shown]  # that of the first start alone
    assert "samples" in picture.name
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), GRID)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(tmp_path).replace("store", "other").replace(".db", "2.db"))
    with pytest.raises(UserError, match=r"is not at (file|sqlite):"), run(root, resumed=10, to=["mlflow"]):
        pass


def test_tensorboard_has_the_config_and_the_provenance_of_each_checkpoint_as_texts(tmp_path):
    whole_run(tmp_path, "tensorboard")
    first, second = (file.read_bytes() for file in sorted((tmp_path / "tensorboard").iterdir()))
    assert all(b"config/text_summary" in data for data in (first, second))
    assert b'"more": 1' in second
    assert [data.count(b'"manifest_sha256": "abc"') for data in (first, second)] == [1, 0]
    assert [data.count(b'"manifest_sha256": "def"') for data in (first, second)] == [0, 1]
