"""Table 6 of the paper: how often volunteers prefer the first method to each other one."""

import math
from collections import defaultdict
from statistics import fmean, median

from posemodel.evaluation.statistics import compare
from posemodel.runtime.errors import UserError
from posemodel.study.study import QUESTIONS, Study, latest, read_answers
from posemodel.study.trials import plan_trials

_Z = 1.959963984540054  # 95 %, two-sided
_FEW = 5  # volunteers; with fewer, an interval over volunteers means nothing

# What is at hand of the paper's Table 6, percent. Against which method, and to which question, is
# not recorded.
PAPER = {"pairs": 80, "volunteers": 6, "row": [78.9, 29.1]}
PAPER_NOTE = (
    "The paper ({pairs} pairs, {volunteers} volunteers): one row of its Table 6 is at hand, "
    "{row[0]} against {row[1]} percent, which add up to {sum:.1f} and not to 100. Its other rows "
    "are not at hand, so no number of the paper stands beside a row above."
).format(**PAPER, sum=sum(PAPER["row"]))


def wilson(preferred: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    Args:
        preferred: 0 .. count.
        count: at least 1.
    """
    share, spread = preferred / count, _Z * _Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(preferred: int, count: int) -> float:
    """Two-sided p of the hypothesis that both are chosen equally often (exact)."""
    tail = sum(math.comb(count, k) for k in range(max(preferred, count - preferred), count + 1))
    return min(1.0, float(2 * tail / 2**count))


def summarize(study: Study) -> dict:
    """Everything that the report says, as plain JSON values. Raises: `UserError`."""
    rows, damaged = read_answers(study.answers_path)
    owner = {name: (number, method) for number, pair in enumerate(study.pairs)
             for method, name in pair.results.items()}
    answers = list(latest(rows).values())
    strangers = [row for row in answers if row["chosen"] not in owner or row["other"] not in owner]
    if strangers:
        raise UserError(f"{study.answers_path}: {len(strangers)} answers are about pictures that "
                        "are not of this study")
    first, *others = study.methods
    votes = defaultdict(list)  # (other method, question) -> (volunteer, first one preferred)
    for row in answers:
        if not row["repeated"]:
            pair = {owner[row["chosen"]][1], owner[row["other"]][1]}
            (other,) = pair - {first}
            votes[other, row["question"]].append(
                (row["volunteer"], owner[row["chosen"]][1] == first))
    return {"method": first,
            "table": [{"against": other, "question": question, **_share(votes[other, question])}
                      for other in others for question in QUESTIONS],
            "volunteers": [_volunteer(study, name, answers, owner, first)
                           for name in sorted({row["volunteer"] for row in answers})],
            "volunteers_expected": study.volunteers, "pairs": len(study.pairs),
            "show": study.show, "damaged_lines": damaged, "paper": {**PAPER, "note": PAPER_NOTE}}


def report_text(summary: dict) -> str:
    """The summary for a terminal."""
    first = summary["method"]
    lines = [f"How often {first} is preferred (95 % Wilson intervals; p: exact sign test)", ""]
    if not summary["volunteers"]:
        return f"no answers yet: 0 of {summary['volunteers_expected']} volunteers are done"
    width = max(len(row["against"]) for row in summary["table"])
    for question, text in QUESTIONS.items():
        lines.append(text)
        for row in summary["table"]:
            if row["question"] == question:
                lines.append(f"  against {row['against']:<{width}}  {_told(row)}")
        lines.append("")
    lines.append("The intervals take answers as independent. Those of one volunteer are not quite; "
                 f"from {_FEW} volunteers on, a second interval draws volunteers as a whole.")
    lines += ["", _progress(summary), "",
              "volunteer                 done  prefers  left  consistent  seconds"]
    for row in summary["volunteers"]:
        alike = f"{row['repeated_alike']} of {row['repeated']}" if row["repeated"] else "-"
        prefers = "-" if row["prefers"] is None else f"{row['prefers']:.0%}"
        lines.append(f"{row['volunteer'][:24]:<24}  {row['done']:>4.0%}  {prefers:>7}  "
                     f"{row['left']:>4.0%}  {alike:>10}  {row['seconds']:>7.1f}")
    lines += ["", PAPER_NOTE]
    if summary["damaged_lines"]:
        lines += ["", f"warning: {summary['damaged_lines']} lines of answers.jsonl cannot be read "
                  "and were left out"]
    return "\n".join(lines)


def _progress(summary: dict) -> str:
    done = sum(row["done"] == 1 for row in summary["volunteers"])
    return (f"{done} of {summary['volunteers_expected']} volunteers are done ({summary['pairs']} "
            f"pairs; of runs, their {summary['show']} images)")


def _share(votes: list[tuple[str, bool]]) -> dict:
    count, preferred = len(votes), sum(choice for _, choice in votes)
    found = {"preferred": preferred, "count": count, **dict.fromkeys(
        ("share", "low", "high", "p", "low_by_volunteer", "high_by_volunteer"))}
    if count:
        found |= {"share": preferred / count, "p": sign_test(preferred, count)}
        found["low"], found["high"] = wilson(preferred, count)
    if len({volunteer for volunteer, _ in votes}) >= _FEW:
        names, choices = zip(*votes, strict=True)
        # The difference of the two shares lies in -1 .. 1.
        apart = compare([float(c) for c in choices], [float(not c) for c in choices], groups=names)
        for side in ("low", "high"):
            found[f"{side}_by_volunteer"] = (getattr(apart, side) + 1) / 2
    return found


def _volunteer(study: Study, name: str, answers: list[dict], owner: dict, first: str) -> dict:
    mine = [row for row in answers if row["volunteer"] == name]
    fresh = [row for row in mine if not row["repeated"]]
    total = len(QUESTIONS) * len(plan_trials(study, name))
    before = {(row["question"], frozenset((row["chosen"], row["other"]))): row["chosen"]
              for row in fresh}
    again = [before.get((row["question"], frozenset((row["chosen"], row["other"]))))
             == row["chosen"] for row in mine if row["repeated"]]
    return {"volunteer": name, "answers": len(mine), "done": len(mine) / total,
            "prefers": fmean(owner[row["chosen"]][1] == first for row in fresh) if fresh else None,
            "left": fmean(row["choice"] == "left" for row in mine),
            "repeated": len(again), "repeated_alike": sum(again),
            "seconds": median(row["seconds"] for row in mine)}


def _told(row: dict) -> str:
    if not row["count"]:
        return "no answers yet"
    text = (f"{row['share']:6.1%}  [{row['low']:.1%}, {row['high']:.1%}]  "
            f"{row['preferred']} of {row['count']}, p = {row['p']:.2g}")
    if row["low_by_volunteer"] is not None:
        text += (f"; over volunteers [{row['low_by_volunteer']:.1%}, "
                 f"{row['high_by_volunteer']:.1%}]")
    return text
