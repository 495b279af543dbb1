import contextlib
import io
import json
import math
import struct
import subprocess
import sys
import wave

import numpy as np
import pytest
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from diffusion_jax.errors import UserError
from diffusion_jax.report.metrics import MetricWriter, NullWriter, read_metrics
from diffusion_jax.report.trackers import Trackers


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().split("\n")


@contextlib.contextmanager
def writing(workdir, resumed_step=None):
    """A writer whose tracker is TensorBoard, as that of a run is by default."""
    with (
        contextlib.closing(Trackers(["tensorboard"], workdir)) as trackers,
        MetricWriter(workdir, resumed_step, trackers) as writer,
    ):
        yield writer


def write(workdir, steps, resumed_step=None, loss=0.5):
    with writing(workdir, resumed_step) as writer:
        for step in steps:
            writer.scalars(step, {"loss": loss})


def steps(workdir):
    return [record["step"] for record in read_metrics(workdir / "metrics.jsonl")]


def events(workdir):
    """Every event of every event file, in the order in which TensorBoard reads them, checksums checked."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            body = data[12 : 12 + length]
            for part, at in ((data[:8], 8), (body, 12 + length)):
                crc = crc32c(part)
                masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
                assert struct.unpack("<I", data[at : at + 4]) == (masked,)
            found.append(Event.FromString(body))
            data = data[16 + length :]
    return found


def scalars_shown(workdir):
    """{(tag, step): values} after the purges that the events ask for."""
    shown = {}
    for event in events(workdir):
        if event.session_log.status == SessionLog.START:
            shown = {key: values for key, values in shown.items() if key[1] < event.step}
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                shown.setdefault((value.tag, event.step), []).append(value.simple_value)
    return shown


def test_a_record_is_a_line_on_disk_at_once(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(np.int64(3), {"loss": np.float32(0.1), "images_per_second": np.array(7)})
        assert lines(tmp_path) == ['{"step": 3, "loss": 0.10000000149011612, "images_per_second": 7.0}', ""]
        writer.scalars(3, {"fid": 12.5})
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"step": 3, "fid": 12.5}


def test_strict_json_whatever_the_value(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"a": math.nan, "b": np.float32("inf"), "c": -math.inf, "d": 1e-300})
    record = json.loads(lines(tmp_path)[0], parse_constant=refuse)
    assert record == {"step": 1, "a": None, "b": None, "c": None, "d": 1e-300}
    read = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert all(math.isnan(read[name]) for name in "abc")


def test_step_is_not_a_metric_name(tmp_path):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match="step"):
        writer.scalars(1, {"step": 2})


@pytest.mark.parametrize("cut", range(len('{"step": 60, "loss": 0.5}\n')))
def test_resume_neither_loses_nor_doubles_a_step(tmp_path, cut):
    """A run logs every 10 steps, checkpoints at 30, and dies at step 60 while that line is being written."""
    write(tmp_path, range(10, 70, 10))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    write(tmp_path, range(40, 90, 10), resumed_step=30)
    assert steps(tmp_path) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_resume_keeps_a_last_record_that_lacks_only_its_newline(tmp_path):
    write(tmp_path, [10, 20])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert steps(tmp_path) == [10, 20]
    write(tmp_path, [30], resumed_step=20)
    assert steps(tmp_path) == [10, 20, 30]


def test_resume_keeps_the_lines_of_others_as_they_are(tmp_path):
    kept = '{"step":5,  "note": "by hand", "x": null}'
    (tmp_path / "metrics.jsonl").write_text(kept + "\n")
    write(tmp_path, [10], resumed_step=5)
    assert lines(tmp_path)[0] == kept


def test_a_new_run_sets_the_old_file_aside(tmp_path):
    write(tmp_path, [10, 20])
    write(tmp_path, [10])
    assert steps(tmp_path) == [10]
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl.old")] == [10, 20]


@pytest.mark.parametrize("broken", ["{", "[1]", "7", '{"loss": 1}', '{"step": "3"}', "\0\0"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n' + broken + '\n{"step": 3, "loss": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2,"):
        read_metrics(path)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2,"):
        MetricWriter(tmp_path, resumed_step=3)


def test_reading_while_a_line_is_being_written(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2}]


def test_tensorboard_holds_the_scalars_and_the_pictures_exactly(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    gray = image[..., :1]
    with writing(tmp_path) as writer:
        writer.scalars(5, {"loss": 0.25, "bad": math.inf})
        writer.images(5, {"samples": image, "gray": gray})
    assert scalars_shown(tmp_path) == {("loss", 5): [0.25], ("bad", 5): [math.inf]}
    values = [value for event in events(tmp_path) for value in event.summary.value if value.HasField("image")]
    pictures = {value.tag: Image.open(io.BytesIO(value.image.encoded_image_string)) for value in values}
    np.testing.assert_array_equal(np.asarray(pictures["samples"].convert("RGB")), image)
    np.testing.assert_array_equal(np.asarray(pictures["gray"].convert("L")), gray[..., 0])


def test_tensorboard_forgets_what_the_resumed_run_does_again(tmp_path):
    """The second writer starts within the same second as the first: its file is another one, and is read after."""
    write(tmp_path, range(0, 70, 10), loss=1)
    write(tmp_path, range(40, 90, 10), resumed_step=30, loss=2)
    expected = {("loss", step): [1.0 if step <= 30 else 2.0] for step in range(0, 90, 10)}
    assert scalars_shown(tmp_path) == expected
    write(tmp_path, [10], loss=3)
    assert scalars_shown(tmp_path) == {("loss", 10): [3.0]}


def test_sounds_are_in_tensorboard_as_wav(tmp_path):
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((2, 2, 8000, 0, "NONE", ""))
        written.writeframes(bytes(4 * 100))
    with writing(tmp_path) as writer:
        writer.sounds(5, {"samples/0": file.getvalue()})
    (value,) = [value for event in events(tmp_path) for value in event.summary.value if value.HasField("audio")]
    audio = value.audio
    assert (value.tag, audio.content_type, audio.encoded_audio_string) == ("samples/0", "audio/wav", file.getvalue())
    assert (audio.sample_rate, audio.num_channels, audio.length_frames) == (8000, 2, 100)


@pytest.mark.parametrize("write", ["writer.scalars(step, {'loss': 1.0})", "writer.images(step, {'samples': image})"])
def test_a_full_disk_ends_the_run_with_the_error(tmp_path, write):
    """A limit on the size of files stands for the disk; the process must end by itself, and soon."""
    program = f"""
import resource, sys
import numpy as np
from pathlib import Path
from diffusion_jax.report.metrics import MetricWriter
from diffusion_jax.report.trackers import Trackers
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
with MetricWriter(sys.argv[1], None, Trackers(["tensorboard"], Path(sys.argv[1]))) as writer:
    for step in range(10_000):
        {write}
"""
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "OSError: [Errno 27] File too large" in run.stderr


def test_the_null_writer_has_the_same_methods_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {name for name in dir(MetricWriter) if not name.startswith("_")}
    assert methods == {name for name in dir(NullWriter) if not name.startswith("_")}
    with NullWriter() as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    assert not list(tmp_path.iterdir())
