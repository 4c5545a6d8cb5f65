"""`vlm:URL#MODEL`: a vision-language model on a server that speaks OpenAI's chat completions API.

    r(x, c) = Σ_yes p(t | x, 'Does this figure show "c"? ...')       VQAScore (Lin et al. 2024), over first tokens that say yes
    r(x, c) = the number in the answer to FILE                       a rubric of one's own
    r(x, c) = mean_j p(x beats x_j)                                  with ``pair``: comparisons within the images of a prompt

URL is that of the API, such as http://localhost:8000/v1 of vLLM, SGLang, llama.cpp or `transformers serve`; MODEL is what it
calls the model. Parts that follow, with "#" between: a rubric's FILE, the word ``pair``, and options such as ``retries=0``.

VQAScore needs log-probabilities; a server that gives none is refused, and so is one whose 20 likeliest first tokens say neither
yes nor no; what is not among them counts 0. A rubric is a text; ``{prompt}`` in it stands for the prompt, which else is put
behind it. What counts in the answer is the last number behind the word score or rating, else the last number; of "7 out of 10"
and "on a scale of 1 to 10: 7" it is the 7. ``low`` and ``high`` bound it. A comparison is asked as one word, A, B or tie;
``prefers(images a, images b, prompts)`` is what objectives that compare pictures call.

Questions are asked at once, as many as ``concurrency``; each may take ``deadline`` seconds in all, with ``retries`` more
attempts after failures that may pass (pauses are the client's, 0.5 s doubling). Answers are kept by the digest of the pictures
and the question. Pictures are PNG, of 8 bits. A key, where a server wants one, is the environment's TILTING_VLM_KEY. Proxies of
the environment are not used.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from annotated_types import Ge, Gt
from typing_extensions import Doc

from tilting.declare import declared
from tilting.errors import RewardError, TiltingError, nearest
from tilting.features.picture import encoded
from tilting.foreign import read_text
from tilting.lazy import torch
from tilting.rewards.check import Scorer
from tilting.rewards.declaration import REWARDS, Argument, installed
from tilting.rewards.remote import certificates, check_url, finished, reason_of

if TYPE_CHECKING:
    from torch import Tensor

ASKED = 'Does this figure show "{prompt}"? Please answer yes or no.'
COMPARED = (
    'Two images were made from the prompt "{prompt}": image A, which comes first, and image B.{criteria} Which of them is '
    "better? Answer with one word: A, B or tie."
)
LIKELIEST = 20
"""Tokens whose log-probability is asked for: as many as servers give."""
DIGITS = r"(?:\d+\.?\d*|\.\d+)"
NUMBER = rf"(?:(?<!\w)[-+])?{DIGITS}(?:[eE][-+]?\d+)?"
COMMA = re.compile(r"(?<![\d.,])(\d+),(\d+)(?![\d.,]*\d)")
"""Of a decimal comma, or of thousands: 4,5 and 1,000."""
SCALE = re.compile(rf"(?:/|out of)\s*{DIGITS}|{DIGITS}\s*(?:[-–]|to|and)\s*{DIGITS}|{DIGITS}[- ]point", re.IGNORECASE)
"""Numbers of an answer that are the ends of a scale, not the score."""
SCORED = re.compile(rf"(?:score|rating)[^\d\n+-]*?({NUMBER})", re.IGNORECASE)
MARKS = " \t\n▁Ġ\"'`*.,:;!([{"
"""What may stand around a word of an answer."""


def _pointed(number: re.Match[str]) -> str:
    """4.5 of 4,5, and 1000 of 1,000."""
    whole, part = number.groups()
    return whole + part if len(part) == 3 and len(whole) < 4 and whole[0] != "0" else f"{whole}.{part}"


@dataclass(frozen=True)
class Settings:
    """How a server is asked."""

    concurrency: Annotated[int, Ge(1), Doc("Questions that are asked at once.")] = 8
    cache: Annotated[int, Ge(0), Doc("Answers that are kept.")] = 4096
    retries: Annotated[int, Ge(0), Doc("Further attempts at a question after a failure that may pass.")] = 2
    deadline: Annotated[float, Gt(0), Doc("Seconds for a question, all its attempts and pauses.")] = 60.0
    tokens: Annotated[int, Ge(1), Doc("Of an answer, at most; VQAScore's is one.")] = 256
    low: Annotated[float | None, Doc("The least number that a rubric's answer may be.")] = None
    high: Annotated[float | None, Doc("The largest.")] = None


OPTIONS = tuple(declared(Settings))
PAIR = "pair"


class Request(NamedTuple):
    """What a spec asks for: the API's address, the model there, a rubric's text, whether pictures are compared, and how."""

    url: str
    model: str
    rubric: str | None
    pair: bool
    settings: Settings


class Question(NamedTuple):
    """Pictures, PNG files, and a text; whether the answer is the probability of a yes."""

    pictures: tuple[bytes, ...]
    text: str
    yes: bool = False

    @property
    def key(self) -> str:
        """The digest of all of it."""
        parts = [*self.pictures, self.text.encode(), bytes([self.yes])]
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()


def read_request(text: str) -> Request:
    """URL#MODEL[#FILE][#pair][#OPTION=VALUE]. Raises TiltingError: another form, no such file or option, a wrong value."""
    url, *parts = (part.strip() for part in text.split("#"))
    if not (parts and parts[0]):
        raise TiltingError(f"the reward 'vlm:{text}' must be vlm:URL#MODEL, such as vlm:http://localhost:8000/v1#qwen")
    check_url(url)
    rubric, pair, options = None, False, {}
    for part in parts[1:]:
        name, equals, value = part.partition("=")
        if part == PAIR:
            pair = True
        elif Path(part).is_file() and rubric is None:
            rubric = read_text(part).strip()
            if not rubric:
                raise TiltingError(f"the rubric {part!r} is empty: write what is asked of a picture")
        elif equals and name in OPTIONS:
            one = declared(Settings)[name]
            whole = int(value) if value.strip().lstrip("+-").isdigit() else value
            options[name] = one.check(whole, f"{name} of 'vlm'")
        else:
            hint = nearest(name, (*OPTIONS, PAIR))
            raise TiltingError(f"{part!r} in 'vlm:{text}' is no file of a rubric and no option{hint}")
    return Request(url, parts[0], rubric, pair, Settings(**options))


