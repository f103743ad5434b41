import copy

import pytest
import torch

import pose_kernels
from posemodel.build import build_discriminator, build_generator
from posemodel.config.presets import paper
from posemodel.config.sections import ModelConfig
from posemodel.model.flow_head import expected_match
from posemodel.model.warping import EPS
from posemodel.poses.joints import JOINTS, LIMBS
from tests.tiny import random_poses as poses

SMALL = {"encoder_channels": (8, 8, 8), "feature_channels": 6, "flow_channels": (12, 12, 10, 8, 8),
         "refine": "paper", "refine_width": 4, "refine_blocks": 1, "discriminator_width": 4,
         "flow_stride": 4}


def small(size=(32, 32), **changes):
    torch.manual_seed(0)
    return build_generator(ModelConfig(**SMALL | changes), size)


def awake(model):
    """The last layer of C_l starts at zero, which would hide the rest of W."""
    torch.nn.init.normal_(model.warping.head.layers[-1].weight, std=0.1)
    return model


def convolutions(net):
    return [layer for layer in net.layers if isinstance(layer, torch.nn.Conv2d)]


def test_limb_maps_are_further_input_of_the_pose_encoder():
    joints, limbs = (small(limb_sigma=sigma).warping for sigma in (0.0, 15.0))
    first = [net.encoder.layers[0].in_channels for net in (joints, limbs)]
    assert first == [len(JOINTS), len(JOINTS) + 3 * len(LIMBS)]
    pose = poses(2)
    found = limbs.features(pose)
    limbs.limb_sigma = 8.0
    assert not torch.allclose(limbs.features(pose), found, atol=1e-3)


