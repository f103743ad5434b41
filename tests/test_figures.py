"""The figures of the pages are those of the committed files that they came from, as printed.

Tables are read from the pages cell by cell; a cell that was changed by hand, or a file that was
replaced without its page, is a failure here. `EXPERIMENTS` are the sections of
`docs/experiments.md` that have figures; its others are words.
"""

import json
import re
import runpy
import statistics
from pathlib import Path

import pytest

from posemodel.config.flags import parse_train
from posemodel.reproduce.tables import TABLES, of_preset

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
# The pages that `posemodel.reproduce` wrote; a run that stands in several of them is in each.
WRITTEN = ["table1", "table2", "table3", "table4", "appendix-e", "128px/table1"]
PAGES = [ROOT / "README.md", RESULTS / "README.md",
         *(page for page in sorted(DOCS.rglob("*.md"))
           if page not in [DOCS / "tables" / f"{name}.md" for name in WRITTEN])]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def tables(page: Path) -> list[tuple[str, list[list[str]]]]:
    """(heading that it stands under, rows with the head first) of every table of a page."""
    found, heading, inside = [], "", False
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not inside:
            found.append((heading, [cells]))
            inside = True
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1][1].append(cells)
    return found


def table(page: Path, heading: str, head: str | None = None) -> list[list[str]]:
    """The one table under a heading (whose head has this cell): its rows, the head first."""
    (rows,) = (rows for under, rows in tables(page)
               if under == heading and (head is None or head in rows[0]))
    return rows


# --- the tables of the paper ----------------------------------------------------------------------

MEASURES = {"l1 at 32": "l1_32", "l1": "l1", "SSIM": "ssim", "LPIPS-Alex": "lpips_alex",
            "LPIPS-VGG": "lpips_vgg", "flow error, px": "epe", "within 3 px": "within_3px",
            "made up pixels, l1": "invented", "visibility AUC, affine": "auc_affine",
            "visibility AUC, cycle": "auc_cycle", "visibility AUC, correlation": "auc_correlation",
            "refined l1": "refined_l1", "refined SSIM": "refined_ssim",
            "refined LPIPS-Alex": "refined_lpips_alex", "refined LPIPS-VGG": "refined_lpips_vgg"}


def mean(values: list[float]) -> str:
    """A mean over the seeds ± the deviation of single runs; nothing of no values."""
    if not values:
        return ""
    centre = statistics.fmean(values)
    digits = 1 if centre >= 100 else 2 if centre >= 2 else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{centre:.{digits}f}{spread}"


def compared(verdict: dict | None) -> str:
    if verdict is None:
        return ""
    digits = 2 if abs(verdict["difference"]) >= 1 else 3
    low, at, high = (f"{verdict[key]:+.{digits}f}" for key in ("low", "difference", "high"))
    return f"{at} [{low}, {high}] {verdict['says']}"


def against(cell: dict) -> dict:
    """The comparisons of a cell, also of a page from before there was another reference."""
    return cell["against_reference" if "against_reference" in cell else "against_ours"]


def cell_of(measured: dict, title: str) -> str:
    """What stands in the column `title`, of a cell of the file."""
    if title == "steps":
        return str(measured["runs"][0]["steps"]) if measured["runs"] else ""
    if title.startswith("*paper: "):
        value = measured["paper"].get(MEASURES[title.strip("*").removeprefix("paper: ")])
        return "" if value is None else f"*{value:g}*"
    return mean(measured["values"].get(MEASURES[title.rstrip(" ↑↓")], []))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("heading", ["The warped image", "The flow and the refined image"])
def test_tables_of_the_paper(name, heading):
    measured = {cell["label"]: cell for cell in read(DOCS / "tables" / f"{name}.json")["cells"]}
    head, *rows = table(DOCS / "tables" / f"{name}.md", heading)
    assert [row[0] for row in rows] == list(measured)
    for label, *cells in rows:
        assert cells == [cell_of(measured[label], title) for title in head[1:]], label


@pytest.mark.parametrize("name", WRITTEN)
def test_comparisons_with_ours(name):
    about = read(DOCS / "tables" / f"{name}.json")
    measured = {cell["label"]: against(cell) for cell in about["cells"]}
    labels = {cell["key"]: cell["label"] for cell in about["cells"] if "key" in cell}
    reference = labels.get(about.get("reference"), "ours")
    pairs = about["protocol"]["pairs"]
    head, *rows = table(DOCS / "tables" / f"{name}.md", f"Against {reference}, over {pairs} pairs")
    assert [row[0] for row in rows] == [label for label, verdicts in measured.items() if verdicts]
    whose = "ours" if reference == "ours" else "reference"
    for label, *cells in rows:
        verdicts = [measured[label].get(MEASURES[title]) for title in head[1:]]
        assert cells == [compared(verdict).replace("ours", whose) for verdict in verdicts], label


