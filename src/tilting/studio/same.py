"""One request as a command, as YAML and as Python, to be copied; and its words, for a process of the command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tilting.config.auto import AUTO
from tilting.config.base import BaseConfig
from tilting.config.generate import GenerateConfig
from tilting.declare import plain


def text_of(value: Any) -> str:
    """A value as the command line takes it, every digit of it."""
    if isinstance(value, tuple | list):
        return ",".join(map(text_of, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def words_of(command: str, config: type[BaseConfig], asked: Mapping[str, Any]) -> list[str]:
    """The words after ``tilting`` that ask for this.

    Args:
        command: such as "condition fit".
        config: whose options they are.
        asked: by option name, checked; None is left out.
    """
    options, words, last = config.options(), command.split(), []
    for name, value in asked.items():
        one = options[name]
        if value is None or value in ((), [], {}):
            continue
        if one.given.positional:
            last = [str(word) for word in value]
        elif name == "set":
            words += [word for key, setting in value.items() for word in ("--set", f"{key}={text_of(setting)}")]
        elif value is True:
            words.append(f"--{name}")
        elif one.repeats:
            words += [word for part in value for word in (f"--{name}", text_of(part))]
        elif value is not False:
            words += [f"--{name}", text_of(value)]
    return [*words, *(["--", *last] if any(word.startswith("-") for word in last) else last)]


def command_line(words: Sequence[str]) -> str:
    """As a shell takes it."""
    return shlex.join(["tilting", *words])


def yaml_of(asked: Mapping[str, Any]) -> str:
    """What ``--config`` takes."""
    return yaml.safe_dump(
        {key: plain(value) for key, value in asked.items() if value is not None}, sort_keys=False, allow_unicode=True
    )


def python_of(asked: Mapping[str, Any]) -> str:
    """The call of `tilting.generate`, for what has one."""
    config = GenerateConfig.resolve(asked)
    loaded = [repr(config.model)]
    loaded += [f"{name}={getattr(config, name)!r}" for name in ("device", "precision") if name in asked]
    loaded += [f"lora={list(config.lora)!r}"] if config.lora else []
    settings = ", ".join(f"{key.partition('.')[2]}={value!r}" for key, value in (asked.get("set") or {}).items())
    given = [f"reward={list(config.reward)!r}"] if config.reward else []
    given += [f"method=tl.presets.{config.method}({settings})"] if config.method not in ("base", AUTO) else []
    given += [f"method={AUTO!r}, budget={config.budget!r}"] if config.method == AUTO else []
    of_call = ("steps", "cfg", "eta", "sde", "negative-prompt", "batch-size", "seed", "images", "image", "strength")
    given += [f"{name.replace('-', '_')}={asked[name]!r}" for name in of_call if asked.get(name) is not None]
    call = ", ".join(["pipe", repr(list(config.prompts)), *given])
    pipe = f"pipe = tl.load({', '.join(loaded)})"
    return f"import tilting as tl\n\n{pipe}\nout = tl.generate({call})\nout.save({config.out or 'runs/one'!r})\n"
