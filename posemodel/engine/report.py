"""What a run tells its reader: the panels in the terminal, and report.html in the run folder."""

import base64
import statistics
from pathlib import Path

import jinja2

from posemodel.config.stored import flatten, to_dict
from posemodel.engine.run_folder import RunFolder
from posemodel.evaluation import tables
from posemodel.evaluation.tables import SCORES, evaluation_table
from posemodel.pictures.curves import is_number, line_chart, points
from posemodel.runtime.environment import Machine
from posemodel.runtime.files import write_aside

# Earlier sample sheets in the report: enough to see the course, few enough to mail.
_EARLIER_SAMPLES = 6
_PANEL_WIDTH = 76


def start_panel(run: RunFolder, machine: Machine, start_step: int, *, kernels: str,
                parameters: dict[str, int], loss_name: str, data: str) -> str:
    """What is about to happen, and why so, in at most 12 lines."""
    config, ours = run.config, run.config.model.flow == "ours"
    loss = f"{loss_name} on the refined image x {config.loss.reconstruction_weight:g}"
    for name, weight in (("on the warped one", config.loss.warped_weight),
                         ("affine", config.loss.affine_weight if ours else 0),
                         ("joint", config.loss.joint_weight),
                         (f"adversarial ({config.loss.adversarial})",
                          config.loss.adversarial_weight)):
        loss += f", {name} x {weight:g}" if weight else ""
    loss += "" if ours else f", and those of {config.model.flow}"
    lines = {"device": f"{machine.device} ({machine.device_reason})",
             "precision": f"{str(machine.dtype).removeprefix('torch.')} ({machine.dtype_reason})",
             "kernels": kernels, "data": data,
             "networks": ", ".join(f"{name} {count(size)}" for name, size in parameters.items()),
             "loss": loss, "run folder": f"{run.path} ({'continued' if run.resumed else 'new'})"}
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
    commands = [(f"python -m posemodel.evaluate {run.path}", "measure it on test pairs")]
    if run.config.preset == "quick" and run.config.data.generated:
        commands.append(("python -m posemodel.train overnight", "the same sizes, much longer"))
    return commands


def write_report(run_folder: str | Path) -> Path:
    """Write report.html, one file without references to any other, from what the folder has."""
    run = RunFolder.open_existing(run_folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=tables.number, percent=tables.percent)
    path = run.path / "report.html"
    write_aside(path, environment.get_template("report.html.j2").render(_content(run)))
    return path


def _content(run: RunFolder) -> dict:
    metrics, evaluations = run.read_metrics(), run.read_evaluations()
    last = evaluations[-1] if evaluations else {}
    pictures = sorted((run.path / "samples").glob("step_[0-9]*.png"))
    earlier = _spread(pictures[:-1], _EARLIER_SAMPLES)
    steps = [row["step"] for row in (*metrics, *evaluations) if is_number(row.get("step"))]
    return {"name": run.path.resolve().name, "config": run.config, "done": run.is_done,
            "step": max(steps, default=0), "last": last, "errors": tables.errors(last),
            "pairs": tables.kind_of_pairs(last), "ssim": tables.similarity(last),
            "perceptual": tables.perceptual(last),
            "not_measured": tables.not_measured(last), "scores": SCORES,
            "visibility": tables.visibility(last) if tables.of_mannequins(last) else {},
            "turns": [("all", last), *tables.by_turn(last).items()],
            "training_charts": _training_charts(metrics),
            "evaluation_charts": _evaluation_charts(evaluations), "speed": _speed(metrics),
            "sample": _picture(pictures[-1]) if pictures else None,
            "earlier": [_picture(path) for path in earlier],
            "settings": _texts(to_dict(run.config)),
            "environment": _texts(run.read_environment()), "command": run.last_command(),
            "next": next_commands(run)}


def _training_charts(metrics: list[dict]) -> list[tuple[str, str, list]]:
    """(title, SVG, legend) for each part of the loss that the run has."""
    titles = {"loss": "total, as minimised", "loss_reconstruction": "reconstruction, refined image",
              "loss_warped": "reconstruction, warped image", "loss_affine": "affine preserving",
              "loss_joint": "joints", "loss_adversarial": "adversarial",
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
        ("LPIPS-Alex", {f"{name}_lpips_alex": line for name, line in
                        (("warped", warped), ("refined", refined), ("copy", unmoved))}),
        ("visibility found, AUC",
         {f"visibility_auc_{score}": (score, f"s{index}") for index, score in enumerate(SCORES)})):
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


def _texts(values: dict) -> list[tuple[str, str]]:
    """Every value of nested tables, for people."""
    return [(name, " ".join(map(str, value)) or "none" if isinstance(value, list | tuple)
             else "none" if value in (None, "") else str(value))
            for name, value in flatten(values).items()]


def count(value: int) -> str:
    """A number of weights: 812, 34 k, 5.1 M."""
    if value < 1000:
        return str(value)
    return f"{value / 1000:.0f} k" if value < 999_500 else f"{value / 1e6:.1f} M"
