"""Which word each place of a sample attends to, from the network's own attention to the caption."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax import experiment
from diffusion_jax.modalities import Image
from diffusion_jax.models.conditions.condition import NEGATIVE
from diffusion_jax.nets.attention_maps import mean_map, text_attention
from diffusion_jax.nets.unet import UNet
from diffusion_jax.report import attention_figure as drawing
from diffusion_jax.runs.sample.reverse_path import ReversePath, decoded
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.interruptible import interruptible
from diffusion_jax.train.state import Params

REST = "no word"
"""The start, the end and the padding of a text, where they may be attended to."""

_SAMPLES = 4  # at most


def draw_attention(
    trained: Trained, path: ReversePath, cond: Mapping[str, np.ndarray], prompts: list[str]
) -> bytes | None:
    """A PNG of the maps of each word of the captions of samples, laid over them; None for a model without text.

    prompts has the caption of each sample of the path, "" for none. None too where the network is no U-Net, whose
    layers are not scanned, and for other data than images.
    """
    model = trained.model
    text, tokenizer = model.text, trained.tokenizer
    kind = experiment.modality(trained.config)
    if text is None or tokenizer is None or not isinstance(model.network, UNet) or not isinstance(kind, Image):
        return None
    shown = [i for i, prompt in enumerate(prompts) if prompt.split()][:_SAMPLES]
    if not shown:
        return None
    chosen = {name: jnp.asarray(a[shown]) for name, a in cond.items() if not name.startswith(NEGATIVE)}
    x, times = jnp.asarray(path.x[:-1, shown]), jnp.asarray(path.times[:-1], jnp.float32)
    maps = interruptible(
        lambda: np.asarray(attention_program(model)(trained.params, trained.pretrained, x, times, chosen))
    )
    images = kind.tiles(kind.from_model(decoded(trained, path.x[-1:, shown])[0]))
    rows = []
    for image, tokens, i in zip(images, maps, shown, strict=True):
        words = tokenizer.words(prompts[i], text.length)
        rows.append(drawing.Row(image, word_maps(tokens, words)))
    title = (
        f"Attention to each word: mean over heads, layers and {len(times)} times of {trained.how.sampler}, "
        f"{trained.how.steps} steps; each map from its least to its greatest probability"
    )
    return drawing.attention_png(rows, title)


def attention_program(model: experiment.Model) -> jax.stages.Wrapped:
    """The compiled program (params, pretrained, x [K, B, *x_shape], times [K], cond) -> maps [B, h, w, M].

    They are the mean of the probabilities, over the text's M tokens, with which places h w of x attend to it, over K
    times, layers and heads. cond is as a sampler's program takes it, without what guidance leads away from.
    """
    watched = dataclasses.replace(model, network=model.network.clone(remat="none"))
    size = (model.x_shape[0], model.x_shape[1])

    @jax.jit
    def program(
        params: Params, pretrained: Mapping[str, Params], x: Array, times: Array, cond: Mapping[str, Array]
    ) -> Array:
        told = watched.encode(params, pretrained, watched.encode_images(pretrained, cond))
        denoise = watched.denoiser(params)

        def at(inputs: tuple[Array, Array]) -> Array:
            x, t = inputs
            with text_attention() as layers:
                denoise(x, jnp.full(len(x), t), told)
            return mean_map(layers, size)

        return jnp.mean(jax.lax.map(at, (x, times)), axis=0)

    return program


def word_maps(tokens: np.ndarray, words: list[tuple[str, list[int]]]) -> list[tuple[str, np.ndarray]]:
    """(word, map [h, w]) of each of words, the sum of its tokens' maps in tokens [h, w, M], and of `REST` at the end.

    All maps sum to 1 at every place.
    """
    maps = [(word, tokens[..., places].sum(axis=-1)) for word, places in words]
    rest = sorted(set(range(tokens.shape[-1])) - {place for _, places in words for place in places})
    return [*maps, (REST, tokens[..., rest].sum(axis=-1))]