@pytest.mark.parametrize("name", ["table1", "table3", "table4", "128px/table1"])
def test_orders_of_the_paper(name):
    measured = {cell["label"]: cell for cell in read(DOCS / "tables" / f"{name}.json")["cells"]}
    for label, title, said, here, holds in table(DOCS / "tables" / f"{name}.md",
                                                 "The paper's orders")[1:]:
        measure = MEASURES[title]
        higher = measure == "ssim"
        behind = measured[label]["paper"][measure] < measured["ours"]["paper"][measure]
        assert said == ("ours better" if behind == higher else "ours worse")
        assert here == against(measured[label])[measure]["says"]
        assert holds == {said: "holds", "not shown": "not shown"}.get(here, "does not hold")


def test_what_the_page_of_tables_says_of_table_1():
    """In words, what stands on the table's own page in numbers."""
    cells = {cell["label"]: cell for cell in read(DOCS / "tables" / "table1.json")["cells"]}
    head, *rows = table(DOCS / "tables" / "README.md", "Table 1: ours against each", "ours against")
    assert [row[0] for row in rows] == [label for label in cells if against(cells[label])]
    for label, *words in rows:
        for title, word in zip(head[1:], words, strict=True):
            verdict = against(cells[label]).get(MEASURES[title])
            assert word == ("" if verdict is None else verdict["says"].removeprefix("ours ")), \
                (label, title)


def test_what_speaks_against_ours_and_for_it_in_table_1():
    text = squeezed((DOCS / "tables" / "README.md").read_text())
    cells = {cell["label"]: cell for cell in read(DOCS / "tables" / "table1.json")["cells"]}

    def of(label: str, measure: str) -> str:
        return f"{statistics.fmean(cells[label]['values'][measure]):.2f}"

    def steps(label: str) -> int:
        return cells[label]["runs"][0]["steps"]

    def says(label: str, *measures: str) -> set[str]:
        return {against(cells[label])[measure]["says"] for measure in measures}

    joints, stride, without = "FOMM, joint loss", "ours, stride 4", "ours, no joint loss"
    assert (f"FOMM's has {steps('FOMM')} steps and ours {steps('ours')}: the finished l1 "
            f"of FOMM is {of('FOMM', 'refined_l1')}, with our loss on joints "
            f"{of(joints, 'refined_l1')}, and ours {of('ours', 'refined_l1')}.") in text
    assert (f"{of(joints, 'epe')} pixels of error against {of('ours', 'epe')}, and the better "
            "finished LPIPS-Alex;") in text
    assert (f"a stride of 4, which has {steps(stride)} steps, is finished best of all by its "
            f"l1, {of(stride, 'refined_l1')}, and warped worse.") in text
    assert (f"l1 {of('ours', 'l1')}, where TPSMM's is {of('TPSMM, joint loss', 'l1')} with it and "
            f"{of('TPSMM', 'l1')} without.") in text
    assert says("FOMM", "refined_l1") == says(stride, "refined_l1") == {"ours worse"}
    assert says(joints, "epe", "refined_l1", "refined_lpips_alex") == {"ours worse"}
    assert says(stride, "l1", "ssim", "lpips_alex", "lpips_vgg") == {"ours better"}
    assert says("TPSMM, joint loss", "lpips_alex", "lpips_vgg", "refined_l1", "refined_ssim",
                "refined_lpips_alex", "refined_lpips_vgg") == {"not shown"}
    assert says(without, "epe", "lpips_alex") == {"ours better"}
    assert says(without, "l1", "ssim", "lpips_vgg") == {"not shown"}
    rivals = [label for label in cells if not label.startswith("ours") and label != "copy"]
    assert set.union(*(says(label, "l1", "ssim") for label in rivals)) == {"ours better"}
    assert set.union(*(says(label, "epe") for label in rivals if label != joints)) == {
        "ours better"}
    least = min(statistics.fmean(cell["values"]["refined_l1"]) for cell in cells.values()
                if cell["values"].get("refined_l1"))
    assert f"{least:.2f}" == of(stride, "refined_l1")


