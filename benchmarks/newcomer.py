"""A newcomer's first run on data of their own, from an empty home: the seconds of each command, and what came out.

    python benchmarks/newcomer.py [--data=gray,classes,captions] [--quick] [--keep=FOLDER]

Draws three data sets: a folder of 40 gray pictures of 24 x 40; class folders of transparent pictures of several sizes;
pictures with a metadata.jsonl of captions. Of each it runs the four commands of README.md and docs/quickstart.md, new,
train, sample and report, as processes of their own, with a home in which nothing is compiled or kept yet. Training is
what `new` wrote, unshortened. Prints a table, and ends with status 1 where a check fails.

--quick trains for a few steps, to see whether all of it works; its pictures are noise. --keep leaves data, configs,
runs and samples in a new folder, to look at.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.report import lettering

GOAL = 600.0
"""Seconds of all commands together."""

QUICK = ("--config.train.steps=4", "--config.checkpoint.every=2", "--config.sample.every=2", "--config.sample.steps=2")

NUM = 16  # samples

COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 119, 180)}
FORMS = ("circle", "square", "triangle")


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set, what is asked of its model, and what has to come out."""

    name: str
    draw: Callable[[Path], None]
    asked: tuple[str, ...]  # flags of `sample`
    channels: int
    size: tuple[int, int] | None  # height, width; None: the data have several
    names: tuple[str, ...] = ()  # in the grids of training
    pictures: tuple[str, ...] = ("grid.png",)  # of `sample`, beside one a sample