@dataclass(frozen=True)
class Vlm(Scorer):
    """r(x, c) = what a vision-language model behind a server says; see the module.

    Attributes:
        request: where, whom, what and how to ask.
        kept: answers by key, the last used at the end.
    """

    request: Request
    name: str = "vlm"
    differentiable: bool = False
    kept: OrderedDict[str, str | float] = field(default_factory=OrderedDict, repr=False, compare=False)
    waits = True

    @property
    def batch_dependent(self) -> bool:
        """Whether pictures are compared with each other."""
        return self.request.pair

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(b,) without gradient. Raises RewardError: the server is not there, hangs, refuses or answers something else, with
        the row of an image where it is one's."""
        files = [encoded(image, "PNG") for image in images]
        if self.request.pair:
            return self._rates(files, prompts).to(images.device)
        template = ASKED if self.request.rubric is None else self.request.rubric
        if "{prompt}" not in template:
            template += "\n\nPrompt: {prompt}"
        texts = [template.replace("{prompt}", prompt) for prompt in prompts]
        yes = self.request.rubric is None
        said = self._ask([Question((file,), text, yes) for file, text in zip(files, texts, strict=True)], range(len(files)))
        values = [one if isinstance(one, float) else self._number(str(one), row) for row, one in enumerate(said)]
        return torch.tensor(values, dtype=torch.float32, device=images.device)

    def prefers(self, a: Tensor, b: Tensor, prompts: list[str]) -> Tensor:
        """Whether images a (m, 3, h, w) are better than b, each pair with its prompt: (m,), 1, 0 or 1/2. A judge may favour
        the first that it is shown: ask in either order. Raises RewardError as `values` does, with the row of a pair."""
        files = [(encoded(x, "PNG"), encoded(y, "PNG")) for x, y in zip(a, b, strict=True)]
        return self._preferred(files, prompts, range(len(files))).to(a.device)

    def _preferred(self, pairs: Sequence[tuple[bytes, bytes]], prompts: Sequence[str], rows: Sequence[int]) -> Tensor:
        criteria = f" {self.request.rubric}" if self.request.rubric else ""
        texts = [COMPARED.replace("{criteria}", criteria).replace("{prompt}", prompt) for prompt in prompts]
        said = self._ask([Question(pair, text) for pair, text in zip(pairs, texts, strict=True)], rows)
        return torch.tensor([self._winner(str(one), row) for one, row in zip(said, rows, strict=True)], dtype=torch.float32)

    def _rates(self, files: Sequence[bytes], prompts: Sequence[str]) -> Tensor:
        """The share of a prompt's other images that each is better than, (b,), in either order; 1/2 of a lone one."""
        alike = [(i, j) for i in range(len(files)) for j in range(len(files)) if i != j and prompts[i] == prompts[j]]
        first = [i for i, _ in alike]
        won = self._preferred([(files[i], files[j]) for i, j in alike], [prompts[i] for i in first], first)
        wins, met = [0.0] * len(files), [0] * len(files)
        for (i, j), one in zip(alike, won.tolist(), strict=True):
            wins[i], wins[j], met[i], met[j] = wins[i] + one, wins[j] + 1 - one, met[i] + 1, met[j] + 1
        return torch.tensor([w / n if n else 0.5 for w, n in zip(wins, met, strict=True)], dtype=torch.float32)

    def _number(self, answer: str, row: int) -> float:
        told = SCALE.sub("", COMMA.sub(_pointed, answer))
        found = SCORED.findall(told) or re.findall(NUMBER, told)
        number = float(found[-1]) if found else math.nan
        low, high = self.request.settings.low, self.request.settings.high
        if not math.isfinite(number):
            raise RewardError(f"reward {self.name!r} answered {answer[:60]!r}, which holds no number, for image {row}", row)
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = f"[{'-inf' if low is None else f'{low:g}'}, {'inf' if high is None else f'{high:g}'}]"
            raise RewardError(f"reward {self.name!r} answered {number:g} for image {row}, which is not in {bounds}", row)
        return number

    def _winner(self, answer: str, row: int) -> float:
        words = [word.strip(MARKS + ")]}") for word in re.sub(r"\ba tie\b", "tie", answer, flags=re.IGNORECASE).split()]
        told = [word.lower() for word in words if word.lower() in ("a", "b", "tie") and (word != "a" or len(words) == 1)]
        if len(set(told)) != 1:
            raise RewardError(f"reward {self.name!r} answered {answer[:60]!r}, neither A, B nor tie, for image {row}", row)
        return {"a": 1.0, "b": 0.0, "tie": 0.5}[told[0]]

    def _ask(self, questions: Sequence[Question], rows: Sequence[int]) -> list[str | float]:
        """The answers, each question asked once. What was answered before a failure is kept."""
        keys = [question.key for question in questions]
        new = {key: (one, row) for key, one, row in zip(keys, questions, rows, strict=True) if key not in self.kept}
        held = {key: self.kept[key] for key in keys if key in self.kept}
        if new:
            finished(self._all(new, held))
        most = self.request.settings.cache
        for key in keys:
            self.kept[key] = held[key]
            self.kept.move_to_end(key)
        while len(self.kept) > most:
            self.kept.popitem(last=False)
        return [held[key] for key in keys]

    async def _all(self, new: dict[str, tuple[Question, int]], held: dict[str, str | float]) -> None:
        import openai

        settings, key = self.request.settings, os.environ.get("TILTING_VLM_KEY") or "none"
        gate = asyncio.Semaphore(settings.concurrency)
        secure: dict[str, Any] = {"verify": certificates()} if self.request.url.lower().startswith("https") else {}
        web = openai.DefaultAsyncHttpxClient(trust_env=False, follow_redirects=False, **secure)
        options: dict[str, Any] = {"max_retries": settings.retries, "timeout": settings.deadline, "http_client": web}
        async with openai.AsyncOpenAI(base_url=self.request.url, api_key=key, **options) as client:

            async def one(key: str, question: Question, row: int) -> None:
                async with gate:
                    held[key] = self.kept[key] = await self._once(client, question, row)

            try:
                async with asyncio.TaskGroup() as group:
                    for name, (question, row) in new.items():
                        group.create_task(one(name, question, row))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _once(self, client: Any, question: Question, row: int) -> str | float:
        """One answer. Raises RewardError."""
        import openai

        settings = self.request.settings
        files = [f"data:image/png;base64,{base64.b64encode(file).decode('ascii')}" for file in question.pictures]
        content: list[Any] = [{"type": "image_url", "image_url": {"url": file}} for file in files]
        content.append({"type": "text", "text": question.text})
        asked: dict[str, Any] = {"model": self.request.model, "messages": [{"role": "user", "content": content}]}
        asked |= {"temperature": 0.0, "max_tokens": 1 if question.yes else settings.tokens}
        asked |= {"logprobs": True, "top_logprobs": LIKELIEST} if question.yes else {}
        times = f"{settings.retries + 1} attempts" if settings.retries else "one attempt"
        try:
            async with asyncio.timeout(settings.deadline):
                told = await client.chat.completions.create(**asked)
        except (TimeoutError, openai.APITimeoutError):
            raise RewardError(f"reward {self.name!r} did not answer within {settings.deadline:g} s") from None
        except openai.APIStatusError as error:
            said = " ".join(str(error.message).split())[:80]
            raise RewardError(f"reward {self.name!r} answered with status {error.status_code}: {said}") from None
        except openai.APIConnectionError as error:
            raise RewardError(f"reward {self.name!r} cannot be reached: {reason_of(error)} ({times})") from None
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise RewardError(f"reward {self.name!r} answered no chat completion ({type(error).__name__})") from None
        return self._yes(told, row) if question.yes else self._text(told, row)

    def _choice(self, told: Any) -> Any:
        """The first choice of an answer that may be of any form. Raises RewardError."""
        choices = getattr(told, "choices", None)
        if not (isinstance(choices, list) and choices):
            raise RewardError(f"reward {self.name!r} answered {str(told)[:60]!r}, which is no chat completion")
        return choices[0]

    def _text(self, told: Any, row: int) -> str:
        text = getattr(getattr(self._choice(told), "message", None), "content", None)
        if not isinstance(text, str) or not text.strip():
            raise RewardError(f"reward {self.name!r} answered nothing for image {row}", row)
        return text

    def _yes(self, told: Any, row: int) -> float:
        """The probability of the first tokens that say yes. Raises RewardError where there are no log-probabilities."""
        content = getattr(getattr(self._choice(told), "logprobs", None), "content", None)
        top = getattr(content[0], "top_logprobs", None) if isinstance(content, list) and content else None
        found: list[Any] = [(getattr(one, "token", None), getattr(one, "logprob", None)) for one in top or ()]
        if not found or not all(isinstance(t, str) and isinstance(p, int | float) and p <= 1e-6 for t, p in found):
            what = "a rubric file or pair needs none"
            raise RewardError(f"reward {self.name!r} gives no log-probabilities, which VQAScore needs; {what}")
        words = {token: token.strip(MARKS + ")").lower() for token, _ in found}
        if not {"yes", "no"} & set(words.values()):
            first = max(found, key=lambda one: one[1])[0]
            raise RewardError(f"reward {self.name!r} answers neither yes nor no but {first!r} for image {row}", row)
        return float(sum(math.exp(p) for token, p in found if words[token] == "yes"))


@REWARDS.declare(
    "vlm",
    "what a vision-language model of a server says",
    "probability of yes, or the rubric's",
    argument=Argument("URL#MODEL[#FILE][#OPTION=VALUE]", read_request, required=True),
    remote=True,
    extra=("vlm", "openai"),
)
def vlm(asked: str, name: str | None = None) -> Vlm:
    """VQAScore, a rubric of one's own, or comparisons, by a vision-language model behind an OpenAI-compatible endpoint.

    Parts behind the model, with # between: a text file with a rubric; the word pair; concurrency=8 questions at once,
    cache=4096 answers kept, retries=2, deadline=60 seconds of a question in all, tokens=256 of an answer, low and high of a
    rubric's number.

    Args:
        asked: URL#MODEL[#FILE][#pair][#OPTION=VALUE].
        name: in manifests; by default the spec.

    Raises:
        TiltingError: another form, no such rubric or option, or the extra is not installed.
    """
    request = read_request(asked)
    installed(REWARDS["vlm"])
    return Vlm(request, name or f"vlm:{asked}")
