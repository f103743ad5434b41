"""The numbers of an evaluation as tables for the terminal."""

from dataclasses import dataclass

from posemodel.config.sections import GENERATED
from posemodel.pictures.curves import is_number

SCORES = ("affine", "cycle", "correlation", "peak")
"""of visibility, in the order in which they are best read"""
_NETS = {"alex": "Alex", "vgg": "VGG"}


@dataclass(frozen=True)
class Line:
    """One line of the result: a number, what it would be without the model, and what it means."""

    name: str
    value: float | None
    baseline: float | None
    unit: str
    meaning: str

    @property
    def share(self) -> float | None:
        """The value relative to doing nothing; below 1 is better for errors."""
        return self.value / self.baseline if is_number(self.value) and self.baseline else None


def errors(row: dict) -> list[Line]:
    """The main errors of an evaluation, in the order in which they are best read."""
    copy = row.get("copy_l1")
    lines = [Line("warped image, l1", row.get("warped_l1"), copy, "of 255",
                  "mean error of the source moved by the flow, against leaving it as it is"),
             Line("refined image, l1", row.get("refined_l1"), copy, "of 255",
                  "mean error of the finished image, against the source as it is")]
    if is_number(row.get("refined_person_l1")):
        lines.append(Line("refined person, l1", row["refined_person_l1"], row["copy_person_l1"],
                          "of 255", "mean error where the person is, against the source as it is"))
    if of_mannequins(row):
        lines.append(Line("flow error, visible", row.get("epe_visible"), row.get("epe_zero"), "px",
                          "mean distance from the true flow where the source shows the surface, "
                          "against no motion at all"))
    return lines


def similarity(row: dict) -> Line:
    """The SSIM of an evaluation; more of it is better."""
    return Line("refined image, SSIM", row.get("ssim"), row.get("ssim_copy"), "1: identical",
                "structural similarity with the target; 1 is identical")


def perceptual(row: dict) -> list[Line]:
    """The LPIPS of an evaluation, where it was measured; less of it is better."""
    return [Line(f"{name} image, LPIPS-{_NETS[net]}", row[f"{name}_lpips_{net}"],
                 row[f"copy_lpips_{net}"], "0: identical",
                 f"distance of the features of {network} (LPIPS), against the source as it is")
            for net, network in (("alex", "AlexNet"), ("vgg", "VGG-16"))
            for name in ("warped", "refined") if is_number(row.get(f"{name}_lpips_{net}"))]


def not_measured(row: dict) -> list[tuple[str, str]]:
    """The name of each LPIPS that an evaluation lacks, and why."""
    return [(f"LPIPS-{_NETS[net]}", record) for net, record in (row.get("lpips") or {}).items()
            if isinstance(record, str)]


def visibility(row: dict) -> dict[str, float | None]:
    """How well each of `SCORES` tells what the source shows: the area under its ROC curve."""
    return {score: row.get(f"visibility_auc_{score}") for score in SCORES}


def evaluation_table(row: dict) -> str:
    """The metrics of one evaluation as a table for the terminal, at most 76 wide."""
    pairs = f"{row['pairs']} {kind_of_pairs(row)}" if row.get("pairs") else kind_of_pairs(row)
    lines = [f"{pairs:<29}{'result':>9}{'unmoved':>10}{'ratio':>9}"]
    for line in errors(row):
        lines.append(f"{line.name + ', ' + line.unit:<29}{number(line.value):>9}"
                     f"{number(line.baseline):>10}{percent(line.share):>9}")
    ssim = similarity(row)
    lines.append(f"{ssim.name:<29}{number(ssim.value, 3):>9}{number(ssim.baseline, 3):>10}"
                 f"{'':>12}{ssim.unit}")
    lines += [f"{line.name:<29}{number(line.value, 3):>9}{number(line.baseline, 3):>10}"
              f"{percent(line.share):>9}   {line.unit}" for line in perceptual(row)]
    lines += [f"{name:<29}{why}" for name, why in not_measured(row)]
    if of_mannequins(row):
        areas = "  ".join(f"{score} {number(area)}" for score, area in visibility(row).items())
        lines.append(f"{'visible found, AUC':<20}{areas}")
    turns = by_turn(row)
    if turns:
        heads = "".join(f"{turn + ' deg':>13}" for turn in turns)
        lines += ["", f"{'ratio, by turn of the body':<29}" + heads]
        for line, *parts in zip(errors(row), *map(errors, turns.values()), strict=True):
            lines.append(f"  {line.name:<27}" + "".join(f"{percent(part.share):>13}"
                                                        for part in parts))
    return "\n".join(lines)


def protocol_tables(row: dict) -> str:
    """What the protocol measured, and of mannequins the parts of the body, at most 76 wide."""
    protocol = row["protocol"]
    title = f"protocol {protocol['name']}, {protocol['image']} image"
    lines = [f"{title:<38}{'result':>9}{'unmoved':>10}"]
    for name, value in row["measures"].items():
        lines.append(f"{name:<38}{number(value, 4):>9}"
                     f"{number(row['measures_copy'].get(name), 4):>10}")
    if row["flow"]:
        lines += ["", f"{'visible, or made up':<15}{'error, px':>12}{'within 3 px':>14}"
                      f"{'made up':>10}{'colour':>9}{'same part':>12}"]
        for name, part in (("body", row["flow"]["body"]), *row["flow"]["parts"].items()):
            lines.append(f"{name.replace('_', ' '):<15}{number(part['epe']):>12}"
                         f"{percent(part['within_3px']):>14}{percent(part['invented_share']):>10}"
                         f"{percent(part['invented_relative']):>9}"
                         f"{percent(part['invented_same_part']):>12}")
        lines.append("colour: error of made up pixels, 100 % = painted in the mean colour")
    return "\n".join(lines)


def of_mannequins(row: dict) -> bool:
    """Whether an evaluation was of mannequins, whose true flow and visibility are known."""
    return row.get("data", GENERATED) == GENERATED


def kind_of_pairs(row: dict) -> str:
    """What an evaluation was measured on; older ones do not say which split."""
    return f"{row.get('split', 'held-out')} pairs"


def by_turn(row: dict) -> dict[str, dict]:
    """The rows of the turns that have one."""
    return {turn: part for turn, part in (row.get("by_turn") or {}).items() if part}


def number(value, digits: int = 2) -> str:
    """A number for people; a dash where there is none."""
    return f"{value:.{digits}f}" if is_number(value) else "–"


def percent(value) -> str:
    """A share in percent; a dash where there is none."""
    return f"{100 * value:.0f} %" if is_number(value) else "–"
