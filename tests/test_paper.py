"""`docs/paper.md`: its numbers are those of the preset as it is built, its names are in the files
that it names, and each of its commands runs at small size.
"""

import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from posemodel.baselines import BASELINES
from posemodel.build import build_discriminator, build_generator
from posemodel.config.flags import parse_train
from posemodel.config.presets import PRESETS, paper
from posemodel.data.__main__ import main as data_main
from posemodel.data.layouts.deepfashion import DEEPFASHION
from posemodel.data.layouts.market import MARKET
from posemodel.data.lists import read_list
from posemodel.engine import objective
from posemodel.engine.schedule import Schedule
from posemodel.evaluate import main as evaluate_main
from posemodel.flow.affine import AffineRange
from posemodel.losses.affine import affine_loss
from posemodel.losses.perceptual import VGG19, PerceptualLoss
from posemodel.poses.joints import JOINTS
from posemodel.reid.__main__ import main as reid_main
from posemodel.reid.table import PAPER as TABLE_5
from posemodel.reproduce.__main__ import main as reproduce_main
from posemodel.reproduce.tables import TABLES
from posemodel.runtime.local_server import LocalServer
from posemodel.study.__main__ import main as study_main
from posemodel.train import main as train_main
from tests.small_datasets import change_joints, make_fashion, make_market, market_names
from tests.test_reproduce import OneByOne

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper.md"
TEXT = PAGE.read_text()
VERDICTS = ("faithful", "a reading", "different")


def rows() -> list[list[str]]:
    """The cells of every row of the page's tables."""
    return [[cell.strip() for cell in line.split("|")[1:-1]]
            for line in TEXT.splitlines() if line.startswith("|")]


def statement(name: str) -> str:
    """The one row whose first cell begins with this name in bold, as a line."""
    (row,) = (row for row in rows() if row[0].startswith(f"**{name}"))
    return " | ".join(row)


def block() -> list[str]:
    """The commands of the page, one a line."""
    (text,) = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.startswith("#")]


# --- what the page says ---------------------------------------------------------------------------


def test_every_statement_has_its_place_and_its_verdict():
    judged = [row for row in rows() if len(row) == 4 and row[0].startswith("**")]
    assert len(judged) > 35
    for what, where, verdict, _ in judged:
        if what.startswith(("**Appendix A**", "**Appendix B**")):  # of which nothing is judged
            continue
        assert verdict in VERDICTS and "](../posemodel/" in where + " ](../posemodel/" * (
            "](../pose_kernels/" in where), what


def test_every_name_is_in_the_file_beside_it():
    found = 0
    for row in rows():
        if len(row) != 4 or not row[0].startswith("**"):
            continue
        files = [(PAGE.parent / path).read_text()
                 for path in re.findall(r"\]\((\.\./[^)]+\.py)\)", row[1])]
        for name in re.findall(r"`(\w+)`", row[1]):
            assert any(re.search(rf"\b(def|class) {name}\b|^ *{name}\b.* = ", text, re.MULTILINE)
                       for text in files), (row[0], name)
            found += 1
    assert found > 35


def test_equations_tables_and_appendices_are_all_there():
    for number in range(1, 10):
        assert re.search(rf"Eq\. (\d, )?{number}\b", TEXT), number
    for number in range(1, 7):
        assert re.search(rf"\*\*Table {number}\b", TEXT), number
    for letter in "ABCDE":
        assert f"Appendix {letter}" in TEXT, letter


# --- the preset, built ----------------------------------------------------------------------------


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


@pytest.fixture(scope="module")
def built():
    config = paper()
    with torch.device("meta"):
        return build_generator(config.model, config.data.image_size)


def shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape[1:]))