@pytest.mark.parametrize(("size", "stride"), [((32, 32), 4), ((64, 32), 4), ((32, 48), 2)])
@pytest.mark.parametrize("parametrization", ["residual", "absolute", "matching", "filled"])
@pytest.mark.parametrize("refine", ["posed", "detail", "paper"])
def test_shapes_and_gradients_reach_every_weight(size, stride, parametrization, refine):
    model = awake(small(size, flow_parametrization=parametrization, flow_stride=stride,
                        refine=refine))
    # What starts at zero would hide the weights before it.
    if refine == "paper":
        for block in model.refinement.decoder.blocks:
            torch.nn.init.ones_(block.layers[-1].weight)
    else:
        torch.nn.init.normal_(model.refinement.decoder.last.weight)
    source = torch.rand(2, 3, *size) * 2 - 1
    result = model(source, poses(2), poses(2, seed=1))
    height, width = size
    assert result.image.shape == result.warped.shape == (2, 3, height, width)
    assert result.flow.shape == (2, 2, height // stride, width // stride)
    (result.image.sum() + (result.warped * torch.rand_like(result.warped)).sum()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_untrained_residual_flow_is_the_identity_and_returns_the_source():
    source = torch.rand(2, 3, 32, 32) * 2 - 1
    model = small(flow_parametrization="residual")
    result = model(source, poses(2), poses(2, seed=1))
    assert torch.equal(result.flow, pose_kernels.identity_flow(8, 8).expand(2, 2, 8, 8))
    assert torch.equal(result.warped, source)


@pytest.mark.parametrize("parametrization", ["matching", "filled"])
def test_matching_flow_finds_a_planted_correspondence(parametrization):
    model = small(flow_parametrization=parametrization).warping
    source = torch.eye(64).view(1, 64, 8, 8)
    # Every target position matches source position (row 5, column 2) alone.
    target = source[:, :, 5:6, 2:3].expand_as(source)
    flow = model.eval().flow_from(source, target)
    expected = pose_kernels.identity_flow(8, 8)[:, 5, 2]
    assert torch.allclose(flow, expected.view(1, 2, 1, 1).expand_as(flow))


@pytest.mark.parametrize(("size", "cells"), [
    ((32, 32), (16, 16)), ((64, 64), (32, 32)), ((128, 32), (64, 16)),
    ((64, 68), (16, 17)), ((128, 64), (32, 16)), ((256, 256), (64, 64))])
def test_a_small_image_has_the_finer_grid(size, cells):
    model = small(size, flow_stride=0).warping
    assert model.features(poses(1)).shape[2:] == cells
    assert model.head.layers[0].in_channels == cells[0] * cells[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_map_is_what_the_flow_head_reads(dtype):
    model = awake(small((32, 48))).warping.eval()
    plain = model(poses(2), poses(2, seed=1)).flow
    with torch.autocast("cpu", dtype):
        guided = model.match(*model.encode(poses(2), poses(2, seed=1)))
        flow = model(poses(2), poses(2, seed=1)).flow
    assert guided.dtype == dtype and guided.is_contiguous(memory_format=torch.channels_last)
    assert flow.dtype == torch.float32
    assert 0 < (flow - plain).abs().max() < 0.03


def test_flow_depends_on_poses_alone_and_on_both():
    model = awake(small()).eval()
    a, b = poses(2), poses(2, seed=1)
    first = model(torch.rand(2, 3, 32, 32), a, b).flow
    second = model(torch.rand(2, 3, 32, 32), a, b).flow
    assert torch.equal(first, second)
    assert not torch.allclose(first, model(torch.rand(2, 3, 32, 32), b, a).flow)


def test_decoder_sees_nothing_but_the_warp():
    # A flow that samples one point everywhere leaves no trace of the rest of the image, but for
    # the receptive field of the encoder around that point.
    model = small((64, 64)).refinement.eval()
    flow = torch.full((1, 2, 16, 16), 0.5)
    source = torch.rand(1, 3, 64, 64)
    changed = source.clone()
    changed[..., :16, :16] = 0
    assert torch.equal(model(source, flow, poses(1)), model(changed, flow, poses(1, seed=1)))


def flow_and_gradients(model, seed=3):
    """The flow of some poses and the gradient of every weight of W, in training mode."""
    flow = model.warping(poses(4), poses(2, seed=1)).flow
    upstream = torch.randn(flow.shape, generator=torch.Generator().manual_seed(seed))
    model.zero_grad(set_to_none=True)
    flow.backward(upstream)
    return flow, {name: p.grad.clone() for name, p in model.warping.named_parameters()}


@pytest.mark.parametrize("parametrization", ["residual", "absolute", "matching", "filled"])
@pytest.mark.parametrize("depth", [1, 6])
def test_streaming_is_the_stored_map_to_within_rounding(depth, parametrization):
    changes = {"flow_depth": depth, "flow_parametrization": parametrization}
    stored, streamed = (small((32, 48), stream=s, **changes) for s in ("never", "always"))
    streamed.load_state_dict(awake(stored).state_dict())  # one set of weights for both forms
    flow, gradients = flow_and_gradients(stored)
    other, others = flow_and_gradients(streamed)
    assert (flow - other).abs().max() < 1e-5
    for name, wanted in gradients.items():
        # A sum that is zero but for rounding, a weight before a normalisation, has no digits.
        assert (others[name] - wanted).norm() < 1e-3 * wanted.norm() + 1e-4, name
    for name, value in stored.state_dict().items():
        torch.testing.assert_close(streamed.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_streaming_stores_no_map():
    shapes = {}
    for form in ((3, "never"), (3, "always"), (1, "never")):
        model = small((48, 48), head_kernel=form[0], stream=form[1]).warping
        kept = shapes[form] = set()
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x, kept=kept: kept.add(tuple(x.shape)) or x, lambda x: x):
            model(poses(1), poses(1, seed=1))
    assert [(1, 144, 12, 12) in kept for kept in shapes.values()] == [True, False, False]


def test_a_head_of_1x1_reads_what_a_convolution_of_the_map_would():
    model = awake(small((32, 48), head_kernel=1)).warping.eval()
    features = model.encode(poses(2), poses(2, seed=1))
    first, *rest = model.head.layers
    assert first.kernel_size == (1, 1) and model.head.layers[3].kernel_size == (3, 3)
    x = first(model.match(*features))
    for layer in rest:
        x = layer(x)
    torch.testing.assert_close(model.head(*features, EPS), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"head_kernel": 3}, {"flow_depth": 1},
                                     {"memory_format": torch.channels_last}], ids=str)
def test_beside_the_match_the_head_gives_what_it_gives_alone(changes):
    """Values, and the gradients of all weights with the strides of the weights."""
    changes = dict(changes)
    layout = changes.pop("memory_format", None)
    model = awake(small((32, 48), **{"head_kernel": 1} | changes)).warping.eval()
    if layout is not None:
        model.head.to(memory_format=layout)
    features = [x.detach() for x in model.encode(poses(2), poses(2, seed=1))]
    torch.nn.init.normal_(model.head.layers[-1].bias)
    found = []
    for flow, match in (model.head.with_match(*features, EPS),
                        (model.head(*features, EPS), expected_match(*features, EPS))):
        weights = list(model.head.parameters())
        gradients = torch.autograd.grad((flow * match.place).sum(), weights)
        found.append([flow, *match, *gradients])
        assert [g.stride() for g in gradients] == [w.stride() for w in weights]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_places_are_not_rounded_under_autocast():
    model = small((32, 48), head_kernel=1, flow_parametrization="matching").warping.eval()
    source, target = (x.bfloat16() for x in model.encode(poses(2), poses(2, seed=1)))
    with torch.autocast("cpu", torch.bfloat16):
        flow, match = model.head.with_match(source, target, EPS)
    assert flow.dtype == match.place.dtype == match.variance.dtype == torch.float32
    # In bfloat16 one in 256 would be too much.
    torch.testing.assert_close(match, expected_match(source.float(), target.float(), EPS),
                               rtol=0, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_expected_match_is_the_place_under_the_squared_map_and_its_variance(eps):
    source, target = (torch.nn.functional.normalize(torch.randn(2, 8, *size), dim=1)
                      for size in ((6, 5), (7, 4)))
    guided = pose_kernels.guided_correlation(source.double(), target.double(), eps,
                                             impl="reference")
    places = pose_kernels.identity_flow(6, 5, dtype=torch.float64).flatten(1)
    share = guided.square()
    place = torch.einsum("cs,bsij->bcij", places, share)
    found = expected_match(source, target, eps)
    torch.testing.assert_close(found.place.double(), place, rtol=1e-4, atol=1e-5)
    if eps < 0.1:                                       # the shares add up to one
        away = (places[None, :, :, None, None] - place[:, :, None]).square().sum(1)
        torch.testing.assert_close(found.variance.double(), (away * share).sum(1, keepdim=True),
                                   rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, expected_match(source, target, eps), found))


def test_what_has_no_match_moves_with_what_lies_around():
    """The left half of the target matches the source half a frame to the right, the right half
    nothing in particular."""
    model = small((64, 64), flow_parametrization="filled", feature_channels=257).warping.eval()
    source = torch.eye(256, 257).T.reshape(1, 257, 16, 16).clone()
    source[:, 256] = 0.3
    target = torch.zeros(1, 257, 16, 16)
    target[..., :8] = source[..., 8:]
    target[:, 256, :, 8:] = 1
    wanted = pose_kernels.identity_flow(16, 16) + torch.tensor([1.0, 0.0]).view(2, 1, 1)
    errors = {}
    for model.parametrization in ("matching", "filled"):
        error = (model.flow_from(source, target) - wanted).abs()
        assert error[..., :8].amax() < 1e-3
        errors[model.parametrization] = error[..., 8:].mean()
    assert errors["matching"] > 0.8 and errors["filled"] < errors["matching"] / 4


@pytest.mark.parametrize(("size", "streams"), [((64, 64), False), ((252, 256), False),
                                               ((256, 256), True), ((512, 512), True)])
def test_auto_streams_from_the_papers_grid_on(size, streams):
    with torch.device("meta"):
        model, read_out = (build_generator(ModelConfig(**SMALL, head_kernel=kernel), size)
                           for kernel in (3, 1))
    assert model.warping.head.stream is streams
    assert read_out.warping.head.stream, "one of 1 x 1 never needs the map"


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6])
def test_depth_of_the_flow_head(depth):
    found = convolutions(small(flow_depth=depth).warping.head)
    assert len(found) == depth
    widths = [c.in_channels for c in found] + [found[-1].out_channels]
    assert widths == [64, *SMALL["flow_channels"][5 - (depth - 1):], 2]


