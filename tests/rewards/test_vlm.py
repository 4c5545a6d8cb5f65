"""Vision-language models behind servers: real ones on this machine, and what a server can do wrong."""

import asyncio
import json
import socket
import threading
import time

import pytest
import torch

import tilting as tl
from support.closed import written
from support.vlms import (
    Judge,
    brightness_of,
    by_brightness,
    chatting,
    completion,
    pictures_of,
    save_llava,
    telling,
    text_of,
    transformers_serve,
)
from tilting.cli import main
from tilting.errors import RewardError, TiltingError
from tilting.rewards import checked, vlm
from tilting.rewards.spec import build, parse_spec
from tilting.runs.files import digests_of

PROMPTS = ["a fox", "an owl", 'a "cat"', "a bus"]
YES = ("yes", "no", "Yes", "No")


def images(b=4, h=32, w=32, seed=3):
    """Soft pictures of whole bytes."""
    small = torch.rand(b, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(small, (h, w), mode="bilinear") * 255).round() / 255


@pytest.fixture
def rubric(tmp_path):
    (tmp_path / "rubric.txt").write_text("How bright is it, from 0 to 10?")
    return tmp_path / "rubric.txt"


def test_vqascore_is_the_models_own_probability_of_yes(tmp_path):
    """Against a server that gives the true log-probabilities: the softmax, summed over all tokens that say yes."""
    judge, x = Judge(save_llava(tmp_path / "model", YES)), images()
    with telling(judge) as server:
        reward = build([parse_spec(f"vlm:http://127.0.0.1:{server.server_port}/v1#tiny")])
        got = reward(x, PROMPTS)
    tokens = [judge.processor.decode([k]).strip().lower() for k in range(len(judge.processor.tokenizer))]
    wanted, ids = [], [k for k, token in enumerate(tokens) if token == "yes"]
    assert len(ids) == 2, "yes and Yes"
    for picture, prompt in zip(x, PROMPTS, strict=True):
        asked = f'user: <image>Does this figure show "{prompt}"? Please answer yes or no.assistant: '
        whole = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        given = judge.processor(text=asked, images=[whole], return_tensors="pt")
        with torch.no_grad():
            wanted.append(judge.model(**given).logits[0, -1].softmax(-1)[ids].sum())
    torch.testing.assert_close(got, torch.stack(wanted), atol=1e-4, rtol=1e-4)
    assert got.std() > 0.05 and got.min() > 0 and got.max() < 1 and len(server.requests) == 4


@pytest.mark.slow
def test_rubric_and_pairs_by_transformers_serve(tmp_path):
    """Its answers are what the same model writes in this process; it gives no log-probabilities, and that is said."""
    digits, letters = save_llava(tmp_path / "digits", list("0123456789"), 21), save_llava(tmp_path / "ab", ["A", "B"], 22)
    (tmp_path / "rubric.txt").write_text("How well is {prompt} drawn? Write a number.")
    x, prompts = images(), PROMPTS
    with transformers_serve(tmp_path / "log") as url:
        rated = build([parse_spec(f"vlm:{url}#{digits}#{tmp_path}/rubric.txt#tokens=2")])
        scores = rated(x, prompts)
        compared = vlm(f"{url}#{letters}#pair#tokens=1")
        preferred = compared.prefers(x[:2], x[2:], prompts[:2])
        rates = compared(x, ["a fox"] * 4)
        with pytest.raises(RewardError, match="gives no log-probabilities, which VQAScore needs") as caught:
            vlm(f"{url}#{digits}")(x[:1], prompts[:1])
        assert "\n" not in str(caught.value)
        with pytest.raises(RewardError, match=r"vlm:http://127\.0\.0\.1.* answered with status \d\d\d"):
            vlm(f"{url}#no/such-model#{tmp_path}/rubric.txt#retries=0")(x[:1], prompts[:1])

    def said(judge, pictures, text, tokens):
        content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}} for data in pictures]
        return judge.writes([{"role": "user", "content": [*content, {"type": "text", "text": text}]}], tokens)

    files = [encoded_text(picture) for picture in x]
    judge = Judge(digits)
    asked = [f"How well is {prompt} drawn? Write a number." for prompt in prompts]
    wanted = [float(said(judge, [file], text, 2)) for file, text in zip(files, asked, strict=True)]
    assert scores.tolist() == wanted and len(set(wanted)) > 1
    judge, asked = Judge(letters), compared_text
    won = [said(judge, [files[i], files[i + 2]], asked(prompts[i]), 1).strip() == "A" for i in range(2)]
    assert preferred.tolist() == [float(one) for one in won]
    table = {(i, j): said(judge, [files[i], files[j]], asked("a fox"), 1).strip() == "A" for i in range(4) for j in range(4)}
    share = [sum(table[i, j] + (1 - table[j, i]) for j in range(4) if j != i) / 6 for i in range(4)]
    assert rates.tolist() == pytest.approx(share)


