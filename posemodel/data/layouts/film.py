"""Films of people, as `python -m posemodel.data film` makes a data set of them.

    folder/
      train/  validation/  test/               one fixed square of each shot, 256 x 256
      train_masks/  ...                        the person in each, grey PNG
      plates/                                  what is behind the person of each shot
      film-annotation-train.csv
      film-pairs-train.csv                     and the same of validation and test
      film.json                                what was done with each clip

A pair is two frames of one shot. The last fifth of a shot is for testing, a twentieth before it for
validation, with a gap before each. The sources of the validation pairs are frames of the training
part, those of the test pairs frames of all that lies before the gap; both are copied under names of
their own. There is nothing published: each film is somebody's own.

A plate is made of the frames of the training part, by which anybody may learn: `dance_s0.png`, and
white in `dance_s0_known.png` where the person was elsewhere often enough. A shot whose camera does
not stand still has none.
"""

from pathlib import Path

from posemodel.data.layouts.layout import VALIDATION, DatasetLayout
from posemodel.poses.annotations import short
from posemodel.runtime.errors import UserError

SEEN = {"test": "source_", VALIDATION: "validation_source_"}
"""by split, the start of the name of an earlier frame in it"""


class _Film(DatasetLayout):
    kind = "film"
    title = "film"
    where = "python -m posemodel.data film CLIP --out DIR"
    preset = "person"

    frame = (256, 256)
    background = "still"
    masks = "{}_masks"
    plates = "plates"
    validation_by_time = True

    stems = ("film",)
    name_words = ("film",)
    archives = ()
    published = {}

    def person(self, name: str) -> str:
        """Clip and shot: `source_dance_s0_000012.jpg` -> `dance_s0`."""
        start = next((start for start in SEEN.values() if name.startswith(start)), "")
        shot, _, number = Path(name.removeprefix(start)).stem.rpartition("_")
        if not shot or not number.isdecimal():
            raise UserError(f"{short(name)} is no frame of a film, such as dance_s0_000012.jpg")
        return shot


FILM = _Film()
