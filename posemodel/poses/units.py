"""What the numbers of a file of joints count in, and how they become pixels.

| units | x of the left edge | of the right edge | whose |
|---|---|---|---|
| `pixels` | 0 = centre of the first pixel | W - 1 = centre of the last | most |
| `fractions` | 0 | 1 | MediaPipe, vunet, tf-pose, Ultralytics, OpenPose's `--keypoint_scale 3` |
| `centred` | -1 | 1 | OpenPose's `--keypoint_scale 4`, networks' own coordinates |

The order of the joints is another thing: any layout may come in any units.
"""

import numpy as np

from posemodel.runtime.errors import UserError

UNITS = ("pixels", "fractions", "centred")

# In pixels, nobody is smaller than that; in the other units nobody reaches beyond it.
_SMALL = 2.0
# Fewer joints than these may lie anywhere.
_FEWEST = 3
# Estimators put few joints, and not far, beside the picture: this far left of it, or above, only
# where the middle of the picture is 0.
_BESIDE = -0.25


def check_units(units: str | None) -> None:
    """Raises: `UserError` for a name that is none of `UNITS`; None (guess) is fine."""
    if units is not None and units not in UNITS:
        raise UserError(f"no units are called {units!r}; units: {', '.join(UNITS)}")


def guess_units(xy: np.ndarray, usual: str, where: str) -> str:
    """The units of joints, where they show.

    Args:
        xy: `[N, 2]`, all joints of a file that are there.
        usual: what the makers of the file's layout count in.
        where: what messages call the file.

    Raises: `UserError` where it is open, with the ways to say it.
    """
    if not len(xy):
        return usual
    reach = np.abs(xy).max(axis=1)
    if np.median(reach) > _SMALL:
        return "pixels"
    if usual != "pixels":
        return usual
    advice = "give --units fractions (0 to 1), --units centred (-1 to 1) or --units pixels"
    if len(xy) < _FEWEST:
        joints = "the only joint lies" if len(xy) == 1 else f"all {len(xy)} joints lie"
        raise UserError(f"{where}: {joints} within two pixels, too few to tell whether these are "
                        f"pixels; {advice}")
    lowest, highest = float(xy.min()), float(xy.max())
    if lowest >= -0.02 and highest <= _SMALL:
        return "fractions"
    if highest <= 1.05 and -1.05 <= lowest < _BESIDE and (xy < 0).mean() > 0.2:
        return "centred"
    raise UserError(f"{where}: the joints lie between {lowest:.3g} and {highest:.3g}, which may be "
                    f"fractions of the image or count from its middle; {advice}")


def to_pixels(xy: np.ndarray, units: str, size: tuple[int, int], *, from_edge: bool) -> np.ndarray:
    """Coordinates `[..., 2]` (x, y) in pixels of a picture of `size` (H, W).

    Args:
        from_edge: fractions are counted from the edge of the picture, so that the centre of the
            first pixel is not 0 but 0.5 / W.
    """
    sides = np.array(size[::-1], np.float64)
    if units == "fractions":
        return xy * sides - (0.5 if from_edge else 0.0)
    return ((xy + 1) * sides - 1) / 2 if units == "centred" else xy


def require_within(xy: np.ndarray, units: str, where: str) -> None:
    """Raises: `UserError` for a joint that lies far outside of the picture in these units.

    Args:
        xy: `[N, 2]`, joints that are there.
    """
    if units == "pixels":
        return
    low, high, range_ = (-1, 2, "0 to 1") if units == "fractions" else (-3, 3, "-1 to 1")
    far = ((xy < low) | (xy > high)).any(axis=1)
    if far.any():
        x, y = xy[far][0]
        raise UserError(f"{where}: a joint lies at ({x:g}, {y:g}); expected {units}, {range_} "
                        "(--units says what else it is)")
