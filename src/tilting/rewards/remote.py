"""`http://HOST/PATH`: a remote scorer, a black box asked by POST.

The request's body is JSON: ``{"images": [...], "prompts": [...]}``, the images as base64 of PNG files (8 bits: values are
rounded to 1/255), as many prompts as images. The answer is JSON with ``{"scores": [...]}``, one finite number per image, higher
is better. Nothing else is read of it. A batch is one request.

What may pass is tried again after a pause that doubles (no connection, time-out, 429, 5xx); what will not is refused at once
(other statuses, redirects, answers of another form). Proxies of the environment are not used. The time-out bounds a whole
attempt, but for the look-up of the host's name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tilting.errors import RewardError, TiltingError
from tilting.features.picture import encoded
from tilting.foreign import parse_json
from tilting.lazy import torch
from tilting.rewards.check import Scorer, check_values
from tilting.rewards.declaration import REWARDS, Argument

if TYPE_CHECKING:
    from torch import Tensor

Some = TypeVar("Some")
URL = re.compile(r"https?://", re.IGNORECASE)
TIMEOUT = 30.0
ATTEMPTS = 3
PAUSE = 0.5
LARGEST = 1 << 24
"""Bytes of an answer beyond which it is no list of scores."""
PASSING = (408, 425, 429, 500, 502, 503, 504)


class _Passing(Exception):
    """What may be better at the next attempt."""


@cache
def certificates() -> SSLContext:
    """Whom to trust; 0.2 s."""
    import httpx2 as httpx

    return httpx.create_ssl_context()


def finished(asked: Coroutine[Any, Any, Some]) -> Some:
    """What a coroutine comes to, also in a thread that runs others, as a notebook's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asked)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, asked).result()


def reason_of(error: BaseException) -> str:
    """Why a connection failed: what the system says, where it says something."""
    below: BaseException | None = error
    while below is not None:
        number = getattr(below, "errno", None)
        if number and number > 0:
            return os.strerror(number)
        below = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below.__cause__ or below.__context__
    return str(error).strip() or type(error).__name__


def body(images: Tensor, prompts: list[str]) -> bytes:
    """The request for images (b, 3, h, w) in [0, 1] and b prompts."""
    files = [base64.b64encode(encoded(x, "PNG")).decode("ascii") for x in images]
    return json.dumps({"images": files, "prompts": prompts}).encode()


def check_url(text: str) -> str:
    """The address of a remote scorer: http or https, a host, and no password, for it stands in manifests. Else TiltingError."""
    try:
        parts = urlsplit(text)
        known, asked = parts.scheme.lower() in ("http", "https"), bool(parts.hostname) and parts.port != 0
        right = known and asked and "@" not in parts.netloc
    except ValueError:
        right = False
    if not right or re.search(r"[\s\x00-\x1f\x7f]", text) or not text.isascii():
        raise TiltingError(f"the address {text!r} must be http://HOST[:PORT]/PATH, or https")
    return text


@dataclass(frozen=True)
class Http(Scorer):
    """r(x, c) = what a server says; see the module for the request and the answer.

    Attributes:
        url: of the scorer, also the name.
        timeout: seconds for one attempt.
        attempts: how often to ask in all.
        pause: seconds before the second attempt, twice as long before each further one.
    """

    url: str
    timeout: float = TIMEOUT
    attempts: int = ATTEMPTS
    pause: float = PAUSE
    differentiable: bool = False
    waits = True

    @property
    def name(self) -> str:
        """The address."""
        return self.url

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(b,) finite float32 without gradient. Raises RewardError: the server is not there, hangs, refuses, or answers in
        another form; with the row of a value that is not finite."""
        scores = self._scores(self._ask(body(images, prompts)), len(images))
        return check_values(self.name, torch.tensor(scores, dtype=torch.float32, device=images.device), len(images))

    def _ask(self, data: bytes) -> bytes:
        """The first answer there is, of several attempts."""
        said = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._once(data)
            except _Passing as error:
                said = str(error)
        times = f"{self.attempts} attempts" if self.attempts > 1 else "one attempt"
        raise RewardError(f"reward {self.name!r} {said} ({times})")

    def _once(self, data: bytes) -> bytes:
        """The answer to one attempt, whose end is the deadline whatever the server does meanwhile."""
        try:
            return finished(asyncio.wait_for(self._posted(data), self.timeout))
        except TimeoutError:
            raise _Passing(f"did not answer within {self.timeout:g} s") from None

    async def _posted(self, data: bytes) -> bytes:
        import httpx2 as httpx  # 50 ms

        head = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "tilting"}
        head["Accept-Encoding"] = "identity"
        try:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=None, verify=certificates()) as client,
                client.stream("POST", self.url, content=data, headers=head) as answer,
            ):
                if answer.status_code in PASSING:
                    raise _Passing(f"answered with status {answer.status_code}")
                if not 200 <= answer.status_code < 300:  # a POST that is redirected would arrive as a GET without its images
                    raise RewardError(f"reward {self.name!r} answered with status {answer.status_code}, which is no score")
                pieces, size = [], 0
                async for piece in answer.aiter_raw():  # not unpacked: 10 kB may hold 10 GB
                    pieces.append(piece)
                    size += len(piece)
                    if size > LARGEST:
                        raise RewardError(
                            f"reward {self.name!r} answered more than {LARGEST} bytes, which is no list of scores"
                        )
                return b"".join(pieces)
        except httpx.ConnectError as error:
            raise _Passing(f"cannot be reached: {reason_of(error)}") from None
        except (httpx.HTTPError, OSError) as error:
            raise _Passing(f"broke off: {reason_of(error)}") from None

    def _scores(self, answer: bytes, count: int) -> list[float]:
        """The scores of an answer, as floats that may still be NaN."""
        wanted = f'not {{"scores": [...]}} with {count} number{"s" if count > 1 else ""}'
        try:
            told = parse_json(answer, "the answer", wide=True)
        except TiltingError:
            raise RewardError(f"reward {self.name!r} answered no JSON ({answer[:40]!r})") from None
        scores = told.get("scores") if isinstance(told, dict) else None
        if not isinstance(scores, list):
            raise RewardError(f"reward {self.name!r} answered {str(told)[:60]!r}, {wanted}")
        if len(scores) != count:
            raise RewardError(f"reward {self.name!r} answered {len(scores)} scores for {count} images")
        for row, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, int | float):
                message = f"reward {self.name!r} gave {str(score)[:40]!r}, no number, for image {row} of {count}"
                raise RewardError(message, row)
        return [float(min(max(s, -1e300), 1e300)) if isinstance(s, int) else s for s in scores]


def check_address(text: str) -> str:
    """`check_url` of what follows the colon of http, or of a whole address."""
    return check_url(text if URL.match(text) else f"http:{text}")


@REWARDS.declare(
    "http",
    "what a remote scorer says",
    "its own",
    argument=Argument("//HOST/PATH", check_address, check_address, required=True, files=False),
    remote=True,
)
def http(url: str, timeout: float | None = None, attempts: int | None = None, pause: float | None = None) -> Http:
    """A remote scorer.

    Args:
        url: http://HOST[:PORT]/PATH, or https.
        timeout: seconds for one attempt, 30 by default.
        attempts: how often to ask in all, 3 by default.
        pause: seconds before the second attempt, 0.5 by default, doubling.

    Raises:
        TiltingError: not such an address.
    """
    tries = max(1, ATTEMPTS if attempts is None else attempts)
    return Http(check_url(url), TIMEOUT if timeout is None else timeout, tries, PAUSE if pause is None else pause)
