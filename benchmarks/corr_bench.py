"""Speed, memory and error of the operators, every implementation beside eager PyTorch.

    python benchmarks/corr_bench.py                      # all ops, CPU or GPU
    python benchmarks/corr_bench.py --compile --json results.json

Implementations take turns within each repeat, so that a busy machine slows all of them alike. The
error is norm(difference) / norm against the literal equations in float64, worst of the value and
the gradients; an implementation above the tolerance of its dtype prints no speed.
Memory is the peak beyond what was there before the call: on a GPU the allocator's, on a CPU the
process's resident memory (Linux; scratch included).
"""

import argparse
import ctypes
import json
import platform
import re
import statistics
import time
from pathlib import Path

# Relative error allowed per dtype, value and gradients alike.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--op", choices=("all", "guided_correlation", "flow_sample"), default="all")
    add("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    add("--dtype", choices=TOLERANCE, default="float32")
    add("--batch", type=int, default=1)
    add("--grid", type=int, default=64, help="side of the feature maps and of the flow")
    add("--features", type=int, default=35, help="channels m of the feature maps")
    add("--image", type=int, default=256, help="side of the image that flow_sample reads")
    add("--channels", type=int, default=3, help="channels of that image")
    add("--repeats", type=int, default=15)
    add("--threads", type=int, default=None)
    add("--compile", action="store_true", help="also torch.compile of the eager form")
    add("--json", metavar="FILE", help="write results, versions and machine")
    return parser.parse_args()


def literal_guided_correlation(source, target, eps=1e-5):
    """Eqs. 1, 9 and 2 as one writes them down."""
    import torch

    C = source.flatten(2).transpose(1, 2) @ target.flatten(2)
    a = C.max(dim=1, keepdim=True).values.clamp(min=eps)
    b = C.max(dim=2, keepdim=True).values.clamp(min=eps)
    Q = (C / a) * (C / b) * C
    norm = torch.linalg.vector_norm(Q, dim=1, keepdim=True)
    return (Q / torch.maximum(norm, eps / a)).unflatten(2, target.shape[2:])


def literal_flow_sample(image, flow):
    """What one writes without the package. Its interpolation clamps at the border."""
    import torch.nn.functional as F

    if flow.shape[2:] != image.shape[2:]:
        flow = F.interpolate(flow, size=image.shape[2:], mode="bilinear", align_corners=False)
    return F.grid_sample(image, flow.permute(0, 2, 3, 1).to(image), "bilinear", "border", False)


def cases(options, device):
    """{op: (inputs in float64, eager form, oracle)}."""
    import torch
    import torch.nn.functional as F

    import pose_kernels

    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    grid = (options.grid, options.grid)
    maps = [F.normalize(randn(options.batch, options.features, *grid), dim=1) for _ in range(2)]
    image = randn(options.batch, options.channels, options.image, options.image)
    wobble = F.avg_pool2d(randn(options.batch, 2, *grid), 5, 1, 2)  # a smooth flow of a few pixels
    flow = pose_kernels.identity_flow(*grid, dtype=torch.float64) + 0.1 * wobble

    def sample_oracle(image, flow):
        return pose_kernels.flow_sample(image, flow, impl="reference")

    found = {
        "guided_correlation": (maps, literal_guided_correlation, literal_guided_correlation),
        "flow_sample": ([image, flow], literal_flow_sample, sample_oracle),
    }
    for op, (inputs, eager, oracle) in found.items():
        if options.op in ("all", op):
            yield op, [x.to(device) for x in inputs], eager, oracle


def run(function, inputs, upstream):
    """The value, and with an upstream gradient the gradients of all inputs."""
    import torch

    if upstream is None:
        with torch.no_grad():
            return [function(*inputs)]
    value = function(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs, upstream)]