def encoded_text(picture):
    import base64

    from tilting.features.picture import encoded

    return base64.b64encode(encoded(picture, "PNG")).decode()


def compared_text(prompt):
    return (
        f'Two images were made from the prompt "{prompt}": image A, which comes first, and image B. Which of them is better? '
        "Answer with one word: A, B or tie."
    )


def test_what_is_asked_and_read(rubric):
    x = images()
    with chatting(by_brightness) as (server, url):
        score = vlm(f"{url}#tiny#{rubric}#low=0#high=10")
        torch.testing.assert_close(score(x, PROMPTS), x.mean((1, 2, 3)) * 10, atol=2e-4, rtol=0)
        path, _, request = server.requests[0]
        assert path == "/v1/chat/completions" and request["model"] == "tiny" and request["temperature"] == 0
        assert "logprobs" not in request and request["max_tokens"] == 256
        texts = {text_of(request) for _, _, request in server.requests}
        assert texts == {f"How bright is it, from 0 to 10?\n\nPrompt: {prompt}" for prompt in PROMPTS}
        rubric.write_text("About {prompt}, {prompt}?")
        vlm(f"{url}#tiny#{rubric}")(x[:1], ["a fox"])
        assert text_of(server.requests[-1][2]) == "About a fox, a fox?"
        torch.testing.assert_close(vlm(f"{url}#tiny")(x, PROMPTS), x.mean((1, 2, 3)) * 0.75, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("7", 7),
        ("-2.5", -2.5),
        ("Score: .5", 0.5),
        ("Final score: **7/10**", 7),
        ("I'd give it 4 out of 5.", 4),
        ("8/10", 8),
        ("The score, on a scale of 1 to 10, is 7.", 7),
        ("Rating (1-10): 6", 6),
        ("6 on a scale of 1–10", 6),
        ("Score (out of 10): 8", 8),
        ("I would rate this a 3 on a 5-point scale", 3),
        ("Of 3 objects 2 are there. Rating: 4", 4),
        ("Score: 3\nfor its 2 foxes", 3),
        ("score-4", 4),
        ("somewhere between 6 and 8", None),
        ("Score: 7-8", None),
        ("Score: 4,5", 4.5),  # as half of Europe writes it
        ("Note: 4,5/5", 4.5),
        ("0,125", 0.125),
        ("Score: 1,000", 1000),
        ("7, 8", 8),
        ("7,8,9", 9),
    ],
)
def test_the_number_of_an_answer_is_no_end_of_its_scale(answer, number):
    judge = vlm("http://localhost:1/v1#tiny")
    if number is None:
        with pytest.raises(RewardError, match="holds no number"):
            judge._number(answer, 0)
    else:
        assert judge._number(answer, 0) == number


@pytest.mark.parametrize(
    ("answer", "winner"),
    [
        ("A", 1),
        ("b.", 0),
        ("a", 1),
        ("[[B]]", 0),
        ("It is a tie.", 0.5),
        ("A tie", 0.5),
        ("Image B is a better match", 0),
        ("This is a hard one.", None),
        ("A beats B", None),
    ],
)
def test_an_article_wins_nothing(answer, winner):
    judge = vlm("http://localhost:1/v1#tiny#pair")
    if winner is None:
        with pytest.raises(RewardError, match="neither A, B nor tie"):
            judge._winner(answer, 0)
    else:
        assert judge._winner(answer, 0) == winner


def test_pairs_are_compared_within_a_prompt():
    x = torch.stack([torch.full((3, 8, 8), value) for value in (0.2, 0.6, 0.4, 0.6, 0.9)])
    with chatting(by_brightness) as (server, url):
        reward = vlm(f"{url}#tiny#pair")
        assert reward.prefers(x[:2], x[1:3], ["a", "a"]).tolist() == [0, 1]
        assert reward.prefers(x[1:2], x[3:4], ["a"]).tolist() == [0.5]
        got = reward(x, ["a", "a", "a", "a", "b"])
        assert got.tolist() == pytest.approx([0, 2.5 / 3, 1 / 3, 2.5 / 3, 0.5])
        videos = torch.stack([x[:2], x[1:3]], 1)  # frame by frame: a video's own frames do not meet
        assert checked(reward, videos, ["a", "a"]).tolist() == [0.5, 0.5]
        assert (
            len(pictures_of(server.requests[-1][2])) == 2 and reward.batch_dependent and not vlm(f"{url}#tiny").batch_dependent
        )


