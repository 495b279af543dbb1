"""A survey of a data set for a first config, by its kind: images, sounds or plain arrays."""

from collections.abc import Mapping

from diffusion_jax.data.audio_folder import path_and_rate
from diffusion_jax.data.example import modality_of
from diffusion_jax.data.sources import CAPTION, open_source
from diffusion_jax.errors import UserError
from diffusion_jax.runs.new.array_survey import ArraySurvey
from diffusion_jax.runs.new.image_survey import ImageSurvey
from diffusion_jax.runs.new.sound_survey import SoundSurvey
from diffusion_jax.runs.new.survey import LabelledData, Survey

KINDS: Mapping[str, type[ImageSurvey] | type[SoundSurvey] | type[ArraySurvey]] = {
    "image": ImageSurvey,
    "audio": SoundSurvey,
    "array": ArraySurvey,
}
"""{modality: the survey of its data}."""

_ANY_RATE = 8000  # Hz, of sounds whose rate is still to be chosen: a survey reads the rates of their headers


def survey(source: str, caption: str = CAPTION, shape: tuple[int, ...] = ()) -> Survey:
    """Opens a data set, such as folder:PATH, and decodes some of its examples.

    shape is that of plain arrays, [*S, C], which says whether the last side of their file is one of channels; (): it is
    if it is at most 4. Raises UserError where there is no such data, none of its examples can be read, or they are of a
    kind that has no survey.
    """
    spec = source
    if source.startswith("audio:") and path_and_rate(source.removeprefix("audio:"))[1] is None:
        spec = f"{source}@{_ANY_RATE}"
    data = open_source(spec, caption=caption, needs=frozenset({"label"}), shape=shape)
    kind = modality_of(data).partition("(")[0]
    if kind not in KINDS:
        raise UserError(
            f"new looks at images, sounds and plain arrays, and {source} holds data of the modality {kind}; "
            "docs/data.md says how to write its config"
        )
    if shape and kind != "array":
        raise UserError(f"--shape is of plain arrays, and {source} holds {KINDS[kind].noun}, whose shape new chooses")
    noun, notes = KINDS[kind].noun, []
    try:
        both = open_source(spec, caption=caption, needs=frozenset({"label", "caption"}), shape=shape)
    except UserError as error:
        if "data.caption" in str(error) or caption != CAPTION:  # there is a table, with other columns
            notes.append(f"no captions: {error}")
        both = data
    if len(both) == 0:
        raise UserError(f"{source} holds no {noun}")
    left = len(data) - len(both)
    if left and len(both) < len(data) / 2:
        notes.append(
            f"{len(both):,} of {len(data):,} {noun} have a caption, too few to train on: captions are not used"
        )
        both = data
    elif left:
        notes.append(f"{left:,} {noun} without a caption are left out")
    return KINDS[kind].of(LabelledData(source, caption, both, tuple(notes)))
