"""The remote scorer against a real server on this machine: what it sends, how it waits, what it refuses."""

import asyncio
import base64
import gzip
import io
import itertools
import json
import socket
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from support.closed import brightness, serving
from support.commands import manifest as manifest_of
from tilting.cli import main
from tilting.errors import RewardError, TiltingError
from tilting.rewards import http

PROMPTS = ["a fox", "an owl, ☃", "a cat"]


def images(b=3):
    return torch.rand(b, 3, 10, 14, generator=torch.Generator().manual_seed(0))


def test_it_posts_pngs_and_prompts_and_reads_the_scores():
    x = images()
    with serving() as server:
        values = http(server.url)(x.clone().requires_grad_(), PROMPTS)
    ((path, headers, request),) = server.requests
    assert path == "/score" and headers["Content-Type"] == "application/json" and list(request) == ["images", "prompts"]
    assert request["prompts"] == PROMPTS
    for sent, picture in zip(request["images"], x, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(sent))) as file:
            assert (np.asarray(file) == (picture.permute(1, 2, 0) * 255).round().numpy()).all()
    want = (x * 255).round().mean((1, 2, 3)) / 255 + torch.tensor([len(p) for p in PROMPTS]) / 1000
    torch.testing.assert_close(values, want)
    assert not values.requires_grad and http(server.url).name == server.url


def test_what_passes_is_asked_again_with_doubling_pauses():
    times = []

    def answer(number, request):
        times.append(time.monotonic())
        return (500, b"busy") if number < 2 else (200, brightness(request))

    with serving(answer) as server:
        assert http(server.url, pause=0.1)(images(), PROMPTS).shape == (3,)
    assert len(times) == 3
    assert 0.1 <= times[1] - times[0] < 0.19 + 0.1
    assert times[2] - times[1] >= 0.2
    with serving(lambda *_: (503, b"")) as server, pytest.raises(RewardError, match=r"status 503 \(2 attempts\)"):
        http(server.url, attempts=2, pause=0.01)(images(), PROMPTS)
    assert len(server.requests) == 2


def dripping(way, released):
    """A handler of POST that answers for ever, a little at a time: in one of the places where it can."""

    def post(self):
        if way == "body":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
        elif way == "chunks":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        elif way == "header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        pieces = {"status": itertools.chain(b"HTTP/1.1 200 OK", itertools.repeat(32)), "silent": itertools.repeat(None)}
        said = {"continue": b"HTTP/1.1 100 Continue\r\n\r\n", "chunks": b"1\r\n \r\n"}.get(way, b"a")
        for piece in pieces.get(way, itertools.repeat(said)):
            if released.wait(0.02):
                return
            if piece is not None:
                self.wfile.write(bytes([piece]) if isinstance(piece, int) else piece)
                self.wfile.flush()

    return post