def test_what_the_page_of_tables_says_of_table_4():
    text = squeezed((DOCS / "tables" / "README.md").read_text())
    cells = read(DOCS / "tables" / "table4.json")["cells"]
    ours, without = ({key: statistics.fmean(values) for key, values in cell["values"].items()}
                     for cell in cells[:2])
    error, within = (without[key] / ours[key] - 1 for key in ("epe", "within_3px"))
    assert (f"costs {100 * error:.0f} % in flow error, {-100 * within:.0f} % of the pixels within "
            f"3, and what is made up is off by {without['invented'] - ours['invented']:.1f} more."
            ) in text
    assert f"(l1 from {ours['l1']:.2f} to {without['l1']:.2f})" in text
    says = {name: verdict["says"] for name, verdict in cells[1]["against_reference"].items()}
    assert {says[name] for name in ("l1", "ssim", "lpips_alex")} == {"ours worse"}
    assert {says[name] for name in ("epe", "invented", "refined_lpips_vgg")} == {"ours better"}
    assert {says[name] for name in ("lpips_vgg", "refined_l1", "refined_ssim", "refined_lpips_alex")
            } == {"not shown"}


def test_what_the_page_of_tables_says_of_table_3():
    text = squeezed((DOCS / "tables" / "README.md").read_text())
    cells = {cell["key"]: cell for cell in read(DOCS / "tables" / "table3.json")["cells"]}

    def of(key: str, measure: str) -> str:
        return f"{statistics.fmean(cells[key]['values'][measure]):.2f}"

    paper = cells["no-refine"]["paper"]["l1"], cells["ours"]["paper"]["l1"]
    assert (f"l1 {of('no-refine', 'l1')}, against {of('warped-0', 'l1')} of a flow that only R's "
            f"image trains, where the paper prints {paper[0]} against {paper[1]}.") in text
    assert (f"{of('ours', 'epe')} pixels of error with it and {of('warped-0', 'epe')} without."
            ) in text
    assert (f"with one that does not, the warped l1 is {of('blind', 'l1')} in the place of "
            f"{of('ours', 'l1')}.") in text
    assert (f"({of('warped-0', 'epe')} pixels against {of('no-refine', 'epe')}), and so is what is "
            f"made up (l1 {of('warped-0', 'invented')} against {of('no-refine', 'invented')}); "
            f"refined, the image has an l1 of {of('warped-0', 'refined_l1')}, warped without R "
            f"{of('no-refine', 'l1')}.") in text
    assert (f"(l1 {of('ours', 'refined_l1')}, with an R that does not see the pose "
            f"{of('blind', 'refined_l1')})") in text
    for measure in ("l1", "ssim", "lpips_alex", "lpips_vgg", "l1_32"):
        assert cells["no-refine"]["against_reference"][measure]["says"] == "ours worse"
    for key, measure in (("ours", "epe"), ("no-refine", "epe"), ("no-refine", "invented"),
                         ("blind", "refined_l1")):
        assert cells[key]["against_reference"][measure]["says"] == "ours better"
    every = [value for key in ("ours", "blind") for value in cells[key]["values"]["l1"]]
    assert min(every[:3]) > max(every[3:])


def test_what_the_page_of_tables_says_of_table_2():
    content = read(DOCS / "tables" / "table2.json")
    cells = {cell["key"]: cell for cell in content["cells"]}

    def of(key: str, measure: str) -> str:
        return f"{statistics.fmean(cells[key]['values'][measure]):.2f}"

    page = squeezed((DOCS / "tables" / "README.md").read_text())
    assert (f"an l1 of {of('depth-1', 'l1')} with one layer and of {of('ours', 'l1')} with six"
            in page)
    assert (f"refined l1 {of('depth-1', 'refined_l1')} against {of('ours', 'refined_l1')}. From "
            "two on nothing is shown." in page)
    other, = (cell for cell in read(DOCS / "tables" / "table4.json")["cells"]
              if cell["key"] == "ours")
    assert (f"\"ours\" of Tables 3 and 4, whose warped l1 there is "
            f"{statistics.fmean(other['values']['l1']):.2f}" in page)
    assert content["protocol"]["precision"] == "float32" and content["seeds"] == 3
    for key, cell in cells.items():
        if key in ("ours", "copy"):
            continue
        shown = {measure for measure, verdict in cell["against_reference"].items()
                 if verdict["says"] != "not shown"}
        assert "refined_l1" in shown if key == "depth-1" else not shown
        assert all(measure.startswith("refined") for measure in shown)


