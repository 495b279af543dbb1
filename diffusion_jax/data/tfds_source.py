"""Data sets of TFDS, read without TensorFlow; scikit-learn's digits and drawn shapes as two of them."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import shapes
from diffusion_jax.data.example import Example
from diffusion_jax.errors import UserError

_FORMAT = "array_record"  # the format that TFDS writes and reads at random without TensorFlow

Record = tuple[int, dict[str, object]]
"""(key, {feature: value}) of an example, as TFDS writes it."""


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's 1,797 handwritten digits, 8 x 8; its pixel values 0 to 16 become round(255 v / 16)."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing is downloaded: TFDS need not look for checksums beside this file

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
        # Unshuffled, so that record i is scikit-learn's example i.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Record]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[Record]:
        from sklearn.datasets import load_digits  # a second to import, for the first run only

        data = load_digits()
        for i, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
            yield i, {"image": _png(np.round(image * 255 / 16).astype(np.uint8)), "label": int(label)}


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """The side of the pictures in pixels, and the number of those to train on."""

    size: int
    count: int


class DrawnShapes(tfds.core.GeneratorBasedBuilder):
    """`shapes.picture`s as images of any size, with label, caption and semantic map; 1,000 more as the test split."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    builder_config: ShapesConfig

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        features = {
            "image": tfds.features.Image(shape=(size, size, 3)),
            "label": tfds.features.ClassLabel(names=list(shapes.SHAPES)),
            "caption": tfds.features.Text(),
            "map": tfds.features.Image(shape=(size, size, 1)),
        }
        # Unshuffled, so that record i is picture i.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Record]]:
        counts = {"train": self.builder_config.count, "test": 1000}
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[Record]:
        for i in range(count):
            picture = shapes.picture(split, i)
            image, classes = shapes.draw(picture, self.builder_config.size)
            yield i, {"image": _png(image), "label": picture.label, "caption": picture.caption, "map": _png(classes)}


def _png(pixels: np.ndarray) -> bytes:
    """The pixels as a PNG. TFDS would need TensorFlow to encode an array."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared TFDS data set."""

    name: str
    records: Sequence[dict[str, Any]]
    image_key: str
    label_key: str | None
    num_classes: int | None
    class_names: tuple[str, ...] | None
    caption_key: str | None = None
    map_key: str | None = None

    @property
    def fingerprint(self) -> str:
        """The data set's name, configuration, version and split, and its number of examples."""
        return f"{self.name}, {len(self)} examples"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name = f"record {index} of {self.name}"
        try:
            record = self.records[index]
        except Exception as error:  # whatever the readers of the format raise
            raise UserError(
                f"{name} can't be read ({_reason(error)}); delete the data set and prepare it again"
            ) from error
        example: Example = {"image": record[self.image_key], "name": name}
        if self.label_key is not None and self.num_classes is not None:
            label = int(record[self.label_key])
            if not 0 <= label < self.num_classes:
                raise UserError(f"{name} has label {label}, but a label must lie in [0, {self.num_classes})")
            example["label"] = label
        if self.caption_key is not None:
            caption = record[self.caption_key]
            if not isinstance(caption, bytes | str):  # COCO's five of them: {"text": [...]}
                caption = caption["text"][0]
            example["caption"] = caption.decode() if isinstance(caption, bytes) else str(caption)
        if self.map_key is not None:
            example["map"] = record[self.map_key]
        return example


