"""The text files of the published data sets: pairs, and names of images.

Pairs file: `from,to`, the names of source and target. Names file: one in each line.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from posemodel.poses.annotations import read_lines, short, split_cells
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import write_aside

PAIR_COLUMNS = ("from", "to")


def read_pairs(path: Path, names: Sequence[str]) -> np.ndarray:
    """The pairs of a pairs file as `[P, 2]` int64 indices of source and target into `names`.

    A pair of an image with itself is a pair like any other; count them where it matters.

    Raises: `UserError` that names the file and the line, also for a name that is not in `names`.
    """
    lines = read_lines(path)
    header_line, header = lines[0] if lines else (1, "")
    if tuple(word.strip() for word in split_cells(header, ",")) != PAIR_COLUMNS:
        raise UserError(f"{path}, line {header_line}: expected the header "
                        f"{','.join(PAIR_COLUMNS)}, got {short(header)}")
    index = {name: number for number, name in enumerate(names)}
    ends: list[int] = []
    for number, line in lines[1:]:
        cells = split_cells(line, ",")
        if len(cells) != 2:
            raise UserError(f"{path}, line {number}: expected two names with a comma between them, "
                            f"got {short(line)}")
        for cell in cells:
            name = cell.strip()
            if name not in index:
                raise UserError(f"{path}, line {number}: {short(name)} has no row of joints; "
                                "the pairs and the annotations must be of one split")
            ends.append(index[name])
    return np.array(ends, np.int64).reshape(-1, 2)


def write_pairs(path: Path, names: Sequence[str], pairs: np.ndarray) -> None:
    """Write `[P, 2]` indices into `names` in the format of `read_pairs`."""
    lines = [",".join(PAIR_COLUMNS)]
    lines += [f"{names[source]},{names[target]}" for source, target in pairs.tolist()]
    write_aside(path, "".join(line + "\n" for line in lines))


def read_list(path: Path) -> list[str]:
    """The names in a `train.lst` or `test.lst`, one in each line."""
    return [line.strip().strip('"') for _, line in read_lines(path)]


def ordered_pairs(persons: Sequence[str], usable: np.ndarray) -> np.ndarray:
    """All ordered pairs of different usable images of one person, `[P, 2]` int64 indices.

    Persons come in the order of their first usable image, sources and targets in the order given.

    Args:
        persons: of each image, N of them.
        usable: `[N]` bool.
    """
    images: dict[str, list[int]] = {}
    for index in np.flatnonzero(usable).tolist():
        images.setdefault(persons[index], []).append(index)
    blocks = [np.empty((0, 2), np.int64)]
    for indices in images.values():
        block = np.stack(np.meshgrid(indices, indices, indexing="ij"), -1).reshape(-1, 2)
        blocks.append(block[block[:, 0] != block[:, 1]])
    return np.concatenate(blocks)
