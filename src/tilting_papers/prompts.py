"""Prompts of pocket's language that several papers' recipes draw."""

from __future__ import annotations

_ANIMALS = """
fox owl cat dog lion tiger bear panda rabbit elephant giraffe zebra horse penguin turtle octopus butterfly whale frog snail
"""
_SCENES = """
fox green noto, sunflower pink fluent, castle green twemoji, banana purple noto, rocket black fluent, octopus yellow twemoji,
mushroom teal noto, strawberry white fluent, sailboat orange twemoji, owl gray noto, cactus brown fluent, pizza red twemoji,
butterfly white noto, bicycle yellow fluent, tulip blue twemoji, penguin orange noto, watermelon teal fluent, bus pink twemoji,
tree gray noto, whale green fluent
"""


def a(word: str) -> str:
    """A word with its article."""
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def scenes(words: str) -> tuple[str, ...]:
    """Prompts that name all pocket can, of "concept background style, ..."."""
    named = [three.split() for three in words.split(",")]
    return tuple(f"{a(concept)} on {a(ground)} background, {style} style" for concept, ground, style in named)


_OBJECTS = """
sunflower castle banana rocket mushroom strawberry sailboat cactus pizza bicycle tulip watermelon bus tree robot teapot violin
clock camera helicopter
"""
_TUNING = """
duck pink fluent, crab teal noto, snake blue twemoji, koala orange noto, shark yellow fluent, pear purple twemoji,
lemon green noto, guitar white fluent, train gray twemoji, chair red noto
"""
ANIMALS = tuple(map(a, _ANIMALS.split()))
"""Twenty animals, no style named: a reward of the image alone asks for what the prompt does not."""
OBJECTS = tuple(map(a, _OBJECTS.split()))
"""Twenty things, no style named."""
SCENES = scenes(_SCENES)
"""Twenty prompts that name concept, background and style."""
TUNING_SCENES = scenes(_TUNING)
"""Ten prompts that no other recipe draws, with background and style named."""
TUNING = tuple(prompt.partition(" on ")[0] for prompt in TUNING_SCENES)
"""The same without background and style."""