def test_pose_maps_and_encoder(built):
    config, warping = paper(), built.warping
    maps = torch.empty(1, len(JOINTS), *config.data.image_size, device="meta")
    layers = convolutions(warping.encoder)
    assert layers[0].in_channels == len(JOINTS) == 18 and not config.model.limb_sigma
    assert f"{len(JOINTS)} maps of {' x '.join(map(str, maps.shape[2:]))}" in statement("Pose maps")
    assert f"sigma {config.model.pose_sigma:g} pixels" in statement("Pose maps")
    said = statement("M**, the pose encoder")
    assert f"{len(layers)} conv layers, each with BatchNorm" in said and len(layers) == 11
    norms = [layer for layer in warping.encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == len(layers)
    features = shape(warping.encoder(maps, torch.float32))
    assert features in said and features == "35 x 64 x 64"
    assert [layer.stride[0] for layer in layers] == [2, 2, *[1] * 9]
    widths = [layer.out_channels for layer in layers[:-1]]
    assert f"widths ({widths[0]}, then {widths[1]})" in said and set(widths[1:]) == {widths[1]}
    assert f"windows ({' x '.join(map(str, layers[0].kernel_size))})" in said
    assert {layer.kernel_size for layer in layers} == {(3, 3)}
    assert warping.encoder.norm == "location"


def test_correlation_and_flow_head(built):
    config, head = paper(), built.warping.head
    layers = convolutions(head)
    positions, side = layers[0].in_channels, config.data.image_size[0] // config.model.stride(
        config.data.image_size)
    assert f"{positions} x {positions}" in statement("Eq. 1") and positions == side**2 == 4096
    widths = [layer.out_channels for layer in layers]
    said = statement("C_l")
    assert widths == [128, 128, 96, 64, 32, 2] and f"{positions} x {side} x {side}" in said
    assert f"{len(layers)} conv layers of {', '.join(map(str, widths))} channels" in said
    assert {layer.kernel_size for layer in layers} == {(3, 3)} and "windows (3 x 3;" in said
    assert head.stream
    head.stream = False
    try:
        flow = head.layers(torch.empty(1, positions, side, side, device="meta"))
    finally:
        head.stream = True
    said = statement("The flow**, ")
    assert shape(flow) == "2 x 64 x 64" and shape(flow) in said
    assert built.warping.parametrization == "absolute" and "parametrization absolute" in said


def test_refinement(built):
    encoder, decoder = built.refinement.encoder, built.refinement.decoder
    image = torch.empty(1, 3, *paper().data.image_size, device="meta")
    features, layers = encoder(image), convolutions(encoder)
    said = statement("R, encoder")
    assert shape(features) == "256 x 64 x 64" and f"to {shape(features)}" in said
    assert f"{len(layers)} convolutions, each with down-sampling" in said
    assert len(layers) == 2 and {layer.stride for layer in layers} == {(2, 2)}
    assert f"the width between them ({layers[0].out_channels})" in said
    said = statement("R, decoder")
    assert f"{len(decoder.blocks)} residual blocks, {len(decoder.up)} up-samplings" in said
    assert (len(decoder.blocks), len(decoder.up)) == (6, 2)
    assert all(isinstance(up[1], nn.BatchNorm2d) for up in decoder.up) and not decoder.skip
    assert decoder(features).shape == image.shape


def test_discriminator():
    with torch.device("meta"):
        network = build_discriminator(paper().model)
    *strided, last = convolutions(network)
    assert strided[0].in_channels == 3 + len(JOINTS) and last.out_channels == 1
    assert (f"{len(strided)} strided 4 x 4 convolutions from {strided[0].out_channels} channels on"
            in statement("D** is conditioned"))
    assert {(layer.stride, layer.kernel_size) for layer in strided} == {((2, 2), (4, 4))}


def test_losses():
    loss = paper().loss
    assert (loss.adversarial_weight, loss.affine_weight) == (0.1, 0.001)
    weights = objective.weights(loss, paper().optim.tasks)
    assert f"lambda_1 = {weights['loss_adversarial']:g}".replace("0.", ".") in statement("Eq. 8")
    assert f"lambda_2 = {weights['loss_affine']:g}".replace("0.", ".") in statement("Eq. 8")
    assert weights["loss_reconstruction"] == 1
    assert not any(weights[f"loss_{name}"]
                   for name in ("warped", "joint", "feature_matching", "r1"))
    assert loss.affine_background == 1 and loss.reconstruction == "vgg19"
    assert len(VGG19.scales) == 4 and VGG19.weight == 1 and not VGG19.pyramid
    assert f"{[*VGG19.layers][0]} to {[*VGG19.layers][-1]}" in statement("Eq. 5")
    assert loss.adversarial == "lsgan" and f"`{loss.adversarial}`" in statement("Eq. 6")


