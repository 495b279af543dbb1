"""Models of the Hugging Face hub, hf://OWNER/NAME[@REVISION], fetched into its cache: what an import reads, no more.

huggingface_hub, of the extra `hub`, does it. Without a network, or with HF_HUB_OFFLINE=1, it gives what its cache has.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_pipeline
from diffusion_jax.interop.diffusers_weights import CONVERT
from diffusion_jax.runs.interchange.imported_weights import weight_folders
from diffusion_jax.runs.workdir.pretrained import TOKENIZER_FILES

SCHEME = "hf://"

_DESCRIBED = ("config.json", "scheduler_config.json", *TOKENIZER_FILES)
"""Files beside the weights that say what a model is."""

_PARTS = (
    *("unet", "transformer", "vae", "scheduler", "low_res_scheduler"),
    *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
)


class HubAddress(NamedTuple):
    """A model of the hub."""

    repository: str  # OWNER/NAME
    revision: str | None  # a branch, a tag or a commit; None: the newest

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(source: str) -> bool:
    """Whether the text is meant as an address of the hub."""
    return source.startswith(SCHEME)


def address(text: str) -> HubAddress:
    """The address of a text; raises UserError where it is none."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text)
    if not found:
        raise UserError(f"--from={text} is no model of the hub; give hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return HubAddress(found[1], found[2])


def fetched(source: HubAddress, variant: str = "", part: str = "") -> Path:
    """The folder of the model in the hub's cache, with everything that an import of this variant and part reads.

    Its JSON files come first, so that what cannot be imported is refused before weights are fetched. Raises UserError
    where huggingface_hub is not installed, and where a file can be neither fetched nor found in the cache.
    """
    folders = ("vae",) if part else _PARTS
    described = (*_DESCRIBED, f"*.safetensors.index{_dotted(variant)}.json")
    nested = [f"{folder}/{name}" for folder in folders for name in described]
    root = _snapshot(source, ["model_index.json", *described, *diffusers_pipeline.LICENCES, *nested])
    found = diffusers_pipeline.read(root, part)
    wanted = [name for folder, stem in weight_folders(found).values() for name in _weights(folder, stem, variant)]
    names = [str(path.relative_to(root)) for path in wanted]
    commit = HubAddress(source.repository, root.name)  # the same, whatever the branch has become since
    if lacking := [name for name in names if not (root / name).is_file()]:
        _check_listed(source, commit, lacking, variant)
        _snapshot(commit, lacking)
    return root


def _weights(folder: Path, stem: str, variant: str) -> list[Path]:
    """The files of a model's weights: the shards that an index lists, or else the one file."""
    index = folder / f"{stem}.safetensors.index{_dotted(variant)}.json"
    if not index.is_file():
        return [folder / f"{stem}{_dotted(variant)}.safetensors"]
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / Path(shard).name for shard in sorted(set(shards))]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # of which `diffusers_weights` says what is wrong


def _dotted(variant: str) -> str:
    return f".{variant}" if variant else ""


def _snapshot(source: HubAddress, patterns: Sequence[str]) -> Path:
    """The folder of the source in the cache, after the files of these patterns have been fetched."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise UserError(
            f"{source} is fetched with huggingface_hub, which is not installed; install it with: "
            "pip install 'diffusion-jax[hub]'"
        ) from None
    name, revision = source
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        said = f"{source} is gated; accept its licence on its page of the hub, then log in with: hf auth login"
    except errors.RepositoryNotFoundError:
        said = f"the hub has no model {name}, or it is private; check the address, or log in with: hf auth login"
    except errors.RevisionNotFoundError:
        said = f"{name} has no revision {revision}; give a branch, a tag or a commit, or leave out @{revision}"
    except errors.LocalEntryNotFoundError as error:
        if part_of_it := getattr(error, "snapshot_path", None):  # what it lacks may not be needed, such as a licence
            return Path(part_of_it)
        said = f"{source} is not complete in the cache {constants.HF_HUB_CACHE}, and {_offline()}"
    except Exception as error:  # of huggingface_hub and the HTTP library beneath it, which is another in each version
        said = f"{source} cannot be fetched ({(str(error) or repr(error)).splitlines()[0]}); try it again"
    raise UserError(said)


def _offline() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE=1 forbids to fetch it; leave that out once"
    return "the hub cannot be reached; try again when it can"


def _check_listed(source: HubAddress, commit: HubAddress, names: Sequence[str], variant: str) -> None:
    """Raises UserError where the hub cannot be asked for the files of these names, or one of them is not there."""
    import huggingface_hub

    try:
        listed = huggingface_hub.HfApi().list_repo_files(commit.repository, revision=commit.revision)
    except Exception:  # as in `_snapshot`
        raise UserError(f"{source}: {names[0]} is not in the hub's cache, and {_offline()}") from None
    if absent := [name for name in names if name not in listed]:
        raise UserError(_absent(source, absent[0], variant, listed))


def _absent(source: HubAddress, name: str, variant: str, listed: Sequence[str]) -> str:
    """What to do where the file of weights of this name is not among those that are listed."""
    folder, _, file = name.rpartition("/")
    beside = sorted(each.rpartition("/")[2] for each in listed if each.rpartition("/")[0] == folder)
    stem = file.partition(".")[0]
    variants = {each.split(".")[1] for each in beside if re.fullmatch(rf"{stem}\.\w+\.safetensors", each)}
    whole = any(re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.safetensors", each) for each in beside)
    if variants - {variant}:
        return f"{source} has no {name}; give --variant={min(variants - {variant})}"
    if variant and whole:
        return f"{source} has no {name}; leave out --variant"
    if pickles := [each for each in beside if each.endswith((".bin", ".ckpt", ".pt"))]:
        return (
            f"{source} has no {name} but {', '.join(pickles)}, and a pickle is not read, as it can run code; write the "
            f"model as a folder with: {CONVERT.format(folder=source.repository)}"
        )
    return f"{source} has no {name}; its folder has {', '.join(beside) or 'nothing'}"
