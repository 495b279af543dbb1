"""A run as a folder of diffusers: models, scheduler, text encoder, index; an error for what diffusers does not have."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.core.schedules import Learned
from diffusion_jax.interop import (
    diffusers_autoencoder,
    diffusers_dit,
    diffusers_unet,
    diffusers_weights,
    diffusers_xl,
)
from diffusion_jax.interop.diffusers_config import VERSION, autoencoder_config, dit_config, unet_config
from diffusion_jax.interop.diffusers_image_inputs import UPSCALING
from diffusion_jax.interop.diffusers_scheduler_config import (
    DIT,
    PIXELS,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    Caller,
    SamplingSpecs,
    SchedulerConfig,
    no_twin,
    scheduler_config,
)
from diffusion_jax.interop.huggingface_text_pair import FIRST, SECOND, TOKENIZERS
from diffusion_jax.interop.json_file import write_json
from diffusion_jax.models.text import Text
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.dit import DiT
from diffusion_jax.nets.network import options
from diffusion_jax.nets.text import ClipText
from diffusion_jax.nets.text_pair import ClipPair
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.interchange.exported_image_inputs import NOTHING, ExportedImageInputs, exported_image_inputs
from diffusion_jax.runs.interchange.exported_text import TextFolder, write_text
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.state import Params

PIXEL_PIPELINES = {
    "DDPMScheduler": "DDPMPipeline",
    "DDIMScheduler": "DDIMPipeline",
    "PNDMScheduler": "PNDMPipeline",
    "DPMSolverMultistepScheduler": "DDPMPipeline",  # which takes any scheduler that is called as DDPM's
}
"""{scheduler: the pipeline that draws pixels with it}."""

ANY_LABEL = 1000
"""The number of no class in `DiTPipeline`, whatever the number of classes."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A model: its config.json, and a function that makes its arrays when they are written."""

    config: Mapping[str, object]
    state: Callable[[], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class DiffusersFolder:
    """What is written to the folder; None is a part that the pipeline does not have."""

    name: str  # the pipeline, or the model that is alone
    parts: dict[str, Part]  # by folder, "" being the folder itself
    scheduler: SchedulerConfig | None = None
    text: TextFolder | None = None
    second_text: TextFolder | None = None  # of Stable Diffusion XL
    zero_null: bool = False  # zeros stand for the features of a negative prompt that is not given
    call: Mapping[str, float] = dataclasses.field(default_factory=dict)  # arguments of the pipeline's call
    labels: tuple[str, ...] = ()  # names of a DiT's classes
    notes: tuple[str, ...] = ()  # a sentence for each difference between diffusers and this package
    image_inputs: ExportedImageInputs = NOTHING  # of its U-Net, beside text

    @property
    def is_pipeline(self) -> bool:
        """Whether there is a model_index.json."""
        return "" not in self.parts

    def write(self, root: Path, dtype: str) -> None:
        """Writes the folder's files to root, which exists; floating-point arrays as dtype."""
        for name, part in self.parts.items():
            (root / name).mkdir(exist_ok=True)
            write_json(root / name / "config.json", part.config)
            diffusers_weights.save(part.state(), root / name / "diffusion_pytorch_model.safetensors", dtype)
        for name, scheduler in self._schedulers().items():
            (root / name).mkdir()
            write_json(root / name / "scheduler_config.json", scheduler.config | {"_diffusers_version": VERSION})
        for suffix, text in (("", self.text), ("_2", self.second_text)):
            if text is not None:
                write_text(text, root, suffix, dtype)
        if self.is_pipeline:
            write_json(root / "model_index.json", self._index())

    def _schedulers(self) -> dict[str, SchedulerConfig]:
        found = {"scheduler": self.scheduler, "low_res_scheduler": self.image_inputs.low_res_scheduler}
        return {name: scheduler for name, scheduler in found.items() if scheduler is not None}

    def _index(self) -> dict[str, object]:
        index: dict[str, object] = {"_class_name": self.name, "_diffusers_version": VERSION}
        index |= {name: ["diffusers", part.config["_class_name"]] for name, part in self.parts.items()}
        index |= {name: ["diffusers", scheduler.name] for name, scheduler in self._schedulers().items()}
        for suffix, text in (("", self.text), ("_2", self.second_text)):
            if text is not None:
                index[f"text_encoder{suffix}"] = ["transformers", text.name]
                index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
        if self.text is not None:
            last = "watermarker" if self.name == UPSCALING else "image_encoder"
            index |= {key: [None, None] for key in ("feature_extractor", last)}
            if self.second_text is None:
                index |= {"safety_checker": [None, None]}
                index |= {} if self.name == UPSCALING else {"requires_safety_checker": False}
            else:
                index[diffusers_xl.ZEROS] = self.zero_null
        index |= dict(self.image_inputs.settings)
        if self.labels:
            index["id2label"] = {str(i): name for i, name in enumerate(self.labels)}
        return index


def of_autoencoder(
    net: AutoencoderKL, params: Params, scale: float, size: Sequence[int], layout: Mapping[str, object]
) -> Part:
    """The autoencoder of images of size (H, W).

    scale is the factor of its latents, layout the options of diffusers that an import kept.
    """
    config = autoencoder_config(_fields(net), size=size, scaling_factor=scale)
    return Part(config | dict(layout), lambda: diffusers_autoencoder.to_diffusers(params))


def of_diffusion(trained: Trained, text_folder: Path, layout: Mapping[str, Mapping[str, object]]) -> DiffusersFolder:
    """The folder of a diffusion model.

    text_folder has its published text encoder, if there is one; layout has the options of diffusers, by part, that an
    import kept. Raises UserError, before any array is read, for a model that diffusers does not have.
    """
    model = trained.model
    if len(model.shape) != 3:
        raise no_twin(f"a model of arrays of shape {model.shape}, which are no images,")
    images = exported_image_inputs(model)
    size, channels = model.x_shape[:2], model.x_shape[-1]
    parts = {}
    if model.autoencoder is not None:
        coder = model.autoencoder
        parts["vae"] = of_autoencoder(
            coder.network, coder.params, coder.scale, model.shape[:2], layout.get("autoencoder", {})
        )
    if isinstance(model.network, DiT):
        return _dit(trained, parts, dit_config(*_described(model.network), size=size, in_channels=channels))
    if not isinstance(model.network, UNet):
        raise no_twin(f"a network {type(model.network).__name__}")
    pooled = model.text.pooled_width if model.text else 0
    config = unet_config(
        *_described(model.network),
        size=size,
        in_channels=channels + images.channels,
        pooled=pooled,
        told=images.entries,
    )
    linear = bool(layout.get("unet", {}).get("use_linear_projection"))
    params = network_params(trained)
    parts["unet"] = Part(
        config | dict(layout.get("unet", {})),
        lambda: diffusers_unet.to_diffusers(params, linear_projection=linear),
    )
    if model.text is None:
        return _pixels(trained, parts)
    folder = _stable_diffusion(trained, parts, model.text, text_folder)
    if images == NOTHING:
        return folder
    return dataclasses.replace(
        folder, name=images.pipeline, call=dict(folder.call) | dict(images.call), image_inputs=images
    )


def network_params(trained: Trained) -> Params:
    """The parameters of the network, without those of conditions, schedule and objective."""
    model = trained.model
    beside = (
        model.init_objective is not None
        or isinstance(model.schedule, Learned)
        or any(c.trained for c in model.conditions)
    )
    return trained.params["unet"] if beside else trained.params


def _pixels(trained: Trained, parts: dict[str, Part]) -> DiffusersFolder:
    if trained.model.autoencoder is not None:
        raise no_twin("a U-Net of latents that is told no captions")
    scheduler = _scheduler(trained, PIXELS)
    if scheduler.name not in PIXEL_PIPELINES:
        raise no_twin(f"a pipeline that draws pixels with {scheduler.name}", "give --sampler=ddim")
    notes = [*scheduler.notes, *_guidance_notes(trained, rescales=False)]
    if trained.model.num_classes:
        notes.append("no pipeline there tells a U-Net of pixels its class: the loop below draws with its parts")
    return DiffusersFolder(
        PIXEL_PIPELINES[scheduler.name], parts, scheduler, call=_steps(trained) | scheduler.call, notes=tuple(notes)
    )


def _stable_diffusion(trained: Trained, parts: dict[str, Part], text: Text, folder: Path) -> DiffusersFolder:
    if trained.model.autoencoder is None:
        raise no_twin("a model of pixels that is told captions")
    if text.trained or not isinstance(text.network, ClipText | ClipPair):
        raise no_twin(f"text={trained.config.text!r}, which is no published CLIP,")
    pair = isinstance(text.network, ClipPair)
    if pair != bool(trained.model.network.numbers):
        raise no_twin("a model that is told size_and_crop by one text encoder, or two without it,")
    scheduler = _scheduler(trained, STABLE_DIFFUSION_XL if pair else STABLE_DIFFUSION)
    call = _steps(trained) | _guidance(trained) | scheduler.call
    call |= {"guidance_rescale": trained.how.guidance_rescale} if trained.how.guidance_rescale else {}
    notes = (*scheduler.notes, *_guidance_notes(trained, rescales=True))
    if isinstance(text.network, ClipText):
        read = TextFolder(folder, text.length, text.network.penultimate)
        return DiffusersFolder("StableDiffusionPipeline", parts, scheduler, read, call=call, notes=notes)
    first, second = (
        TextFolder(folder / name, text.length, False, kind, folder / TOKENIZERS[name])
        for name, kind in ((FIRST, "CLIPTextModel"), (SECOND, diffusers_xl.PARTS[SECOND]))
    )
    found = DiffusersFolder(diffusers_xl.NAME, parts, scheduler, first, second, text.zero_null)
    return dataclasses.replace(found, call=call, notes=notes)


def _dit(trained: Trained, parts: dict[str, Part], config: Mapping[str, object]) -> DiffusersFolder:
    """A pipeline where there is an autoencoder, and else the transformer alone with a scheduler beside it."""
    net, params = trained.model.network, network_params(trained)
    assert isinstance(net, DiT)
    part = Part(config, lambda: diffusers_dit.to_diffusers(params, patch=net.patch, sinusoids=net.sinusoids))
    scheduler = _scheduler(trained, DIT)
    names = trained.model.classes.names if trained.model.classes else None
    notes = [*scheduler.notes, *_guidance_notes(trained, rescales=False)]
    call = _steps(trained) | _guidance(trained) | scheduler.call
    if "vae" not in parts:
        return DiffusersFolder("DiTTransformer2DModel", {"": part}, scheduler, call=call, notes=tuple(notes))
    if trained.model.num_classes != ANY_LABEL:
        notes.append(f"DiTPipeline takes class {ANY_LABEL} for none: guidance needs {ANY_LABEL} classes there")
        call["guidance_scale"] = 1.0
    folder = DiffusersFolder("DiTPipeline", {"transformer": part} | parts, scheduler, call=call)
    return dataclasses.replace(folder, labels=tuple(names or ()), notes=tuple(notes))


def _scheduler(trained: Trained, caller: Caller) -> SchedulerConfig:
    config, how = trained.config, trained.how
    specs = SamplingSpecs(config.schedule, config.prediction, how.sampler, how.grid, how.threshold)
    return scheduler_config(specs, trained.model.schedule, caller, steps=how.steps)


def _guidance_notes(trained: Trained, *, rescales: bool) -> list[str]:
    """A sentence for each option of guidance that diffusers lacks; rescales says whether it has guidance_rescale."""
    how, notes = trained.how, []
    if how.guidance_interval:
        notes.append(f"guidance is at every step there, and here where sigma / alpha is in {how.guidance_interval}")
    if how.guidance_rescale and not rescales:
        notes.append("guidance_rescale is not there")
    return notes


def _guidance(trained: Trained) -> dict[str, float]:
    """The guidance as an argument of a pipeline's call; raises UserError below 1, which pipelines take for 1."""
    if trained.how.guidance < 1:
        raise no_twin(f"guidance {trained.how.guidance:g}, below 1,", "give --guidance=1")
    return {"guidance_scale": trained.how.guidance}


def _steps(trained: Trained) -> dict[str, float]:
    return {"num_inference_steps": trained.how.steps}


def _fields(net: UNet | DiT | AutoencoderKL) -> dict[str, object]:
    return {field.name: getattr(net, field.name) for field in dataclasses.fields(net) if field.name != "parent"}


def _described(net: UNet | DiT) -> tuple[dict[str, object], dict[str, object]]:
    """({field: value}, {option: default}) of a network."""
    return {key: value for key, value in _fields(net).items() if key != "name"}, options(type(net))
