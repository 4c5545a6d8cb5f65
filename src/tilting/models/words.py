"""The language of `pocket`: the prompts it understands, and how to parse them.

A prompt is "a fox", "a fox, noto style", "a fox on a blue background" or "a fox on a blue background, noto style".
Plain data and string functions; neither torch nor weights are needed to write, read or refuse a prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from tilting.features.packaged import POCKET
from tilting.foreign import read_json


@dataclass(frozen=True)
class Words:
    """The vocabulary of a pocket model.

    Attributes:
        concepts: the names of what it draws; a concept's index is its label.
        categories: the category of each concept ("animals", "food", ...), parallel to ``concepts``.
        styles: the names of the drawing styles.
        colours: the named background colours and their RGB values in 0..255.
        held_out: triples (concept, style, colour) of indices that training never showed together.
        aliases: other words for concepts ("bunny") and the concept's index.
    """

    concepts: tuple[str, ...]
    categories: tuple[str, ...]
    styles: tuple[str, ...]
    colours: dict[str, tuple[int, int, int]]
    held_out: frozenset[tuple[int, int, int]]
    aliases: dict[str, int] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[tuple[re.Pattern[str], int, int], ...]:
        """For each concept's name and each alias: the pattern that finds it in text, its length, the concept's index."""
        named = [*((name, i) for i, name in enumerate(self.concepts)), *self.aliases.items()]
        return tuple((re.compile(rf"\b{re.escape(_plain(name))}s?\b"), len(name), i) for name, i in named)


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for, as indices into `Words`; None where it does not say."""

    concept: int | None
    style: int | None
    background: int | None


@cache
def load_words(folder: Path = POCKET) -> Words:
    """Read ``words.json`` of a pocket folder (default: the one in the package)."""
    raw = read_json(folder / "words.json")
    return Words(
        concepts=tuple(raw["concepts"]),
        categories=tuple(raw["categories"]),
        styles=tuple(raw["styles"]),
        colours={name: tuple(rgb) for name, rgb in raw["colours"].items()},
        held_out=frozenset(tuple(triple) for triple in raw["held_out"]),
        aliases=raw.get("aliases", {}),
    )


def article(noun: str) -> str:
    """The noun with its article: "an owl", "a fox", "grapes"."""
    if noun.endswith("s") and not SINGULAR_S.fullmatch(noun):
        return noun
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


SINGULAR_S = re.compile(
    "(oncoming |trolley)?bus|octopus|cactus|lotus|walrus|hibiscus|hippopotamus|molasses|compass|dress|hourglass|wine glass|"
    "t-rex|smiling face with (heart eyes|horns|sunglasses)"
)
"""Nouns that end in s and are one thing."""


def write_prompt(words: Words, concept: int, style: int | None = None, background: int | None = None) -> str:
    """The canonical prompt that asks for these labels."""
    return phrase(words, words.concepts[concept], style, background)


def phrase(words: Words, noun: str, style: int | None = None, background: int | None = None) -> str:
    """A prompt for any noun, in the words that pocket was trained on."""
    text = article(noun)
    if background is not None:
        text += f" on {article(list(words.colours)[background])} background"
    if style is not None:
        text += f", {words.styles[style]} style"
    return text


def _plain(text: str) -> str:
    """Its words in lower case, between single spaces."""
    return " ".join(re.findall(r"[a-z0-9-]+", text.lower()))


def read_prompt(words: Words, prompt: str) -> Asked:
    """What a prompt asks for. Understands any order, any case, and leaves None what it cannot find.

    The longest concept name or alias found in the text wins ("cat face" over "cat"); words of the background phrase are not
    concepts ("a bee on an orange background" holds no orange).
    """
    text = _plain(prompt)
    background = style = None
    for i, colour in enumerate(words.colours):
        text, count = re.subn(rf"\b(on|with|over)? ?(an? )?(plain )?{colour} background\b", " ", text)
        if count:
            background = i
    for i, name in enumerate(words.styles):
        text, count = re.subn(rf"\b(in )?(an? |the )?{name}( style)?\b", " ", text)
        if count:
            style = i
    named = [(length, -i) for pattern, length, i in words.names if pattern.search(text)]
    return Asked(concept=-max(named)[1] if named else None, style=style, background=background)
