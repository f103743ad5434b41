"""Argument checks shared by the ops: each names the argument, what was expected and what came."""

import contextlib

import torch

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensor(name: str, value, layout: str) -> None:
    """A floating tensor; ``layout`` like "[B, m, h, w]": no dimension but the first is empty."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor {layout}, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, "
                        f"got {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got {value.layout}")
    if value.dim() != layout.count(",") + 1:
        raise ValueError(f"{name}: expected {layout}, got shape {list(value.shape)}")
    for size in value.shape[1:]:
        if size == 0:
            raise ValueError(f"{name}: expected {layout} with no empty dimension but B, "
                             f"got {list(value.shape)}")


def check_same_device(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} as {other_name}, "
                         f"got {value.device}")


def check_flow(flow) -> None:
    check_tensor("flow", flow, "[B, 2, h, w]")
    if flow.shape[1] != 2:
        raise ValueError(f"flow: expected [B, 2, h, w], got shape {list(flow.shape)}")


def check_eps(eps) -> float:
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise TypeError(f"eps: expected a positive number, got {type(eps).__name__}")
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    return float(eps)


def check_feature_pair(source, target) -> tuple[torch.Tensor, torch.Tensor]:
    """Source [B, m, hs, ws] and target [B, m, ht, wt] in one dtype on one device."""
    check_tensor("source", source, "[B, m, hs, ws]")
    check_tensor("target", target, "[B, m, ht, wt]")
    check_same_device("target", target, "source", source)
    if target.shape[0] != source.shape[0]:
        raise ValueError(f"target: expected batch {source.shape[0]} as source, "
                         f"got shape {list(target.shape)}")
    if target.shape[1] != source.shape[1]:
        raise ValueError(f"target: expected {source.shape[1]} channels as source, "
                         f"got shape {list(target.shape)}")
    # Under autocast, where mixed inputs are normal, the wider of the two.
    if source.dtype != target.dtype and not autocast_enabled(source.device):
        raise TypeError(f"target: expected {source.dtype} as source, got {target.dtype}")
    dtype = torch.promote_types(source.dtype, target.dtype)
    return source.to(dtype), target.to(dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 and bfloat16 are storage formats: everything is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_memory_format(memory_format) -> bool:
    """Whether the result is channels-last."""
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError("memory_format: expected torch.contiguous_format or torch.channels_last, "
                         f"got {memory_format!r}")
    return memory_format is torch.channels_last


def check_out_dtype(out_dtype, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a map made of inputs of ``dtype``: that, or a narrower one."""
    if out_dtype is None:
        return dtype
    if not isinstance(out_dtype, torch.dtype):
        raise TypeError(f"out_dtype: expected a torch.dtype, got {type(out_dtype).__name__}")
    allowed = [dtype, *(d for d in DTYPES if d.itemsize < dtype.itemsize)]
    if out_dtype not in allowed:
        raise ValueError(f"out_dtype: expected {' or '.join(map(str, allowed))} for inputs of "
                         f"{dtype}, got {out_dtype}")
    return out_dtype


def check_out(out, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool,
              *inputs: torch.Tensor) -> None:
    """None, or memory of this shape and dtype to be written, in one of the layouts of a map."""
    if out is None:
        return
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out: expected a tensor or None, got {type(out).__name__}")
    if tuple(out.shape) != shape:
        raise ValueError(f"out: expected shape {list(shape)}, got {list(out.shape)}")
    if out.dtype != dtype:
        raise ValueError(f"out: expected {dtype}, got {out.dtype} (out_dtype= chooses another)")
    if out.device != inputs[0].device:
        raise ValueError(f"out: expected device {inputs[0].device}, got {out.device}")
    last = out.is_contiguous(memory_format=torch.channels_last)
    if not (last or out.is_contiguous() and not channels_last):
        layout = "channels-last" if channels_last else "contiguous or channels-last"
        raise ValueError(f"out: expected a {layout} tensor, got strides {list(out.stride())}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, *inputs)):
        raise RuntimeError("out: a result written into given memory has no gradient; call this "
                           "under torch.no_grad(), or without out=")
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("out: torch.func cannot transform what is written into given memory; "
                           "leave out= out")
    memory = {x.untyped_storage().data_ptr() for x in inputs}
    if out.numel() > 0 and out.untyped_storage().data_ptr() in memory - {0}:
        raise ValueError("out: expected memory of its own, got that of an input")


def plain_size(size):
    """torch.jit.trace hands out sizes as tensors; as numbers they are constants of the trace."""
    return int(size) if isinstance(size, torch.Tensor) and torch.jit.is_tracing() else size


def check_size(size) -> tuple[int, int]:
    """(height, width), two positive integers."""
    try:
        height, width = map(plain_size, size)
        if isinstance(height, float) or isinstance(width, float) or not min(height, width) > 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"size: expected two positive integers (height, width), got {size}"
        ) from None
    return height, width


def _products_are_tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# torch.compiler.assume_constant_result without its import of the compiler. Dynamo guards the
# setting itself: a change traces again.
_products_are_tf32._dynamo_marked_constant = True


def allow_tf32(tensor: torch.Tensor) -> bool:
    """Torch's own switch for float32 products on a GPU, by any of its names.

    The new name is right for all of them; reading the old one raises once the new one was set.
    """
    return tensor.is_cuda and _products_are_tf32()


def autocast_enabled(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device):
    """Context in which autocast does not lower a product; nothing on devices that have none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
