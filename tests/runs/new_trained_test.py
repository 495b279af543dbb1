"""The configs that `diffusion-jax new` writes for sounds and arrays train and sample as they are written."""

import numpy as np
import pytest
import soundfile

from diffusion_jax.cli.main import main


def sounds(folder):
    for i in range(12):
        file = folder / f"sounds/{('a', 'b')[i % 2]}/{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, np.random.default_rng(i).uniform(-0.5, 0.5, 3000 + i), 8000)
    return f"audio:{folder / 'sounds'}"


def arrays(*sides):
    def written(folder):
        np.save(folder / "arrays.npy", 300 + 20 * np.random.default_rng(0).standard_normal((20, *sides)))
        return f"arrays:{folder / 'arrays.npy'}"

    return written


def not_finite(folder):
    source = arrays(16, 16, 3)(folder)
    values = np.load(folder / "arrays.npy")
    values[4, 0, 0, 0] = np.nan
    np.save(folder / "arrays.npy", values)
    return source


KINDS = {"sounds": sounds, "series": arrays(64, 2), "fields": arrays(16, 16, 3), "not_finite": not_finite}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_new_writes_trains_and_samples(tmp_path, kind):
    source, config, run, out = KINDS[kind](tmp_path), tmp_path / "my.py", tmp_path / "run", tmp_path / "out"
    assert main(["new", f"--data={source}", f"--out={config}"]) == 0
    short = [f"--config.{key}=3" for key in ("train.steps", "checkpoint.every", "sample.every", "log_every")]
    assert main(["train", f"--config={config}", f"--workdir={run}", *short]) == 0
    assert (run / "samples/00000003.png").stat().st_size > 1000
    assert main(["sample", f"--workdir={run}", f"--out={out}", "--num=4"]) == 0
    samples = np.load(out / "samples.npz")["clips" if kind == "sounds" else "arrays"]
    assert len(samples) == 4
    assert np.isfinite(samples).all()
    files = sorted(file.name for file in out.iterdir() if file.stem.isdigit())
    assert files == [f"{i:06d}{'.wav' if kind == 'sounds' else '.npy'}" for i in range(4)]
    if kind != "sounds":
        # Three steps teach nothing but the unit, which is no longer that of the model.
        assert abs(samples.mean() - 300) < 60