def test_what_the_page_of_tables_says_of_appendix_e():
    cells = {cell["key"]: cell for cell in read(DOCS / "tables" / "appendix-e.json")["cells"]}

    def of(key: str, measure: str, digits: int) -> str:
        return f"{statistics.fmean(cells[key]['values'][measure]):.{digits}f}".removeprefix("0")

    alex = {key: of(key, "refined_lpips_alex", 3) for key in ("ours", "paper-refine", "skip")}
    assert (f"error is {of('skip', 'epe', 2)} pixels with them and {of('paper-refine', 'epe', 2)} "
            f"without; LPIPS-Alex of the finished image is {alex['skip']} and "
            f"{alex['paper-refine']}. Our R, which sees the target's limbs besides, leaves the "
            f"worse warped image, l1 {of('ours', 'l1', 2)} against {of('paper-refine', 'l1', 2)} "
            f"under the paper's, and finishes it far better, refined l1 "
            f"{of('ours', 'refined_l1', 2)} against {of('paper-refine', 'refined_l1', 2)}, "
            f"LPIPS-Alex {alex['ours']} against {alex['paper-refine']}; nothing is shown of "
            f"another flow."
            ) in squeezed((DOCS / "tables" / "README.md").read_text())
    skip, ours = (cells[key]["against_reference"] for key in ("skip", "ours"))
    assert {verdict["says"] for verdict in skip.values()} == {"not shown"}
    assert ours["l1"]["says"] == "ours better"                 # the reference is the paper's R
    assert ours["epe"]["says"] == "not shown" and ours["refined_l1"]["says"] == "ours worse"


def squeezed(text: str) -> str:
    return " ".join(text.split())


# --- the default run ------------------------------------------------------------------------------


def test_the_default_run():
    row = read(DOCS / "quick.json")

    def part(new: str, old: str) -> list[str]:
        return [f"{row[old]:.2f}", f"{row[new]:.2f}", f"{100 * row[new] / row[old]:.0f} %"]

    assert table(ROOT / "README.md", "Results")[1:] == [
        ["warped image, l1 on 0..255", *part("warped_l1", "copy_l1")],
        ["refined image, l1 on 0..255", *part("refined_l1", "copy_l1")],
        ["flow error on visible pixels, pixels", *part("epe_visible", "epe_zero")],
        ["refined image, SSIM", f"{row['ssim_copy']:.3f}", f"{row['ssim']:.3f}", ""]]


def test_the_default_run_by_turn():
    parts = read(DOCS / "quick.json")["by_turn"]
    assert table(DOCS / "results.md", "The default run", "body turns by")[1:] == [
        [f"{turn} degrees", str(row["pairs"]),
         *(f"{100 * row[new] / row[old]:.0f} %"
           for new, old in (("warped_l1", "copy_l1"), ("refined_l1", "copy_l1"),
                            ("epe_visible", "epe_zero")))] for turn, row in parts.items()]


def test_the_shipped_model():
    row, text = read(DOCS / "mannequin-128.json"), squeezed((DOCS / "guide.md").read_text())
    assert row["split"] == "test" and f"{row['pairs']} test people who face anywhere" in text
    labels = {"l1 on 0..255": ("l1", 2), "LPIPS-Alex": ("lpips_alex", 3),
              "LPIPS-VGG": ("lpips_vgg", 3)}
    expected = [[label, *(f"{row[f'{image}_{key}']:.{digits}f}"
                          for image in ("copy", "warped", "refined"))]
                for label, (key, digits) in labels.items()]
    expected += [["SSIM", *(f"{row[key]:.3f}" for key in ("ssim_copy", "ssim_warped", "ssim"))],
                 ["background off by more than 16", *(
                     f"{100 * row[f'{image}_background_off']:.1f} %"
                     for image in ("copy", "warped", "refined"))]]
    assert table(DOCS / "guide.md", "From a photograph to another pose")[1:] == expected
    assert f"off by {row['epe_visible']:.2f} pixels, no motion by {row['epe_zero']:.2f}" \
        in text


def test_the_shipped_model_before_white():
    row = read(DOCS / "mannequin-128-white.json")
    assert row["step"] == 0 and row["pairs"] == 256 and row["split"] == "validation"
    assert (f"refined l1 {row['refined_l1']:.2f}, LPIPS-Alex {row['refined_lpips_alex']:.3f} of "
            f"{row['warped_lpips_alex']:.3f} warped, flow error {row['epe_visible']:.2f} pixels") \
        in squeezed((DOCS / "guide.md").read_text())


def as_printed(bench: str, content: dict) -> list[list[str]]:
    """The rows of a table as a file of benchmarks prints it."""
    lines = runpy.run_path(str(ROOT / "benchmarks" / bench))["table"](content).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


def of_film(runs: list[dict], measure: str, digits: int = 1, when: str = "after") -> str:
    return f"{statistics.fmean(run[when][measure] for run in runs):.{digits}f}"