@pytest.mark.parametrize(("norm", "dims"), [("location", 1), ("channel", (2, 3))])
def test_feature_norm(norm, dims):
    features = small(feature_norm=norm).warping.features(poses(2))
    norms = features.square().sum(dims).sqrt()
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def test_all_joints_missing_is_finite():
    nobody = torch.zeros(2, 18, 3)
    result = small()(torch.rand(2, 3, 32, 32), nobody, nobody)
    assert all(value.isfinite().all() for value in result[:4]) and result.cover is None


def test_paper_preset_has_the_papers_layers():
    config = paper()
    with torch.device("meta"):
        model = build_generator(config.model, config.data.image_size)
    encoder, head = map(convolutions, (model.warping.encoder, model.warping.head))
    assert len(encoder) == 11 and encoder[-1].out_channels == 35
    assert [c.out_channels for c in head] == [128, 128, 96, 64, 32, 2]
    assert head[0].in_channels == 4096 and {c.kernel_size for c in head} == {(3, 3)}
    assert model.refinement.encoder.layers[-1][0].out_channels == 256
    assert len(model.refinement.decoder.blocks) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_planes_in_the_precision_of_the_networks(dtype):
    warping, seen = small(limb_sigma=0.0).warping, []
    warping.encoder.layers[-1].register_full_backward_hook(
        lambda _, inputs, outputs: seen.append(outputs[0]))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        features = warping.features(poses(2))
    assert features.dtype == dtype and features.is_contiguous()
    features.float().square().sum().backward()
    # Convolutions and BatchNorm before it keep their own layout.
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_several_sources_of_one_target_are_the_single_ones():
    model = awake(small()).warping.eval()
    a, b, target = poses(2), poses(2, seed=1), poses(2, seed=2)
    together = model(torch.cat([a, b]), target).flow
    apart = torch.cat([model(a, target).flow, model(b, target).flow])
    assert torch.allclose(together, apart, atol=1e-6)


