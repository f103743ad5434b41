"""``python -m pose_kernels``: what is built, what runs, and whether it computes the right thing.

Every implementation that can run is checked against the reference in float64, value and gradients.
Exit code 1 when a check fails. ``--json`` prints the same as JSON.
"""

import argparse
import json
import os
import platform
import sys

import torch

import pose_kernels

from . import _library

#: Largest relative error (norm of the difference / norm) in float32 against the float64 reference:
# value, gradients.
TOLERANCE = (2e-6, 1e-5)


def relative_error(value: torch.Tensor, oracle: torch.Tensor) -> float:
    return ((value.double() - oracle).norm() / oracle.norm()).item()


def value_and_gradients(op: str, impl: str, inputs) -> list[torch.Tensor]:
    """An operator without gradient has one value: all that it returns, indices too."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = getattr(pose_kernels, op)(*inputs, impl=impl)
    if isinstance(value, tuple):
        return [torch.cat([x.flatten().double() for x in value])]
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(value, inputs, upstream.to(value))
    return [value.detach(), *gradients]


def check(op: str, impl: str, device: str) -> dict:
    """Relative errors in float32, value and worst gradient, against the reference in float64."""
    # Inputs are rounded to float32 first: the check is about the computation, not about that
    # rounding.
    inputs = [x.float().to(device) for x in _library.examples[op]()]
    oracle = value_and_gradients(op, "reference", [x.double() for x in inputs])
    try:
        found = value_and_gradients(op, impl, inputs)
    except Exception as error:  # whatever a broken implementation does is the finding
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return {"device": device, "exception": why, "passed": False}
    errors = [relative_error(a, b) for a, b in zip(found, oracle, strict=True)]
    value, gradient = errors[0], max(errors[1:], default=None)
    # Written so that NaN fails.
    passed = value < TOLERANCE[0] and (gradient is None or gradient < TOLERANCE[1])
    return {"device": device, "error": value, "gradient_error": gradient, "passed": passed}


def report() -> dict:
    libraries = {name: {"loaded": reason is None, "reason": reason} for name, reason
                 in (("cpu", _library.cpu_reason), ("cuda", _library.cuda_reason))}
    if libraries["cuda"]["loaded"]:
        libraries["cuda"]["build"] = torch.ops.pose_kernels.cuda_build_info()
    rows = []
    for op, table in pose_kernels.implementations().items():
        for impl, entry in table.items():
            row = {"op": op, "impl": impl, "available": entry.available, "reason": entry.reason}
            row["devices"] = able = entry.devices + entry.on_request
            devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
            if able:
                devices = [device for device in devices if device in able]
            row["checks"] = [check(op, impl, device) for device in devices if entry.available]
            rows.append(row)
    return {"pose_kernels": pose_kernels.__version__, "python": platform.python_version(),
            "torch": torch.__version__, "torch_cuda": torch.version.cuda,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(), "simd": _library.simd_level(),
            "compiler": _library.build_info.get("compiler"),
            "built_with_torch": _library.build_info.get("torch"), "libraries": libraries,
            "implementations": rows,
            "tolerance": {"error": TOLERANCE[0], "gradient_error": TOLERANCE[1]},
            "passed": all(c["passed"] for row in rows for c in row["checks"])}


def show(found: dict) -> None:
    print(f"pose_kernels {found['pose_kernels']}, torch {found['torch']}, Python {found['python']}")
    print(f"GPU: {found['gpu'] or 'none visible'}")
    print(f"CPU: {found['threads']} threads, {found['simd']} vectors")
    for name, library in found["libraries"].items():
        if library["loaded"]:
            by = library.get("build") or found["compiler"]
            print(f"{name} library: loaded, built with torch {found['built_with_torch']}, {by}")
        else:
            print(f"{name} library: not available: {library['reason']}")
    error, gradient = found["tolerance"].values()
    print("\nSelf-check: float32 against the float64 reference, relative error of the value "
          f"(bar {error:.0e}) and of the worst gradient (bar {gradient:.0e})")
    print(f"{'op':26} {'impl':10} {'device':7} {'value':>8} {'gradient':>9}")
    for row in found["implementations"]:
        if not row["available"]:
            print(f"{row['op']:26} {row['impl']:10} not available: {row['reason']}")
        elif not row["checks"]:
            print(f"{row['op']:26} {row['impl']:10} not checked: no {row['devices'][0]} device")
        for c in row["checks"]:
            if "exception" in c:
                print(f"{row['op']:26} {row['impl']:10} {c['device']:7} FAILED: {c['exception']}")
                continue
            verdict = "ok" if c["passed"] else "FAILED"
            gradient = "-" if c["gradient_error"] is None else f"{c['gradient_error']:.1e}"
            print(f"{row['op']:26} {row['impl']:10} {c['device']:7} {c['error']:8.1e} "
                  f"{gradient:>9}  {verdict}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pose_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = report()
    try:
        if arguments.json:
            print(json.dumps(found, indent=2))
        else:
            show(found)
        print(end="", flush=True)
    except BrokenPipeError:  # the reader has what he wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