def test_a_real_person():
    """As `film_bench.py --read` prints it."""
    content = read(DOCS / "film.json")
    rows, page = content["rows"], squeezed((DOCS / "photographs.md").read_text())
    assert table(DOCS / "photographs.md", "How good it is") == as_printed("film_bench.py", content)
    assert content["minutes"] == 4 and {len(runs) for runs in rows.values()} == {3}
    everything = [run for runs in rows.values() for run in runs]
    assert {run["after"]["pairs"] for run in everything} == {48}
    assert {run["after"]["split"] for run in everything} == {"test"}
    assert all(run["after"]["holes"].startswith("what the camera sees there") for run in everything)
    # "Better in every seed, by all four measures".
    for column in ("l1", "person_l1", "lpips_alex", "lpips_vgg"):
        ours, *others = ([run["after"][f"refined_{column}"] for run in runs]
                         for runs in rows.values())
        assert all(max(ours) < min(other) for other in others)
    unchanged = rows["ours"][0]["before"]
    for name, runs in rows.items():
        for run in runs * (name != "ours"):
            assert unchanged["refined_l1"] < run["after"]["refined_l1"]
    assert (f"MRAA from nothing {of_film(rows['mraa'], 'refined_l1')}, ours from nothing "
            f"{of_film(rows['ours anew'], 'refined_l1')}") in page


def test_a_real_person_of_a_bare_photograph():
    """The table of before other frames said what is behind the person."""
    now, before = (read(DOCS / f"{name}.json")["rows"] for name in ("film", "film-filled"))
    told = [run["before"] for run in before["ours"]]
    assert told[0]["holes"].startswith("its surroundings continued")
    assert (f"the unchanged model's l1 was {told[0]['refined_l1']:.1f}, the person's "
            f"{told[0]['refined_person_l1']:.1f}, LPIPS-Alex {told[0]['refined_lpips_alex']:.3f}"
            ) in squeezed((DOCS / "photographs.md").read_text())
    for method in now:
        for measure in ("refined_l1", "refined_person_l1", "refined_lpips_alex"):
            assert float(of_film(now[method], measure, 4)) < before[method][0]["after"][measure]


def test_a_real_person_from_mannequins():
    content = read(DOCS / "film-mannequins.json")
    section = "Started from mannequins"
    head, _, *rows = as_printed("film_bench.py", content)  # copying stands in the table above
    assert table(DOCS / "photographs.md", section) == [head, *rows]
    assert (content["minutes"], content["mannequin_minutes"]) == (4, 6)
    assert {len(runs) for runs in content["rows"].values()} == {1}
    nothing = read(DOCS / "film.json")["rows"]
    (ours,), (mraa,) = content["rows"].values()
    for run, name in ((ours, "ours anew"), (mraa, "mraa")):
        assert abs(run["after"]["refined_l1"]
                   - float(of_film(nothing[name], "refined_l1", 4))) < 0.15
    for net in ("alex", "vgg"):
        assert ours["after"][f"refined_lpips_{net}"] < min(
            run["after"][f"refined_lpips_{net}"] for run in nothing["ours anew"])


def test_a_real_person_with_left_taken_for_right():
    page = squeezed((DOCS / "photographs.md").read_text())
    wrong, = (clip for clip in read(DOCS / "film.json")["clips"] if clip["exchanged"])
    assert (wrong["exchanged"], wrong["frames"], wrong["jumps"]) == (26, 100, 2)
    assert "took left for right in 26 of 100 frames" in page and "two more frames" in page
    run, = read(DOCS / "film-as-found.json")["rows"]["ours"]
    before = run["before"]
    assert (f"the unchanged model's l1 was {before['refined_l1']:.1f}, the person's "
            f"{before['refined_person_l1']:.1f}, LPIPS-Alex {before['refined_lpips_alex']:.3f}") \
        in page


def test_what_fills_the_hole_behind_a_person():
    """As `hole_bench.py --read` prints it."""
    content = read(DOCS / "holes.json")
    assert table(DOCS / "photographs.md", "The hole behind the person") \
        == as_printed("hole_bench.py", content)
    assert f"{content['pictures']} frames of the four films, at {content['size']} pixels" \
        in squeezed((DOCS / "photographs.md").read_text())
    rows = content["rows"]
    assert rows["continued, the default"]["lpips"] == min(row["lpips"] for row in rows.values())


def test_how_near_one_flow_can_come():
    """As `bound_bench.py --read` prints it."""
    content, section = read(DOCS / "bounds.json"), "How near one flow can come"
    assert table(DOCS / "experiments.md", section) == as_printed("bound_bench.py", content)
    assert content["split"] == "test" and content["background"] == "white"
    assert f"{content['pairs']} test people at {content['size'][0]} pixels before white" \
        in squeezed((DOCS / "experiments.md").read_text())
    rows = content["rows"]
    truth, ours = rows["the true flow, the true background"], rows["refined"]
    assert 0.45 < truth["l1"] / ours["l1"] < 0.6                        # half of it
    assert truth["lpips"] / ours["lpips"] < 0.6
    assert abs(rows["the target, moved by 1 pixels"]["off"] / ours["off"] - 1) < 0.05
    assert 0.6 < ours["off_apart"] / rows["warped"]["off_apart"] < 0.7  # a third of it is gone


