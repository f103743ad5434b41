"""The registry of data-set layouts: a file for each published set, and all that is known of it.

A new one is a file here, its line in `LAYOUTS` and its name in `config.sections.ON_DISK`. Nothing
else asks for a set by its name: the code asks the layout.
"""

from posemodel.data.layouts.deepfashion import DEEPFASHION
from posemodel.data.layouts.film import FILM
from posemodel.data.layouts.layout import DatasetLayout
from posemodel.data.layouts.market import MARKET
from posemodel.runtime.errors import UserError

LAYOUTS: dict[str, DatasetLayout] = {layout.kind: layout
                                     for layout in (DEEPFASHION, MARKET, FILM)}
"""by `--data.kind`"""

PUBLISHED = tuple(kind for kind, layout in LAYOUTS.items() if layout.published)
"""the kinds that are downloaded, and that mannequins can take the place of"""

IMAGE_FOLDERS = tuple(dict.fromkeys(form for layout in LAYOUTS.values()
                                    for form in layout.image_folders))
"""names of image folders, `{}` is the split"""

FILE_WIDTHS = tuple(sorted({width for layout in LAYOUTS.values() if layout.border
                            for width in layout.widths}))
"""columns that the files of a set with white borders may have: without and with them"""


def layout_of(kind: str) -> DatasetLayout:
    """The layout of this name. Raises: `UserError` where there is none."""
    if kind not in LAYOUTS:
        raise UserError(f"no kind of data set is called {kind!r}; expected {' or '.join(LAYOUTS)}")
    return LAYOUTS[kind]