def processor():
    """The CPU's name, which `platform` does not know on Linux."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def synchronize(device):
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_bytes(call, device):
    import torch

    if device == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls left with malloc
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the high-water mark starts again from what is resident now
    except (OSError, AttributeError):
        return float("nan")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(field):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


def error_of(found, expected):
    worst = 0.0
    for value, oracle in zip(found, expected, strict=True):
        error = ((value.double() - oracle).norm() / oracle.norm()).item()
        worst = error if not error <= worst else worst  # a NaN stays
    return worst


def measure(functions, inputs, upstream, oracle, options, device, same_as_oracle):
    """One row per implementation."""
    rows = {}
    for name, function in functions.items():
        error = error_of(run(function, inputs, upstream), oracle)
        # The eager form of flow_sample is another function at the border: its error is no failure.
        passed = error <= TOLERANCE[options.dtype] or (
            name in ("eager", "compile") and not same_as_oracle
        )
        rows[name] = {"error": error, "passed": passed, "times": []}
    running = [name for name in functions if rows[name]["passed"]]
    for repeat in range(options.repeats + 1):
        for name in running:
            synchronize(device)
            start = time.perf_counter()
            run(functions[name], inputs, upstream)
            synchronize(device)
            if repeat:  # the first round warms up
                rows[name]["times"].append(1e3 * (time.perf_counter() - start))
    for name in running:
        row = rows[name]
        quartiles = statistics.quantiles(row.pop("times"), n=4, method="inclusive")
        row["ms_p25"], row["ms"], row["ms_p75"] = quartiles
        call = (lambda f: lambda: run(f, inputs, upstream))(functions[name])
        row["peak_mib"] = peak_bytes(call, device) / 2**20
    for name in running:
        rows[name]["speedup"] = rows["eager"]["ms"] / rows[name]["ms"]
    return rows


def benchmark(options):
    import torch

    import pose_kernels

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype)
    results = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pose_kernels": pose_kernels.__version__,
        "options": vars(options),
        "rows": [],
    }
    print(f"{device}, {results['threads']} threads, torch {torch.__version__}, {options.dtype}")
    print(f"{'op':19} {'mode':17} {'impl':10} {'ms':>9} {'quartiles':>19} {'eager/':>7}", end="")
    print(f" {'peak MiB':>9} {'error':>8}")
    for op, wide, eager, oracle in cases(options, device):
        inputs = [x.to(dtype).requires_grad_() for x in wide]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        functions = {"eager": eager}
        if options.compile:
            functions["compile"] = torch.compile(eager)
        for name, entry in pose_kernels.implementations()[op].items():
            if entry.available and (not entry.devices or device in entry.devices):
                public = getattr(pose_kernels, op)
                functions[name] = (lambda f, n: lambda *x: f(*x, impl=n))(public, name)
        upstream = torch.randn_like(oracle(*exact), dtype=torch.float64)
        for mode, gradient in (("forward", None), ("forward+backward", upstream)):
            expected = run(oracle, exact, gradient)
            given = None if gradient is None else gradient.to(dtype)
            rows = measure(functions, inputs, given, expected, options, device, eager is oracle)
            for name, row in rows.items():
                results["rows"].append({"op": op, "mode": mode, "impl": name, **row})
                show(op, mode, name, row)
    return results


def show(op, mode, name, row):
    print(f"{op:19} {mode:17} {name:10} ", end="")
    if row["passed"]:
        quartiles = f"{row['ms_p25']:.2f} .. {row['ms_p75']:.2f}"
        print(
            f"{row['ms']:9.2f} {quartiles:>19} {row['speedup']:6.2f}x {row['peak_mib']:9.1f}",
            end="",
        )
    else:
        print(f"{'no speed: the check failed':>48}", end="")
    print(f" {row['error']:8.1e}")


if __name__ == "__main__":
    chosen = parse()
    measured = benchmark(chosen)
    if chosen.json:
        with open(chosen.json, "w") as file:
            json.dump(measured, file, indent=2)
