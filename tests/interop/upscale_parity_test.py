"""Upscaling pipelines of Stable Diffusion that diffusers saves, imported: images enlarged from the same noise."""

import json

import diffusers_folders as folders
import jax
import numpy as np
import pytest
from imported_pipelines import GUIDANCE, NOISE, NUM, STEPS, import_, scheduler
from PIL import Image

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.models.sampling import START
from diffusion_jax.runs.sample.conditioning import SampleRequest, conditions
from diffusion_jax.runs.workdir.restored import restore

pytestmark = pytest.mark.parity

SMALL = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
SEEDS = np.arange(NUM, dtype=np.int32)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """An upscaler of 8 x 8 to 16 x 16, of v, whose first level attends to the text alone."""
    import diffusers

    plain = folders.stable_diffusion(tmp_path_factory.mktemp("plain"), 2, scheduler("DDIMScheduler", "v"))
    said = {key: value for key, value in plain.unet.config.items() if not key.startswith("_")}
    unet = diffusers.UNet2DConditionModel(
        **said
        | {
            "in_channels": 7,
            "num_class_embeds": 1000,
            "only_cross_attention": [True, False],
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        }
    )
    parts = {name: getattr(plain, name) for name in ("vae", "text_encoder", "tokenizer")}
    pipe = diffusers.StableDiffusionUpscalePipeline(
        **parts,
        unet=folders.randomized(unet, 2),
        scheduler=scheduler("DDIMScheduler", "v", set_alpha_to_one=False, clip_sample=False),
        low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        max_noise_level=350,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    """(the folder, its workdir)."""
    root = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(root / "pipe")
    assert import_(root / "pipe", root / "w") == 0
    return root / "pipe", root / "w"


def enlarged(pipe, level, monkeypatch):
    """diffusers' images [N, H, W, C] in [0, 1], with the noise of `small_image` for these seeds."""
    import torch
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale as module

    first = lambda a: torch.from_numpy(np.moveaxis(np.array(a, np.float32), -1, 1).copy())  # noqa: E731
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(SEEDS)
    noise = jax.vmap(lambda key: jax.random.normal(key, SMALL.shape))(keys)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: first(noise))
    return pipe(
        [folders.PROMPT] * NUM,
        image=first(np.stack([SMALL] * NUM) / 255),
        latents=first(NOISE),
        noise_level=level,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
    ).images


@pytest.mark.parametrize("level", [0, 20, 349])
def test_an_upscaler(pipeline, saved, tmp_path, monkeypatch, level):
    theirs = enlarged(pipeline, level, monkeypatch)
    Image.fromarray(SMALL).save(tmp_path / "small.png")
    trained = restore(saved[1], step=None, average=True, overrides={"steps": STEPS, "guidance": GUIDANCE})
    request = SampleRequest(prompts=[folders.PROMPT], low_res=tmp_path / "small.png", augment=level / 1000)
    cond = conditions(request, trained, SEEDS) | {START: NOISE}
    program = experiment.sample_program(trained.model, trained.how, trained.mesh)
    x = np.asarray(program(trained.params, trained.pretrained, SEEDS, cond))
    ours = np.clip(x / 2 + 0.5, 0, 1)
    assert ours.shape == theirs.shape == (NUM, 16, 16, 3)
    assert theirs.std() > 0.05
    print(level, np.abs(ours - theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)
    if level == 20:  # the command enlarges the same
        np.save(tmp_path / "noise.npy", NOISE)
        flags = [f"--workdir={saved[1]}", f"--out={tmp_path}/s", f"--num={NUM}", f"--prompt={folders.PROMPT}"]
        given = [f"--low_res={tmp_path}/small.png", "--augment=0.02", f"--noise={tmp_path}/noise.npy"]
        assert main(["sample", *flags, *given, f"--steps={STEPS}", f"--guidance={GUIDANCE}"]) == 0
        assert np.abs(np.load(tmp_path / "s/samples.npz")["images"] / 255 - theirs).max() < 1 / 255


def test_an_upscaler_comes_back(pipeline, saved, tmp_path, monkeypatch):
    """Bit for bit, and enlarging the same."""
    import diffusers
    import torch

    assert main(["export", f"--workdir={saved[1]}", f"--out={tmp_path}/out", "--check"]) == 0
    compared = json.loads((tmp_path / "out/check.json").read_text())["compared"]
    assert set(compared) == {"network", "encoded", "decoded", "text", "sample"}
    assert all(each["agrees"] for each in compared.values())
    after = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    after.set_progress_bar_config(disable=True)
    assert type(after) is type(pipeline)
    assert after.config.max_noise_level == 350
    for part in ("unet", "vae", "text_encoder"):
        a, b = (getattr(each, part).state_dict() for each in (after, pipeline))
        assert set(a) == set(b)
        assert all(torch.equal(a[key], b[key]) for key in a)
    for part in ("unet", "vae"):
        a, b = (dict(getattr(pipe, part).config) for pipe in (after, pipeline))
        assert all(json.dumps(a[key]) == json.dumps(b[key]) for key in a if key[0] != "_")
    np.testing.assert_array_equal(after.low_res_scheduler.alphas_cumprod, pipeline.low_res_scheduler.alphas_cumprod)
    images = [enlarged(pipe, 20, monkeypatch) for pipe in (after, pipeline)]
    np.testing.assert_allclose(*images, rtol=0, atol=1e-6)
    assert "image = Image.open('small.png')" in (tmp_path / "out/README.md").read_text()


def test_an_upscaler_s_record_and_its_refusals(saved, tmp_path, capsys):
    folder, workdir = saved
    record = json.loads((workdir / "imported.json").read_text())
    assert "low_res_scheduler/scheduler_config.json" in record["files"]
    sample = restore(workdir, step=None, average=True, overrides={}).how
    assert (sample.guidance, sample.steps) == (9.0, 75)
    assert main(["sample", f"--workdir={workdir}", f"--out={tmp_path}/s", "--num=1", "--prompt=cat"]) == 2
    assert "give --low_res=FILE" in capsys.readouterr().err
    index = json.loads((folder / "model_index.json").read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    for part in ("unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        (broken / part).symlink_to(folder / part)
    (broken / "model_index.json").write_text(json.dumps(index))
    assert import_(broken, tmp_path / "w") == 2
    assert "there is no file" in capsys.readouterr().err
    (broken / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    assert import_(broken, tmp_path / "w") == 2
    assert "num_class_embeds of the U-Net of a StableDiffusionPipeline has no twin here" in capsys.readouterr().err