@pytest.mark.parametrize("way", ["body", "chunks", "header", "status", "continue", "silent"])
def test_a_server_that_hangs_or_drips_is_given_up(way):
    """The deadline is of the whole attempt, whatever comes meanwhile."""
    with serving() as server:
        do_post = dripping(way, server.released)
        server.RequestHandlerClass = type("Drip", (server.RequestHandlerClass,), {"do_POST": do_post})
        begun = time.monotonic()
        with pytest.raises(RewardError, match=r"did not answer within 0\.3 s \(2 attempts\)") as caught:
            http(server.url, timeout=0.3, attempts=2, pause=0.01)(images(), PROMPTS)
        assert 0.6 <= time.monotonic() - begun < 4  # the server would go on for ever
    assert server.url in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_takes_nothing_is_given_up():
    """It accepts, and never reads: 8 MB do not fit into the system's buffers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        reward = http(f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout=0.3, attempts=1)
        with pytest.raises(RewardError, match=r"did not answer within 0\.3 s"):
            reward(torch.rand(2, 3, 1000, 1000), PROMPTS[:2])


def test_it_is_asked_from_within_an_event_loop_too():
    """As in a notebook."""

    async def ask():
        return http(server.url)(images(), PROMPTS)

    with serving() as server:
        assert asyncio.run(ask()).shape == (3,)


def test_an_answer_that_would_unpack_to_much_is_not_unpacked():
    def bomb(self):
        packed = gzip.compress(bytes(50_000_000))
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    with serving() as server:
        server.RequestHandlerClass = type("Bomb", (server.RequestHandlerClass,), {"do_POST": bomb})
        with pytest.raises(RewardError, match="answered no JSON"):
            http(server.url)(images(), PROMPTS)


def test_an_answer_that_breaks_off_is_asked_for_again():
    def cut(self):
        if server.requests:
            return handler.do_POST(self)
        server.requests.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"scores": [1, 2, 3]}')

    with serving() as server:
        handler = server.RequestHandlerClass
        server.RequestHandlerClass = type("Cut", (handler,), {"do_POST": cut})
        assert http(server.url, pause=0.01)(images(), PROMPTS).max() < 1  # the second answer's
    assert len(server.requests) == 2


def scores(*values):
    return json.dumps({"scores": values}).encode()


@pytest.mark.parametrize(
    ("status", "body", "row", "says"),
    [
        (200, scores(1, float("nan"), 2), 1, "gave nan for image 1 of 3"),
        (200, scores(1, 2, float("inf")), 2, "gave inf for image 2 of 3"),
        (200, scores(1, 2, 10**400), 2, "gave inf for image 2 of 3"),
        (200, scores(1, None, 2), 1, "gave 'None', no number, for image 1 of 3"),
        (200, scores("3", 1, 2), 0, "gave '3', no number"),
        (200, scores(1, True, 2), 1, "no number"),
        (200, scores(1, 2), None, "answered 2 scores for 3 images"),
        (200, scores(), None, "answered 0 scores for 3 images"),
        (200, b"[1, 2, 3]", None, "with 3 numbers"),
        (200, b'{"score": [1, 2, 3]}', None, "with 3 numbers"),
        (200, b"<html>hello", None, "answered no JSON"),
        (200, b"\xff\xfe\x00", None, "answered no JSON"),
        (200, b"", None, "answered no JSON"),
        (404, b"", None, "status 404"),
        (302, b"", None, "status 302"),
    ],
)
def test_a_wrong_answer_is_one_sentence_and_not_asked_again(status, body, row, says):
    with serving(lambda *_: (status, body)) as server, pytest.raises(RewardError) as caught:
        http(server.url, pause=0.01)(images(), PROMPTS)
    assert says in str(caught.value) and server.url in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.row == row and len(server.requests) == 1


def test_nobody_there_no_images_and_no_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reward = http(f"http://127.0.0.1:{port}/", attempts=2, pause=0.01)
    with pytest.raises(RewardError, match=r"cannot be reached: .*refused \(2 attempts\)"):
        reward(images(), PROMPTS)
    assert reward(images(0), []).shape == (0,)
    for wrong in ("ftp://host/x", "http://", "http:///x", "http://host:99999/", "http://ho st/"):
        with pytest.raises(TiltingError, match="must be http://HOST"):
            http(wrong)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with serving() as server:
        assert http(server.url, attempts=1)(images(), PROMPTS).shape == (3,)


FAILS = {
    "nan": ((200, scores(float("nan"), 1)), "gave nan"),
    "shape": ((200, scores(1)), "answered 1 scores for 2 images"),
    "raises": ((500, b"no owls"), "status 500 (2 attempts)"),
    "hangs": (None, "did not answer within 0.4 s (2 attempts)"),
}


@pytest.mark.parametrize("way", FAILS)
def test_a_run_keeps_what_is_finished_and_goes_on_later(way, capsys, tmp_path, monkeypatch):
    for name, value in (("TIMEOUT", 0.4), ("ATTEMPTS", 2), ("PAUSE", 0.01)):
        monkeypatch.setattr(sys.modules["tilting.rewards.remote"], name, value)
    (wrong, says), well = FAILS[way], []

    def answer(_, request):
        if well or "an owl" not in request["prompts"]:
            return 200, brightness(request)
        if wrong is None:
            server.released.wait(2)
        return wrong or (200, b"")

    out = tmp_path / "run"
    with serving(answer) as server:
        words = ["generate", "a fox", "an owl", "--model", "pocket", "--method", "bon", "--particles", "2", "--steps", "4"]
        words += ["--reward", server.url, "--batch-size", "2", "--out", str(out), "--quiet"]
        assert main(words) == 2
        *bars, said = capsys.readouterr().err.replace("\r", "\n").splitlines()  # of the model's loading
        assert said.startswith("tilting: ") and says in said and server.url in said
        assert not any("tilting" in line for line in bars)
        if way == "nan":
            assert "image 0 of 'an owl'" in said
        assert sorted(p.name for p in (out / "images").iterdir()) == ["00000.png"]
        kept = manifest_of(out)["images"]
        assert [(r["prompt"], list(r["rewards"])) for r in kept] == [("a fox", [server.url])]
        well.append(True)
        assert main(words) == 0
        printed = manifest_of(out)["images"]
    assert printed[0] == kept[0] and [r["prompt"] for r in printed] == ["a fox", "an owl"]
    with Image.open(out / printed[1]["file"]) as picture:
        assert printed[1]["reward"] == pytest.approx(np.asarray(picture).mean() / 255 + 0.006, abs=1e-5)


def test_climbing_a_server_is_refused_before_anything_is_asked(capsys, tmp_path):
    with serving() as server:
        words = ["generate", "a fox", "--method", "codex", "--reward", server.url, "--out", str(tmp_path / "o")]
        assert main(words) == 2
    assert "black-box" in capsys.readouterr().err and not server.requests
