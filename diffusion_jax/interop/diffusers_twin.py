"""What diffusers makes of an exported folder: `python diffusers_twin.py FOLDER` in a process of its own, without jax.

FOLDER has request.json and inputs.npz, and is given outputs.npz. Arrays are channels last. The request says: the
export's `folder` and the `name` of its pipeline or model; a sample's `steps`, `guidance` and what a `call` is given;
its `prompts`, and `none`, the number of no class. Of the inputs, those that there are decide what is computed:

    x, t (and labels or text)     network: the network's output, of XL with text_pooled and numbers too
    image, latent                 encoded, decoded: by the autoencoder, unscaled
    noise, step_noise             sample: images in [0, 1], from this noise and with that of each step
    small_image, small_noise      of a sample that enlarges images in [0, 1], with this noise of step level
    known_image, unknown          of a sample that paints what is unknown of an image in [0, 1]
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders import vae

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def outputs(request: dict[str, Any], inputs: Arrays) -> Arrays:
    """{name: array} of what is asked for."""
    folder, name = request["folder"], request["name"]
    whole = diffusers.DiffusionPipeline if (Path(folder) / "model_index.json").is_file() else getattr(diffusers, name)
    # Whatever the floats are stored as, ours compute in float32.
    loaded = whole.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    assert name == type(loaded).__name__, f"{folder} is a {type(loaded).__name__}, not a {name}"
    if "scheduler" not in getattr(loaded, "components", {}):
        return _of_models(loaded, loaded, inputs)
    loaded.set_progress_bar_config(disable=True)
    loaded.watermark = None  # XL's, which changes pixels where a package for it is installed
    network = loaded.components.get("unet") or loaded.components["transformer"]
    found = _of_models(network, loaded.components.get("vae"), inputs)
    if "prompts" in request:
        prompts = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        found["text"] = loaded.encode_prompt(request["prompts"], **prompts)[0].numpy()
    return found | {"sample": sample(loaded, network, request, inputs)}


def _of_models(network: Any, autoencoder: Any, inputs: Arrays) -> Arrays:
    found: Arrays = {}
    if "x" in inputs:
        told: dict[str, Any] = {"class_labels": torch.from_numpy(inputs["labels"])} if "labels" in inputs else {}
        told |= {"encoder_hidden_states": torch.from_numpy(inputs["text"])} if "text" in inputs else {}
        if "numbers" in inputs:
            added = {"text_embeds": "text_pooled", "time_ids": "numbers"}
            told |= {"added_cond_kwargs": {key: torch.from_numpy(inputs[name]) for key, name in added.items()}}
        found["network"] = _last(network(_first(inputs["x"]), timestep=torch.from_numpy(inputs["t"]), **told).sample)
    if "image" in inputs:
        found["encoded"] = _last(autoencoder.encode(_first(inputs["image"])).latent_dist.mean)
        found["decoded"] = _last(autoencoder.decode(_first(inputs["latent"])).sample)
    return found


def sample(pipe: Any, network: Any, request: dict[str, Any], inputs: Arrays) -> np.ndarray:
    """Images [N, H, W, C] in [0, 1]: every draw of the pipeline and its scheduler is of the inputs."""
    noise, call = _first(inputs["noise"]), request["call"]
    draws = itertools.chain([_first(each) for each in inputs["step_noise"]])
    sys.modules[type(pipe.scheduler).__module__].randn_tensor = lambda *_, **__: next(draws)  # type: ignore[attr-defined]
    steps = {"num_inference_steps": request["steps"], "output_type": "np"}
    if "prompts" in request:
        if "known_image" in inputs:
            images = {"image": _first(inputs["known_image"]), "mask_image": _first(inputs["unknown"])}
            distribution: Any = vae.DiagonalGaussianDistribution
            distribution.sample = lambda latents, *_: latents.mode()
            return pipe(request["prompts"], latents=noise, **images, **(call | steps)).images
        if "small_image" in inputs:
            small_noise = _first(inputs["small_noise"])
            sys.modules[type(pipe).__module__].randn_tensor = lambda *_, **__: small_noise  # type: ignore[attr-defined]
            call |= {"image": _first(inputs["small_image"]), "noise_level": int(inputs["level"])}
        return pipe(request["prompts"], latents=noise, **(call | steps)).images
    labels = torch.from_numpy(inputs["labels"]) if "labels" in inputs else None
    if labels is not None and type(network).__name__ == "UNet2DModel":
        return _told_classes(pipe, noise, labels, request)
    sys.modules[type(pipe).__module__].randn_tensor = lambda *_, **__: noise  # type: ignore[attr-defined]
    if labels is not None:
        return pipe(labels.tolist(), **(call | steps)).images
    return pipe(len(noise), **(call | steps)).images


def _told_classes(pipe: Any, x: torch.Tensor, labels: torch.Tensor, request: dict[str, Any]) -> np.ndarray:
    """The loop that a model card has for a U-Net of pixels that is told classes, guided."""
    call = {key: value for key, value in request["call"].items() if key != "num_inference_steps"}
    scheduler, none = pipe.scheduler, torch.full_like(labels, request["none"])
    scheduler.set_timesteps(request["steps"])
    x = x * scheduler.init_noise_sigma
    channels = x.shape[1]  # what follows of an output is its variance, which guidance leaves
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        told, untold = pipe.unet(given, t, labels).sample, pipe.unet(given, t, none).sample
        out = told.clone()
        out[:, :channels] = (untold + request["guidance"] * (told - untold))[:, :channels]
        x = scheduler.step(out, t, x, **call).prev_sample
    return _last((x / 2 + 0.5).clamp(0, 1))


def _first(a: np.ndarray) -> torch.Tensor:
    """[N, H, W, C] -> [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1)))


def _last(a: torch.Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W, C]."""
    return np.moveaxis(a.numpy(), 1, -1)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    assert "jax" not in sys.modules, "diffusers is to be run without jax"
    with np.load(where / "inputs.npz") as given:
        arrays = dict(given)
    found: dict[str, Any] = dict(outputs(json.loads((where / "request.json").read_text()), arrays))
    np.savez(where / "outputs.npz", **found)
