"""What tests of the command line share: a refusal's sentence, and what a run's folder says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tilting.cli import main
from tilting.runs.files import with_records


def refused(capsys, *words: str) -> str:
    """The one sentence of a refusal, which goes to stderr with exit code 2, at most after what is being loaded."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    loading, err = re.match(r"((?:tilting: loading \S+ \.\.\.\n)?)(.*)", err, re.DOTALL).groups()
    assert not (loading and "--quiet" in words)
    assert err.startswith("tilting: ")
    assert err.count("\n") == 1, err
    assert err.count("did you mean") <= 1
    return err


def manifest(folder: Path) -> dict:
    """manifest.json of a run, of pictures with images.jsonl under ``images``."""
    return with_records(folder, json.loads((folder / "manifest.json").read_text()))


def over(words: Sequence[str], *more: str) -> list[str]:
    """A command with other options, those that it has of one value in their place: an option is given once."""
    left, again = list(words), {word for word in more if word.startswith("--")}
    for name in again & set(left):
        at = left.index(name)
        del left[at : at + 2]
    return [*left, *more]
