"""DeepFashion's In-shop benchmark in PATN's split, which the paper uses.

    fashion_data/
      train/  test/                            or train_highres (CFLD)
      fasion-resize-annotation-train.csv       "fashion" for "fasion" is found as well
      fasion-resize-pairs-train.csv
      train.lst                                and the same of test

The frame is 256 x 256 with 40 white columns left and right. PATN's images and annotations are those
of the 176 columns in between; names without "resize" belong to files with the borders.
"""

import re
from pathlib import Path

from PIL import Image

from posemodel.data.images import IMAGE_SUFFIXES
from posemodel.data.layouts.layout import SPLITS, DatasetLayout, generated_person
from posemodel.poses.annotations import short
from posemodel.runtime.errors import UserError

_VIEW = re.compile(r"(?P<number>\d\d)_(?P<kind>\d)_(?P<what>\w+)\.(?P<ending>\w+)")
_FLAT = re.compile(r"fash?ion(?P<person>(?:WO)?MEN\w+?id\d{8}\d\d)_\d[a-z]+\.\w+")
_CATEGORIES = ("MENShirts_Polos", "WOMENTees_Tanks", "MENPants", "WOMENDresses")


class _DeepFashion(DatasetLayout):
    kind = "deepfashion"
    title = "DeepFashion"
    where = ("images: https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html;"
             " annotations and lists: https://github.com/tengteng95/Pose-Transfer")
    preset = "paper"

    frame = (256, 256)
    border = 40
    background = "white"

    stems = ("fasion-resize", "fashion-resize", "fasion", "fashion")
    inner_word = "resize"
    image_folders = ("{}", "{}_highres")
    name_words = ("fashion", "fasion")
    # The small files need no resizing.
    archives = ("img.zip", "img_highres.zip")

    listed_images = True

    published = {"train": {"images": 48_674, "pairs": 101_966},
                 "test": {"images": 4_038, "pairs": 8_570}}
    other_splits = {
        ("test", 8_670):
            "the test pairs of Siarohin et al. (2018), an older split than PATN's 8,570: numbers "
            "on it do not compare with the paper's, and PATN's training set has people of it"}

    def fitted(self, picture: Image.Image) -> Image.Image:
        """As the benchmark made its small files: in the middle of a white page."""
        rows, columns = self.frame
        scale = min(rows / picture.height, columns / picture.width)
        size = (round(picture.width * scale), round(picture.height * scale))
        page = Image.new("RGB", (columns, rows), (255, 255, 255))
        page.paste(picture.resize(size, Image.Resampling.LANCZOS),
                   ((columns - size[0]) // 2, (rows - size[1]) // 2))
        return page

    def person(self, name: str) -> str:
        """Garment and outfit of a flattened name, the same for both spellings.

        `fashionWOMENTees_Tanksid0000783805_7additional.jpg` -> `WOMENTeesTanksid0000783805`:
        garment 00007838, outfit 05. Images of one garment in two outfits may show two people.
        """
        match = _FLAT.fullmatch(name)
        if match is None:
            raise UserError(f"{short(name)} is no flattened DeepFashion name, such as "
                            "fashionWOMENTees_Tanksid0000783805_7additional.jpg")
        return match["person"].replace("_", "")

    def key(self, name: str) -> str:
        return re.sub(r"^fash?ion", "", name).replace("_", "")

    def raw_files(self, raw: Path) -> dict[str, dict[str, Path]] | None:
        # The folders of the two sexes stand in `img` or `img_highres`, some folders deep.
        places = [raw, *(path for depth in ("*", "*/*", "*/*/*")
                         for path in sorted(raw.glob(depth)))]
        places = [path for path in places if (path / "WOMEN").is_dir() or (path / "MEN").is_dir()]
        if not places:
            return None
        place = min(places, key=lambda path: path.name != "img")
        files = {self.key(flatten_inshop(path.relative_to(place).as_posix())): path
                 for path in sorted(place.glob("*/*/*/*")) if path.suffix.lower() in IMAGE_SUFFIXES}
        return dict.fromkeys(SPLITS, files)

    def generated_names(self, split: str, index: int) -> tuple[str, str]:
        category = _CATEGORIES[index % len(_CATEGORIES)]
        stem = f"fashion{category}id{generated_person(split, index):08d}01"
        return f"{stem}_1front.jpg", f"{stem}_7additional.jpg"


def flatten_inshop(path: str) -> str:
    """The flattened name of an image of the In-shop benchmark.

    `WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg` becomes
    `fashionWOMENTees_Tanksid0000783805_7additional.jpg`, as PATN and later work spell it.

    Raises: `UserError` where the path is none of the benchmark.
    """
    parts = path.split("/")
    view = _VIEW.fullmatch(parts[-1])
    if len(parts) != 4 or view is None:
        raise UserError(f"{short(path)} is no path of the In-shop benchmark, such as "
                        "WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg")
    gender, category, garment, _ = parts
    garment = garment.replace("_", "")
    end = f"{view['kind']}{view['what'].replace('_', '')}.{view['ending']}"
    return f"fashion{gender}{category}{garment}{view['number']}_{end}"


DEEPFASHION = _DeepFashion()