@pytest.mark.parametrize("downsamplings", [1, 2])
def test_skip_connections_show_the_warped_image_at_every_scale(downsamplings):
    model = small((64, 64), skip=True, refine_downsamplings=downsamplings).refinement.eval()
    decoder, seen = model.decoder, []
    readers = [*(block[0] for block in decoder.up), decoder.last]
    for reader in readers:
        reader.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -3:]))
    source = torch.rand(2, 3, 64, 64) * 2 - 1
    flow = 0.7 * pose_kernels.identity_flow(16, 16).expand(2, 2, 16, 16)
    model(source, flow, poses(2))
    warped = pose_kernels.flow_sample(source, flow)
    assert len(seen) == downsamplings + 1
    for found, level in zip(seen, reversed(range(downsamplings + 1)), strict=True):
        torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(warped, 2**level))


def test_without_refinement_the_image_is_the_warped_source():
    model = small(refine="none")
    source = torch.rand(2, 3, 32, 32) * 2 - 1
    result = model(source, poses(2), poses(2, seed=1))
    assert torch.equal(result.image, result.warped)
    assert list(model.refinement.parameters()) == []


@pytest.mark.parametrize("downsamplings", [0, 1, 2])
@pytest.mark.parametrize("refine", ["posed", "detail"])
def test_detail_starts_as_the_warp_and_learns_from_every_scale(refine, downsamplings):
    model = small((64, 48), refine=refine, refine_downsamplings=downsamplings)
    source = torch.rand(2, 3, 64, 48) * 2 - 1
    result = model(source, poses(2), poses(2, seed=1))
    assert torch.equal(result.image, result.warped)
    torch.nn.init.normal_(model.refinement.decoder.last.weight)
    model(source, poses(2), poses(2, seed=1)).image.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.refinement.parameters())


@pytest.mark.parametrize("refine", ["posed", "detail"])
def test_detail_sees_of_the_source_only_what_the_flow_brings(refine):
    model = small((64, 64), refine=refine).refinement.eval()
    torch.nn.init.normal_(model.decoder.last.weight, std=0.1)
    source = torch.rand(1, 3, 64, 64) * 2 - 1
    # All of the flow lies in the upper left quarter.
    flow = pose_kernels.identity_flow(16, 16)[None] / 2 - 0.5
    changed = source.clone()
    changed[..., 48:, 48:] = 0  # further from there than any window of the encoder reaches
    image = model(source, flow, poses(1))
    assert torch.equal(image, model(changed, flow, poses(1)))
    changed[..., 8:16, 8:16] = 0
    assert not torch.equal(image, model(changed, flow, poses(1)))


