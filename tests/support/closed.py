"""Makers for tests: small files of the real formats, and a real server that scores."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file

from tilting.features.fitted import EmbeddingMlp, FittedClassifier, ResidualCnn, save_classifier
from tilting.features.schema import Schema

Answer = Callable[[int, dict], tuple[int, bytes]]
WIDTHS = (4, 4, 6, 8, 8)
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""torchvision's numbers of VGG16's convolutions, stage by stage."""


def vgg_state() -> dict[str, torch.Tensor]:
    """A narrow VGG16 with torchvision's keys, its unused fully connected part among them."""
    generator = torch.Generator().manual_seed(5)
    state, inside = {"classifier.0.weight": torch.zeros(2, 2)}, 3
    for width, numbers in zip(WIDTHS, STAGES, strict=True):
        for number in numbers:
            weight = torch.randn(width, inside, 3, 3, generator=generator) * (2 / (9 * inside)) ** 0.5
            state[f"features.{number}.weight"] = weight
            state[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
            inside = width
    return state


def lpips_state() -> dict[str, torch.Tensor]:
    """Linear weights with the published keys."""
    generator = torch.Generator().manual_seed(6)
    return {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(WIDTHS)}


def files(folder: Path) -> Path:
    """A folder with vgg.pth, vgg.safetensors, lpips.pth, ref.png, ref.txt and two fitted classifiers, ``cnn`` and ``mlp``."""
    torch.save(vgg_state(), folder / "vgg.pth")
    save_file(vgg_state(), folder / "vgg.safetensors")
    torch.save(lpips_state(), folder / "lpips.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((48, 40)).save(folder / "ref.png")
    (folder / "ref.txt").write_text("How bright is it?")
    torch.manual_seed(7)
    cnn = ResidualCnn(3, (4, 6, 8))
    with torch.no_grad():
        cnn.train()(torch.rand(64, 3, 16, 16))  # so that the running statistics are not the initial ones
    save_classifier(FittedClassifier(cnn, Schema("size", classes=("small", "1", "large"), temperature=0.5)), folder / "cnn")
    mlp = EmbeddingMlp(1, hidden=(6, 5), dropout=(0.2, 0.0), activation="relu")
    schema = Schema("bright", "gaussian", shift=0.3, scale=2.0, std=0.4, temperature=1.5)
    save_classifier(FittedClassifier(mlp, schema), folder / "mlp")
    return folder


def written(word: str, width: int = 96, height: int = 64) -> torch.Tensor:
    """A picture (3, height, width) in [0, 1] with a word in it, black on white."""
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).text((8, 16), word, fill="black", font=ImageFont.load_default(24))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def brightness(request: dict) -> bytes:
    """The answer of a scorer that knows the mean of every picture, plus a thousandth of the length of its prompt."""
    scores = []
    for picture, prompt in zip(request["images"], request["prompts"], strict=True):
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.format == "PNG"
            scores.append(float(np.asarray(image, dtype=np.float64).mean()) / 255 + len(prompt) / 1000)
    return json.dumps({"scores": scores}).encode()


class Server(ThreadingHTTPServer):
    """Answers every POST by ``answer(request number from 0, its JSON) -> (status, body)``; keeps the requests."""

    daemon_threads = True

    def __init__(self, answer: Answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.requests, self.released = answer, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/score"

    def handle_error(self, request, client_address):
        pass  # a client that gave up


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), request))
        status, body = self.server.answer(len(self.server.requests) - 1, request)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer: Answer = lambda _, request: (200, brightness(request))) -> Iterator[Server]:
    """A server on this machine, as long as the block lasts; ``released`` is set at its end for answers that hang."""
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
