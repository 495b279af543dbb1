"""sample_exported.py: the script beside an exported sampler, which needs nothing of this package."""

from diffusion_jax import experiment
from diffusion_jax.modalities import Image
from diffusion_jax.runs.workdir.restored import Trained

_HEAD = '''"""Draws samples with sampler.jax_export; sample i depends on its seed alone. Needs {needs}."""

import argparse
{modules}from pathlib import Path

import jax.export
import numpy as np
{libraries}
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--num", type=int, default=4, help="number of samples")
parser.add_argument("--seed", type=int, default=0, help="of the first sample; sample i has seed + i")
parser.add_argument("--batch", type=int, default=4, help="samples drawn at once")
parser.add_argument("--out", type=Path, default=Path("samples"), help="folder of samples.npy [num, {shape}]")
{flags}
given, folder = parser.parse_args(), Path(__file__).parent
seeds = np.arange(given.seed, given.seed + given.num, dtype=np.int32)
cond = {{}}
'''

_LABEL_FLAG = """options = {{"type": int, "choices": range({count} + 1), "metavar": "CLASS", "nargs": "*"}}
parser.add_argument("--label", **options, help="classes in turn, {count} for none; drawn from the seeds if left out")
"""

_LABEL = """random = [np.random.default_rng(int(seed)).integers({count}) for seed in seeds]
cond["label"] = np.resize(np.asarray(given.label or random, np.int32), given.num)
"""

_PROMPT_FLAG = 'parser.add_argument("--prompt", nargs="+", required=True, help="captions in turn")\n'

_NEGATIVE_FLAG = 'parser.add_argument("--negative_prompt", default="", help="caption that guidance leads away from")\n'

_PROMPT = """saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
words = Tokenizer.from_str(json.dumps(saved["tokenizer"]))


def ids(text):
    row = [saved["bos"], *words.encode(text, add_special_tokens=False).ids[:{most}], saved["eos"]]
    return np.asarray(row + [saved["pad"]] * ({length} - len(row)), np.int32)


cond["tokens"] = np.stack([ids(given.prompt[i % len(given.prompt)]) for i in range(given.num)])
"""

_NEGATIVE = 'cond["negative_tokens"] = np.stack([ids(given.negative_prompt)] * given.num)\n'

_DRAW = """params = jax.device_put(dict(np.load(folder / "parameters.npz")))
draw = jax.jit(jax.export.deserialize(bytearray((folder / "sampler.jax_export").read_bytes())).call)
batches = [slice(i, i + given.batch) for i in range(0, given.num, given.batch)]
samples = np.concatenate([draw(params, seeds[b], {name: a[b] for name, a in cond.items()}) for b in batches])
given.out.mkdir(parents=True, exist_ok=True)
np.save(given.out / "samples.npy", samples)
"""

_PNG = """

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


for i, pixels in enumerate(np.rint((samples.clip(-1, 1) + 1) * 127.5).astype(np.uint8)):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", {width}, {height}, 8, {colour}, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"".join(b"\\0" + row.tobytes() for row in pixels)))
    (given.out / f"{{i:06d}}.png").write_bytes(b"\\x89PNG\\r\\n\\x1a\\n" + header + rows + chunk(b"IEND", b""))
"""

_COLOUR = {1: 0, 3: 2, 4: 6}
"""{channels: PNG's colour type}."""


def sampling_script(trained: Trained) -> str:
    """The script for the model: its flags are what it is told, and images become PNG files too."""
    model = trained.model
    classes, text, guided = model.num_classes, model.text, trained.how.guidance != 1
    flags, told = "", ""
    if classes:
        flags, told = flags + _LABEL_FLAG.format(count=classes), told + _LABEL.format(count=classes)
    if text is not None:
        flags += _PROMPT_FLAG + (_NEGATIVE_FLAG if guided else "")
        told += _PROMPT.format(most=text.length - 2, length=text.length) + (_NEGATIVE if guided else "")
    modules, drawn = [], _DRAW
    if text is not None:
        modules.append("json")
    if isinstance(experiment.modality(trained.config), Image):
        modules += ["struct", "zlib"]
        height, width, channels = model.shape
        drawn += _PNG.format(height=height, width=width, colour=_COLOUR[channels])
    needs = ["jax", "flatbuffers", "numpy", *(["tokenizers"] if text is not None else [])]
    head = _HEAD.format(
        needs=", ".join(needs),
        modules="".join(f"import {name}\n" for name in modules),
        libraries="from tokenizers import Tokenizer\n" if text is not None else "",
        shape=", ".join(map(str, model.shape)),
        flags=flags,
    )
    return head + told + drawn
