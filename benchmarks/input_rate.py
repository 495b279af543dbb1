"""Decoded images a second and core: this pipeline, torch's DataLoader and Grain alone, on the same JPEGs.

    python benchmarks/input_rate.py [--count=2000] [--side=256] [--size=256] [--workers=0] [--cores=1] [--turns=5]

Makes `count` smooth random pictures of side x side in a temporary folder, as JPEGs, tar shards and Parquet. Each loader
runs in a process of its own that may use `cores` cores, gives batches of `batch` float32 images in [-1, 1] of
size x size x 3, half of them mirrored, in a shuffled order, and is timed for `seconds` after its first batches. They
take turns; what is printed is the median over the turns of images a second and core, and of the ratio to the first
loader in the same turn. With --chip_rate, the images a second that a chip trains on, the workers that it needs too.
"""

import argparse
import io
import itertools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

LOADERS = ("folder", "webdataset", "parquet", "torch", "grain")
WARM = 4  # batches before the clock starts


def picture(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG of random colours that change smoothly, with a little noise, so that it is as large as a photograph's."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.float32) + rng.normal(0, 6, (side, side, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(root: Path, count: int, side: int) -> int:
    """Writes count pictures in three layouts; returns the bytes of one, on average."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    data = [picture(rng, side) for _ in range(count)]
    for name in ("folder", "webdataset", "parquet"):
        (root / name).mkdir()
    for i, each in enumerate(data):
        (root / "folder" / f"{i:06}.jpg").write_bytes(each)
    for shard, first in enumerate(range(0, count, 500)):
        part = data[first : first + 500]
        with tarfile.open(root / "webdataset" / f"train-{shard:05}.tar", "w") as archive:
            for i, each in enumerate(part, first):
                info = tarfile.TarInfo(f"{i:06}.jpg")
                info.size = len(each)
                archive.addfile(info, io.BytesIO(each))
        table = pa.table({"image": [{"bytes": each} for each in part]})
        pq.write_table(table, root / "parquet" / f"train-{shard:05}.parquet", row_group_size=100)
    return sum(map(len, data)) // count


def decoded(data: bytes, size: int, mirrored: bool) -> np.ndarray:
    """What every loader makes of a JPEG: float32 [size, size, 3]; the scaling is that of `transforms.resize_crop`."""
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
        if image.size != (size, size):
            scale = max(size / image.width, size / image.height)
            left, top = ((side - size / scale) / 2 for side in image.size)
            box = (left, top, image.width - left, image.height - top)
            image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(image)
    if mirrored:
        pixels = pixels[:, ::-1]
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


class Jpegs:
    """The JPEGs of a folder as torch and Grain read them, by index."""

    def __init__(self, folder: Path, size: int):
        self.paths, self.size = sorted(folder.glob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return decoded(self.paths[index].read_bytes(), self.size, bool(np.random.default_rng(index).integers(2)))


def of_torch(root: Path, options: argparse.Namespace) -> Iterator[object]:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    loader = DataLoader(
        Jpegs(root / "folder", options.size),
        options.batch,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
        persistent_workers=options.workers > 0,
    )
    while True:
        yield from loader


def of_grain(root: Path, options: argparse.Namespace) -> Iterator[object]:
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    data = grain.MapDataset.source(Jpegs(root / "folder", options.size)).shuffle(seed=0).repeat()
    read = grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=2 * options.batch)
    batches = data.to_iter_dataset(read).batch(options.batch, drop_remainder=True)
    if options.workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=options.workers))
    return iter(batches)


def of_ours(kind: str, root: Path, options: argparse.Namespace) -> Iterator[object]:
    from diffusion_jax.data.pipeline import Order, Reading, train_batches
    from diffusion_jax.data.sources import open_source
    from diffusion_jax.modalities import Image as Modality

    return train_batches(
        open_source(f"{kind}:{root / kind}"),
        Modality(),
        (options.size, options.size, 3),
        Order(seed=0, batch_size=options.batch, flip=True),
        reading=Reading(threads=options.threads, workers=options.workers),
    )


def rate(options: argparse.Namespace) -> float:
    """Images a second and core of one loader, in this process and its workers."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    root = Path(options.root)
    made = {"torch": of_torch, "grain": of_grain}.get(options.loader)
    batches = made(root, options) if made else of_ours(options.loader, root, options)
    for _ in itertools.islice(batches, WARM + options.workers):
        pass
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < options.seconds:
        next(batches)
        count += options.batch
    return count / (time.perf_counter() - began) / options.cores


def measured(loader: str, root: str, arguments: list[str]) -> float:
    command = [sys.executable, __file__, f"--loader={loader}", f"--root={root}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DIFFUSION_JAX_CACHE": root})
    if done.returncode:
        sys.exit(f"{loader}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256, help="of the JPEGs")
    parser.add_argument("--size", type=int, default=256, help="of the decoded images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of ours and Grain's; 0: as many as cores")
    parser.add_argument("--workers", type=int, default=0, help="processes of each loader")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--chip_rate", type=float, default=0.0, help="images a second that a chip trains on")
    parser.add_argument("--loaders", default=",".join(LOADERS))
    parser.add_argument("--loader", default="", help=argparse.SUPPRESS)
    parser.add_argument("--root", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.threads = options.threads or options.cores
    if options.loader:
        print(rate(options), flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(0)  # without waiting for the threads of whichever loader
    with tempfile.TemporaryDirectory() as root:
        size = write(Path(root), options.count, options.side)
        print(f"{options.count} JPEGs of {options.side} x {options.side}, {size:,} bytes each", flush=True)
        loaders, rates = options.loaders.split(","), []
        for turn in range(options.turns):
            ordered = loaders if turn % 2 == 0 else loaders[::-1]
            rates.append({loader: measured(loader, root, sys.argv[1:]) for loader in ordered})
            print(json.dumps({loader: round(rates[-1][loader], 1) for loader in loaders}), flush=True)
    for loader in loaders:
        images = statistics.median(turn[loader] for turn in rates)
        ratio = statistics.median(turn[loader] / turn[loaders[0]] for turn in rates)
        workers = f", {math.ceil(options.chip_rate / images)} cores a chip" if options.chip_rate else ""
        print(f"{loader:12}{images:8.1f} images/s a core, {ratio:.2f} of {loaders[0]}{workers}")


if __name__ == "__main__":
    main()
