"""Exports, loaded by diffusers: arrays, scheduler and images of what was imported, and of what was trained."""

import contextlib
import json
import subprocess
import sys

import diffusers_folders as folders
import jax
import numpy as np
import pytest
from imported_pipelines import GUIDANCE, NOISE, SD, STEPS, drawn, import_, scheduler

from diffusion_jax import config as configs
from diffusion_jax.cli.main import main
from diffusion_jax.data.classes import known
from diffusion_jax.interop.diffusers_scheduler import scheduler as read_scheduler
from diffusion_jax.runs.interchange.export_check import SCRIPT
from diffusion_jax.runs.workdir import classes, pretrained
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.state import TrainState

pytestmark = pytest.mark.parity


def export(workdir, out, *flags):
    return main(["export", f"--workdir={workdir}", f"--out={out}", *flags])


def loaded(folder):
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def said(config):
    """What a config says of what is computed."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def equal_states(ours, theirs, parts):
    import torch

    for name in parts:
        a, b = getattr(ours, name).state_dict(), getattr(theirs, name).state_dict()
        assert set(a) == set(b)
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name} {key}"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    plain = scheduler("DDIMScheduler", "eps")
    return {p: folders.stable_diffusion(root / p, v, plain) for p, v in (("eps", 1), ("v", 2))}


@pytest.mark.parametrize(
    ("kind", "options", "prediction"), [(kind, options, p) for kind, options, predictions in SD for p in predictions]
)
def test_a_pipeline_comes_back(pipelines, tmp_path, kind, options, prediction):
    """Bit for bit, with a scheduler that draws the same image."""
    pipelines[prediction].scheduler = scheduler(kind, prediction, **options)
    pipelines[prediction].save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert export(tmp_path / "w", tmp_path / "out") == 0
    before, after = loaded(tmp_path / "pipe"), loaded(tmp_path / "out")
    assert type(after) is type(before)
    assert type(after.scheduler) is type(before.scheduler)
    equal_states(after, before, ("unet", "vae", "text_encoder"))
    for part in ("unet", "vae"):
        a, b = (said(getattr(pipe, part).config) for pipe in (after, before))
        assert a == b
    a, b = (said(pipe.text_encoder.config.to_dict()) for pipe in (after, before))
    assert a == b
    one, other = (dict(pipe.scheduler.config) | {"_class_name": kind} for pipe in (after, before))
    assert read_scheduler(one, "", latent=True) == read_scheduler(other, "", latent=True)
    images = [folders.draw(pipe, NOISE, steps=STEPS, guidance=GUIDANCE) for pipe in (after, before)]
    np.testing.assert_allclose(*images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_check_agrees_and_notices_what_differs(pipelines, tmp_path, prediction, capsys, monkeypatch):
    pipelines[prediction].scheduler = scheduler("DPMSolverMultistepScheduler", prediction)
    pipelines[prediction].save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert export(tmp_path / "w", tmp_path / "half", "--check", "--dtype=float16") == 0
    assert "diffusers computes the same" in capsys.readouterr().out
    report = json.loads((tmp_path / "half/check.json").read_text())
    print(report["sentence"])
    assert set(report["compared"]) == {"network", "encoded", "decoded", "text", "sample"}
    assert report["agrees"]
    assert report["sentence"] in (tmp_path / "half/README.md").read_text()
    from diffusion_jax.interop import diffusers_unet

    right = diffusers_unet.to_diffusers

    def wrong(params, **options):
        state = right(params, **options)
        return state | {"conv_in.bias": state["conv_in.bias"] + 1}

    monkeypatch.setattr(diffusers_unet, "to_diffusers", wrong)
    assert export(tmp_path / "w", tmp_path / "wrong", "--check") == 2
    assert "computes other values in network, sample" in capsys.readouterr().err
    assert not json.loads((tmp_path / "wrong/check.json").read_text())["agrees"]


PIXELS = [
    ("DDPMPipeline", "DDPMScheduler", {}),
    ("DDPMPipeline", "DDPMScheduler", {"variance_type": "fixed_large", "beta_schedule": "squaredcos_cap_v2"}),
    ("DDIMPipeline", "DDIMScheduler", {}),
    ("DDIMPipeline", "DDIMScheduler", {"thresholding": True, "clip_sample": False, "timestep_spacing": "trailing"}),
]


@pytest.mark.parametrize(("pipeline", "kind", "options"), PIXELS)
def test_pixels_come_back(tmp_path, pipeline, kind, options):
    import diffusers

    folders.unconditional(tmp_path / "pipe", pipeline, getattr(diffusers, kind)(**options))
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert export(tmp_path / "w", tmp_path / "out", "--check") == 0
    before, after = loaded(tmp_path / "pipe"), loaded(tmp_path / "out")
    assert type(after) is type(before)
    equal_states(after, before, ("unet",))
    report = json.loads((tmp_path / "out/check.json").read_text())
    assert report["compared"]["sample"]["agrees"], report["sentence"]


@pytest.mark.parametrize("sampler", ["ddim(eta=0.7)", "dpmpp_2m", "dpmpp_2m_sde", "ddpm(variance='large')", "plms"])
@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_samplers_of_pixels_with_thresholds(tmp_path_factory, tmp_path, sampler, threshold):
    """Of the same workdir, those that a scheduler has: noise and all."""
    import diffusers

    workdir = tmp_path_factory.getbasetemp() / "pixels_w"
    if not workdir.exists():
        pipe = workdir.with_name("pixels")
        folders.unconditional(pipe, "DDIMPipeline", diffusers.DDIMScheduler())
        assert import_(pipe, workdir) == 0
    grid = "linspace(skip_first=True)" if sampler.startswith("dpmpp") else "leading"
    flags = [f"--sampler={sampler}", f"--grid={grid}", f"--threshold={threshold}", "--check"]
    refused = sampler == "plms" and threshold != "none"
    assert export(workdir, tmp_path / "out", *flags) == (2 if refused else 0)
    if not refused:
        report = json.loads((tmp_path / "out/check.json").read_text())
        print(sampler, threshold, report["sentence"])
        assert report["compared"]["sample"]["agrees"]


def test_an_autoencoder_alone_comes_back(pipelines, tmp_path):
    import diffusers

    pipelines["eps"].save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w", "--part=autoencoder") == 0
    assert export(tmp_path / "w", tmp_path / "out", "--check") == 0
    after = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out")
    before = pipelines["eps"].vae
    assert all((after.state_dict()[key] == value).all() for key, value in before.state_dict().items())
    assert after.config.scaling_factor == before.config.scaling_factor


def trained(tmp_path, config, name):
    """The workdir of a run of two steps."""
    config.train.update(steps=2, batch_size=8)
    config.sample.every = 0
    config.ema.decay = 0.5
    (tmp_path / f"{name}.json").write_text(configs.to_json(config))
    (tmp_path / f"{name}.py").write_text(
        "from pathlib import Path\nfrom diffusion_jax.config import from_json\n\n"
        f"def get_config():\n    return from_json(Path({str(tmp_path / f'{name}.json')!r}).read_text())\n"
    )
    assert main(["train", f"--config={tmp_path / f'{name}.py'}", f"--workdir={tmp_path / name}"]) == 0
    return tmp_path / name


def digits(**model):
    config = configs.base()
    config.schedule, config.prediction = "cosine", "v"
    config.model.update(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), groups=4, **model)
    config.optimizer.learning_rate = 0.01
    config.sample.update(sampler="ddim", steps=10, threshold="static")
    return config


@pytest.mark.parametrize(("count", "dtype"), [(0, "float32"), (10, "bfloat16")])
def test_digits_that_were_trained_here(tmp_path, count, dtype):
    """Both are compared in float32, whatever training computes in."""
    config = digits(num_classes=count, dtype=dtype)
    config.sample.guidance = 2.0 if count else 1.0
    workdir = trained(tmp_path, config, "digits")
    assert export(workdir, tmp_path / "out", "--check") == 0
    report = json.loads((tmp_path / "out/check.json").read_text())
    print(report["sentence"])
    assert report["compared"]["sample"]["agrees"]
    card = (tmp_path / "out/README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nassert len(images) in (4, 10), images"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_noise_of_the_sample_command_in_a_process_without_jax(tmp_path):
    workdir = trained(tmp_path, digits(), "digits")
    flags = [f"--workdir={workdir}", "--num=2", "--steps=5", "--save_noise"]
    assert main(["sample", *flags, f"--out={tmp_path}/s"]) == 0
    assert export(workdir, tmp_path / "out") == 0
    noise = np.load(tmp_path / "s/noise.npy")
    call = json.loads((tmp_path / "out/export.json").read_text())["call"]
    request = {"folder": str(tmp_path / "out"), "name": "DDIMPipeline", "call": call, "steps": 5}
    (tmp_path / "x").mkdir()
    (tmp_path / "x/request.json").write_text(json.dumps(request))
    np.savez(tmp_path / "x/inputs.npz", noise=noise, step_noise=np.zeros((0, *noise.shape), np.float32))
    subprocess.run([sys.executable, "-P", SCRIPT, tmp_path / "x"], check=True)
    theirs = np.load(tmp_path / "x/outputs.npz")["sample"]
    np.testing.assert_allclose(drawn(workdir, noise), theirs, rtol=0, atol=2e-3)
    ours = np.load(tmp_path / "s/samples.npz")["images"] / 255
    assert np.abs(ours - theirs).max() < 2e-3 + 0.5 / 255
    assert theirs.std() > 0.05


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """An autoencoder of drawn shapes, trained for two steps, and a CLIP of letters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    root = tmp_path_factory.mktemp("latents")
    config = configs.base()
    config.task = "autoencoder"
    config.data.update(source="shapes:16,64", height=16, width=16, channels=3)
    config.autoencoder.update(channels=8, multipliers=(1, 2), blocks=1, groups=4)
    coder = trained(root, config, "coder")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = CLIPTextConfig(vocab_size=60, max_position_embeddings=20, **sizes, **ids)
    folders.randomized(CLIPTextModel(text), 1).save_pretrained(root / "clip")
    folders.tokenizer(root / "words").save_pretrained(root / "clip")
    return coder, root / "clip"


