"""What a diffusers folder holds: the parts of a pipeline, or one model, and what their JSON files say of each.

Only JSON is read here, so that what cannot be imported is refused before weights are looked at.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_dit_options, diffusers_xl
from diffusion_jax.interop.diffusers_image_inputs import (
    INPAINTING,
    NOTHING,
    UPSCALING,
    ImageInputs,
    inpainted,
    scheduler_with_images,
    upscaled,
)
from diffusion_jax.interop.diffusers_options import AutoencoderOptions, UNetOptions, autoencoder, unet
from diffusion_jax.interop.diffusers_scheduler import SchedulerTwin, scheduler
from diffusion_jax.interop.json_file import read_json

T = TypeVar("T")

TEXT_TO_IMAGE = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", INPAINTING, UPSCALING)

UNCONDITIONAL = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")

MODELS = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL", *diffusers_dit_options.MODELS)

LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt")

NO_SCHEDULER = {"_class_name": "DDPMScheduler"}
"""What stands for the scheduler of a U-Net's folder, which has none: DDPM's own chain."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What a folder holds. A part that it lacks is None."""

    root: Path
    name: str  # of the pipeline or model, as diffusers calls it
    version: str  # of diffusers that wrote it
    unet: UNetOptions | None = None
    unet_folder: Path | None = None
    autoencoder: AutoencoderOptions | None = None
    autoencoder_folder: Path | None = None
    scheduler: SchedulerTwin | None = None
    text_folder: Path | None = None
    tokenizer_folder: Path | None = None
    left_out: tuple[str, ...] = ()  # parts that are not imported, such as a safety checker
    text_config: Mapping[str, Any] | None = None  # config.json of the text encoder
    second_text: diffusers_xl.SecondText | None = None  # of Stable Diffusion XL
    image_inputs: ImageInputs = NOTHING  # of the U-Net, beside text
    labels: tuple[str, ...] = ()  # names of the classes in the order of their numbers; (): not known
    file: Path | None = None  # the one that holds all weights, in a layout other than diffusers'

    @property
    def notes(self) -> tuple[str, ...]:
        """The differences between the pipeline here and in diffusers, a sentence each."""
        return (self.scheduler.notes if self.scheduler else ()) + self.image_inputs.notes

    @property
    def guidance(self) -> float:
        """guidance_scale of its call, where it has one."""
        if self.name == diffusers_dit_options.PIPELINE:
            return diffusers_dit_options.GUIDANCE
        return self.image_inputs.guidance if self.second_text is None else diffusers_xl.GUIDANCE

    @property
    def licence(self) -> Path | None:
        """The file of the licence; of a file alone there is none."""
        if self.file is not None:
            return None
        return next((self.root / name for name in LICENCES if (self.root / name).is_file()), None)