def test_the_affine_loss_counts_cells():
    """A flow that is one cell of the grid off in x and y everywhere: the number of coordinates."""
    affine = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    centres = (2 * torch.arange(64) + 1) / 64 - 1
    identity = torch.stack(torch.meshgrid(centres, centres, indexing="xy"))[None]
    assert affine_loss(identity, affine, cells=True) == 0
    assert affine_loss(identity + 2 / 64, affine, cells=True).item() == pytest.approx(
        2 * 64 * 64, rel=1e-5)
    assert affine_loss(identity + 2 / 64, affine).item() == pytest.approx(1 / 32, abs=1e-6)
    assert paper().loss.affine_norm == "cells"
    assert f"{64 // 2} times weaker" in statement("Eq. 7")
    assert f"factor of {2 * 64 * 64:,}" in statement("Eq. 7")


def test_affine_maps():
    bounds = AffineRange()
    ranges = (f"rotation to {bounds.rotation:g} degrees, size by {bounds.scale:g}, shear "
              f"{bounds.shear:g}, shift {bounds.shift:g}")
    assert ranges.replace(" 0.", " .") in statement("Eq. 3, 4")


def test_schedule():
    config = paper()
    optim, train = config.optim, DEEPFASHION.published["train"]["pairs"]
    epoch = train / optim.batch_size
    assert config.steps == int(300 * epoch) and optim.batch_size == 7 and train == 101_966
    said = statement("300 epochs")
    assert f"batch {optim.batch_size}" in said and f"the {train:,} pairs" in said
    assert f"{config.steps:,} of them" in said and f"--steps {int(600 * epoch)}" in said
    assert f"4,000 random pairs (`pairs_per_epoch`): {300 * 4000 // 7:,} steps" in said
    course = Schedule(optim, config.steps)
    # The last step of epoch 100 is in phase one, the first one after it in phase two.
    last = int(100 * epoch)
    assert not course.in_phase_two(last) and course.in_phase_two(last + 1)
    assert "about 100 epochs" in statement("Phase one")
    assert course.rates(last)[:2] == pytest.approx((1e-6, 1e-6), rel=1e-12)
    assert course.rates(last + 1) == pytest.approx((1e-4, 1e-8, 1e-4), rel=1e-12)
    assert "a rate of 1e-6" in statement("Phase one")
    assert "1e-4 for the decoder of R, 1e-8 for all else" in statement("Phase two")
    said = statement("The optimiser")
    assert optim.betas == (0.5, 0.999) and "betas .5 and .999" in said and not optim.ema
    assert not optim.clip and optim.lr_discriminator == 1e-4 and "D at 1e-4" in said


def test_tasks_take_turns():
    course = Schedule(paper().optim, paper().steps)
    turns = [course.turn(step, affine=True, adversarial=True) for step in (1, 2, 3, 4)]
    assert [(turn.affine, turn.reconstruction) for turn in turns] == [(True, False),
                                                                      (False, True)] * 2
    assert "odd steps the affine one, even steps reconstruction" in statement("The two tasks")
    # Table 4.
    turns = [course.turn(step, affine=False, adversarial=True) for step in (1, 2)]
    assert all(turn.reconstruction and not turn.affine for turn in turns)


def test_data():
    train, test = DEEPFASHION.published["train"], DEEPFASHION.published["test"]
    said = statement("DeepFashion")
    assert paper().data.evaluation_pairs == test["pairs"] == 8_570
    assert f"{train['pairs']:,} pairs to train on, {test['pairs']:,} to test" in said
    assert f"{train['images'] + test['images']:,} images of 256 x 256" in said
    assert f"{train['images']:,} and {test['images']:,} images" in said
    assert paper().data.image_size == DEEPFASHION.frame == (256, 256)
    assert f"{MARKET.published['train']['images']:,} training images" in statement("Market-1501")
    assert f"{MARKET.published['train']['pairs']:,} pairs" in statement("Market-1501")
    market = PRESETS["market"]()
    assert market.data.image_size == (128, 64) and market.flow_positions == 32 * 16
    assert f"{12_936 * 25:,} images" in statement("Table 5")


