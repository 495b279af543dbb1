"""Stable Diffusion XL, in and out: U-Net, tokens, text states, images and arrays are those of diffusers."""

import json

import diffusers_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import original_layout
import pytest
import xl_pipelines as xl
from imported_pipelines import captioned_images, import_, tuning_config

from diffusion_jax.cli.main import main
from diffusion_jax.interop import diffusers_options
from diffusion_jax.interop.diffusers_scheduler import scheduler as read_scheduler
from diffusion_jax.interop.diffusers_unet import from_diffusers, to_diffusers
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.workdir.restored import restore

pytestmark = pytest.mark.parity

SCHEDULERS = [("EulerDiscreteScheduler", {}), ("DDIMScheduler", {})]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a pipeline, its folder, its workdir)."""
    root = tmp_path_factory.mktemp("xl")
    pipe = xl.pipeline(root / "pipe", xl.scheduler())
    assert import_(root / "pipe", root / "w") == 0
    return pipe, root / "pipe", root / "w"


def test_unet():
    import torch
    from diffusers import UNet2DConditionModel

    net = folders.randomized(UNet2DConditionModel(**xl.UNET))
    found = diffusers_options.unet(json.loads(net.to_json_string()), "there")
    ours = UNet(found.out_channels, text_features=found.text_features, numbers=("sizes",), **found.options)
    assert (ours.depths, ours.head_channels, found.pooled) == ((1, 2, 3), 8, 12)
    rng = np.random.default_rng(0)
    x, text, pooled = (rng.standard_normal(s).astype(np.float32) for s in ((2, 8, 8, 4), (2, 7, 40), (2, 12)))
    t, sizes = np.array([999, 3], np.float32), rng.uniform(0, 1024, (2, 6)).astype(np.float32)
    cond = {"text": text, "text_pooled": pooled, "sizes": sizes}
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x, t, cond)["params"]
    params = from_diffusers(state, shapes)
    out = ours.apply({"params": params}, x, t, cond)
    added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}
    with torch.no_grad():
        theirs = net(
            torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
            torch.from_numpy(t),
            encoder_hidden_states=torch.from_numpy(text),
            added_cond_kwargs=added,
        ).sample
    print(np.abs(np.asarray(out) - np.moveaxis(theirs.numpy(), 1, -1)).max())
    np.testing.assert_allclose(out, np.moveaxis(theirs.numpy(), 1, -1), rtol=1e-4, atol=1e-4)
    back = to_diffusers(params, linear_projection=True)
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)


def test_texts(saved):
    """Tokens of both tokenizers, joined penultimate states and the projected vector."""
    pipe, _, workdir = saved
    trained = restore(workdir, step=None, average=True, overrides={})
    tokens = trained.model.text.encode(trained.tokenizer, [*xl.PROMPTS, ""])
    each = [
        words([*xl.PROMPTS, ""], padding="max_length", max_length=xl.TOKENS, truncation=True, return_tensors="np")
        for words in (pipe.tokenizer, pipe.tokenizer_2)
    ]
    np.testing.assert_array_equal(tokens, np.concatenate([words.input_ids for words in each], axis=1))
    first, second = np.split(tokens, 2, axis=1)
    assert (first != second).any(axis=1).all()
    caption = trained.model.conditions[-1]
    told = caption.encode(trained.pretrained["text"], {"tokens": jnp.asarray(tokens)})
    hidden, _, pooled, _ = pipe.encode_prompt([*xl.PROMPTS, ""], do_classifier_free_guidance=False)
    np.testing.assert_allclose(told["text"], hidden.detach().numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(told["text_pooled"], pooled.detach().numpy(), rtol=1e-4, atol=1e-4)
    without = caption.encode(trained.pretrained["text"], caption.null({"tokens": jnp.asarray(tokens)}))
    assert not np.asarray(without["text"]).any()
    assert not np.asarray(without["text_pooled"]).any()


@pytest.mark.parametrize(("kind", "options"), SCHEDULERS)
@pytest.mark.parametrize("negative", [None, "", "a dog!"])
def test_images(saved, tmp_path, kind, options, negative):
    pipe, _, workdir = saved
    if kind != "EulerDiscreteScheduler":
        pipe = type(pipe)(**pipe.components | {"scheduler": xl.scheduler(kind, **options)}, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.save_pretrained(tmp_path / "pipe")
        workdir = tmp_path / "w"
        assert import_(tmp_path / "pipe", workdir) == 0
    wanted, got = xl.theirs(pipe, negative), xl.ours(workdir, negative)
    assert wanted.std() > 0.05
    print(kind, negative, np.abs(got - wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)


def test_an_empty_prompt_that_is_encoded(tmp_path):
    """force_zeros_for_empty_prompt False, where guidance leads away from the states of the empty caption."""
    pipe = xl.pipeline(tmp_path / "pipe", xl.scheduler(), zeros=False)
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    wanted, got = xl.theirs(pipe), xl.ours(tmp_path / "w")
    print(np.abs(got - wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)
    zeros = type(pipe)(**pipe.components, force_zeros_for_empty_prompt=True, add_watermarker=False)
    assert np.abs(xl.theirs(zeros) - wanted).max() > 2e-3  # else the test would not tell the two apart


def test_sizes_and_crop_that_are_asked_for(saved):
    pipe, _, workdir = saved
    call = {"original_size": (700, 300), "crops_coords_top_left": (40, 5), "target_size": (900, 16)}
    wanted = xl.theirs(pipe, **call)
    got = xl.ours(workdir, values={"size_and_crop": "700,300,40,5,900,16"})
    print(np.abs(got - wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)
    assert np.abs(xl.theirs(pipe) - wanted).max() > 2e-3


def test_one_file_is_the_pipeline_that_it_was_written_of(tmp_path):
    """diffusers' own reader of such files takes the very arrays from it."""
    from diffusers import AutoencoderKL

    coder = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=256,
        scaling_factor=0.13025,
    )
    net = xl.UNET | {
        "sample_size": 128,
        "block_out_channels": (64, 64, 128),  # heads of 64, 32 groups: a file does not tell
        "attention_head_dim": [1, 1, 2],
        "cross_attention_dim": 64 + 128,
        "norm_num_groups": 32,
    }
    heads = ({"num_attention_heads": 1}, {"num_attention_heads": 2})
    pipe = xl.pipeline(
        tmp_path / "pipe", xl.scheduler(), unet=net, vae=folders.randomized(coder), texts=(64, 128), heads=heads
    )
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    states = [{name: a.numpy() for name, a in getattr(pipe, part).state_dict().items()} for part in parts]
    file = original_layout.write_xl(
        tmp_path / "xl.safetensors", *states, blocks=1, attends=[False, True, True], layers=2
    )
    again = type(pipe).from_single_file(str(file), config=str(tmp_path / "pipe"), local_files_only=True)
    for name in ("unet", "vae"):  # that the file is what it is taken for
        found, wanted = getattr(again, name).state_dict(), getattr(pipe, name).state_dict()
        assert all((found[key] == wanted[key]).all() for key in wanted)
    assert import_(file, tmp_path / "w", f"--tokenizer={tmp_path}/pipe") == 0
    noise = np.random.default_rng(0).standard_normal((2, 128, 128, 4)).astype(np.float32)
    wanted, got = xl.theirs(pipe, noise=noise), xl.ours(tmp_path / "w", noise=noise)
    assert wanted.std() > 0.05
    print(np.abs(got - wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)


def test_an_import_is_sampled_and_trained_from(saved, tmp_path, capsys):
    """One step, of pictures of other sizes than the model's, with a preview."""
    _, _, workdir = saved
    images = captioned_images(tmp_path / "images", [(16 + 4 * i, 24) for i in range(4)])
    changes = {"train__steps": 1, "train__batch_size": 8, "sample__every": 1, "sample__num": 2, "sample__steps": 2}
    tuning_config(tmp_path / "tuned.py", workdir, images, **changes)
    flags = ["--num=1", "--steps=2", "--prompt=cat"]
    crop = "--condition=size_and_crop=64,64,0,8,16,16"
    assert main(["sample", f"--workdir={workdir}", f"--out={tmp_path}/a", *flags, crop]) == 0
    tuned = [f"--config={tmp_path}/tuned.py"]
    assert main(["train", *tuned, f"--workdir={tmp_path}/run"]) == 0
    assert "starting with the averaged parameters of step 0" in capsys.readouterr().out
    assert main(["sample", f"--workdir={tmp_path}/run", f"--out={tmp_path}/b", *flags]) == 0
    assert main(["export", f"--workdir={tmp_path}/run", f"--out={tmp_path}/out"]) == 0
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    before, after = (restore(w, step=None, average=False, overrides={}) for w in (workdir, tmp_path / "run"))
    same = lambda a, b: bool((np.asarray(a) == np.asarray(b)).all())  # noqa: E731
    assert not same(before.params["added_0"]["kernel"], after.params["added_0"]["kernel"])
    assert all(jax.tree.leaves(jax.tree.map(same, dict(before.pretrained["text"]), dict(after.pretrained["text"]))))


@pytest.mark.parametrize(("kind", "options"), SCHEDULERS)
def test_a_pipeline_comes_back(saved, tmp_path, kind, options):
    """Bit for bit, with both tokenizers and a scheduler that draws the same image."""
    import diffusers
    import torch

    pipe = type(saved[0])(**saved[0].components | {"scheduler": xl.scheduler(kind, **options)}, add_watermarker=False)
    pipe.save_pretrained(tmp_path / "pipe")
    assert import_(tmp_path / "pipe", tmp_path / "w") == 0
    assert main(["export", f"--workdir={tmp_path}/w", f"--out={tmp_path}/out", "--check"]) == 0
    report = json.loads((tmp_path / "out/check.json").read_text())
    print(report["sentence"])
    assert set(report["compared"]) == {"network", "encoded", "decoded", "text", "sample"}
    assert all(each["agrees"] for each in report["compared"].values())
    pipe, after = (
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / name, local_files_only=True) for name in ("pipe", "out")
    )
    for each in (pipe, after):
        each.set_progress_bar_config(disable=True)
    assert type(after) is type(pipe)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        a, b = getattr(after, part).state_dict(), getattr(pipe, part).state_dict()
        assert set(a) == set(b)
        assert all(torch.equal(a[name], b[name]) for name in a), part
    said = lambda config: {key: value for key, value in config.items() if not key.startswith("_")}  # noqa: E731
    for part in ("unet", "vae"):
        assert said(getattr(after, part).config) == said(getattr(pipe, part).config)
    for part in ("text_encoder", "text_encoder_2"):
        a, b = (said(getattr(each, part).config.to_dict()) for each in (after, pipe))
        assert {key: a[key] for key in b if key != "dtype"} == {key: b[key] for key in b if key != "dtype"}
    for part in ("tokenizer", "tokenizer_2"):
        a, b = (getattr(each, part)(xl.PROMPTS, padding="max_length").input_ids for each in (after, pipe))
        assert a == b
    assert after.config.force_zeros_for_empty_prompt is True
    one, other = (dict(each.scheduler.config) | {"_class_name": kind} for each in (after, pipe))
    assert read_scheduler(one, "", latent=False) == read_scheduler(other, "", latent=False)
    np.testing.assert_allclose(xl.theirs(after), xl.theirs(pipe), rtol=0, atol=1e-6)
