"""A `DiTPipeline` that diffusers saved: imported, it draws diffusers' images; exported again, it is the same arrays."""

import fnmatch
import json
import shutil

import diffusers_folders as folders
import jax.numpy as jnp
import numpy as np
import pytest
from imported_pipelines import NOISE, STEPS, import_

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.models.sampling import START
from diffusion_jax.runs.workdir.restored import restore

pytestmark = pytest.mark.parity

LABELS, GUIDANCE = [3, 999], 4.0


def pipeline(folder, *, learned):
    """A pipeline of 1,000 classes, which is how many its guidance needs, saved in folder."""
    import diffusers

    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        out_channels=8 if learned else 4,
        norm_eps=1e-6,
    )
    # Every layer of theirs embeds time and class anew, with equal weights in the published files.
    folders.randomized(transformer, 3)
    for block in transformer.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(transformer.transformer_blocks[0].norm1.emb.state_dict())
    pipe = diffusers.DiTPipeline(
        transformer=transformer,
        vae=folders.autoencoder(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    names = {str(i): "crane" if i in (134, 517) else f"class {i}, or so" for i in range(1000)}
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": names}))  # as the published one has them
    return pipe


def drawn_there(pipe, monkeypatch):
    import torch
    from diffusers.pipelines.dit import pipeline_dit

    latents = torch.from_numpy(np.moveaxis(NOISE, -1, 1).copy())
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda *args, **options: latents)
    return pipe(LABELS, guidance_scale=GUIDANCE, num_inference_steps=STEPS, output_type="np").images


@pytest.mark.parametrize("learned", [False, True])
def test_the_same_noise_and_classes_give_diffusers_images(tmp_path, monkeypatch, learned):
    pipe = pipeline(tmp_path / "pipe", learned=learned)
    theirs = drawn_there(pipe, monkeypatch)
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    trained = restore(tmp_path / "w", step=None, average=True, overrides={"steps": STEPS})
    assert trained.how.guidance == GUIDANCE
    assert trained.label_names(np.array([0, 134, 517])) == ["class 0, or so", "crane 134", "crane 517"]
    program = experiment.sample_program(trained.model, trained.how, trained.mesh)
    cond = {START: jnp.asarray(NOISE), "label": jnp.asarray(LABELS, jnp.int32)}
    ours = program(trained.params, trained.pretrained, np.arange(2, dtype=np.int32), cond)
    ours = np.clip(np.asarray(ours) / 2 + 0.5, 0, 1)
    assert theirs.std() > 0.05
    print(learned, np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


def test_it_comes_back_bit_for_bit(tmp_path):
    import diffusers
    import torch

    theirs = pipeline(tmp_path / "pipe", learned=True)
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert main(["export", f"--workdir={tmp_path / 'w'}", f"--out={tmp_path / 'out'}", "--check"]) == 0
    report = json.loads((tmp_path / "out/check.json").read_text())
    assert all(each["agrees"] for each in report["compared"].values()), report["sentence"]
    back = diffusers.DiTPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    for part in ("transformer", "vae"):
        before, after = getattr(theirs, part).state_dict(), getattr(back, part).state_dict()
        assert set(before) == set(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert back.labels["crane 134"] == 134


def test_all_that_it_is_read_from_is_fetched_from_the_hub(tmp_path, monkeypatch):
    """A hub that gives the files of the patterns that it is asked for, and no others."""
    import huggingface_hub

    served = tmp_path / "served"
    pipeline(served, learned=False)
    names = [str(file.relative_to(served)) for file in served.rglob("*") if file.is_file()]

    def download(name, revision=None, allow_patterns=()):
        for each in names:
            if any(fnmatch.fnmatch(each, pattern) for pattern in allow_patterns):
                (tmp_path / "abc" / each).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(served / each, tmp_path / "abc" / each)
        return str(tmp_path / "abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *args, **options: names)
    assert import_("hf://owner/dit", tmp_path / "w") == 0


def test_a_transformer_alone_is_of_pixels(tmp_path, capsys):
    pipe = pipeline(tmp_path / "pipe", learned=False)
    pipe.transformer.save_pretrained(tmp_path / "alone")
    assert import_(tmp_path / "alone", tmp_path / "w") == 0
    assert "the folder has no scheduler" in capsys.readouterr().out
    assert main(["sample", f"--workdir={tmp_path / 'w'}", f"--out={tmp_path / 's'}", "--num=1", "--steps=2"]) == 0