def read(root: Path, part: str = "") -> Pipeline:
    """What the folder root holds; part "autoencoder" reads a pipeline's autoencoder alone.

    Raises UserError where it is no such folder, and for what has no twin here, by name.
    """
    _check_folder(root)
    index = root / "model_index.json"
    if not index.is_file():
        found = _model(root)
        if part and found.autoencoder is None:
            raise UserError(f"{root} is a {found.name}, which has no autoencoder; leave out --part")
        return found
    said = read_json(index)
    name, version = str(said.get("_class_name")), str(said.get("_diffusers_version", ""))
    parts = {key: value[1] for key, value in said.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    if part:
        if parts.get("vae") != "AutoencoderKL":
            raise UserError(f"{index} lists no AutoencoderKL as vae; it has {', '.join(sorted(parts)) or 'no parts'}")
        coder, coder_folder = _autoencoder(root, "vae")
        return Pipeline(root, name, version, autoencoder=coder, autoencoder_folder=coder_folder)
    known = (*TEXT_TO_IMAGE, diffusers_xl.NAME, *UNCONDITIONAL, diffusers_dit_options.PIPELINE)
    if name == diffusers_dit_options.PIPELINE:
        return _dit_pipeline(root, said, parts)
    if name not in known:
        raise UserError(
            f"{index} is of a {name}, which is not imported; those that are: "
            f"{', '.join(known)}, and with --part=autoencoder the AutoencoderKL of any"
        )
    wanted = {"unet": "UNet2DModel", "scheduler": ""}
    if name not in UNCONDITIONAL:
        wanted = {
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "tokenizer": "",
            "scheduler": "",
        }
        wanted |= diffusers_xl.PARTS if name == diffusers_xl.NAME else {}
        wanted |= {"low_res_scheduler": ""} if name == UPSCALING else {}
    for key, kind in wanted.items():
        if key not in parts or (kind and parts[key] != kind):
            raise UserError(f"{index} has {parts.get(key, 'nothing')} as {key}; {kind or 'one'} is needed")
    left_out = tuple(sorted(set(parts) - set(wanted)))
    options, folder = _unet(root, "unet")
    twin = _scheduler(root, name)
    if name == diffusers_xl.NAME and twin.threshold == "static":  # which is of pixels: of latents it is said in full
        twin = dataclasses.replace(twin, threshold="static(low=-1.0, high=1.0)")
    if name in UNCONDITIONAL:
        return Pipeline(root, name, version, options, folder, scheduler=twin, left_out=left_out)
    coder, coder_folder = _autoencoder(root, "vae")
    text = read_json(root / "text_encoder/config.json")
    second = diffusers_xl.second_text(root, said) if name == diffusers_xl.NAME else None
    diffusers_xl.check_text(f"{root}/text_encoder/config.json", options, text, second)
    return Pipeline(
        root,
        name,
        version,
        options,
        folder,
        coder,
        coder_folder,
        twin,
        root / "text_encoder",
        root / "tokenizer",
        left_out,
        text,
        second,
        _image_inputs(root, said, options, coder),
    )


def _dit_pipeline(root: Path, index: Mapping[str, Any], parts: Mapping[str, str]) -> Pipeline:
    """The folder of a `DiTPipeline`, whose model_index.json is index; parts are {part: its class}."""
    if parts.get("transformer") not in diffusers_dit_options.MODELS or parts.get("vae") != "AutoencoderKL":
        raise UserError(
            f"{root}/model_index.json has {parts.get('transformer', 'nothing')} as transformer and "
            f"{parts.get('vae', 'nothing')} as vae; {diffusers_dit_options.MODELS[0]} and AutoencoderKL are needed"
        )
    name, version = str(index["_class_name"]), str(index.get("_diffusers_version", ""))
    found = _dit(root, "transformer", _scheduler(root, name), name, version)
    assert found.unet is not None
    coder, coder_folder = _autoencoder(root, "vae")
    return dataclasses.replace(
        found,
        autoencoder=coder,
        autoencoder_folder=coder_folder,
        left_out=tuple(sorted(set(parts) - {"transformer", "vae", "scheduler"})),
        labels=diffusers_dit_options.class_names(index, found.unet.options["num_classes"]),
    )


def _dit(root: Path, part: str, twin: SchedulerTwin, name: str, version: str) -> Pipeline:
    """A DiT in the folder of a pipeline's part or, with part "", alone, drawn from as its scheduler's twin says."""
    folder = _folder(root, part, "config.json")
    net = _read(diffusers_dit_options.dit, folder / "config.json")
    more = diffusers_dit_options.notes(read_json(folder / "config.json"))
    threshold = "static(low=-1.0, high=1.0)" if twin.threshold == "static" and part else twin.threshold
    learned = net.out_channels == 2 * net.in_channels
    twin = dataclasses.replace(twin, learned_variance=learned, threshold=threshold, notes=(*twin.notes, *more))
    return Pipeline(root, name, version, net, folder, scheduler=twin)


def _image_inputs(root: Path, index: Mapping[str, Any], net: UNetOptions, coder: AutoencoderOptions) -> ImageInputs:
    """The images that a text-to-image pipeline gives its U-Net; index is its model_index.json."""
    name, factor = index["_class_name"], 2 ** (len(coder.options["multipliers"]) - 1)
    if bool(net.options.get("level_rows")) != (name == UPSCALING):
        raise UserError(f"{root}: num_class_embeds of the U-Net of a {name} has no twin here; it is an upscaler's")
    if name == INPAINTING:
        return inpainted(net.in_channels, coder.options["latent_channels"])
    if name != UPSCALING:
        return NOTHING
    most = index.get("max_noise_level", 350)
    make = lambda said, where: upscaled(said, where, factor=factor, colors=coder.channels, most=most)  # noqa: E731
    return _read(make, root / "low_res_scheduler/scheduler_config.json")


def _check_folder(root: Path) -> None:
    """Raises UserError where root is no folder, saying how a file of weights becomes one."""
    if root.is_file():
        raise UserError(
            f"--from={root} is a pickle, which is not read, as it can run code; write a folder of it with diffusers: "
            f'python -c "from diffusers import '
            f"StableDiffusionPipeline as P; P.from_single_file('{root}').save_pretrained('{root.with_suffix('')}')\""
        )
    if not root.is_dir():
        raise UserError(f"--from={root} is no folder; give one that diffusers wrote, with model_index.json")


def _model(root: Path) -> Pipeline:
    """The folder of one model."""
    file = root / "config.json"
    if not file.is_file():
        raise UserError(
            f"--from={root} is no folder of diffusers: it has neither model_index.json, of a pipeline, nor "
            "config.json, of a model"
        )
    said = read_json(file)
    name, version = str(said.get("_class_name")), str(said.get("_diffusers_version", ""))
    if name not in MODELS:
        raise UserError(f"{file} is of a {name}, which is not imported; those that are: {', '.join(MODELS)}")
    if name == "UNet2DConditionModel":
        raise UserError(
            f"{root} is a UNet2DConditionModel alone, which is told text by an encoder that it does not hold; give the "
            "folder of its pipeline"
        )
    if name == "AutoencoderKL":
        options, folder = _autoencoder(root, "")
        return Pipeline(root, name, version, autoencoder=options, autoencoder_folder=folder)
    twin = scheduler(NO_SCHEDULER, str(root), latent=False)
    twin = dataclasses.replace(twin, notes=("the folder has no scheduler: DDPM's own chain is taken", *twin.notes))
    if name in diffusers_dit_options.MODELS:
        return _dit(root, "", twin, name, version)
    net, folder = _unet(root, "")
    return Pipeline(root, name, version, net, folder, scheduler=twin)


def _folder(root: Path, name: str, file: str) -> Path:
    """The folder of a part: its own or, as the first pipelines had it, the pipeline's."""
    return root if not (root / name / file).is_file() and (root / file).is_file() else root / name


def _unet(root: Path, name: str) -> tuple[UNetOptions, Path]:
    folder = _folder(root, name, "config.json")
    return _read(unet, folder / "config.json"), folder


def _autoencoder(root: Path, name: str) -> tuple[AutoencoderOptions, Path]:
    folder = _folder(root, name, "config.json")
    return _read(autoencoder, folder / "config.json"), folder


def _scheduler(root: Path, pipeline: str) -> SchedulerTwin:
    file = _folder(root, "scheduler", "scheduler_config.json") / "scheduler_config.json"
    if pipeline in (INPAINTING, UPSCALING):
        return _read(lambda config, where: scheduler_with_images(config, where, pipeline), file)
    return _read(lambda config, where: scheduler(config, where, latent=pipeline in TEXT_TO_IMAGE), file)


def _read(options: Callable[[Mapping[str, Any], str], T], file: Path) -> T:
    """What options makes of a JSON file; raises UserError too for a value of a type that diffusers does not write."""
    try:
        return options(read_json(file), str(file))
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{file} has a value that diffusers does not write ({error}); fetch it anew") from None
