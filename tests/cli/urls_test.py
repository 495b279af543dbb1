"""What is written as a URL: a local one is a path, another is refused rather than taken for a local folder."""

import pytest

from diffusion_jax.cli.main import main


@pytest.mark.parametrize("url", ["gs://bucket/run", "memory://run", "s3://bucket/run", "file://host/run"])
def test_a_url_that_is_not_local_is_one_sentence(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", "verify", f"--workdir={url}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"diffusion-jax: --workdir={url} is no local path")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "no folder called gs:"


def test_a_file_url_is_its_path(tmp_path, capsys):
    """To a folder that is no workdir, with a space."""
    folder = tmp_path / "a run"
    folder.mkdir()
    said = []
    for path in (f"file://{tmp_path}/a%20run", str(folder)):
        assert main(["checkpoint", "verify", f"--workdir={path}"]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert str(folder) in said[0]
