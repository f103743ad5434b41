"""What a run tells its reader: the panels in the terminal, and report.html in the run folder."""

import base64
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import jinja2

from posemodel.config import Config, to_dict
from posemodel.engine.curves import line_chart, points
from posemodel.engine.run_folder import RunFolder
from posemodel.files import write_aside

# Earlier sample sheets in the report: enough to see the course, few enough to mail.
_EARLIER_SAMPLES = 6
_PANEL_WIDTH = 76


@dataclass
class Measure:
    """One line of the result: a number, what it would be without the model, and what it means."""

    name: str
    value: float | None
    baseline: float | None
    unit: str
    meaning: str

    @property
    def share(self) -> float | None:
        """The value relative to doing nothing; below 1 is better for errors."""
        return self.value / self.baseline if _real(self.value) and self.baseline else None


def measures(row: dict) -> list[Measure]:
    """The main numbers of an evaluation, in the order in which they are best read."""
    copy = row.get("copy_l1")
    found = [
        Measure("warped image, l1", row.get("warped_l1"), copy, "of 255",
                "mean error of the source moved by the flow, against leaving it as it is"),
        Measure("refined image, l1", row.get("refined_l1"), copy, "of 255",
                "mean error of the finished image, against the source as it is"),
    ]
    if _has_truth(row):
        found.append(Measure("flow error, visible", row.get("epe_visible"), row.get("epe_zero"),
                             "px", "mean distance from the true flow where the source shows the "
                             "surface, against no motion at all"))
    return found


def evaluation_table(row: dict) -> str:
    """The metrics of one evaluation as a table for the terminal, at most 76 wide."""
    pairs = f"{row['pairs']} held-out pairs" if row.get("pairs") else "held-out pairs"
    lines = [f"{pairs:<29}{'result':>9}{'unmoved':>10}{'ratio':>9}"]
    for measure in measures(row):
        lines.append(f"{measure.name + ', ' + measure.unit:<29}{number(measure.value):>9}"
                     f"{number(measure.baseline):>10}{percent(measure.share):>9}")
    lines.append(f"{'refined image, SSIM':<29}{number(row.get('ssim'), 3):>9}"
                 f"{number(row.get('ssim_copy'), 3):>10}{'':>9}   1: identical")
    if _has_truth(row):
        found = "  ".join(f"{name} {number(row.get(f'visibility_auc_{name}'), 2)}"
                          for name in ("affine", "cycle", "correlation", "peak"))
        lines.append(f"{'visible found, AUC':<20}{found}")
    turns = _by_turn(row)
    if turns:
        heads = "".join(f"{turn + ' deg':>13}" for turn in turns)
        lines += ["", f"{'ratio, by turn of the body':<29}" + heads]
        for index, measure in enumerate(measures(row)):
            shares = [measures(part)[index].share for part in turns.values()]
            lines.append(f"  {measure.name:<27}" + "".join(f"{percent(s):>13}" for s in shares))
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


def start_panel(config: Config, device, device_reason: str, precision, precision_reason: str,
                kernels: str, parameters: dict[str, int], run: RunFolder, start_step: int,
                loss_name: str, data: str) -> str:
    """What is about to happen, and why so, in at most 12 lines."""
    ours = config.model.flow == "ours"
    loss = f"{loss_name} on the refined image x {config.loss.reconstruction_weight:g}"
    for name, weight in (("on the warped one", config.loss.warped_weight),
                         ("affine", config.loss.affine_weight if ours else 0),
                         ("joint", config.loss.joint_weight if ours else 0),
                         (f"adversarial ({config.loss.adversarial})",
                          config.loss.adversarial_weight)):
        loss += f", {name} x {weight:g}" if weight else ""
    loss += "" if ours else f", and those of {config.model.flow}"
    lines = {
        "device": f"{device} ({device_reason})",
        "precision": f"{str(precision).removeprefix('torch.')} ({precision_reason})",
        "kernels": kernels,
        "data": data,
        "networks": ", ".join(f"{name} {count(size)}" for name, size in parameters.items()),
        "loss": loss,
        "run folder": f"{run.path} ({'continued' if run.resumed else 'new'})",
    }
    begin = f"training starts at step {start_step + 1} of {config.steps}" \
        if start_step < config.steps else f"all {config.steps} steps are done already"
    return "\n".join([f"preset {config.preset}, seed {config.seed}",
                      *(f"  {name:<12}{text}" for name, text in lines.items()), begin])


def end_panel(run: RunFolder, evaluation: dict) -> str:
    """What came out of a run, what it means, and what to do next."""
    step = evaluation.get("step")
    lines = [*evaluation_table(evaluation).splitlines(), "",
             "Below 100 %: better than showing the source unmoved. The further the body",
             "turns, the more of the target is cloth that the source never showed.", ""]
    if isinstance(step, int) and run.sample_path(step).exists():
        lines.append(f"samples  {run.sample_path(step)}")
    lines += [f"report   {run.path / 'report.html'}", "", "next",
              *(f"  {command}" for command, _ in next_commands(run))]
    width = max(_PANEL_WIDTH, *map(len, lines))
    title = f" {run.config.preset}: {step} steps "
    return "\n".join([f"╭─{title}{'─' * (width + 1 - len(title))}╮",
                      *(f"│ {line:<{width}} │" for line in lines), f"╰{'─' * (width + 2)}╯"])


