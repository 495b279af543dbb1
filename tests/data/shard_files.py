"""The same pictures as a folder, Parquet, tar shards and array_record, for tests."""

import contextlib
import io
import itertools
import json
import tarfile
import tempfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

CLASSES = ("cat", "dog", "emu")
KINDS = ("parquet", "webdataset", "array_record")


def picture(i):
    """A 4 x 6 PNG of gray values from i on, none the mirror image of itself."""
    file = io.BytesIO()
    Image.fromarray((i + 10 * np.arange(24, dtype=np.uint8).reshape(4, 6) % 130).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(count, damaged=()):
    """(key, PNG, class, caption) of each of count pictures, in the order of a folder with a sub-folder a class."""
    for i in range(count):
        data = picture(i)
        name = CLASSES[i * len(CLASSES) // count]
        yield f"{i:04}", data[:40] if i in damaged else data, name, f"picture {i} of a {name}"


def write_folder(root, count, captions=True):
    for key, data, name, caption in rows(count):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{key}.png").write_bytes(data)
        if captions:
            (root / name / f"{key}.txt").write_text(caption)


def shards_of(count, shards, damaged=()):
    """rows, dealt to shards in turn of their order."""
    every = list(rows(count, damaged))
    bounds = np.linspace(0, count, shards + 1).astype(int)
    return [every[first:last] for first, last in itertools.pairwise(bounds)]


def features(**changes):
    """The metadata that Hugging Face's `datasets` writes."""
    found = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    } | changes
    return {b"huggingface": json.dumps({"info": {"features": found}}).encode()}


def table(some, metadata=None):
    labels = pa.array([CLASSES.index(name) for _, _, name, _ in some], pa.int64())
    image = pa.array(
        [{"bytes": data, "path": f"{key}.png"} for key, data, _, _ in some],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    found = pa.table({"image": image, "label": labels, "text": [caption for *_, caption in some]})
    return found.replace_schema_metadata(features() if metadata is None else metadata)


@contextlib.contextmanager
def new_file(path):
    with fsspec.open(str(path), "wb") as file:
        yield file


def write_parquet(root, count, shards=2, split="train", damaged=(), group=4):
    for i, some in enumerate(shards_of(count, shards, damaged)):
        with new_file(f"{root}/{split}-{i:05}-of-{shards:05}.parquet") as file:
            pq.write_table(table(some), file, row_group_size=group)


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_webdataset(root, count, shards=2, split="train", damaged=()):
    for i, some in enumerate(shards_of(count, shards, damaged)):
        with new_file(f"{root}/{split}-{i:05}.tar") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for key, data, name, caption in some:
                add(archive, f"{key}.png", data)
                add(archive, f"{key}.cls", name.encode())
                add(archive, f"{key}.txt", caption.encode())


def example(data, name, caption):
    """A serialized tf.train.Example."""
    made = tf_example_pb2.Example()
    made.features.feature["image"].bytes_list.value.append(data)
    made.features.feature["label"].int64_list.value.append(CLASSES.index(name))
    made.features.feature["text"].bytes_list.value.append(caption.encode())
    return made.SerializeToString()


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_array_record(root, count, shards=2, split="train", damaged=()):
    files, path = fsspec.core.url_to_fs(str(root))
    files.makedirs(path, exist_ok=True)

    for i, some in enumerate(shards_of(count, shards, damaged)):
        with tempfile.NamedTemporaryFile() as file:
            write_records(file.name, [example(*row[1:]) for row in some])
            files.put_file(file.name, f"{path}/data-{split}.array_record-{i:05}-of-{shards:05}")


WRITE = {"parquet": write_parquet, "webdataset": write_webdataset, "array_record": write_array_record}
