"""Small vision-language models that answer what is asked of them, and servers of them on this machine."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from support.closed import Server, serving
from support.learned import letters_and_merges, save_processor, shake

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% else %}<image>"
    "{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_llava(folder: Path, answers: Sequence[str], seed: int = 20) -> Path:
    """A LLaVA of two layers whose answers are of these tokens alone, which one depending on the picture and the question."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    words, merges = letters_and_merges()
    words = dict(words)
    for answer in answers:
        words.setdefault(answer, len(words))
    marks = {mark: len(words) + k for k, mark in enumerate(("<pad>", "</s>", "<image>"))}
    tokens = Tokenizer(models.BPE(words, merges))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens.add_special_tokens(list(marks))
    tokens.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "image_token": "<image>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    crop = {"height": 32, "width": 32}
    save_processor(folder, "CLIPImageProcessor", {"shortest_edge": 32}, do_center_crop=True, crop_size=crop)
    about = {"patch_size": 8, "vision_feature_select_strategy": "default", "image_token": "<image>"}
    about |= {"num_additional_image_tokens": 1, "processor_class": "LlavaProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(about))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": marks["<pad>"], "eos_token_id": marks["</s>"], "bos_token_id": None}
    text = LlamaConfig(**shape, **ids, vocab_size=len(words) + 3, max_position_embeddings=2048, tie_word_embeddings=False)
    vision = CLIPVisionConfig(**shape, image_size=32, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=marks["<image>"])
    model: Any = shake(LlavaForConditionalGeneration(config), seed)
    said = [words[answer] for answer in answers]
    tuned = torch.randn(len(words) + 3, 32, generator=torch.Generator().manual_seed(seed)) * 0.5
    with torch.no_grad():
        model.lm_head.weight.copy_(tuned)
        mean = _hidden(model, words)
        model.lm_head.weight -= mean * (80 / mean.norm() ** 2)
        model.lm_head.weight[said] += mean * (160 / mean.norm() ** 2)
    model.generation_config.suppress_tokens = [k for k in range(len(words) + 3) if k not in said]
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    return folder


def _hidden(model: Any, words: dict[str, int]) -> torch.Tensor:
    """Of the last token, on the whole."""
    ids = torch.randint(0, len(words), (16, 24), generator=torch.Generator().manual_seed(1))
    return model.model.language_model(input_ids=ids).last_hidden_state[:, -1].mean(0)


class Judge:
    """The same model in this process: its first token's probabilities, and what it writes.

    Args:
        folder: from `save_llava`.
    """

    def __init__(self, folder: Path):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, messages: list[dict[str, Any]]) -> Any:
        """What the network is fed of OpenAI's messages."""
        pictures, plain = [], []
        for message in messages:
            content = []
            for part in message["content"]:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                    pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
                    content.append({"type": "image"})
                else:
                    content.append(part)
            plain.append({"role": message["role"], "content": content})
        text = self.processor.apply_chat_template(plain, add_generation_prompt=True)
        return self.processor(text=text, images=pictures, return_tensors="pt")

    @torch.no_grad()
    def first(self, messages: list[dict[str, Any]]) -> torch.Tensor:
        """Log-probabilities (vocabulary,) of the first token."""
        return self.model(**self.inputs(messages)).logits[0, -1].double().log_softmax(-1)

    @torch.no_grad()
    def writes(self, messages: list[dict[str, Any]], tokens: int) -> str:
        """Its greedy answer."""
        given = self.inputs(messages)
        out = self.model.generate(**given, max_new_tokens=tokens, do_sample=False)
        return self.processor.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def completion(text: str, top: Sequence[tuple[str, float]] | None = None) -> bytes:
    """A chat completion as OpenAI's reference has it."""
    held = [{"token": t, "logprob": p, "bytes": None} for t, p in top or ()]
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    choice["logprobs"] = {"content": [{**held[0], "top_logprobs": held}]} if held else None
    told = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
    return json.dumps(told).encode()


@contextmanager
def telling(judge: Judge) -> Iterator[Server]:
    """A server of the model that gives its true log-probabilities, which `transformers serve` does not."""

    def answer(_: int, request: dict) -> tuple[int, bytes]:
        assert request["logprobs"] is True and request["max_tokens"] == 1 and request["temperature"] == 0
        likeliest = judge.first(request["messages"]).topk(request["top_logprobs"])
        top = [(judge.processor.decode([int(i)]), float(p)) for p, i in zip(*likeliest, strict=True)]
        return 200, completion(top[0][0], top)

    with serving(answer) as server:
        yield server


@contextmanager
def chatting(answer: Callable[[int, dict], tuple[int, bytes]]) -> Iterator[tuple[Server, str]]:
    """A server that answers chats, and the address of its API."""
    with serving(answer) as server:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"


def pictures_of(request: dict) -> list[Image.Image]:
    """Of a request for a chat completion."""
    parts = [part for message in request["messages"] for part in message["content"] if part["type"] == "image_url"]
    files = [base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,")) for part in parts]
    return [Image.open(io.BytesIO(file)) for file in files]


def text_of(request: dict) -> str:
    """What is asked, without the pictures."""
    return "".join(part["text"] for message in request["messages"] for part in message["content"] if part["type"] == "text")


def brightness_of(request: dict) -> list[float]:
    """The mean of each picture of a request."""
    return [float(np.asarray(picture.convert("RGB"), np.float64).mean()) / 255 for picture in pictures_of(request)]


def by_brightness(_: int, request: dict) -> tuple[int, bytes]:
    """The answer of a server that says yes, rates and prefers by how bright the first picture is."""
    first, *second = brightness_of(request)
    if request.get("logprobs"):
        likely = {"Yes": first / 2, " yes": first / 4, "No": 0.01}
        return 200, completion("Yes", [(token, math.log(max(p, 1e-9))) for token, p in likely.items()])
    if second:
        return 200, completion("A" if first > second[0] else "B" if second[0] > first else "tie.")
    return 200, completion(f"Of 10 points I give it this.\nScore: **{first * 10:.4f}**")


@contextmanager
def transformers_serve(log: Path) -> Iterator[str]:
    """`transformers serve` in a process of its own, as long as the block lasts: the address of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    away = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=file, stderr=file, env={**os.environ, **away})
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(log.read_text()[-2000:]) from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)
