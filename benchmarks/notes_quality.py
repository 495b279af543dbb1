"""Are the notes right? Samples of a workdir, or of a folder that `sample` wrote, read by the spectrum of their clips.

    python benchmarks/notes_quality.py --workdir=runs/notes --num=200 [--guidance=1.5]
    python benchmarks/notes_quality.py --samples=notes

A sample is right where `data.notes.read_note` finds the pitch and the timbre of the class that it was asked for; the
goal is 90% of 200. Beside it: each by itself, the classes with most errors, and how far the pitches are off in cents.
"""

import argparse
import collections
import json
import wave
from pathlib import Path

import numpy as np

import diffusion_jax as dj
from diffusion_jax.data import notes


def read_clip(path: Path) -> tuple[np.ndarray, int]:
    """A WAV of 16 bits and one channel: float64 [L, 1], and its rate."""
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return values[:, None] / 2**15, file.getframerate()


def quality(clips: list[np.ndarray], names: list[str], rate: int) -> dict[str, object]:
    """Shares of clips [L, 1] with the pitch and timbre of their class, and the errors in pitch of the right ones."""
    heard = [notes.read_note(clip, rate) for clip in clips]
    asked = [name.split() for name in names]
    pitch = np.array([found.pitch == wanted[0] for found, wanted in zip(heard, asked, strict=True)])
    timbre = np.array([found.timbre == wanted[1] for found, wanted in zip(heard, asked, strict=True)])
    cents = [
        abs(1200 * np.log2(found.hertz / notes.frequency(wanted[0])))
        for found, wanted, right in zip(heard, asked, pitch, strict=True)
        if right
    ]
    wrong = collections.Counter(name for name, right in zip(names, pitch & timbre, strict=True) if not right)
    return {
        "num": len(clips),
        "pitch and timbre right": float((pitch & timbre).mean()),
        "pitch right": float(pitch.mean()),
        "timbre right": float(timbre.mean()),
        "median cents off": float(np.median(cents)) if cents else None,
        "power off the harmonics, median": float(np.median([found.outside for found in heard])),
        "most errors": dict(wrong.most_common(5)),
    }


def of_folder(folder: Path) -> dict[str, object]:
    """`quality` of the samples in a folder, of the classes that its manifest says."""
    names = json.loads((folder / "manifest.json").read_text())["labels"]
    read = [read_clip(folder / f"{i:06d}.wav") for i in range(len(names))]
    return quality([clip for clip, _ in read], names, read[0][1])


def of_workdir(workdir: Path, num: int, **sampling: object) -> dict[str, object]:
    """`quality` of num new samples, of all classes in turn."""
    loaded = dj.load(workdir)
    rate = int(loaded.config.data.source.partition(":")[2].partition(",")[0] or 4000)
    x = loaded.sample(num, labels=notes.CLASSES, seed=10_000, batch=100, show_progress=True, **sampling)
    names = [notes.CLASSES[i % len(notes.CLASSES)] for i in range(num)]
    return {"step": loaded.step} | quality(list(np.clip(x, -1, 1)), names, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path)
    source.add_argument("--samples", type=Path, help="a folder that `diffusion-jax sample` wrote")
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    if options.samples:
        found = of_folder(options.samples)
    else:
        found = of_workdir(options.workdir, options.num, guidance=options.guidance, steps=options.steps)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