def of_latents(coder):
    config = configs.base()
    config.data.update(source="shapes:16,64", height=16, width=16, channels=3)
    config.latent = str(coder)
    config.schedule, config.prediction = "scaled_linear", "v"
    config.optimizer.learning_rate = 0.01
    config.sample.update(sampler="dpmpp_2m", grid="linspace(skip_first=True)", steps=10, threshold="none")
    return config


@pytest.mark.parametrize("penultimate", [False, True])
def test_text_to_image_that_was_trained_here(latents, tmp_path, penultimate):
    coder, clip = latents
    config = of_latents(coder)
    config.text = f"huggingface(folder={str(clip)!r}, length=12, penultimate={penultimate})"
    config.model.update(channels=8, multipliers=(1, 2), blocks=1, attention=(1, 2), groups=4, sinusoids="adm")
    config.sample.guidance = 3.0
    workdir = trained(tmp_path, config, "text")
    assert export(workdir, tmp_path / "out", "--check") == 0
    report = json.loads((tmp_path / "out/check.json").read_text())
    print(report["sentence"])
    assert {"network", "encoded", "decoded", "text", "sample"} == set(report["compared"])
    assert all(each["agrees"] for each in report["compared"].values())


def of_random_parameters(root, config):
    workdir = Workdir(root)
    workdir.write_config(configs.check(config))
    model = pretrained.model(config, None)
    pretrained.keep(config, workdir, None, model, None)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: np.float32(0.1 * rng.standard_normal(a.shape)), model.abstract)
    params = jax.device_put(params, jax.devices()[0])
    with contextlib.closing(Checkpoints(workdir.checkpoints)) as checkpoints:
        checkpoints.save(TrainState(np.int32(7), params, params, ()), position={}, config="{}")
    classes.keep(workdir, known(None, model.num_classes))
    return root


@pytest.mark.parametrize("count", [10, 1000])
def test_a_dit(latents, tmp_path, count):
    """With 1000 classes it is guided there too."""
    config = configs.base("dit")
    of_latent = of_latents(latents[0])
    for key in ("data", "latent", "schedule", "prediction"):
        config[key] = of_latent[key]
    config.model.update(width=16, depth=2, heads=2, sinusoids="ddpm", num_classes=count)
    config.sample.update(sampler="ddim", grid="trailing", steps=10, guidance=2.0, threshold="none")
    workdir = of_random_parameters(tmp_path / "dit", config)
    assert export(workdir, tmp_path / "out", "--check") == 0
    report = json.loads((tmp_path / "out/check.json").read_text())
    print(report["sentence"])
    assert all(each["agrees"] for each in report["compared"].values()), report["sentence"]
    assert report["sample"]["guidance"] == (2.0 if count == 1000 else 1.0)
    assert json.loads((tmp_path / "out/model_index.json").read_text())["_class_name"] == "DiTPipeline"
