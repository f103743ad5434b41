import pytest
import torch

from posemodel.runtime.memory_format import channels_last

LAST = torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 6, 7), (1, 69, 64, 64), (2, 1, 4, 4), (2, 3, 1, 1),
                                   (0, 3, 4, 4)], ids=str)
def test_nothing_but_the_layout_changes(shape, dtype):
    x = torch.randn(shape).to(dtype)
    found = channels_last(x)
    assert torch.equal(found, x) and found.is_contiguous(memory_format=LAST)
    assert found.stride() == x.contiguous(memory_format=LAST).stride()


def test_what_has_it_already_is_not_copied():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=LAST)
    assert channels_last(x) is x
    crossed = torch.randn(2, 4, 5, 3).transpose(1, 2)   # neither
    assert torch.equal(channels_last(crossed), crossed)


def test_gradients_pass():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(channels_last, x)
    assert torch.autograd.gradgradcheck(lambda z: channels_last(z).square(), x)


def test_compiled_code_has_it_in_one_piece():
    compiled = torch.compile(channels_last, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(compiled(x), x) and compiled(x).is_contiguous(memory_format=LAST)
