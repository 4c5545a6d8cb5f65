"""Definitions of all terms in reports: what a number is, its unit, and how it is computed. Torch-free.

docs/glossary.md is made of them; pages of compare and evaluate carry those that they use, and link to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Term(NamedTuple):
    """A word of the reports.

    Attributes:
        short: a line, for legends, tooltips and the command line.
        more: what else the glossary says.
    """

    short: str
    more: str = ""


TERMS = {
    "reward": Term(
        "what was asked for; higher is better, each reward in its own unit",
        "A picture's reward is the weighted sum of those that were given. A method is steered by it, so that its rise alone "
        "does not say that pictures are better: see *judge* and *gamed*. `tilting rewards` lists rewards and their units.",
    ),
    "judge": Term(
        "how surely a network that is never a reward sees in a picture what its prompt says: log-probability, 0 is certain",
        "pocket-judge is a classifier of concept, style and background. It knows pocket's words, was trained on other features "
        "than the rewards and is never steered by. -0.1 is 90 %, -0.7 is 50 %, -2.3 is 10 %, for a prompt that names a concept "
        "alone; of a style and a background the logarithms add. It means something beside that of the base model only.",
    ),
    "held-out judge": Term(
        "a judge whose network no reward of the run reads",
        "pocket-judge always, T-CLIP where its CLIP is not that of the reward. Where a judge is not held out, its rise is the "
        "reward's own.",
    ),
    "gain": Term(
        "the method less the reference (base), each picture against the one that began at the same noise",
        "Pairs of pictures differ by the method alone, so that much fewer are needed to see a difference.",
    ),
    "interval": Term(
        "95 % t interval over prompts (over pictures, where there is one prompt)",
        "Pictures of one prompt are not independent, so that prompts are counted. One that holds 0 says: no difference was "
        "found. Without one, or with one of no width, there is too little to say.",
    ),
    "wins": Term(
        "share of the pictures whose reward is above the reference's of the same noise, equal ones by half; 50 % is chance"
    ),
    "evaluations": Term(
        "calls of the denoiser for each finished picture: what drawing costs",
        "A pair of guidance (conditional and unconditional) counts as one. T steps of base cost T of them; N particles N times "
        "as many. A machine's seconds change, evaluations do not.",
    ),
    "decodes": Term(
        "latents that the autoencoder made pictures of, so that a reward could look at them",
        "Each is followed by a call of the reward. Methods that look in the middle of the way decode estimates of the picture.",
    ),
    "diversity": Term(
        "how far apart the pictures of one prompt are; 0: all the same",
        "A mean distance of pairs in features of pocket-judge, or LPIPS. A method may lower it without a picture being worse: "
        "that is said as *less diverse*, not as *gamed*.",
    ),
    "T-CLIP": Term(
        "2.5 x cosine of a picture and its prompt in CLIP, negative ones as 0",
        'CLIPScore (Hessel et al. 2021) of "A photo depicts ..." and the prompt. A judge where the reward reads another CLIP.',
    ),
    "FID": Term(
        "distance of two sets of pictures in features of a classifier; lower is nearer",
        "Fréchet distance of two Gaussians (Heusel et al. 2017). It depends on how many pictures there are: below 50 a side it "
        "says nothing, and is not shown as a number that says something. Compare it with the *floor*.",
    ),
    "CMMD": Term(
        "distance of two sets of pictures in CLIP's features; lower is nearer",
        "Maximum mean discrepancy with a Gaussian kernel (Jayasumana et al. 2024), times 1000. It needs fewer pictures than "
        "FID. "
        "Above 0 for two draws of one law too: compare it with the *floor*.",
    ),
    "floor": Term(
        "the distance of two runs of the base model from one another: what chance alone gives",
        "A method whose distance is at the floor draws from the base model's distribution, as far as this can tell. The two "
        "runs are of different seeds and as many pictures.",
    ),
    "KL to base": Term(
        "how far the drawing has moved from the base model's, in nats for each picture",
        "Summed over the steps of the chain. 0 is the base model.",
    ),
    "gamed": Term(
        "the reward rose and a held-out judge fell",
        "The network that gives the reward was pleased, not the one that has no share in it.",
    ),
    "less diverse": Term("the reward rose, no held-out judge fell, and pictures of one prompt are more alike than base's"),
    "better": Term(
        "the reward rose and no fall of a held-out judge or of diversity was found",
        "Where the estimate of a judge lies more than its standard error below 0, the sentence says that it may have fallen.",
    ),
    "no gain": Term("no rise of the reward was found"),
    "too few to say": Term(
        "there are not enough prompts or pictures to tell a difference from chance",
        "Four prompts are the least, 20 are better.",
    ),
}
"""By name, in the order in which people meet them."""


def anchor(word: str) -> str:
    """What links to a word of the glossary end in, as Markdown's own."""
    return word.lower().replace(" ", "-")


def legend(words: Iterable[str]) -> dict[str, str]:
    """The short meanings of words, those that there are, in order of `TERMS`."""
    asked = set(words)
    return {word: term.short for word, term in TERMS.items() if word in asked}


def glossary() -> list[str]:
    """Lines of the page of all words."""
    lines = ["# Glossary", "", "The words of reports, pages and of the command line."]
    for word, term in TERMS.items():
        lines += ["", f"## {word}", "", f"{term.short[0].upper()}{term.short[1:]}.", *(["", term.more] if term.more else [])]
    return lines
