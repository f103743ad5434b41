"""Films of people, as `python -m posemodel.data film` makes a data set of them.

    folder/
      train/  test/                            one fixed square of each shot, 256 x 256
      train_masks/  test_masks/                the person in each, grey PNG
      film-annotation-train.csv
      film-pairs-train.csv                     and the same of test
      film.json                                what was done with each clip

A pair is two frames of one shot. The last fifth of a shot is for testing, with a gap before it; the
sources of the test pairs are frames of the training part, copied under names of their own. There is
nothing published: each film is somebody's own.
"""

from pathlib import Path

from posemodel.data.layouts.layout import DatasetLayout
from posemodel.poses.annotations import short
from posemodel.runtime.errors import UserError

SEEN = "source_"
"""start of the name of a frame of the training part in the test split"""


class _Film(DatasetLayout):
    kind = "film"
    title = "film"
    where = "python -m posemodel.data film CLIP --out DIR"
    preset = "person"

    frame = (256, 256)
    background = "still"
    masks = "{}_masks"

    stems = ("film",)
    name_words = ("film",)
    archives = ()
    published = {}

    def person(self, name: str) -> str:
        """Clip and shot: `source_dance_s0_000012.jpg` -> `dance_s0`."""
        shot, _, number = Path(name.removeprefix(SEEN)).stem.rpartition("_")
        if not shot or not number.isdecimal():
            raise UserError(f"{short(name)} is no frame of a film, such as dance_s0_000012.jpg")
        return shot


FILM = _Film()
