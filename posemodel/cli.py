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
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

from posemodel.config import Config, ConfigError, from_dict, to_dict
from posemodel.errors import UserError
from posemodel.presets import PRESETS

PROGRAM = "python -m posemodel.train"


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
    start = _from_file(config_file) if config_file is not None else _from_preset(preset or "quick")

    flags = _parse_flags(words, start)
    config = Config(**{f.name: getattr(flags, f.name) for f in dataclasses.fields(Config)})
    config.out = config.out or f"runs/{config.preset}"
    if flags.dry_run:
        print(config_text(config))
    return TrainRequest(config=config, dry_run=flags.dry_run)


def config_text(config: Config) -> str:
    """The config as JSON that `--config` reads; lists of numbers stay on one line."""
    text = json.dumps(to_dict(config), indent=2)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: json.dumps(json.loads(found[0])), text)


def run_main(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command and exit: 0 done, 2 the user's mistake in one line, 130 Ctrl-C, 1 our fault."""
    # OpenMP threads spin while they wait for each other. By default a second busy process on the
    # machine makes training ten times slower; this way it gets its share and no more. It has to be
    # said before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        code = main(sys.argv[1:])
    except (UserError, ConfigError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


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
    except ConfigError as error:
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

    @dataclass(kw_only=True)
    class TrainFlags(Config):
        preset: Annotated[str, tyro.conf.Suppress] = ""
        config: str = ""
        """config.json of a run to start from, in the place of a preset"""
        dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        """print the resolved config as JSON and exit"""

    wants_help = not {"-h", "--help"}.isdisjoint(words)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                TrainFlags,
                prog=PROGRAM + (" [preset]" if wants_help else ""),
                description=_description(),
                args=words,
                default=TrainFlags(**vars(start)),
            )
    except SystemExit as stop:
        # tyro frames every message in a box. Our own say what is wrong in one line already.
        error = stop.__context__
        while error is not None and not isinstance(error, ConfigError):
            error = error.__context__
        if error is not None:
            raise error from None
        sys.stderr.write(messages.getvalue())
        raise


def _description() -> str:
    # tyro joins the lines of a paragraph but leaves indented ones alone.
    width = max(map(len, PRESETS))
    lines = [
        f"  {PROGRAM}",
        "  alone trains the preset `quick` into runs/quick, on the best device here, with no",
        "  download. The same command again continues the run.",
        "",
        "presets:",
        *(f"  {name:<{width}}  {(preset.__doc__ or '').splitlines()[0]}"
          for name, preset in PRESETS.items()),
    ]
    return "\n".join(lines)