def test_what_the_default_presets_add_is_taken_back_by_the_flags_beside_it():
    """All of them together leave `quick` with the paper's method at its own sizes."""
    (head,) = (row for row in rows() if row[0] == "of `quick`")
    start = rows().index(head)
    words = [word for row in rows()[start + 2:] if len(row) == 3
             for flags in re.findall(r"`(--[^`]*)`", row[2]) for word in shlex.split(flags)]
    config, wanted = parse_train(["quick", *words]).config, paper()
    for section, names in {
            "model": "flow_parametrization limb_sigma refine flow_stride",
            "loss": "joint_weight affine_background warped_weight reconstruction adversarial",
            "optim": "tasks schedule ema"}.items():
        for name in names.split():
            assert getattr(getattr(config, section), name) \
                == getattr(getattr(wanted, section), name), name


# --- the numbers that the paper prints ------------------------------------------------------------


def italics(cells: list[str]) -> list[float]:
    return [float(number) for cell in cells for number in re.findall(r"\*(\.?\d[\d.]*)\*", cell)]


def test_table_1():
    printed = {row[0]: italics(row[1:]) for row in rows() if len(row) == 6}
    cells = {cell.key: cell for cell in TABLES["table1"].cells}
    for cell in map(cells.get, ("ours", *BASELINES)):
        assert printed[cell.label] == [cell.paper[name] for name in (
            "l1_32", "l1", "ssim", "lpips_alex", "lpips_vgg")], cell.label
    assert [name for name, values in printed.items()
            if values and values[2] > printed["ours"][2]] == ["TPSMM", "GFLA64"]


def test_the_other_tables():
    printed = {row[0]: italics(row[1:2]) for row in rows() if len(row) == 3 and row[0][0].isdigit()}
    for name, row in (("no-refine", "3"), ("no-affine", "4")):
        (cell,) = (cell for cell in TABLES[f"table{row}"].cells if cell.key == name)
        assert printed["3 and 4"] == [cell.paper[key] for key in ("l1", "ssim", "lpips_alex",
                                                                  "lpips_vgg")]
    assert printed["5"] == [value for which in (0, 1)
                            for value in [TABLE_5[name][which] for name in TABLE_5]]
    assert printed["2"] == [33.31, 15.52] and sum(printed["6"]) == pytest.approx(108)


# --- the commands ---------------------------------------------------------------------------------

#: Behind each `posemodel.reproduce`, and behind that of Table 5.
SMALL_TABLE = "--budget 2 --pairs 4 --device cpu".split()
SMALL_TABLE_5 = ("--budget 2 --image-size 64 32 --poses 2 --backbone resnet10 --reid-steps 2 "
                 "--reid-image-size 32 32 --batch-identities 2 --device cpu").split()
#: What is written smaller in the lines themselves.
SMALLER = {"--seeds 3": "--seeds 1", "--pairs 80": "--pairs 2"}


def downloads(root: Path) -> None:
    """IN, LISTS and data/market, each of a few drawn images; an empty folder of weights."""
    texts, views = make_fashion(root / "LISTS", people=3), {"1front": "01_1_front",
                                                            "2side": "01_2_side",
                                                            "3back": "01_3_back"}
    for number, name in enumerate(
            name for split in ("train", "test") for name in read_list(texts / f"{split}.lst")):
        garment, _, view = name.partition("id")[2].partition("_")
        folder = root / "IN" / "img" / "WOMEN" / "Tees_Tanks" / f"id_{garment[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(number, (256, 256)).save(folder / f"{views[view[:-4]]}.jpg")
    market = make_market(root / "data" / "market", form="bounding_box_{}", pairs=False)
    kept = (np.array(market_names(4)) != market_names(4)[0])[:, None, None]
    change_joints(market / "market-annotation-train.csv", lambda joints: joints * kept)
    for number, path in enumerate(sorted(market.glob("bounding_box_*/*"))):
        picture(number, (128, 64)).save(path)
    (market / "query").mkdir()
    for path in (market / "bounding_box_test").glob("*_c1s1_*"):
        picture(0, (128, 64)).save(market / "query" / path.name.replace("_01.jpg", "_00.jpg"))
    (root / "weights").mkdir()


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """Noise of a seed; `size` is (H, W)."""
    random = np.random.default_rng(number)
    return Image.fromarray(random.integers(256, size=(*size, 3), dtype=np.uint8))