def test_visibility_in_the_default_run():
    row = read(DOCS / "quick.json")
    assert [cells[1] for cells in table(DOCS / "results.md", "The default run", "AUC")[1:]] \
        == [f"{row[f'visibility_auc_{score}']:.3f}".removeprefix("0")
            for score in ("affine", "cycle", "correlation", "peak")]


#: Section of docs/experiments.md -> its file, and its rows by the variant of
#: benchmarks/experiments.py.
EXPERIMENTS = {
    "A first layer of 1 x 1": ("experiments.json", {
        "3 x 3": "head-3", "1 x 1": "default", "1 x 1, 420 steps": "default+steps-420"}),
    "A refinement that corrects the warped image": ("experiments.json", {
        "of the paper's form": "refine-paper", "of the presets": "default"}),
    "A refinement that sees the pose": ("experiments-fill.json", {
        "sees the warp alone": "refine-detail", "sees the limbs, too": "default"}),
    "A match continued to where there is none": ("experiments-fill.json", {
        "the match alone": "flow-matching", "continued": "default"}),
    "When the affine task has its turn": ("experiments-tasks.json", {
        "as the presets have it": "default", "the affine task in every step": "both-tasks"})}


@pytest.mark.parametrize("section", EXPERIMENTS)
def test_experiments(section):
    name, labels = EXPERIMENTS[section]
    rows = read(DOCS / name)["rows"]
    columns = runpy.run_path(str(ROOT / "benchmarks" / "experiments.py"))["COLUMNS"]
    head, *found = table(DOCS / "experiments.md", section)
    assert [row[0] for row in found] == list(labels)
    for label, *cells in found:
        seeds = [row["evaluation"] for row in rows if row["variant"] == labels[label]]
        assert len(seeds) == 3
        for title, cell in zip(head[1:], cells, strict=True):
            key, digits = columns[title]
            values = [seed[key] for seed in seeds]
            assert cell == (f"{statistics.fmean(values):.{digits}f} ± "
                            f"{statistics.stdev(values):.{digits}f}"), (label, title)


def test_rates_and_strides_and_what_was_chosen_by_them(capsys):
    """As `experiments.py --read` prints it; each method of Table 1 has the rate that did best."""
    bench = runpy.run_path(str(ROOT / "benchmarks" / "experiments.py"))
    rows = read(DOCS / "rates.json")["rows"]
    bench["show"](rows)
    printed = [[cell.strip() for cell in line.split("|")[1:-1]]
               for line in capsys.readouterr().out.splitlines()]
    section = "Rates and strides, the same trials for every method"
    assert table(DOCS / "experiments.md", section) == [printed[0], *printed[2:]]
    cells = {cell.key: cell for cell in of_preset(TABLES["table1"], "quick").cells}
    for method in ("fomm", "mraa", "tpsmm", "gfla32", "gfla64"):
        best = min((row for row in rows if row["variant"].split("+")[0] == method),
                   key=lambda row: row["evaluation"]["warped_l1"])
        tried = parse_train(best["command"].split()[3:]).config
        chosen = parse_train(list(cells[method].flags)).config
        assert (chosen.optim.lr, chosen.model.flow_stride, chosen.loss.reconstruction) == (
            tried.optim.lr, tried.model.flow_stride, tried.loss.reconstruction), method


def test_variants_of_the_experiments():
    """What the page names can be trained: every variant in its tables and commands exists."""
    flags_of = runpy.run_path(str(ROOT / "benchmarks" / "experiments.py"))["flags_of"]
    named = [name for _, (head, *rows) in tables(DOCS / "experiments.md") if "variants" in head
             for row in rows for name in re.findall(r"`([^`]+)`", row[head.index("variants")])]
    assert len(named) > 20
    assert all(flags_of(name, 320) for name in named)


def test_sections_of_the_experiments_without_a_file_have_no_figures():
    for heading, (head, *rows) in tables(DOCS / "experiments.md"):
        if "variants" in head:
            assert not re.findall(r"\d*\.\d+|%", str([row[2] for row in rows])), heading


# --- the operators --------------------------------------------------------------------------------


def benchmark_row(name: str, op: str, form: str, mode: str) -> dict:
    """A row of a benchmark's file; of `flow_sample` the one of an image, which comes first."""
    return next(row for row in read(RESULTS / f"{name}.json")["rows"]
                if (row["op"], row["form"], row["mode"]) == (op, form, mode))


