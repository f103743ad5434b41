"""Command lines. tyro stays behind this file, and torch out of it: `--help` answers at once.

The preset is an optional first word and not a subcommand, so that `train`, `train --steps 5` and
`train overnight --optim.lr 1e-3` all mean what they say, in any order of the flags.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from posemodel.config.presets import PRESETS, for_method
from posemodel.config.sections import Config
from posemodel.config.stored import from_dict, to_dict
from posemodel.runtime.errors import UserError

PROGRAM = "python -m posemodel.train"

#: What `--help` shows; `--help-all` shows every flag.
FIRST = frozenset({
    "out", "steps", "seed", "device", "precision", "compile", "evaluate_every", "checkpoint_every",
    "data.kind", "data.root", "data.image_size", "data.background", "data.evaluation_pairs",
    "data.workers", "model.flow", "loss.reconstruction", "optim.batch_size", "optim.lr",
})  # and --config, --dry-run
#: Fields whose flag is another word than section and name: it is the same in every command.
RENAMED = {"loss.weights_folder": "weights"}
#: Fields that the presets differ in and no command line needs: a --config file may set them.
WITHOUT_FLAG = frozenset({
    "data.pairs_per_epoch", "model.stream", "model.discriminator_width",
    "model.discriminator_layers", "model.refine_blocks", "loss.reconstruction_weight",
    "loss.affine_norm", "optim.betas", "optim.milestones", "optim.phase_two_decoder",
    "optim.phase_two_rest",
})


@dataclass
class TrainRequest:
    """What the command line of `train` asks for."""

    config: Config
    dry_run: bool


def parse_train(argv: list[str]) -> TrainRequest:
    """`[preset] [--flags]` -> a checked config. Exits by itself after `--help` or a wrong flag."""
    words = list(argv)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    config_file = _value_of("--config", words)
    if preset is not None and config_file is not None:
        raise UserError(f"both a preset ({preset}) and --config {config_file}: give one of them")
    if config_file is not None:
        start = _from_file(config_file)
    else:
        start = for_method(_from_preset(preset or "quick"), _value_of("--model.flow", words))

    flags = _parse_flags(words, start)
    config = _as(Config, flags)
    config.out = config.out or f"runs/{config.preset}"
    if flags.dry_run:
        print(config_text(config))
    return TrainRequest(config=config, dry_run=flags.dry_run)


def config_text(config: Config) -> str:
    """The config as JSON that `--config` reads; lists of numbers stay on one line."""
    text = json.dumps(to_dict(config), indent=2)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: json.dumps(json.loads(found[0])), text)


def _from_preset(name: str) -> Config:
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no preset is called {name!r}; {hint}presets: {', '.join(PRESETS)}")
    return PRESETS[name]()


def _from_file(path: str) -> Config:
    try:
        return from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    except ValueError as error:
        raise UserError(f"--config {path} is no JSON file: {error}") from error


def _value_of(flag: str, words: list[str]) -> str | None:
    """The value of `flag`, which is needed before the defaults of all other flags are known."""
    for word, following in itertools.pairwise([*words, ""]):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
    return None


def _parse_flags(words: list[str], start: Config):
    """tyro on the fields of `Config`, plus the two flags that are no part of a run."""
    import tyro  # a tenth of a second that the other commands need not spend

    short = not {"-h", "--help"}.isdisjoint(words)
    words = ["--help" if word == "--help-all" else word for word in words]
    flags = _with_marks(Config, FIRST if short else None)

    @dataclass(kw_only=True)
    class TrainFlags(flags):
        preset: Annotated[str, tyro.conf.Suppress] = ""
        config: str = ""
        """config.json of a run to start from, in the place of a preset"""
        dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        """print the resolved config as JSON and exit"""

    wants_help = not {"-h", "--help"}.isdisjoint(words)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(TrainFlags, prog=PROGRAM + (" [preset]" if wants_help else ""),
                            description=_description(), args=words, default=_as(TrainFlags, start))
    except SystemExit as stop:
        # tyro frames every message in a box. Our own say what is wrong in one line already.
        error = stop.__context__
        while error is not None and not isinstance(error, UserError):
            error = error.__context__
        if error is not None:
            raise error from None
        sys.stderr.write(messages.getvalue())
        raise


def _with_marks(section: type, shown: frozenset[str] | None, prefix: str = "") -> type:
    """A section of the config whose fields tell tyro which of them are flags: those that are to be
    shown, else all that have one."""
    import tyro

    fields = []
    for entry in dataclasses.fields(section):
        name, kind = prefix + entry.name, entry.type
        if dataclasses.is_dataclass(kind):
            kind = _with_marks(kind, shown, f"{name}.")
        elif name in WITHOUT_FLAG or (shown is not None and name not in shown):
            kind = Annotated[kind, tyro.conf.Fixed, tyro.conf.Suppress]
        elif name in RENAMED:
            kind = Annotated[kind, tyro.conf.arg(name=RENAMED[name], prefix_name=False)]
        fields.append((entry.name, kind, dataclasses.field(default=None)))
    return dataclasses.make_dataclass(section.__name__, fields, bases=(section,), kw_only=True)


def _as(kind: type, values: object):
    """The values of a dataclass in another one that has its fields, sections too."""
    kinds = {entry.name: entry.type for entry in dataclasses.fields(kind)}
    return kind(**{name: _as(kinds[name], value) if dataclasses.is_dataclass(value) else value
                   for name, value in vars(values).items() if name in kinds})


def _description() -> str:
    # tyro joins the lines of a paragraph but leaves indented ones alone.
    width = max(map(len, PRESETS))
    presets = "\n".join(f"  {name:<{width}}  {(preset.__doc__ or '').splitlines()[0]}"
                        for name, preset in PRESETS.items())
    return f"""  {PROGRAM}
  alone trains the preset `quick` into runs/quick, on the best device here, with no
  download. The same command again continues the run.
  Below are the flags that people use first; all of them: --help-all

presets:
{presets}"""
