"""Stable Diffusion XL without torch: published configs, the pair of text encoders, sizes and crops, one file."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import original_layout
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.cli.main import main
from diffusion_jax.data.readers import Place, SizesAndCrops
from diffusion_jax.data.tokens import Tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_autoencoder, diffusers_options, diffusers_unet
from diffusion_jax.interop.diffusers_config import unet_config
from diffusion_jax.models.conditions import RequestSetting, SampleRequest
from diffusion_jax.models.conditions.size_and_crop import SizeAndCrop
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.network import options
from diffusion_jax.nets.text_pair import ClipPair
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.interchange.diffusers_folder import _fields
from diffusion_jax.runs.workdir.restored import restore
from diffusion_jax.testing import check_network

PUBLISHED = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}


def of_config(config):
    found = diffusers_options.unet(config, "there")
    return found, UNet(found.out_channels, text_features=found.text_features, numbers=("sizes",), **found.options)


def inputs(net, pooled, tokens=77):
    cond = {"text": jnp.zeros((1, tokens, net.text_features)), "text_pooled": jnp.zeros((1, pooled))}
    return jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), cond | {"sizes": jnp.zeros((1, 6))}


def count(shapes):
    return sum(math.prod(a.shape) for a in jax.tree.leaves(shapes))


def test_the_published_unet_has_the_published_number_of_parameters():
    found, net = of_config(PUBLISHED)
    assert found.pooled == 1280
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(net, found.pooled))["params"]
    assert count(shapes) == 2_567_463_684


def test_the_published_unet_is_written_as_it_was():
    found, net = of_config(PUBLISHED)
    config = unet_config(_fields(net), options(UNet), size=found.size, in_channels=4, pooled=found.pooled)
    assert {key: (config | found.layout)[key] for key in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transformer_layers_per_block": [1, 2]}, "or one for each of 3 levels"),
        ({"transformer_layers_per_block": [1, [2, 2], 10]}, "or one for each of 3 levels"),
        ({"projection_class_embeddings_input_dim": 1536}, "has to hold a text's vector and 6 numbers"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type='text_image' has no twin"),
        ({"addition_embed_type": None}, "addition_time_embed_dim=256 has no twin"),
    ],
)
def test_other_unets_are_refused_by_name(change, said):
    with pytest.raises(UserError) as error:
        of_config(PUBLISHED | change)
    assert said in str(error.value)


def test_the_published_text_encoders_have_the_published_number_of_parameters():
    first = {"width": 768, "layers": 12, "heads": 12, "hidden": 3072}
    second = {"width": 1280, "layers": 32, "heads": 20, "hidden": 5120, "projection": 1280, "activation": "gelu"}
    pair = ClipPair(first, second)
    shapes = jax.eval_shape(pair.init, jax.random.key(0), jnp.zeros((1, 154), jnp.int32))["params"]
    assert {name: count(tower) for name, tower in shapes.items()} == {"first": 123_060_480, "second": 694_659_840}


def test_a_depth_for_each_level():
    """The middle has that of the last level, and a level without attention none."""
    net = UNet(
        4, text_features=8, channels=8, multipliers=(1, 1, 1), attention=(2, 4), groups=4, blocks=1, depths=(7, 0, 3)
    )
    told = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), {"text": jnp.zeros((1, 3, 8))}
    shapes = jax.eval_shape(net.init, jax.random.key(0), *told)["params"]
    layers = lambda part: sum(name.startswith("layer_") for name in part)  # noqa: E731
    assert not any(name.startswith("attention") for name in shapes["down_0"])
    found = [layers(shapes[name][where]) for name in ("down_1", "down_2", "up_1") for where in ("attention_0",)]
    assert found == [0, 3, 0]
    assert layers(shapes["mid"]["attention"]) == 3
    with pytest.raises(UserError, match="one number for each of the 3 levels"):
        jax.eval_shape(net.clone(depths=(1, 2)).init, jax.random.key(0), *told)


def test_numbers_are_embedded_with_the_vector_of_the_text():
    net = UNet(2, channels=4, multipliers=(1,), blocks=1, attention=(), groups=2, numbers=("a", "b"), number_waves=8)
    check_network(net.clone(text_features=3, pooled_text=True), (4, 4))


@pytest.mark.parametrize(
    ("original", "size", "told"),
    [
        ((8, 8), (8, 8), (8, 8, 0, 0, 8, 8)),
        ((100, 300), (50, 50), (100, 300, 0, 50, 50, 50)),  # scaled to 50 x 150
        ((90, 30), (60, 60), (90, 30, 60, 0, 60, 60)),  # a small picture, enlarged to 180 x 60
    ],
)
def test_sizes_and_crops_of_examples(original, size, told):
    read = SizesAndCrops("size").read({"name": "it"}, Place(size, original))["size"]
    np.testing.assert_array_equal(read, np.float32(told))


def test_sizes_and_crops_of_samples():
    setting = RequestSetting(np.arange(3, dtype=np.int32), (32, 48, 3))
    rows = lambda *values: SizeAndCrop().request(SampleRequest(values=dict(values)), setting)["size_and_crop"]  # noqa: E731
    np.testing.assert_array_equal(rows(), [[32, 48, 0, 0, 32, 48]] * 3)
    six = (1, 2, 3, 4, 5, 6)
    for value in ("1,2,3,4,5,6", ["1,2,3,4,5,6"], six, [six]):
        np.testing.assert_array_equal(rows(("size_and_crop", value)), [six] * 3)
    np.testing.assert_array_equal(rows(("size_and_crop", ["9,9,0,0,9,9", six]))[:, 0], [9, 1, 9])
    for value in ("1,2,3", "1,2,3,4,5,x", "1,2,3,4,5,-6", "nan,2,3,4,5,6", 7):
        with pytest.raises(UserError, match="six numbers of pixels"):
            rows(("size_and_crop", value))


WIDTHS = (64, 128)
LAYERS, TOKENS, POOLED, WAVES = 2, 12, 20, 16
CODER = AutoencoderKL(channels=32, multipliers=(1, 2), blocks=1)
NET = UNet(
    4,
    text_features=sum(WIDTHS),
    numbers=("size_and_crop",),
    pooled_text=True,
    number_waves=WAVES,
    channels=64,
    multipliers=(1, 2),
    blocks=1,
    attention=(2,),
    head_channels=64,
    depth=2,
    epsilon=1e-5,
    sinusoids="adm",
    padding="both",
)


def random(shapes, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.float32(scale * rng.standard_normal(a.shape)), shapes)


def text_state(width, projection=0):
    shapes = {"text_model.embeddings.token_embedding.weight": (60, width)}
    shapes["text_model.embeddings.position_embedding.weight"] = (TOKENS, width)
    dense = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    dense |= {"mlp.fc1": (96, width), "mlp.fc2": (width, 96)}
    for i in range(LAYERS):
        where = f"text_model.encoder.layers.{i}"
        for name, shape in dense.items():
            shapes |= {f"{where}.{name}.weight": shape, f"{where}.{name}.bias": shape[:1]}
        shapes |= {f"{where}.layer_norm{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")}
    shapes |= {f"text_model.final_layer_norm.{leaf}": (width,) for leaf in ("weight", "bias")}
    shapes |= {"text_projection.weight": (projection, width)} if projection else {}
    rng = np.random.default_rng(width)
    return {name: np.float32(0.1 * rng.standard_normal(shape)) for name, shape in shapes.items()}


def vocabulary(folder, pad):
    folder.mkdir(parents=True)
    words = ["!", "<|startoftext|>", "<|endoftext|>", *"abc", "a</w>", "b</w>", "c</w>", "!</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": TOKENS, "pad_token": pad}))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(file, folder of tokenizers, params of the U-Net, of the autoencoder, arrays of both text encoders)."""
    root = tmp_path_factory.mktemp("xl")
    cond = {"text": jnp.zeros((1, 3, sum(WIDTHS))), "text_pooled": jnp.zeros((1, POOLED))}
    cond["size_and_crop"] = jnp.zeros((1, 6))
    of_net = jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), cond)["params"]
    of_coder = jax.eval_shape(CODER.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    params, coder = random(of_net), random(of_coder)
    texts = text_state(WIDTHS[0]), text_state(WIDTHS[1], POOLED)
    file = original_layout.write_xl(
        root / "xl.safetensors",
        diffusers_unet.to_diffusers(params, linear_projection=True),
        diffusers_autoencoder.to_diffusers(coder),
        *texts,
        blocks=1,
        attends=[False, True],
        layers=LAYERS,
    )
    vocabulary(root / "words/tokenizer", "<|endoftext|>")
    vocabulary(root / "words/tokenizer_2", "!")
    return file, root / "words", params, coder, texts


def import_(file, workdir, *flags):
    return main(["import", f"--from={file}", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def imported(original, tmp_path_factory):
    """(the workdir of the file, what is restored from it)."""
    workdir = tmp_path_factory.mktemp("imported") / "w"
    assert import_(original[0], workdir, f"--tokenizer={original[1]}") == 0
    return workdir, restore(workdir, step=None, average=True, overrides={})


def test_every_array_of_one_file_finds_its_place(original, imported):
    (_, _, params, coder, texts), (workdir, trained) = original, imported
    jax.tree.map(np.testing.assert_array_equal, trained.params, params)
    assert trained.model.network.clone(level_scale=NET.level_scale) == NET
    jax.tree.map(np.testing.assert_array_equal, dict(trained.pretrained["autoencoder"]), coder)
    np.testing.assert_allclose(trained.model.autoencoder.scale, 0.13025, rtol=1e-12)
    for name, state in zip(("text_encoder", "text_encoder_2"), texts, strict=True):
        kept = load_file(workdir / f"text_encoder/{name}/model.safetensors")
        assert set(kept) == set(state)
        for key, value in state.items():
            np.testing.assert_array_equal(kept[key], value)
    network = trained.model.text.network
    assert [tower["activation"] for tower in (network.first, network.second)] == ["quick_gelu", "gelu"]
    assert (trained.how.sampler, trained.how.grid, trained.how.guidance) == ("euler", "leading(offset=1)", 5.0)
    assert trained.model.x_shape == (128, 128, 4)
    read_again = Tokenizer.from_json(trained.tokenizer.to_json())
    ids = read_again.encode(["a!"], 6)
    np.testing.assert_array_equal(ids, [[1, 6, 9, 2, 2, 2, 1, 6, 0, 2, 0, 0]])  # "!" is the second's padding
    assert trained.model.text.null.tolist() == [-1] * 2 * TOKENS


def test_the_pair_is_two_towers_side_by_side(imported):
    """Penultimate states without the final norm, the second's vector projected; zeros for no caption in any row."""
    model = imported[1].model
    caption, weights = model.conditions[-1], model.pretrained["text"]
    ids = np.array(caption.encoder.encode(caption.encoder.published_tokenizer(), ["a", "b c"]))
    told = caption.encode(weights, {"tokens": jnp.asarray(ids)})
    assert told["text"].shape == (2, TOKENS, sum(WIDTHS))
    assert told["text_pooled"].shape == (2, POOLED)
    changed = ids.copy()
    changed[0, TOKENS + 1] = 4  # of the second tower
    other = caption.encode(weights, {"tokens": jnp.asarray(changed)})
    np.testing.assert_array_equal(other["text"][..., : WIDTHS[0]], told["text"][..., : WIDTHS[0]])
    assert np.abs(np.asarray(other["text"] - told["text"]))[0, :, WIDTHS[0] :].max() > 1e-4
    weights = jax.tree.map(np.copy, weights)
    weights["first"]["norm"]["scale"] += 1  # which nothing reads
    np.testing.assert_array_equal(caption.encode(weights, {"tokens": jnp.asarray(ids)})["text"], told["text"])
    ids[0] = caption.encoder.null
    without = caption.encode(weights, {"tokens": jnp.asarray(ids)})
    for name in ("text", "text_pooled"):
        assert not np.asarray(without[name][0]).any()
        np.testing.assert_array_equal(without[name][1], told[name][1])


def changed(original, tmp_path, change):
    state = load_file(original[0])
    change(state)
    save_file(state, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def without(prefix):
    def change(state):
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]

    return change


def test_another_file_is_refused_by_name(original, tmp_path, capsys):
    words = f"--tokenizer={original[1]}"
    extra = lambda name: lambda state: state.update({name: np.zeros(3, np.float32)})  # noqa: E731
    for change, flag, said in (
        (without("model.diffusion_model.label_emb"), words, "it has no embedding of sizes"),
        (without("conditioner.embedders.0."), words, "it has no text encoder"),
        (without("conditioner.embedders.1.model.text_projection"), words, "it has no text projection"),
        (extra("control_model.zero.weight"), words, "arrays of no part of Stable Diffusion XL"),
        (extra("v_pred"), words, "has v_pred, by which it says"),
        (extra("first_stage_model.encoder.more.weight"), words, "left over ['encoder.more.weight']"),
        (lambda state: None, "--prediction=eps", "with the folders tokenizer and tokenizer_2"),
        (lambda state: None, "--prediction=x0", "--prediction is eps or v"),
    ):
        assert import_(changed(original, tmp_path, change), tmp_path / "w", flag) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "w").exists()
    assert import_(original[0], tmp_path / "v", "--part=autoencoder") == 0