@pytest.mark.parametrize(("refine", "sees"), [("posed", True), ("detail", False)])
@pytest.mark.parametrize("blocks", [0, 2])
def test_posed_alone_sees_the_pose(refine, sees, blocks):
    model = small((64, 64), refine=refine, refine_blocks=blocks).refinement.eval()
    torch.nn.init.normal_(model.decoder.last.weight, std=0.1)
    source = torch.rand(1, 3, 64, 64) * 2 - 1
    flow = pose_kernels.identity_flow(16, 16)[None]
    image, other = (model(source, flow, poses(1, seed=seed)) for seed in (0, 1))
    assert torch.equal(image, other) is not sees


def test_detail_has_no_pattern_of_its_own():
    """In a flat picture every pixel is corrected alike, away from the border: doubling the
    resolution leaves no grid behind."""
    model = small((64, 64), refine="detail", refine_width=8).refinement.eval()
    torch.nn.init.normal_(model.decoder.last.weight, std=0.1)
    source = torch.tensor([0.3, -0.2, 0.5]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    image = model(source, pose_kernels.identity_flow(16, 16)[None], poses(1))
    inner = image[..., 24:40, 24:40]
    assert (inner - source[..., 24:40, 24:40]).abs().amax() > 1e-3
    assert inner.std(dim=(2, 3)).amax() < 1e-5


def test_discriminator_is_conditioned_on_the_pose_and_gives_features_on_demand():
    net = build_discriminator(ModelConfig(**SMALL))
    image = torch.rand(2, 3, 32, 32)
    scores, features = net(image, poses(2), features=True)
    assert scores.shape == (2, 1, 4, 4) and torch.equal(scores, net(image, poses(2)))
    assert not torch.allclose(scores, net(image, poses(2, seed=1)))
    assert [tuple(f.shape) for f in features] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 16, 4, 4)]
    assert all((f < 0).any() and (f > 0).any() for f in features)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("width", "downsamplings"), [(12, 1), (24, 2)])
def test_untrained_refinement_carries_colours(width, downsamplings, skip):
    # Up to a scale and a shift of each colour, and to the noise of the random channels, the
    # untrained network returns its input.
    model = small((64, 64), refine_width=width, refine_downsamplings=downsamplings,
                  skip=skip).refinement.train()
    source = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        image = model(source, pose_kernels.identity_flow(16, 16).expand(4, 2, 16, 16), poses(4))
    for colour in range(3):
        both = torch.stack([image[:, colour, 4:-4, 4:-4], source[:, colour, 4:-4, 4:-4]]).flatten(1)
        assert torch.corrcoef(both)[0, 1] > 0.9


@torch.compiler.config.patch(force_disable_caches=True)
def test_what_inductor_makes_of_the_encoder_and_its_warp():
    """A gradient in another layout than the features', fused into the backward of their BatchNorm,
    came out as NaN: bfloat16 on a CPU with AVX-512, torch 2.14."""
    # Some sums of these gradients nearly cancel: the bound below is for one draw of the weights.
    encoder = small((64, 64), refine_width=16, refine_downsamplings=1,
                    limb_sigma=0.0, head_kernel=3).refinement.encoder.train()
    source = torch.rand(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    flow = pose_kernels.identity_flow(16, 16).repeat(8, 1, 1, 1)
    upstream = torch.randn(8, 32, 32, 32)

    def warped(net):
        features = net(source)
        return pose_kernels.flow_sample(features, flow.to(features.dtype))

    gradients = []
    for call in (warped, torch.compile(warped, fullgraph=True)):
        net = copy.deepcopy(encoder)
        with torch.autocast("cpu", torch.bfloat16):
            result = call(net)
        (result * upstream).sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0.02, atol=0.02 * plain.abs().max().item())