def modes(name: str) -> tuple[str, str]:
    first, second = dict.fromkeys(row["mode"] for row in read(RESULTS / f"{name}.json")["rows"])
    return first, second


def test_the_operators():
    name = "epyc-zen3-2cpu"
    head, *rows = table(DOCS / "results.md", "The operators")
    assert len(rows) == 6
    for label, *cells in rows[:-1]:
        for cell, mode in zip(cells, modes(name), strict=True):
            row = benchmark_row(name, label.strip("`"), "cpp", mode)
            digits = 0 if row["ms"] >= 10 else 1
            assert cell == (f"{row['ms']:.{digits}f}, {row['eager_ratio']:.1f} x, "
                            f"{row['compile_ratio']:.1f} x"), (label, mode)
    assert rows[-1][1:] == [
        f"{benchmark_row(name, 'guided_correlation_conv2d', 'conv alone', mode)['ms']:.0f}"
        for mode in modes(name)]


def test_the_operators_with_avx_512():
    name = "xeon-avx512-2cpu"
    ours, eager = (benchmark_row(name, "correlation_4d", form, modes(name)[1])["ms"]
                   for form in ("cpp", "eager"))
    assert f"{ours:.0f} ms against {eager:.0f}" in squeezed((DOCS / "results.md").read_text())
    assert_rows(name, "With AVX-512")
    floors = [f"{benchmark_row(name, op, 'cpp', mode)['floor_ms']:.0f}" for op in (
        "guided_correlation", "guided_correlation_conv2d") for mode in modes(name)]
    assert ("is {} and {} ms for `guided_correlation`, {} and {} for the convolution"
            ).format(*floors) in squeezed((DOCS / "kernels.md").read_text())


def test_the_operators_without_a_fresh_result():
    name = "xeon-amx-2cpu-read-out"
    assert_rows(name, "A result in memory that is there")
    fresh, there = (benchmark_row(name, "guided_correlation", form, modes(name)[0])["ms"]
                    for form in ("cpp", "cpp, out="))
    assert (f"forward of `guided_correlation` takes {fresh:.1f} ms, with `out=` {there:.1f}"
            ) in squeezed((DOCS / "kernels.md").read_text())


def assert_rows(name: str, heading: str) -> None:
    """The rows under a heading of the kernel notebook are those of the file."""
    for label, *cells, memory in table(DOCS / "kernels.md", heading)[1:]:
        found = [benchmark_row(name, re.match(r"`(\w+)`", label).group(1), "cpp", mode)
                 for mode in modes(name)]
        assert cells == [f"{row['ms']:.0f}, {row['eager_ratio']:.1f}, {row['compile_ratio']:.1f}"
                         for row in found], label
        assert memory == ", ".join(f"{row['extra_mib']:.0f}" for row in found), label


def test_bars_of_the_errors():
    bars = runpy.run_path(str(ROOT / "tests" / "kernels" / "kernel_helpers.py"))["TOLERANCE"]
    assert {dtype: (float(value), float(gradients)) for dtype, value, gradients in
            table(DOCS / "precision.md", "Precision", "bar: value")[1:]} \
        == {str(dtype).removeprefix("torch."): bar for dtype, bar in bars.items()}


def test_memory_of_the_operators():
    """Of `flow_sample` those with 256 channels at the grid's size, which come last in the file."""
    name = "epyc-zen3-2cpu"
    rows = {(row["op"], row["form"], row["mode"]): row["peak_mib"]
            for row in read(RESULTS / f"{name}.json")["rows"]}
    for label, *cells in table(DOCS / "precision.md", "Memory", "MiB")[1:]:
        op = label.strip("`")
        assert cells == [" / ".join(f"{rows[op, form, mode]:.0f}" for mode in modes(name))
                         for form in ("cpp", "reference")], op


# --- training steps -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epyc-zen3-2cpu", "xeon-avx512-2cpu"])
def test_training_steps(name):
    text = squeezed((RESULTS / "README.md").read_text())
    ours, eager = read(RESULTS / f"{name}-paper-step.json")["rows"]
    seconds, gib = ([f"{measure(row):.1f}" for row in (ours, eager)] for measure in (
        lambda row: (row["warping_forward_ms"] + row["warping_backward_ms"]) / 1000,
        lambda row: row["warping_peak_mib"] / 1024))
    step = [f"{row['ms'] / 1000:.1f}" for row in (ours, eager)]
    if name.startswith("epyc"):
        assert (f"takes {step[0]} s where the same model with eager operators takes {step[1]}, "
                f"{ours['eager_ratio']:.2f} times as long; the warping network alone {seconds[0]} "
                f"s and {seconds[1]}, and {gib[0]} GiB of memory where eager takes {gib[1]}."
                ) in text
        assert f"{100 * ours['shares']['convolutions']:.0f} % are convolutions" in text
        assert f"at {ours['convolution_percent']:.0f} % of the rate" in text
    else:
        assert (f"a step takes {step[0]} s and with eager operators {step[1]}, "
                f"{ours['eager_ratio']:.1f} times as long; the warping network {seconds[0]} s and "
                f"{seconds[1]}, {gib[0]} and {gib[1]} GiB") in text


