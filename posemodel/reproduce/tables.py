"""What the paper's tables consist of: the runs of each, the measures, the numbers that it prints.

Nothing heavy is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from posemodel.config.presets import FULL_SIZE


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of a table: one configuration, trained with each seed."""

    key: str
    """name of its run folders; what two tables call by one key is one run"""
    label: str
    flags: tuple[str, ...] = ()
    """of `posemodel.train`, what is changed in the preset"""
    small: tuple[str, ...] = ()
    """further flags where the preset is `quick`"""
    preset: str = ""
    """which it starts from in the place of the table's"""
    extends: bool = False
    """a row that has no sense where the preset is the paper's method itself"""
    pictured: bool = True
    """whether the table's picture has a column of it"""
    paper: Mapping[str, float] = field(default_factory=dict)
    """the numbers that the paper prints, by measure"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper."""

    title: str
    cells: tuple[Cell, ...]
    reference: str = "ours"
    """key of the cell that the others are compared with"""
    refined: bool = False
    """whether its picture also shows the refined images"""
    remark: str = ""
    """what has to be known about the paper's numbers"""

    @property
    def trained(self) -> list[Cell]:
        """The cells that have runs: all but the source as it is."""
        return [cell for cell in self.cells if cell.key != "copy"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column of a table."""

    name: str
    title: str
    column: str = ""
    """values of each pair; empty: there are none, and no comparison"""
    copy: str = ""
    """the same of the source as it is"""
    pooled: str = ""
    """key of evaluation.json, where the measure is pooled over pixels; its `column` has the same of
    single pairs, to compare by"""
    higher: bool = False
    """whether more is better"""


IMAGE_MEASURES = tuple(
    Measure(name=name, title=title, column=f"protocol_{name}", copy=f"copy_protocol_{name}",
            higher=name == "ssim")
    for name, title in (("l1_32", "l1 at 32"), ("l1", "l1"), ("ssim", "SSIM"),
                        ("lpips_alex", "LPIPS-Alex"), ("lpips_vgg", "LPIPS-VGG")))
"""of the warped image, as in the paper"""
OTHER_MEASURES = (
    Measure(name="epe", title="flow error, px", column="epe_visible", copy="epe_zero"),
    Measure(name="within_3px", title="within 3 px", column="within_3px", higher=True),
    Measure(name="invented", title="made up pixels, l1", column="invented_l1",
            copy="invented_l1_copy"),
    *(Measure(name=f"auc_{score}", title=f"visibility AUC, {score}",
              pooled=f"visibility_auc_{score}", column=f"pair_auc_{score}", higher=True)
      for score in ("affine", "cycle", "correlation")),
    Measure(name="refined_l1", title="refined l1", column="refined_protocol_l1"),
    Measure(name="refined_ssim", title="refined SSIM", column="refined_protocol_ssim", higher=True),
    *(Measure(name=f"refined_lpips_{net}", title=f"refined LPIPS-{title}",
              column=f"refined_protocol_lpips_{net}")
      for net, title in (("alex", "Alex"), ("vgg", "VGG"))))
"""of the flow, where it is known, and of the refined image"""
MEASURES = {measure.name: measure for measure in (*IMAGE_MEASURES, *OTHER_MEASURES)}


def _paper(l1_32: float | None, l1: float, ssim: float, alex: float, vgg: float) -> dict:
    row = {"l1_32": l1_32, "l1": l1, "ssim": ssim, "lpips_alex": alex, "lpips_vgg": vgg}
    return {name: value for name, value in row.items() if value is not None}


# Rates and strides that did best on validation pairs, of the same trials for every method
# (`docs/experiments.md`).
_TUNED = {"tpsmm": ("--optim.lr", "3e-3"), "gfla64": ("--optim.lr", "3e-3")}

PAPERS = ("paper-small", *FULL_SIZE)
"""presets that are the paper's method, nothing added"""
PAPERS_METHOD = "the paper's method"

OURS = Cell(key="ours", label="ours", paper=_paper(13.11, 15.52, 0.608, 0.39, 0.35))
COPY = Cell(key="copy", label="copy")
"""the source as it is: nothing is trained for it"""

_WITH = replace(OURS, paper=_paper(None, 15.52, 0.608, 0.39, 0.35))
_WITHOUT = _paper(None, 42.13, 0.504, 0.84, 0.92)
_SAME = "The paper prints the same numbers for \"without\" in its Tables 3 and 4."


_PAPERS_R = ("--model.refine", "paper", "--model.refine-downsamplings", "1")
_JOINTS = ("--loss.joint-weight", "1")


def _rival(key: str, label: str, *paper: float) -> tuple[Cell, Cell]:
    """A method, and the same with our loss on joints."""
    flags, small = ("--model.flow", key), _TUNED.get(key, ())
    return (Cell(key=key, label=label, flags=flags, small=small, paper=_paper(*paper)),
            Cell(key=f"{key}-joints", label=f"{label}, joint loss", flags=(*flags, *_JOINTS),
                 small=small, extends=True, pictured=False))


TABLES = {
    "table1": Table(
        title="Table 1: the flow against those of other methods",
        cells=(OURS,
               Cell(key="stride-4", label="ours, stride 4",
                    flags=("--model.flow-stride", "4"), extends=True, pictured=False),
               Cell(key="no-joints", label="ours, no joint loss",
                    flags=("--loss.joint-weight", "0"), extends=True),
               Cell(key="paper-small", label=PAPERS_METHOD, preset="paper-small",
                    extends=True, paper=OURS.paper),
               *_rival("fomm", "FOMM", 13.26, 15.97, 0.604, 0.47, 0.42),
               *_rival("mraa", "MRAA", 13.79, 15.58, 0.607, 0.42, 0.38),
               *_rival("tpsmm", "TPSMM", 13.66, 16.12, 0.617, 0.45, 0.41),
               *_rival("gfla32", "GFLA32", 14.18, 28.13, 0.554, 0.52, 0.49),
               *_rival("gfla64", "GFLA64", 14.01, 20.25, 0.615, 0.48, 0.44), COPY)),
    "table2": Table(
        title="Table 2: depth of the flow head C_l",
        cells=(*(Cell(key=f"depth-{depth}", label=f"depth {depth}",
                      flags=("--model.flow-depth", str(depth))) for depth in range(1, 6)),
               replace(OURS, label="depth 6", paper={}), COPY),
        remark="Of the paper's Table 2 only its range is known here, l1 from 33.31 to 15.52, so "
               "there is no column of its numbers."),
    "table3": Table(
        title="Table 3: without the refinement network",
        cells=(_WITH,
               Cell(key="warped-0", label="no loss on the warped image", extends=True,
                    flags=("--loss.warped-weight", "0"), paper=_WITH.paper),
               Cell(key="blind", label="R does not see the pose", extends=True,
                    flags=("--model.refine", "detail")),
               Cell(key="no-refine", label="without refinement", paper=_WITHOUT,
                    flags=("--model.refine", "none", "--loss.warped-weight", "0")), COPY),
        reference="warped-0", remark=_SAME),
    "table4": Table(
        title="Table 4: without the affine preserving loss",
        cells=(_WITH, Cell(key="no-affine", label="without affine loss",
                           flags=("--loss.affine-weight", "0"), paper=_WITHOUT), COPY),
        refined=True, remark=_SAME),
    "appendix-e": Table(
        title="Appendix E: with skip connections",
        cells=(replace(OURS, paper={}),
               Cell(key="paper-refine", label="the paper's R", small=_PAPERS_R, extends=True),
               Cell(key="skip", label="the paper's R with skip connections",
                    flags=("--model.skip",), small=_PAPERS_R), COPY),
        refined=True, reference="paper-refine",
        remark="The paper shows pictures here, and no numbers."),
}


def of_preset(table: Table, preset: str) -> Table:
    """The table as a preset has it: with what its cells need at the size of `quick`, and without
    the rows that are there already where the preset is the paper's method."""
    cells = table.cells
    if preset == "quick":
        cells = tuple(replace(cell, flags=(*cell.flags, *cell.small)) for cell in cells)
    if preset in PAPERS:
        cells = tuple(replace(cell, label=PAPERS_METHOD) if cell.label == OURS.label else cell
                      for cell in cells if not cell.extends)
    keys = {cell.key for cell in cells}
    return replace(table, cells=cells,
                   reference=table.reference if table.reference in keys else "ours")


def with_images(table: Table) -> Table:
    """The same with the other methods of Table 1 looking at the source image, too."""
    return replace(table, cells=tuple(
        replace(cell, key=f"{cell.key}-image", label=f"{cell.label}, sees the image",
                flags=(*cell.flags, "--model.motion-input", "keypoints+image"))
        if "--model.flow" in cell.flags else cell for cell in table.cells))
