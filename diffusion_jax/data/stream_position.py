"""A place in the stream of examples, as a checkpoint stores it, and whether it is one of the present stream."""

from typing import NotRequired, TypedDict

from diffusion_jax.errors import UserError


class StreamPosition(TypedDict):
    """A place in the stream of examples of one data set, in one order."""

    position: int  # examples before the next batch
    source: str  # fingerprint of the data
    window: NotRequired[int]  # bytes of blocks that are shuffled together, of a source with blocks
    buckets: NotRequired[str]  # what the order depends on where batches have several sizes


def check(saved: StreamPosition, own: StreamPosition) -> None:
    """Raises UserError unless the saved position is of the same data, in the same order, as a position of one's own."""
    if saved["source"] != own["source"]:
        raise UserError(
            f"the saved position is one in the data {saved['source']!r}, but the source is {own['source']!r}; go on "
            "with the same data, or start a new run"
        )
    if saved.get("window") != own.get("window"):
        raise UserError(
            f"the saved position is one in the order of data.shuffle_bytes={saved.get('window')}, and it is "
            f"{own.get('window')}; set it back, or start a new run"
        )
    if saved.get("buckets") != own.get("buckets"):
        before, now = (each.get("buckets", "batches of one size") for each in (saved, own))
        raise UserError(
            f"the saved position is one of {before}, and training has {now}; set data.modality, data.shape, "
            "train.batch_size and the network back, or start a new run"
        )
