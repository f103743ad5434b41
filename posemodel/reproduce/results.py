"""From runs to a table: means and spread over seeds, comparisons over pairs, files to read."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from posemodel.config.sections import Config
from posemodel.evaluation import records, statistics
from posemodel.reproduce import tables
from posemodel.reproduce.runs import Result
from posemodel.reproduce.tables import MEASURES, Cell, Measure, Table
from posemodel.runtime.errors import UserError

# Chance of calling any difference of a whole table one where there is none.
_ALPHA = 0.05

BETTER, WORSE, OPEN = "ours better", "ours worse", "not shown"


@dataclass(frozen=True)
class Verdict:
    """One cell against the table's reference, mostly ours, in one measure."""

    comparison: statistics.Comparison
    """the cell minus the reference over the same pairs, each the mean over its seeds"""
    significant: bool
    """among all comparisons of the table"""
    seeds_apart: bool
    """whether every seed of one side lies on the same side of every seed of the other"""
    says: str
    """`BETTER`, `WORSE` or `OPEN`: what may be said of the reference"""


class TableNumbers:
    """The numbers of a table, and what may be concluded from them."""

    def __init__(self, name: str, table: Table, results: dict[str, list[Result]]):
        """
        Args:
            results: by the keys of all cells but "copy"; "ours" among them.

        Raises: `UserError` if the cells were not measured alike.
        """
        self.name, self.table, self.results = name, table, results
        self.protocol = _common(results)
        self.reference = next(cell for cell in table.cells if cell.key == table.reference)
        self.measures = {measure.name: measure for measure in MEASURES.values()
                         if self.values(self.reference, measure)}
        """those that these runs have"""
        compared = [(cell, measure) for cell in table.cells for measure in self.measures.values()
                    if cell != self.reference and self.columns(cell, measure)]
        people = results["ours"][0].pairs["person"]     # whose pairs share images
        comparisons = [statistics.compare(*(np.mean(self.columns(side, measure), axis=0)
                                            for side in (cell, self.reference)), groups=people)
                       for cell, measure in compared]
        rejected = statistics.rejected([each.p for each in comparisons], _ALPHA).tolist()
        self.verdicts = {
            (cell.key, measure.name): self._verdict(cell, measure, comparison, significant)
            for (cell, measure), comparison, significant in zip(compared, comparisons, rejected,
                                                                strict=True)}

    def values(self, cell: Cell, measure: Measure) -> list[float]:
        """One number for each seed; empty where there is none."""
        if measure.pooled and cell.key != "copy":
            values = [result.row.get(measure.pooled) for result in self.results[cell.key]]
        else:
            values = [records.mean(column) for column in self.columns(cell, measure)]
        return [] if None in values else values

    def columns(self, cell: Cell, measure: Measure) -> list[np.ndarray]:
        """The value of each pair, `[N]` for each seed; empty where there is none."""
        if cell.key == "copy":
            runs, name = self.results["ours"][:1], measure.copy
        else:
            runs, name = self.results[cell.key], measure.column
        return [run.pairs[name] for run in runs if name in run.pairs]

    def _verdict(self, cell: Cell, measure: Measure, comparison: statistics.Comparison,
                 significant: bool) -> Verdict:
        theirs, own = self.values(cell, measure), self.values(self.reference, measure)
        apart = max(theirs) < min(own) or max(own) < min(theirs)
        says = OPEN
        if apart and significant and comparison.low * comparison.high > 0:
            says = BETTER if (comparison.difference < 0) == measure.higher else WORSE
        return Verdict(comparison, significant, apart, says)

    # --- files --------------------------------------------------------------------------------

    def to_json(self, about: dict) -> str:
        """Everything, for programs."""
        cells = []
        for cell in self.table.cells:
            runs = [] if cell.key == "copy" else [
                {"run": str(result.run.path), "seed": result.run.config.seed,
                 "steps": result.run.config.steps,
                 "reconstruction_weights": result.run.read_environment().get(
                     "reconstruction_weights")} for result in self.results[cell.key]]
            values = {name: self.values(cell, measure) for name, measure in self.measures.items()}
            against = {name: {**asdict(verdict.comparison), "significant": verdict.significant,
                              "seeds_apart": verdict.seeds_apart, "says": verdict.says}
                       for (key, name), verdict in self.verdicts.items() if key == cell.key}
            cells.append({"key": cell.key, "label": cell.label, "preset": cell.preset,
                          "flags": cell.flags, "runs": runs, "values": values,
                          "paper": dict(cell.paper), "against_reference": against})
        return json.dumps({"table": self.name, **about, "reference": self.reference.key,
                           "level": _ALPHA, "protocol": self.protocol, "cells": cells},
                          indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line for each number."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["table", "cell", "measure", "seed", "value", "paper"])
        for cell in self.table.cells:
            for name, measure in self.measures.items():
                for seed, value in enumerate(self.values(cell, measure)):
                    writer.writerow([self.name, cell.key, name, seed, repr(value),
                                     cell.paper.get(name, "")])
        return text.getvalue()

    def to_markdown(self, about: dict) -> str:
        """The page for people."""
        pairs = len(self.results["ours"][0].pairs["pair"])
        parts = [f"# {self.table.title}", f"Made by `{about['command']}`.", self._made_of(about),
                 "## The warped image", self._grid(tables.IMAGE_MEASURES, paper=True)]
        if any(cell.paper for cell in self.table.cells):
            parts.append("Columns marked *paper* are what the paper prints, for DeepFashion at 256 "
                         "pixels: other data, another size, far longer training. Compare orders, "
                         "not values.")
        parts += [self.table.remark] if self.table.remark else []
        parts += ["## The flow and the refined image",
                  self._grid(tables.OTHER_MEASURES, paper=False),
                  f"## Against {self.reference.label}, over {pairs} pairs", self._comparisons(),
                  "## How each was trained", self._training(about)]
        orders = self._orders()
        parts += ["## The paper's orders", orders] if orders else []
        parts += ["## Pictures", f"![warped people]({self.name}.png)",
                  f"![learning curves]({self.name}-curves.png)"]
        return "\n\n".join(parts) + "\n"

    def _made_of(self, about: dict) -> str:
        protocol, seeds = self.protocol, len(self.results["ours"])
        budget = f"{about['minutes']:g} minutes of training" if about["minutes"] is not None \
            else f"{about['steps'] or 'as many as its own paper has'} steps"
        height, width = protocol["size"]
        commit, _, state = (protocol["commit"] or "unknown").partition("-")
        version = " ".join([commit[:10], state]).strip()
        absent = [measure.title for measure in tables.IMAGE_MEASURES
                  if measure.name not in self.measures]
        left_out = f" Left out, since their weights were not at hand: {', '.join(absent)}." \
            if absent else ""
        return (f"Preset `{about['preset']}` on {about['data']}, {budget} for each run, "
                f"{seeds} seed{'s' if seeds > 1 else ''}; {protocol['pairs']} {protocol['split']} "
                f"pairs under protocol `{protocol['name']}` ({height} x {width}, l1 of 255, "
                f"networks in {protocol['precision']}, version {version}).{left_out} Numbers are "
                "means over the seeds ± the standard deviation of single runs.")

    def _grid(self, measures: tuple[Measure, ...], paper: bool) -> str:
        cells = self.table.cells
        columns = [("method", [cell.label for cell in cells]),
                   ("steps", ["" if cell.key == "copy" else
                              str(self.results[cell.key][0].run.config.steps) for cell in cells])]
        columns += [(f"{measure.title} {'↑' if measure.higher else '↓'}",
                     [_shown(self.values(cell, measure)) for cell in cells])
                    for measure in measures if measure.name in self.measures]
        columns += [(f"*paper: {measure.title}*",
                     [f"*{cell.paper[measure.name]:g}*" if measure.name in cell.paper else ""
                      for cell in cells])
                    for measure in measures
                    if paper and any(measure.name in cell.paper for cell in cells)]
        heads, texts = zip(*columns, strict=True)
        return _markdown(heads, zip(*texts, strict=True))

    def _training(self, about: dict) -> str:
        """Loss, rate, grid, size and time of every cell."""
        pace, rows = about["seconds_per_step"], []
        for cell in self.table.trained:
            config = self.results[cell.key][0].run.config
            size = config.data.image_size
            rows.append([
                cell.label, f"`{' '.join(cell.flags)}`" if cell.flags else "",
                config.loss.reconstruction, f"{config.optim.lr:g}",
                str(config.model.stride(size)) if not config.model.flow.startswith("gfla") else "",
                str(config.steps), f"{pace[cell.key]:.3f}",
                f"{pace[cell.key] * config.steps:.0f}", f"{_parameters(config):,}"])
        heads = ["method", "flags", "loss", "rate", "stride", "steps", "s a step", "s",
                 "parameters"]
        threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
        return (f"{_markdown(heads, rows)}\n\nSeconds of a step: of a short run alone, on "
                f"{threads}; seconds: those times the steps, evaluations not counted. Parameters: "
                "of what estimates the flow, and R.")

    def _comparisons(self) -> str:
        names = [name for name in self.measures if any(name == other for _, other in self.verdicts)]
        own = self.reference.label == tables.OURS.label
        rows = [[cell.label, *(_compared(self.verdicts.get((cell.key, name)), own=own)
                               for name in names)]
                for cell in self.table.cells if cell != self.reference]
        seeds = len(self.results["ours"])
        of_pairs = ", of visibility the areas of single pairs" \
            if any(MEASURES[name].pooled for name in names) else ""
        whose, better = ("ours", "Ours") if own else ("the reference", "Reference")
        how = (f"The method minus {whose}, mean over pairs [95 % interval]{of_pairs}. *{better} "
               "better* or *worse* is said where a test of paired differences rejects that there "
               f"is none ({100 * _ALPHA:g} % for the whole table, by Holm), ")
        how += "and every seed of one lies on the same side of every seed of the other; else " \
               "the difference is *not shown*." if seeds > 1 else \
               "with **one seed** each, so another seed may say otherwise; else it is *not shown*."
        return f"{_markdown(['method', *(MEASURES[name].title for name in names)], rows)}\n\n{how}"

    def _orders(self) -> str:
        """What the paper says of each pair of numbers, and what was found here."""
        ours, rows = self.reference.paper, []
        for cell in self.table.cells:
            for name, value in cell.paper.items():
                verdict = self.verdicts.get((cell.key, name))
                if verdict is None or value == ours.get(name, value):
                    continue
                said = BETTER if (value < ours[name]) == MEASURES[name].higher else WORSE
                holds = {said: "holds", OPEN: "not shown"}.get(verdict.says, "does not hold")
                rows.append([cell.label, MEASURES[name].title, said, verdict.says, holds])
        return _markdown(["method", "measure", "paper", "here", "the paper's order"], rows) \
            if rows else ""


def _common(results: dict[str, list[Result]]) -> dict:
    """The protocol that all cells were measured under. Raises: `UserError` if there are several, or
    the pairs are not the same."""
    first, *others = (result for seeds in results.values() for result in seeds)
    for other in others:
        names = f"{other.run.path} and {first.run.path}"
        if other.row["protocol"] != first.row["protocol"]:
            raise UserError(f"{names} were measured under different protocols or versions; the "
                            "same command again measures them anew")
        if not np.array_equal(other.pairs["pair"], first.pairs["pair"]):
            raise UserError(f"{names} were measured on different pairs: some have become "
                            "unreadable; check the data set")
    return first.row["protocol"]


def _shown(values: list[float]) -> str:
    """A mean and its spread, with as many digits as the mean deserves."""
    if not values:
        return ""
    spread = statistics.spread(values)
    return spread.text(digits=1 if spread.mean >= 100 else 2 if spread.mean >= 2 else 3)


def _compared(verdict: Verdict | None, *, own: bool) -> str:
    if verdict is None:
        return ""
    numbers = verdict.comparison
    digits = 2 if abs(numbers.difference) >= 1 else 3
    difference, low, high = (f"{number:+.{digits}f}" for number in
                             (numbers.difference, numbers.low, numbers.high))
    says = verdict.says if own else verdict.says.replace("ours", "reference")
    return f"{difference} [{low}, {high}] {says}"


def _parameters(config: Config) -> int:
    """Of the generator, W and R, that a configuration describes."""
    import torch

    from posemodel.build import build_generator

    with torch.device("meta"):
        net = build_generator(config.model, config.data.image_size)
    return sum(weight.numel() for weight in net.parameters())


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