def test_training_steps_of_quick():
    ours, eager, other, fomm = read(RESULTS / "xeon-amx-2cpu-quick-step.json")["rows"]
    assert (ours["head_kernel"], other["head_kernel"], fomm["form"]) == (1, 3, "fomm")
    assert (f"FOMM's step takes {fomm['ms']:.0f} ms and ours {ours['ms']:.0f}, "
            f"{fomm['ours_ratio']:.1f} times as long; with a first layer of 3 x 3 in C_l ours "
            f"takes {other['ms']:.0f}, with eager operators {eager['ms']:.0f}."
            ) in squeezed((RESULTS / "README.md").read_text())
    assert f"A step of 1 x 1 takes {ours['ms']:.0f} ms, one of 3 x 3 {other['ms']:.0f}" \
        in squeezed((DOCS / "experiments.md").read_text())
    assert 420 * ours["ms"] == pytest.approx(320 * other["ms"], rel=0.01)


def test_training_steps_of_quick_in_bf16_vectors():
    ours, eager, other, fomm, tpsmm = read(RESULTS / "epyc-zen4-2cpu-quick-step.json")["rows"]
    assert (ours["tasks"], other["head_kernel"], tpsmm["form"]) == ("lazy", 3, "tpsmm")
    assert (f"FOMM's step takes {fomm['ms']:.0f} ms, TPSMM's {tpsmm['ms']:.0f} and ours "
            f"{ours['ms']:.0f}, {fomm['ours_ratio']:.1f} and {tpsmm['ours_ratio']:.1f} times as "
            f"long; with a first layer of 3 x 3 in C_l ours takes {other['ms']:.0f}, with eager "
            f"operators {eager['ms']:.0f}.") in squeezed((RESULTS / "README.md").read_text())


def test_training_steps_of_quick_in_float32():
    ours, eager, other, *rivals = read(RESULTS / "epyc-zen3-2cpu-quick-step.json")["rows"]
    assert [row["form"] for row in rivals] == ["fomm", "mraa", "tpsmm", "gfla32"]
    times, ratios = ([f"{row[key]:.{digits}f}" for row in rivals]
                     for key, digits in (("ms", 0), ("ours_ratio", 1)))
    assert ("FOMM's step takes {} ms, MRAA's {}, TPSMM's {}, GFLA32's {}".format(*times)
            + f" and ours {ours['ms']:.0f}, " + "{}, {}, {} and {} times as long;".format(*ratios)
            + f" with a first layer of 3 x 3 in C_l ours takes {other['ms']:.0f}, with eager "
              f"operators {eager['ms']:.0f}.") in squeezed((RESULTS / "README.md").read_text())


def test_two_read_outs_in_one_sweep():
    rows = {(row["op"], row["form"], row["dtype"], row["mode"]): row["ms"]
            for row in read(RESULTS / "epyc-zen4-2cpu-read-out.json")["rows"]}
    modes = ("forward", "forward+backward")

    def ratio(one, other):
        return f"{rows[one] / rows[other]:.2f}".removeprefix("0")

    name = "guided_readout_pair"
    pair = [ratio((name, "cpp", dtype, mode), (name, "two calls", dtype, mode))
            for dtype in ("float32", "bfloat16") for mode in modes]
    name = "guided_readout"
    narrow = [ratio((name, "cpp", "bfloat16", mode), (name, "cpp", "float32", mode))
              for mode in modes]
    text = squeezed((DOCS / "kernels.md").read_text())
    assert "{} and {} in float32, {} and {} in bfloat16.".format(*pair) in text
    assert "Measured there, against float32 features: {} and {}.".format(*narrow) in text


# --- one place ------------------------------------------------------------------------------------


def test_no_row_stands_twice():
    """Four figures in a row, the first ones of two tables of the pages written by hand."""
    seen: dict[tuple[str, ...], str] = {}
    for page in PAGES:
        for heading, rows in tables(page):
            for row in rows[1:]:
                numbers = tuple(re.findall(r"\d*\.\d+", " ".join(row)))[:4]
                if len(numbers) < 4:
                    continue
                here = f"{page.relative_to(ROOT)}, {heading}: {row}"
                assert numbers not in seen, (here, seen[numbers])
                seen[numbers] = here
