"""Configurations as JSON: written, read back, compared."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args, get_origin

from posemodel.config.sections import Config
from posemodel.runtime.errors import UserError

# Fields that may differ between a run folder and the command that continues it.
FREE_ON_RESUME = frozenset({"preset", "out", "device", "compile", "timeout", "evaluate_every",
                            "checkpoint_every", "log_every", "data.root", "data.workers",
                            "loss.weights_folder"})


def to_dict(config: Config) -> dict:
    """Plain JSON values; tuples become lists."""
    return dataclasses.asdict(config)


def from_dict(values: dict) -> Config:
    """The inverse of `to_dict`, also for a file from before a field got another name; unknown or
    missing keys and wrong types are a `UserError`."""
    return _build(Config, _renewed(values), prefix="")


def _renewed(values: dict) -> dict:
    """The same with the names of today, as far as the values say what they were before."""
    if not isinstance(values, dict):
        return values
    values = {name: dict(value) if isinstance(value, dict) else value
              for name, value in values.items()}
    loss, model = values.get("loss"), values.get("model")
    # The path of one file; weights_folder is where it lies.
    if isinstance(loss, dict) and isinstance(loss.get("vgg_weights"), str) \
            and "weights_folder" not in loss:
        file = loss.pop("vgg_weights")
        loss["weights_folder"] = str(Path(file).parent) if file else ""
    # There was the paper's R, or none, and no run started from weights.
    if isinstance(model, dict) and isinstance(model.get("refine"), bool):
        model["refine"] = "paper" if model["refine"] else "none"
        values.setdefault("init", "")
    # Eq. 7 had one norm, rates no milestones, and the methods of Table 1 no loss on
    # joints, whatever its weight was said to be.
    if isinstance(loss, dict) and "affine_norm" not in loss:
        loss["affine_norm"] = "mean"
        if isinstance(model, dict) and model.get("flow", "ours") != "ours":
            loss["joint_weight"] = 0.0
        if isinstance(values.get("optim"), dict):
            values["optim"].setdefault("milestones", ())
    return values


def _build(cls, values: dict, prefix: str):
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise UserError(f"{prefix or 'config'} is {values!r}, expected a table of values")
    unknown, missing = values.keys() - fields.keys(), fields.keys() - values.keys()
    if unknown or missing:
        raise UserError(
            f"config {prefix or 'file'}: unknown {sorted(unknown)}, missing {sorted(missing)}; "
            "it was written by another version")
    return cls(**{name: _typed(fields[name].type, value, prefix + name)
                  for name, value in values.items()})


def _typed(kind, value, name: str):
    """`value` as the annotation `kind` has it; JSON knows neither tuples nor choices."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, prefix=f"{name}.")
    choices = get_args(kind)
    if get_origin(kind) is Literal and value in choices:
        return value
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        kinds = choices[:1] * len(value) if choices[-1] is ... else choices
        if len(kinds) == len(value):
            return tuple(_typed(*pair, name) for pair in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        expected = kind.__name__ if isinstance(kind, type) and not choices \
            else str(kind).removeprefix("typing.")
        raise UserError(f"config {name} is {value!r}, expected {expected}")
    return value


def drift(saved: Config, wanted: Config) -> list[str]:
    """Lines `field: saved -> wanted` for every field that a continued run may not change."""
    return [line for name, line in _changes(saved, wanted) if not _is_free(name, saved, wanted)]


def free_changes(saved: Config, wanted: Config) -> list[str]:
    """Lines `field: saved -> wanted` for every field that has changed and may."""
    return [line for name, line in _changes(saved, wanted) if _is_free(name, saved, wanted)]


def _is_free(name: str, saved: Config, wanted: Config) -> bool:
    if name == "steps":
        # Those that were made are then the first ones of a longer run.
        return wanted.steps > saved.steps and not saved.course_depends_on_steps
    return name in FREE_ON_RESUME


def _changes(saved: Config, wanted: Config) -> list[tuple[str, str]]:
    before, now = flatten(to_dict(saved)), flatten(to_dict(wanted))
    return [(name, f"{name}: {before[name]!r} -> {value!r}") for name, value in now.items()
            if before[name] != value]


def flatten(values: dict, prefix: str = "") -> dict:
    """The values of nested tables by their dotted names."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
