"""What a command wrote and something else damaged: one sentence that names the file."""

import pytest

from diffusion_jax.cli.main import main
from diffusion_jax.config import base, to_json
from diffusion_jax.data.precomputed import META, open_precomputed
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.paths import Workdir

WHOLE = to_json(base()).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is damaged: Expecting value"),
        (WHOLE[:100], "is damaged: "),
        (b"\xff" + WHOLE, "is damaged: 'utf-8' codec can't decode"),
        (b"\0" * 50, "is damaged: Expecting value"),
        (b"[1]", r"holds no JSON object but '\[1\]'"),
        (WHOLE.replace(b'"steps": 1000', b'"steps": "many"', 1), "config.json: config.sample.steps is of type int"),
        (WHOLE.replace(b'"seed"', b'"sead"', 1), "config.json: unknown key config.evaluate.sead"),
    ],
    ids=["empty", "cut short", "other bytes", "zeros", "a list", "another type", "another key"],
)
def test_a_damaged_config_is_named(tmp_path, data, says, capsys):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=says):
        Workdir(tmp_path).read_config()
    assert main(["sample", f"--workdir={tmp_path}", f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/config.json" in error
    assert error.count("\n") == 1


def test_a_whole_config_is_read(tmp_path):
    (tmp_path / "config.json").write_bytes(WHOLE)
    assert Workdir(tmp_path).read_config() == base()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": "a", "count": 1, "flip": false, "arrays": 3}'])
def test_damaged_precomputed_arrays_are_named(tmp_path, text):
    (tmp_path / META).write_text(text)
    with pytest.raises(UserError, match=rf"{META} is damaged: .*; precompute the folder again"):
        open_precomputed(str(tmp_path))