def gray(folder: Path) -> None:
    """40 gray pictures of 24 x 40: a light disc on a dark ground."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :40]
    for i in range(40):
        row, column, radius = rng.uniform(7, 17), rng.uniform(8, 32), rng.uniform(4, 7)
        inside = np.clip(radius - np.hypot(y - row, x - column) + 0.5, 0, 1)
        Image.fromarray(np.uint8(40 + 190 * inside)).save(folder / f"{i:02d}.png")


def form(name: str, colour: tuple[int, int, int], side: int, transparent: bool) -> Image.Image:
    """A circle, square or triangle in the middle, on nothing or on white."""
    mode, ground = ("RGBA", (0, 0, 0, 0)) if transparent else ("RGB", (255, 255, 255))
    large = Image.new(mode, (4 * side, 4 * side), ground)
    low, high, pen = 0.6 * side, 3.4 * side, ImageDraw.Draw(large)
    if name == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif name == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    else:
        pen.polygon([(2 * side, low), (low, high), (high, high)], fill=colour)
    return large.resize((side, side), Image.Resampling.BOX)


def classes(folder: Path) -> None:
    """Three folders of 30 transparent pictures, of 28 to 40 pixels a side."""
    rng = np.random.default_rng(0)
    for name in FORMS:
        (folder / name).mkdir()
        for i in range(30):
            colour = list(COLOURS.values())[i % 3]
            form(name, colour, int(rng.integers(28, 41)), transparent=True).save(folder / name / f"{i:02d}.png")


def captions(folder: Path) -> None:
    """90 pictures of 32 x 32 and a metadata.jsonl with the caption of each."""
    rows = []
    for i in range(90):
        (word, colour), name = list(COLOURS.items())[i % 3], FORMS[i // 3 % 3]
        form(name, colour, 32, transparent=False).save(folder / f"{i:02d}.png")
        rows.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"a {word} {name}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


CASES = {
    case.name: case
    for case in (
        Case("gray", gray, (), channels=1, size=(24, 40)),
        Case(
            "classes",
            classes,
            tuple(f"--label={name}" for name in FORMS),
            channels=4,
            size=None,
            names=FORMS,
            pictures=("grid.png", "classes.png"),
        ),
        Case(
            "captions",
            captions,
            ("--prompt=a red circle", "--prompt=a blue square"),
            channels=3,
            size=(32, 32),
            names=("a red circle",),
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Ran:
    """A command that ended."""

    words: tuple[str, ...]
    seconds: float
    status: int
    output: str


def commands(case: Case, quick: bool) -> Iterator[tuple[str, ...]]:
    """Yields the words behind diffusion-jax, as the pages for newcomers have them."""
    yield "new", "--data=folder:data", "--out=my.py"
    yield "train", "--config=my.py", "--workdir=runs/my", *(QUICK if quick else ())
    yield "sample", "--workdir=runs/my", "--out=samples", f"--num={NUM}", *case.asked
    yield "report", "runs/my"


def run(words: tuple[str, ...], folder: Path) -> Ran:
    """Runs a command in folder, with the home folder/home and no cache of another place."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "DIFFUSION_JAX_", "JAX_COMPILATION_CACHE"))
    }
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *kept.get("PYTHONPATH", "").split(os.pathsep)])
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "diffusion_jax", *words],
        cwd=folder,
        env=kept | {"HOME": str(folder / "home"), "PYTHONPATH": path.rstrip(os.pathsep)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Ran(words, time.perf_counter() - began, ended.returncode, ended.stdout)


def faults(case: Case, folder: Path, quick: bool) -> Iterator[str]:
    """Yields a sentence for each thing that is not as it has to be."""
    shape = tuple(json.loads((folder / "runs/my/config.json").read_text())["data"]["shape"])
    if shape[-1] != case.channels or case.size not in (None, shape[:-1]):
        yield f"trained on {shape}, wanted {case.size or 'any size'} in {case.channels} channels"
    files = sorted((folder / "samples").glob("[0-9]*.png"))
    if len(files) != NUM:
        yield f"{len(files)} samples are written, wanted {NUM}"
    for file in files:
        with Image.open(file) as image:
            pixels = np.asarray(image).reshape(image.height, image.width, -1)
        if pixels.shape != shape:
            yield f"{file.name} is {pixels.shape}, the model {shape}"
        if case.channels == 4 and not quick and not 0.2 < (pixels[..., 3] < 128).mean() < 0.9:
            yield f"{file.name} has lost its transparent ground"
    for name in case.pictures:
        if not (folder / "samples" / name).exists():
            yield f"sample wrote no {name}"
    grids = sorted((folder / "runs/my/samples").glob("*.png"))
    if not grids:
        yield "training left no grid"
    for file in [*grids[-1:], *(folder / "samples" / name for name in case.pictures if name != "grid.png")]:
        with Image.open(file) as image:
            picture = np.asarray(image.convert("L"))
        yield from (f"{file.name} does not show the name {name!r}" for name in case.names if not shows(picture, name))
    if not (folder / "my.png").exists():
        yield "new left no picture of the data"
    if "<svg" not in (folder / "runs/my/report.html").read_text():
        yield "the report has no curve"


def shows(picture: np.ndarray, text: str) -> bool:
    """Whether a line of text stands somewhere in a gray picture uint8 [H, W], in the letters of labels.

    Looks for a place with dark pixels and light ones where the text has them, also of text that begins between pixels.
    """
    font = lettering.font(12)
    for half in (0.0, 0.5):
        for quarter in (0.0, 0.5):
            drawn = Image.new("L", (round(font.getlength(text)) + 4, sum(font.getmetrics()) + 2), 200)
            ImageDraw.Draw(drawn).text((1 + half, 1 + quarter), text, 30, font)
            letters = np.asarray(drawn)
            rows, columns = (np.flatnonzero((letters < 100).any(axis=axis)) for axis in (1, 0))
            letters = letters[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            if letters.shape[0] > picture.shape[0] or letters.shape[1] > picture.shape[1]:
                continue
            h, w = (side - own + 1 for side, own in zip(picture.shape, letters.shape, strict=True))
            fits = np.ones((h, w), bool)
            for (y, x), value in np.ndenumerate(letters):
                if value < 80 or value > 190:
                    here = picture[y : y + h, x : x + w]
                    fits &= (here < 130) if value < 80 else (here > 150)
            if fits.any():
                return True
    return False


def newcomer(case: Case, folder: Path, quick: bool) -> bool:
    """Runs the commands of a case in a folder and prints their rows; whether all is as it has to be."""
    for name in ("data", "home"):
        (folder / name).mkdir(parents=True)
    case.draw(folder / "data")
    total, right = 0.0, True
    for words in commands(case, quick):
        ran = run(words, folder)
        total += ran.seconds
        (folder / f"{words[0]}.log").write_text(ran.output)
        print(f"{case.name:10}{words[0]:10}{ran.seconds:8.1f} s", flush=True)
        if ran.status:
            print(f"{case.name}: diffusion-jax {' '.join(words)}: status {ran.status}\n{ran.output[-2000:]}")
            return False
    for fault in faults(case, folder, quick):
        print(f"{case.name:10}{fault}")
        right = False
    slow = not quick and total > GOAL
    print(f"{case.name:10}{'in all':10}{total:8.1f} s{f', more than {GOAL:g} s' if slow else ''}", flush=True)
    return right and not slow


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(CASES), help="which of the data sets")
    parser.add_argument("--quick", action="store_true", help="a few steps of training")
    parser.add_argument("--keep", type=Path, help="a new folder for all that is made")
    options = parser.parse_args(arguments)
    if unknown := set(options.data.split(",")) - set(CASES):
        parser.error(f"--data is of {', '.join(CASES)}; got {', '.join(sorted(unknown))}")
    if options.keep and options.keep.exists():
        parser.error(f"--keep={options.keep} is there already; give a new folder")
    place = contextlib.nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory()
    with place as folder:
        right = [newcomer(CASES[name], Path(folder, name).resolve(), options.quick) for name in options.data.split(",")]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