def test_answers_are_kept_by_picture_and_question(rubric):
    x = images(3)
    with chatting(by_brightness) as (server, url):
        reward = vlm(f"{url}#tiny#{rubric}#cache=3")
        first = reward(torch.cat((x, x)), [*PROMPTS[:3], *PROMPTS[:3]])
        assert len(server.requests) == 3 and first[:3].tolist() == first[3:].tolist()
        assert reward(x, PROMPTS[:3]).tolist() == first[:3].tolist() and len(server.requests) == 3
        assert reward(x[:1], ["a fox "]).shape == (1,) and len(server.requests) == 4, "another prompt is another question"
        reward(x[:1], ["a fox"])
        assert len(server.requests) == 5, "the oldest of more than three was given up"
        reward(x[:1] * 0.5, ["a fox"])
        assert len(server.requests) == 6 and len(reward.kept) == 3
        none = vlm(f"{url}#tiny#{rubric}#cache=0")
        assert none(x, PROMPTS[:3]).tolist() == none(x, PROMPTS[:3]).tolist() and len(server.requests) == 12 and not none.kept


@pytest.mark.parametrize("most", [1, 3])
def test_questions_are_asked_at_once_up_to_a_number(most, rubric):
    now, peak, lock = 0, 0, threading.Lock()

    def slow(_, request):
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(peak, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        return by_brightness(_, request)

    with chatting(slow) as (_, url):
        vlm(f"{url}#tiny#{rubric}#concurrency={most}")(images(8), [f"prompt {k}" for k in range(8)])
    assert peak == most


def test_within_an_event_loop_as_in_a_notebook(rubric):
    with chatting(by_brightness) as (_, url):

        async def cell():
            return vlm(f"{url}#tiny#{rubric}")(images(2), PROMPTS[:2])

        torch.testing.assert_close(asyncio.run(cell()), images(2).mean((1, 2, 3)) * 10, atol=2e-4, rtol=0)


def closed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def refused(reward, count=1):
    with pytest.raises(RewardError) as caught:
        reward(images(count), PROMPTS[:count])
    said = str(caught.value)
    assert "\n" not in said and reward.name in said, said
    return said


def test_a_server_that_is_not_there_is_one_sentence(rubric):
    assert "cannot be reached: Connection refused (2 attempts)" in refused(vlm(f"{closed()}#tiny#{rubric}#retries=1"))


def test_a_server_that_hangs_or_drips_is_given_up_after_the_deadline(rubric):
    with chatting(lambda n, r: (server.released.wait(30), (200, b"{}"))[1]) as (server, url):
        begun = time.monotonic()
        assert refused(vlm(f"{url}#tiny#{rubric}#deadline=0.6#retries=1")).endswith("did not answer within 0.6 s")
        assert time.monotonic() - begun < 5
    with socket.create_server(("127.0.0.1", 0)) as drip:

        def pour():
            peer, _ = drip.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    try:
                        peer.sendall(b" ")
                    except OSError:
                        return
                    time.sleep(0.05)

        thread = threading.Thread(target=pour, daemon=True)
        thread.start()
        begun = time.monotonic()
        url = f"http://127.0.0.1:{drip.getsockname()[1]}/v1"
        assert "did not answer within 0.5 s" in refused(vlm(f"{url}#tiny#{rubric}#deadline=0.5#retries=0"))
        assert time.monotonic() - begun < 3
        thread.join(10)


def test_a_slow_answer_within_the_deadline_is_waited_for_and_asked_for_once(rubric):
    """Whatever the retries: they are for failures, and a server that is slow has more to do with each."""
    with chatting(lambda n, r: (time.sleep(0.7), by_brightness(n, r))[1]) as (server, url):
        value = vlm(f"{url}#tiny#{rubric}#deadline=9#retries=19")(images(1), PROMPTS[:1])
        assert value.shape == (1,) and len(server.requests) == 1


def test_what_may_pass_is_tried_again(rubric):
    with chatting(lambda n, r: (503, b"{}") if n < 2 else by_brightness(n, r)) as (server, url):
        assert vlm(f"{url}#tiny#{rubric}")(images(1), PROMPTS[:1]).shape == (1,) and len(server.requests) == 3
    with chatting(lambda n, r: (503, b'{"error": {"message": "over\\nloaded"}}')) as (server, url):
        assert "answered with status 503" in refused(vlm(f"{url}#tiny#{rubric}#retries=1")) and len(server.requests) == 2


NO_LOGS = completion("Yes")
NONSENSE = {
    "a status": (404, b'{"error": {"message": "no model\\ntiny"}}', "answered with status 404", ""),
    "html": (200, b"<html>hello</html>", "answered no chat completion|no chat completion", ""),
    "a list": (200, b"[1, 2]", "no chat completion", ""),
    "no choices": (200, b'{"choices": []}', "no chat completion", ""),
    "choices of another kind": (200, b'{"choices": [7]}', "answered nothing for image [01]", ""),
    "no text": (200, b'{"choices": [{"message": {"content": null}}]}', "answered nothing for image [01]", ""),
    "no number": (200, completion("It is lovely."), "holds no number, for image 0", ""),
    "an endless number": (200, completion("Score: 1e999"), "holds no number", ""),
    "out of bounds": (200, completion("Score: 11"), r"answered 11 for image 0, which is not in \[0, 10\]", "#low=0#high=10"),
    "no winner": (200, completion("both"), "neither A, B nor tie", "#pair"),
    "two winners": (200, completion("A or B"), "neither A, B nor tie", "#pair"),
    "no log-probabilities": (200, NO_LOGS, "gives no log-probabilities", "yes"),
    "other words": (200, completion("<think>", [("<think>", -0.1), ("So", -3.0)]), "neither yes nor no but '<think>'", "yes"),
    "no probability": (200, completion("Yes", [("Yes", 3.0)]), "gives no log-probabilities", "yes"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_one_sentence(what, rubric):
    status, body, says, more = NONSENSE[what]
    x = images(2)
    with chatting(lambda n, r: (status, body)) as (_, url):
        reward = vlm(f"{url}#tiny#retries=0" if more == "yes" else f"{url}#tiny#{rubric}#retries=0{more}")
        with pytest.raises(RewardError, match=says) as caught:
            reward(x, ["a fox"] * 2)
    assert "\n" not in str(caught.value) and url in str(caught.value)


def test_what_was_answered_before_a_failure_is_kept(rubric):
    broken = True
    dark = torch.stack([torch.full((3, 8, 8), value) for value in (0.1, 0.9)])

    def answer(n, request):
        return (200, completion("none")) if broken and brightness_of(request)[0] > 0.5 else by_brightness(n, request)

    with chatting(answer) as (server, url):
        reward = vlm(f"{url}#tiny#{rubric}#concurrency=1")
        with pytest.raises(RewardError, match="for image 1") as caught:
            reward(dark, PROMPTS[:2])
        assert caught.value.row == 1
        broken = False
        reward.kept.popitem()
        assert reward(dark, PROMPTS[:2]).tolist() == pytest.approx([1, 9], abs=0.05) and len(server.requests) == 3


def authorised(server):
    return next(value for name, value in server.requests[-1][1].items() if name.lower() == "authorization")


def test_a_key_goes_to_its_server_alone_and_stands_nowhere(rubric, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-openai")
    with chatting(by_brightness) as (server, url):
        reward = vlm(f"{url}#tiny#{rubric}")
        reward(images(1), PROMPTS[:1])
        assert authorised(server) == "Bearer none"
        monkeypatch.setenv("TILTING_VLM_KEY", "mine")
        reward(images(1), ["another"])
        assert authorised(server) == "Bearer mine" and "mine" not in repr(reward)


def test_specs(rubric):
    spec = parse_spec(f"vlm:http://localhost:1/v1#m#{rubric}#concurrency=3#deadline=2.5=0.5")
    assert spec.weight == 0.5 and spec.argument.endswith("deadline=2.5")
    request = spec.entry.build(spec.argument).request
    assert (request.url, request.model, request.settings.concurrency) == ("http://localhost:1/v1", "m", 3)
    assert request.settings.deadline == 2.5 and not request.pair
    assert parse_spec("vlm:http://localhost:1/v1#m=0.5").weight == 0.5
    assert parse_spec("vlm:http://localhost:1/v1#m#retries=0").weight == 1
    before = digests_of([spec])
    rubric.write_text("another")
    assert digests_of([spec]) != before
    for text, says in [
        ("http://localhost:1/v1", "must be vlm:URL#MODEL"),
        ("localhost#m", "the address 'localhost' must be"),
        ("http://a:b@localhost/v1#m", "the address"),
        ("http://localhost/v1#m#none.txt", "'none.txt' in .* is no file of a rubric and no option"),
        ("http://localhost/v1#m#retry=2", "'retry' in .* no option; did you mean 'retries'"),
        ("http://localhost/v1#m#retries=-1", "retries of 'vlm' must be at least 0"),
        ("http://localhost/v1#m#deadline=0", "deadline of 'vlm' must be above 0"),
        ("http://localhost/v1#m#concurrency=0.5", "concurrency of 'vlm' must be a whole number"),
    ]:
        with pytest.raises(TiltingError, match=says) as caught:
            parse_spec(f"vlm:{text}")
        assert "\n" not in str(caught.value)
    rubric.write_text(" ")
    with pytest.raises(TiltingError, match="is empty"):
        parse_spec(f"vlm:http://localhost/v1#m#{rubric}")


def test_generate_keeps_finished_images_and_goes_on(tmp_path, folder, rubric, capsys):
    down = False
    with chatting(lambda n, r: (500, b"{}") if down and n >= 3 else by_brightness(n, r)) as (_, url):
        spec = f"vlm:{url}#tiny#{rubric}#retries=0"
        run = ["generate", "a fox", "--model", str(folder), "--steps", "2", "--method", "bon", "--particles", "2"]
        run += ["--images", "3", "--reward", spec, "--batch-size", "2", "--out", str(tmp_path / "run"), "--quiet"]
        down = True
        assert main(run) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tilting:")]
        assert url in said and "answered with status 500" in said
        assert len((tmp_path / "run" / "images.jsonl").read_text().splitlines()) in (1, 2)
        kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / "images").iterdir()}
        down = False
        assert main(run) == 0
        rows = [json.loads(line) for line in (tmp_path / "run" / "images.jsonl").read_text().splitlines()]
        assert len(rows) == 3 and all((tmp_path / "run" / "images" / name).read_bytes() == data for name, data in kept.items())
        assert main([*run[:-3], "--out", str(tmp_path / "pairs"), "--quiet", "--reward", f"vlm:{url}#tiny#pair"]) == 2
        assert "compares the images of a batch" in capsys.readouterr().err


def test_finetune_skips_and_counts_steps_that_a_server_spoils(tmp_path, folder, rubric):
    count = 0

    def answer(n, request):
        nonlocal count
        count += 1
        return (200, completion("I cannot say.")) if count in (3, 4) else by_brightness(n, request)

    with chatting(answer) as (_, url):
        train = ["finetune", "a fox", "--model", str(folder), "--steps", "2", "--objective", "ddpo", "--train-steps", "3"]
        train += ["--batch-size", "2", "--rank", "2", "--reward", f"vlm:{url}#tiny#{rubric}#concurrency=1#cache=0", "--quiet"]
        assert main([*train, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    spoilt = [row for row in rows if "why" in row]
    assert len(rows) == 3 and len(spoilt) == 1 and rows[-1]["skipped"] == 1, rows
    assert url in spoilt[0]["why"] and "holds no number" in spoilt[0]["why"] and rows[-1]["reward"] is not None
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["summary"]["skipped"] == 1


def test_pref_grpo_trains_on_comparisons_of_a_server(tmp_path, folder):
    """What the objective asks of pairs is what the reward itself asked: each ordered pair is one question."""
    with chatting(by_brightness) as (server, url):
        train = ["finetune", "a fox", "--model", str(folder), "--steps", "2", "--objective", "pref-grpo", "--train-steps", "1"]
        train += ["--batch-size", "4", "--rank", "2", "--reward", f"vlm:{url}#tiny#pair", "--quiet"]
        assert main([*train, "--out", str(tmp_path / "run")]) == 0
        asked = {json.dumps(request) for _, _, request in server.requests}
        assert all(len(pictures_of(request)) == 2 for _, _, request in server.requests)
        assert len(asked) == len(server.requests) >= 12
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["skipped"] == 0 and row["gradient_norm"] > 0 and row["reward"] == pytest.approx(0.5)


def test_written_words_can_be_rated_too(rubric):
    """Any size of picture is sent as it is."""
    with chatting(by_brightness) as (server, url):
        vlm(f"{url}#tiny#{rubric}")(written("fox", 120, 40)[None], ["a fox"])
        assert pictures_of(server.requests[0][2])[0].size == (120, 40)
    assert tl.rewards.vlm is vlm
