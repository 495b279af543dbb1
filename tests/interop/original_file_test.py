"""Files in Stable Diffusion's original layout, imported. No torch is needed here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import original_layout
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.cli.main import main
from diffusion_jax.interop import diffusers_autoencoder, diffusers_unet
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.workdir.pretrained import read_autoencoder
from diffusion_jax.runs.workdir.restored import restore

LAYERS, WIDTH = 2, 64
CODER = AutoencoderKL(channels=32, multipliers=(1, 2), blocks=1)
FIRST = UNet(
    4,
    text_features=WIDTH,
    channels=32,
    multipliers=(1, 2, 2),
    blocks=1,
    attention=(1, 2),
    heads=8,
    epsilon=1e-5,
    sinusoids="adm",
    padding="both",
)
SECOND = FIRST.clone(channels=64, multipliers=(1, 2), attention=(1,), heads=1, head_channels=64, depth=2)


def random(net, *inputs):
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), shapes)


def text_state():
    rng = np.random.default_rng(1)
    normal = lambda *shape: 0.1 * rng.standard_normal(shape, np.float32)  # noqa: E731
    state = {"embeddings.token_embedding.weight": normal(60, WIDTH)}
    state["embeddings.position_embedding.weight"] = normal(20, WIDTH)
    dense = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    dense |= {"mlp.fc1": (96, WIDTH), "mlp.fc2": (WIDTH, 96)}
    for i in range(LAYERS):
        for name, shape in dense.items():
            state |= {f"encoder.layers.{i}.{name}.weight": normal(*shape)}
            state |= {f"encoder.layers.{i}.{name}.bias": normal(shape[0])}
        for name in ("layer_norm1", "layer_norm2"):
            state |= {f"encoder.layers.{i}.{name}.{leaf}": normal(WIDTH) for leaf in ("weight", "bias")}
    return state | {f"final_layer_norm.{leaf}": normal(WIDTH) for leaf in ("weight", "bias")}


@pytest.fixture(scope="module", params=["first", "second"])
def original(request, tmp_path_factory):
    """(file, folder of a tokenizer, params of the U-Net, params of the autoencoder, the text encoder's arrays)."""
    root, second = tmp_path_factory.mktemp(request.param), request.param == "second"
    net = SECOND if second else FIRST
    params = random(net, jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), {"text": jnp.zeros((1, 3, WIDTH))})
    coder = random(CODER, jnp.zeros((1, 16, 16, 3)))
    state = diffusers_unet.to_diffusers(params, linear_projection=second)
    attends = [2**i in net.attention for i in range(len(net.multipliers))]
    text = text_state()
    file = original_layout.write(
        root / "sd.safetensors",
        state,
        diffusers_autoencoder.to_diffusers(coder),
        text,
        second=second,
        blocks=1,
        attends=attends,
        layers=LAYERS,
    )
    (root / "words").mkdir()
    words = ["<|startoftext|>", "<|endoftext|>", *"abc", "a</w>", "b</w>", "c</w>"]
    (root / "words/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (root / "words/merges.txt").write_text("#version: 0.2\n")
    (root / "words/tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    return file, root / "words", net, params, coder, text


def import_(file, workdir, *flags):
    return main(["import", f"--from={file}", f"--workdir={workdir}", *flags])


def flags_of(original):
    _, words, net, *_ = original
    return [f"--tokenizer={words}", *(["--prediction=v"] if net is SECOND else [])]


def test_every_array_finds_its_place(original, tmp_path):
    file, _, net, params, coder, text = original
    assert import_(file, tmp_path / "w", *flags_of(original)) == 0
    trained = restore(tmp_path / "w", step=None, average=True, overrides={})
    jax.tree.map(np.testing.assert_array_equal, trained.params, params)
    assert trained.model.network.clone(level_scale=net.level_scale) == net
    jax.tree.map(np.testing.assert_array_equal, dict(trained.pretrained["autoencoder"]), coder)
    assert trained.model.autoencoder.network == CODER
    np.testing.assert_allclose(trained.model.autoencoder.scale, 0.18215, rtol=1e-12)
    kept = load_file(tmp_path / "w/text_encoder/model.safetensors")
    assert {name.removeprefix("text_model.") for name in kept if not name.endswith("position_ids")} == set(text)
    for name, value in text.items():
        np.testing.assert_array_equal(kept[f"text_model.{name}"], value)
    second = net is SECOND
    assert trained.model.text.network.activation == ("gelu" if second else "quick_gelu")
    assert trained.model.text.length == 12
    assert trained.config.prediction == ("v" if second else "eps")
    assert (trained.how.sampler, trained.how.grid) == ("ddim", "leading(offset=1, last='t_min')")
    assert (trained.how.guidance, trained.how.threshold) == (7.5, "none")
    assert trained.model.x_shape[:2] == ((96, 96) if second else (64, 64))
    record = json.loads((tmp_path / "w/imported.json").read_text())
    assert (record["source"], record["format"]) == (str(file), "original")
    assert set(record["files"]) == {"sd.safetensors", *(f"words/{n}" for n in ("vocab.json", "merges.txt"))} | {
        "words/tokenizer_config.json"
    }
    assert "model_ema" in record["left_out"]


def test_text_encoders_without_the_prefix_of_their_class(original, tmp_path):
    """As files of before transformers' `text_model.` have them."""
    if original[2] is SECOND:
        pytest.skip("of 1.x")

    def bare(state):
        for name in [name for name in state if ".text_model." in name]:
            state[name.replace("text_model.", "")] = state.pop(name)

    file = changed(original, tmp_path, bare)
    assert import_(file, tmp_path / "w", *flags_of(original)) == 0
    kept = load_file(tmp_path / "w/text_encoder/model.safetensors")
    assert {name for name in kept if not name.endswith("position_ids")} == set(original[-1])


def test_its_autoencoder_alone(original, tmp_path):
    file, *_, coder, _ = original
    assert import_(file, tmp_path / "w", "--part=autoencoder") == 0
    jax.tree.map(np.testing.assert_array_equal, read_autoencoder(tmp_path / "w").params, coder)
    state = {name: value for name, value in load_file(file).items() if name.startswith("first_stage_model.")}
    save_file({name.removeprefix("first_stage_model."): v for name, v in state.items()}, tmp_path / "vae.safetensors")
    assert import_(tmp_path / "vae.safetensors", tmp_path / "v") == 0
    jax.tree.map(np.testing.assert_array_equal, read_autoencoder(tmp_path / "v").params, coder)


def changed(original, tmp_path, change):
    """A copy of the file whose arrays change has had."""
    state = load_file(original[0])
    change(state)
    save_file(state, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def without(*prefixes):
    def change(state):
        for name in [name for name in state if name.startswith(prefixes)]:
            del state[name]

    return change


def extra(name):
    return lambda state: state.update({name: np.zeros((3, 3), np.float32)})


CHANGES = [
    (without("cond_stage_model."), "it has no text encoder, whose arrays would begin with"),
    (
        lambda state: (without("cond_stage_model.")(state), extra("conditioner.embedders.0.x")(state)),
        "the refiner of Stable Diffusion XL is not imported",
    ),
    (without("model.diffusion_model.middle_block.0.in_layers.0.bias"), "missing ['mid_block.resnets.0.norm1.bias']"),
    (without("first_stage_model.decoder.conv_in"), "lacks first_stage_model.decoder.conv_in.weight"),
    (extra("model.diffusion_model.label_emb.0.0.weight"), "label_emb.0.0.weight has no twin here"),
    (extra("first_stage_model.encoder.more.weight"), "left over ['encoder.more.weight']"),
    (extra("control_model.zero.weight"), "arrays of no part of Stable Diffusion: control_model.zero.weight"),
    (lambda state: state.update(alphas_cumprod=0.9 * state["alphas_cumprod"]), "trained with another chain"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
@pytest.mark.parametrize("original", ["first"], indirect=True)
def test_another_file_is_refused_by_name(original, tmp_path, capsys, change, said):
    file = changed(original, tmp_path, change)
    assert import_(file, tmp_path / "w", *flags_of(original)) == 2
    assert said in (found := capsys.readouterr().err)
    assert found.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_what_a_file_does_not_tell_is_asked_for(original, tmp_path, capsys):
    file, words, net, *_ = original
    if net is SECOND:
        assert import_(file, tmp_path / "w", f"--tokenizer={words}") == 2
        assert "give --prediction=v for the models of 768 pixels" in capsys.readouterr().err
    assert import_(file, tmp_path / "w", "--prediction=eps") == 2
    assert "give --tokenizer=FOLDER with CLIP's vocab.json" in capsys.readouterr().err
    assert import_(file, tmp_path / "w", "--prediction=score", f"--tokenizer={words}") == 2
    assert "--prediction is eps or v; got 'score'" in capsys.readouterr().err
    assert import_(file, tmp_path / "w", f"--tokenizer={tmp_path}", "--prediction=eps") == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert import_(file, tmp_path / "w", "--variant=fp16") == 2
    assert "--variant is of a folder's files" in capsys.readouterr().err
    file = tmp_path / "cut.safetensors"
    file.write_bytes(original[0].read_bytes()[:1000])
    assert import_(file, tmp_path / "w") == 2
    assert "is no safetensors file that can be read" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
