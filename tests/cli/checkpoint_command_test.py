"""`checkpoint verify` as a user runs it, on folders made like checkpoints."""

import pytest

from diffusion_jax.cli.main import main
from diffusion_jax.train import manifest


def verify(workdir, *flags):
    return main(["checkpoint", "verify", f"--workdir={workdir}", *flags])


@pytest.fixture
def workdir(tmp_path):
    for step in (10, 20, 30):
        folder = tmp_path / "run" / "checkpoints" / str(step)
        (folder / "ema").mkdir(parents=True)
        (folder / "ema" / "array").write_bytes(bytes(range(200)))
        if step != 30:
            manifest.write(folder)
    return tmp_path / "run"


def test_each_step_is_listed_and_damage_is_status_2(workdir, capsys):
    assert verify(workdir) == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["10", "verified"],
        ["20", "verified"],
        ["30", "without a manifest"],
    ]
    (workdir / "checkpoints" / "10" / "ema" / "array").write_bytes(bytes(199))
    assert verify(workdir) == 2
    said = capsys.readouterr()
    assert "10  damaged: ema/array differs from its SHA-256" in said.out
    assert "20  verified" in said.out
    assert said.err.startswith("diffusion-jax: 1 of 3 checkpoints in")
    assert verify(workdir, "--step=20") == 0
    assert verify(workdir, "--step=10") == 2


def test_nothing_to_verify_is_one_sentence(workdir, tmp_path, capsys):
    for arguments, message in [
        (["checkpoint", "verify"], "checkpoint verify needs --workdir"),
        (["checkpoint"], "unknown command 'checkpoint'; choose from"),
        (["checkpoint", "verify", f"--workdir={tmp_path / 'none'}"], "no checkpoint in"),
        (["checkpoint", "verify", f"--workdir={workdir}", "--step=5"], "there are 10, 20, 30"),
        (["checkpoint", "verify", f"--workdir={workdir}", "stray"], "unexpected argument 'stray'"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["checkpoint", "verify", "--help"]) == 0