def digits(split: str = "train", *, data_dir: str | None = None) -> TfdsSource:
    """scikit-learn's digits, written to data_dir (None: TFDS's default) on first use; no network."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        _prepared(SklearnDigits.name, data_dir)  # a quarter of a second is not worth three progress bars
    return tfds_source(SklearnDigits.name, split, data_dir=data_dir)


def drawn_shapes(
    split: str = "train", *, size: int = 32, count: int = 20_000, data_dir: str | None = None
) -> TfdsSource:
    """count pictures of shapes of size x size, written to data_dir (None: TFDS's default) on first use; no network.

    Raises UserError for a size under 8 or a count under 1.
    """
    if size < 8 or count < 1:
        raise UserError(f"shapes need a size of at least 8 and a count of at least 1; got {size} and {count}")
    config = ShapesConfig(name=f"{size}_{count}", size=size, count=count)
    return tfds_source(DrawnShapes.name, split, data_dir=data_dir, config=config)


def tfds_source(
    name: str,
    split: str = "train",
    *,
    data_dir: str | None = None,
    image_key: str = "image",
    label_key: str | None = None,
    caption_key: str | None = None,
    config: tfds.core.BuilderConfig | None = None,
) -> TfdsSource:
    """A TFDS data set by name, downloaded and prepared on first use; label_key None takes "label" if that is a class.

    An example's caption is the text caption_key or, where None, "caption" or "text", or the first of COCO's "captions";
    its map is the image "map".
    Raises UserError for an unknown name, split or key, and for a data set that can't be prepared or read here.
    """
    return _of_builder(_prepared(name, data_dir, config), name, split, image_key, label_key, caption_key)


def tfds_folder(folder: str, split: str = "train", *, caption_key: str | None = None) -> TfdsSource:
    """The data set whose files and features.json TFDS wrote to a folder; raises UserError as `tfds_source` does."""
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS says what is wrong with a folder in many types
        raise UserError(f"{folder} can't be opened as a data set of TFDS: {_reason(error)}") from error
    return _of_builder(builder, builder.info.full_name, split, "image", None, caption_key)


def _of_builder(
    builder: tfds.core.DatasetBuilder,
    name: str,
    split: str,
    image_key: str,
    label_key: str | None,
    caption_key: str | None,
) -> TfdsSource:
    """The source of a prepared data set; name is for messages."""
    features = builder.info.features
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    classes = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if image_key not in images:
        raise UserError(f"TFDS data set {name!r} has no image {image_key!r}; its images are {images or 'none'}")
    if label_key is None and "label" in classes:
        label_key = "label"
    if label_key is not None and label_key not in classes:
        raise UserError(
            f"TFDS data set {name!r} has no class label {label_key!r}; its class labels are {classes or 'none'}"
        )
    try:
        builder.info.splits[split]  # a slice such as train[:90%] is one too
    except (KeyError, ValueError):
        raise UserError(
            f"TFDS data set {name!r} has no split {split!r}; choose from {', '.join(builder.info.splits)}"
        ) from None
    try:
        records = builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding() for key in images})
    except NotImplementedError:
        raise UserError(
            f"TFDS data set {name!r} lies in {builder.data_dir} as {builder.info.file_format.value} files, "
            f"which can't be read without TensorFlow; prepare it with --file_format={_FORMAT} in another data_dir"
        ) from None
    label = features[label_key] if label_key is not None else None
    return TfdsSource(
        name=f"{builder.info.full_name} {split}",
        records=records,
        image_key=image_key,
        label_key=label_key,
        num_classes=label.num_classes if label else None,
        class_names=tuple(label.names) if label else None,
        caption_key=_caption_key(name, features, caption_key),
        map_key="map" if "map" in images else None,
    )


def _caption_key(name: str, features: tfds.features.FeaturesDict, chosen: str | None) -> str | None:
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    several = features["captions"] if "captions" in features else None  # noqa: SIM401 (it has no `get`)
    if isinstance(several, tfds.features.Sequence) and isinstance(several.feature, tfds.features.FeaturesDict):
        texts += ["captions"] if "text" in several.feature else []
    if chosen is not None and chosen not in texts:
        raise UserError(f"TFDS data set {name!r} has no text {chosen!r}; its texts are {', '.join(texts) or 'none'}")
    usual = (key for key in ("caption", "text", "captions") if key in texts)
    return next(usual, None) if chosen is None else chosen


def _prepared(
    name: str, data_dir: str | None, config: tfds.core.BuilderConfig | None = None
) -> tfds.core.DatasetBuilder:
    """The builder of a data set whose files are on disk, after downloading and preparing them where they are not."""
    chosen = {} if config is None else {"config": config}  # a name with a configuration in it allows no other, nor None
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")  # TFDS reads it only when it is imported
    try:
        builder = tfds.builder(name, data_dir=data_dir, **chosen)
        if builder.is_prepared():
            return builder
        builder = tfds.builder(name, data_dir=data_dir, **chosen, file_format=_FORMAT)
    except tfds.core.DatasetNotFoundError:
        close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
        raise UserError(
            f"TFDS has no data set {name!r}, and there are no files of one in {data_dir or 'its default data_dir'}; "
            + (f"did you mean {' or '.join(close)}?" if close else "tfds.list_builders() lists the names")
        ) from None
    except Exception as error:  # TFDS says what is wrong with a name in many types
        raise UserError(f"TFDS data set {name!r} can't be opened: {_reason(error)}") from error
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:
        # TFDS writes to a folder of its own and renames it: a process that lost the race finds the winner's files.
        if not builder.is_prepared():
            raise UserError(_unprepared(name, builder.data_dir, error)) from error
    if not builder.is_prepared():
        raise UserError(
            f"{builder.data_dir} holds something else than a whole TFDS data set; delete it and start again"
        )
    return tfds.builder(name, data_dir=data_dir, **chosen)


def _unprepared(name: str, data_dir: str, error: Exception) -> str:
    missing = re.search(r"No module named '([^'.]+)", str(error))  # TFDS wraps the ImportError that knew the name
    if missing and missing[1] == "tensorflow":
        return (
            f"TFDS needs TensorFlow to prepare {name!r}; where that is installed, run "
            f"`tfds build {name} --file_format={_FORMAT}`, and set data_dir to the folder that it wrote to"
        )
    if missing:
        return f"TFDS needs the package {missing[1]} to prepare {name!r}; install it"
    return (
        f"TFDS could not download or prepare {name!r} in {data_dir} ({_reason(error)}); check the network and the disk"
    )


def _reason(error: Exception) -> str:
    """The message on one line; the longest of TFDS list hundreds of names."""
    return " ".join(str(error).split())[:300] or type(error).__name__