def small(preset):
    """The preset with small images and narrow layers, as many as before."""
    @functools.wraps(preset)
    def make():
        config = preset()
        config.steps = config.evaluate_every = config.checkpoint_every = 6
        config.log_every = 1
        config.device, config.precision = "cpu", "float32"
        data, model = config.data, config.model
        height, width = data.image_size
        data.image_size = (64, 64 * width // height)  # GFLA takes no smaller ones
        data.evaluation_pairs, data.workers, config.optim.batch_size = 4, 0, 2
        model.encoder_channels = tuple(8 for _ in model.encoder_channels)
        model.flow_channels = tuple(8 for _ in model.flow_channels)
        model.feature_channels, model.refine_width, model.discriminator_width = 6, 4, 4
        return config
    return make


def small_reproduce(words: list[str]) -> int:
    return reproduce_main([*words, *(SMALL_TABLE_5 if words[0] == "table5" else SMALL_TABLE)])


RUN = {"data": data_main, "train": train_main, "evaluate": evaluate_main,
       "reproduce": small_reproduce, "study": study_main, "reid": reid_main}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with the downloads, and the commands that `reproduce` starts in this process."""
    def call(module, *words, **threads):
        assert RUN[module.removeprefix("posemodel.")]([str(word) for word in words]) == 0

    for name in ("paper", "market"):
        monkeypatch.setitem(PRESETS, name, small(PRESETS[name]))
    vgg = PerceptualLoss(make_layers([x if x == "M" else x // 16 for x in cfgs["E"]]))
    monkeypatch.setattr(objective, "load_perceptual_loss", lambda form, folder: vgg)
    for module in ("runs", "table5"):
        monkeypatch.setattr(f"posemodel.reproduce.{module}.run_command", call)
    monkeypatch.setattr(DEEPFASHION, "published", dict.fromkeys(
        ("train", "test"), {"images": 9, "pairs": 18}))
    monkeypatch.setattr("posemodel.reproduce.runs.ThreadPoolExecutor", OneByOne)
    monkeypatch.setattr("posemodel.reproduce.runs.Bench.paces",
                        lambda self, cells: {cell.key: 1.0 for cell in cells})
    for module in ("engine.journal", "evaluation.samples"):
        monkeypatch.setattr(f"posemodel.{module}.write_samples", lambda *_, **__: None)
    monkeypatch.setattr(LocalServer, "serve_until_interrupted", lambda self, browser: None)
    monkeypatch.setenv("TORCH_HOME", "/nowhere")
    monkeypatch.chdir(tmp_path)
    downloads(tmp_path)
    return tmp_path


def test_each_command_runs_at_small_size(folder):
    for line in block():
        python, flag, module, *words = shlex.split(found_runs(smaller(line)))
        assert (python, flag) == ("python", "-m") and module.startswith("posemodel."), line
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = RUN[module.removeprefix("posemodel.")](words)
        assert code == 0, (line, said.getvalue())
    tables = folder / "runs" / "tables"
    for name in TABLES:
        for ending in (".md", ".csv", ".json", ".png", "-curves.png"):
            assert (tables / f"{name}{ending}").stat().st_size > 100, (name, ending)
    assert all((tables / f"table5{ending}").exists() for ending in (".md", ".csv", ".json"))
    assert (folder / "runs/paper/evaluation.json").exists()
    assert (folder / "runs/study/report.json").exists()
    assert list((folder / "runs/dgnet").rglob("*_p01.jpg"))


def smaller(line: str) -> str:
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    return line


def found_runs(line: str) -> str:
    """N in the name of a folder becomes the steps in the name of the one that is there."""
    return re.sub(r"([\w/]+/)(\w+)-N-\d+", lambda found: str(
        next(Path(found[1]).glob(f"{found[2]}-*"), found[0])), line)


def test_what_is_written_smaller_is_on_the_page():
    lines = "\n".join(block())
    for large in SMALLER:
        assert large in lines and f"`{large}`" in TEXT