def next_commands(run: RunFolder) -> list[tuple[str, str]]:
    """Commands worth trying after a run, and what each is for."""
    commands = [(f"python -m posemodel.evaluate {run.path}", "measure it again")]
    if run.config.preset == "quick" and run.config.data.kind == "mannequins":
        commands.append(("python -m posemodel.train overnight", "the same sizes, much longer"))
    return commands


def write_report(run_folder: str | Path) -> Path:
    """Write report.html, one file without references to any other, from what the folder has."""
    run = RunFolder.open_existing(run_folder)
    page = _environment().get_template("report.html.j2").render(_content(run))
    path = run.path / "report.html"
    write_aside(path, page)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=number, percent=percent)
    return environment


def _content(run: RunFolder) -> dict:
    metrics, evaluations = run.read_metrics(), run.read_evaluations()
    last = evaluations[-1] if evaluations else {}
    pictures = sorted((run.path / "samples").glob("step_[0-9]*.png"))
    earlier = _spread(pictures[:-1], _EARLIER_SAMPLES)
    steps = [row["step"] for row in (*metrics, *evaluations) if _real(row.get("step"))]
    return {
        "name": run.path.resolve().name,
        "config": run.config,
        "done": run.is_done,
        "step": max(steps, default=0),
        "last": last,
        "truth": _has_truth(last),
        "measures": measures(last) if last else [],
        "turns": [("all", last), *_by_turn(last).items()],
        "training_charts": _training_charts(metrics),
        "evaluation_charts": _evaluation_charts(evaluations),
        "speed": _speed(metrics),
        "sample": _picture(pictures[-1]) if pictures else None,
        "earlier": [_picture(path) for path in earlier],
        "settings": _flat(to_dict(run.config)),
        "environment": _flat(run.read_environment()),
        "command": run.last_command(),
        "next": next_commands(run),
    }


def _has_truth(row: dict) -> bool:
    """Whether an evaluation was of mannequins, whose true flow and visibility are known."""
    return row.get("data", "mannequins") == "mannequins"


def _by_turn(row: dict) -> dict[str, dict]:
    return {turn: part for turn, part in (row.get("by_turn") or {}).items() if part}


def _training_charts(metrics: list[dict]) -> list[tuple[str, str, list]]:
    """(title, SVG, legend) for each part of the loss that the run has."""
    titles = {"loss": "total, as minimised",
              "loss_reconstruction": "reconstruction, refined image",
              "loss_warped": "reconstruction, warped image",
              "loss_affine": "affine preserving",
              "loss_joint": "joints",
              "loss_adversarial": "adversarial",
              "loss_discriminator": "discriminator"}
    others = sorted({key for row in metrics for key in row if key.startswith("loss_")}
                    - titles.keys())
    titles |= {key: key.removeprefix("loss_").replace("_", " ") for key in others}
    charts = []
    for key, title in (titles | {"lr": "learning rate"}).items():
        chart = line_chart([(title, "s0", points(metrics, key))], smooth=key != "lr")
        if chart:
            charts.append((title, chart, []))
    return charts


def _evaluation_charts(evaluations: list[dict]) -> list[tuple[str, str, list]]:
    warped, refined, unmoved = ("warped", "s0"), ("refined", "s1"), ("source unmoved", "s2")
    charts = []
    for title, lines in (
        ("l1, 0 to 255", {"warped_l1": warped, "refined_l1": refined, "copy_l1": unmoved}),
        ("flow error where visible, px",
         {"epe_visible": ("flow", "s0"), "epe_zero": ("no motion", "s2")}),
        ("SSIM", {"ssim_warped": warped, "ssim": refined, "ssim_copy": unmoved}),
        ("visibility found, AUC",
         {"visibility_auc_affine": ("affine", "s0"), "visibility_auc_cycle": ("cycle", "s1"),
          "visibility_auc_correlation": ("correlation", "s2"),
          "visibility_auc_peak": ("peak", "s3")}),
    ):
        series = [(name, css, points(evaluations, key)) for key, (name, css) in lines.items()]
        chart = line_chart(series)
        if chart:
            charts.append((title, chart, [(css, name) for name, css, values in series if values]))
    return charts


def _speed(metrics: list[dict]) -> dict | None:
    """Medians, which a pause or a slow start does not move."""
    middle = {}
    for key in ("pairs_per_second", "step_ms", "data_ms"):
        values = [value for _, value in points(metrics, key)]
        if not values:
            return None
        middle[key] = statistics.median(values)
    return middle | {"data_share": middle["data_ms"] / max(middle["step_ms"], 1e-9)}


def _picture(path: Path) -> dict:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"step": int(path.stem.removeprefix("step_")), "source": f"data:image/png;base64,{data}"}


def _spread(items: list, most: int) -> list:
    """At most `most` of the items, evenly chosen, the first one among them."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            rows.append((prefix + name, " ".join(map(str, value)) or "none"))
        else:
            rows.append((prefix + name, "none" if value in (None, "") else str(value)))
    return rows


def _real(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value, digits: int = 2) -> str:
    """A number for people; a dash where there is none."""
    return f"{value:.{digits}f}" if _real(value) else "–"


def percent(value) -> str:
    """A share in percent; a dash where there is none."""
    return f"{100 * value:.0f} %" if _real(value) else "–"


def count(value: int) -> str:
    """A number of weights: 812, 34 k, 5.1 M."""
    if value < 1000:
        return str(value)
    return f"{value / 1000:.0f} k" if value < 999_500 else f"{value / 1e6:.1f} M"
