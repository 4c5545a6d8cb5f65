"""The one reader of what others wrote: what is beyond a limit is one sentence, at once, and never a traceback."""

from __future__ import annotations

import json
import os
import pickle
import time
from contextlib import suppress

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from support.commands import refused
from tilting.errors import TiltingError
from tilting.foreign import DEEPEST, check_plain, parse_json, parse_yaml, read_json, read_tensors, read_text

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
JSON = {
    "[" * 5000 + "]" * 5000: "nests deeper",
    '{"a": ' * 5000 + "1" + "}" * 5000: "nests deeper",
    "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1): "nests deeper",
    "[" * DEEPEST + "{}" + "]" * DEEPEST: "nests deeper",
    "[" * 200_000: "nests deeper",
    "1" * 400: "more than 64 bits",
    "1" * 5000: "is not JSON",
    str(1 << 63): "more than 64 bits",
    '"\\ud800"': "not valid Unicode",
    '{"\\udfff": 1}': "not valid Unicode",
    '"a\\u0000b"': "null character",
    "": "is not JSON",
    "{'a': 1}": "is not JSON",
}
YAML = {
    "[" * 5000 + "]" * 5000: "nests deeper",
    "[" * 200_000: "nests deeper",
    "- " * 5000: "nests deeper",
    "{a: " * 5000: "nests deeper",
    BOMB: "more than 100000 values",
    "&a [*a]": "nests deeper",
    "&a {b: *a}": "nests deeper",
    "1" * 400: "more than 64 bits",
    "9" * 5000: "is not YAML",
    "!!timestamp 2020-12-12": "holds a date",
    "!!timestamp x": "is not YAML",
    "!!binary aGk=": "holds a bytes",
    "!!set {a, b}": "holds a set",
    "!!bool maybe": "is not YAML",
    "!!python/object/apply:os.getcwd []": "is not YAML",
    '"a\\0b"': "null character",
    "a: 1\na: 2": "stands twice",
    "a: [1\n": "is not YAML",
    "? [a]\n: 1": "is not YAML",
    "x" * (1 << 18) + "x": "larger than 256 KiB",
}


@pytest.mark.parametrize(("parse", "text"), [*((parse_json, text) for text in JSON), *((parse_yaml, text) for text in YAML)])
def test_what_is_beyond_a_limit_is_one_sentence_at_once(parse, text):
    begun = time.monotonic()
    with pytest.raises(TiltingError) as error:
        parse(text, "it")
    assert (JSON if parse is parse_json else YAML)[text] in str(error.value)
    assert len(str(error.value)) < 300 and time.monotonic() - begun < 10


def test_dates_stay_texts_and_small_things_what_they_are():
    assert parse_yaml("[2020-13-45, 2020-12-12, 1e-3, 1.5, yes, null, {a: &a [1], b: *a}]", "it") == [
        *("2020-13-45", "2020-12-12", "1e-3", 1.5, True, None, {"a": [1], "b": [1]})
    ]
    assert json.dumps(parse_json("[" * DEEPEST + "1" + "]" * DEEPEST, "it")).count("[") == DEEPEST
    assert parse_json(f'[{(1 << 63) - 1}, {-1 << 63}, "☃", 1e999]', "it") == [(1 << 63) - 1, -1 << 63, "☃", float("inf")]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_what_was_written_is_read_or_refused(value):
    if "\\u0000" in json.dumps(value):
        with pytest.raises(TiltingError, match="null character"):
            parse_json(json.dumps(value), "it")
        return
    assert parse_json(json.dumps(value), "it") == check_plain(value, "it") == value
    assert parse_yaml(yaml.safe_dump(value), "it") == value


@settings(max_examples=300, deadline=None)
@given(st.text(), st.sampled_from([parse_json, parse_yaml]))
def test_any_text_is_a_value_or_a_refusal(text, parse):
    with suppress(TiltingError):
        check_plain(parse(text, "it"), "it")


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "device", "long", "null", "gone"])
@pytest.mark.parametrize("read", [read_text, read_json, read_tensors])
def test_what_is_no_plain_file_is_refused_at_once(read, kind, tmp_path):
    path = str(tmp_path / "a")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "loop":
        os.symlink(path, path)
    path = {"device": "/dev/zero", "long": "x" * 5000, "null": "a\0b"}.get(kind, path)
    with pytest.raises(TiltingError, match=r"^cannot read"):
        read(path)


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "cut", "NaN", "inf", "half"])
def test_tensors_that_are_none_or_not_finite_are_refused(kind, tmp_path):
    path, tensors = tmp_path / "a.safetensors", {"a": torch.ones(3, 3), "b": torch.zeros(2, dtype=torch.int64)}
    save_file(tensors, path)
    assert {key: value.tolist() for key, value in read_tensors(path).items()} == {k: v.tolist() for k, v in tensors.items()}
    tensors["a"][1, 1] = {"NaN": float("nan"), "inf": float("-inf"), "half": float("nan")}.get(kind, 1.0)
    dtype = torch.float16 if kind == "half" else torch.float32
    save_file({"a": tensors["a"].to(dtype)}, path)
    data = {"empty": b"", "text": b"a fox", "pickle": pickle.dumps([1]), "cut": path.read_bytes()[:-1]}
    path.write_bytes(data.get(kind, path.read_bytes()))
    with pytest.raises(TiltingError, match="does not load" if kind in data else "holds NaN or infinity in its tensor 'a'"):
        read_tensors(path)


@pytest.mark.parametrize("text", [t for t in YAML if "\0" not in t])
def test_a_config_beyond_a_limit_is_refused(text, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(text)
    assert YAML[text] in refused(capsys, "generate", "--config", str(tmp_path / "a.yaml")) or "mapping" in text


@pytest.mark.parametrize("value", ["2020-13-45", "2020-12-12", "1" * 400, "9" * 5000, "[" * 3000, "!!timestamp x", "&a [*a]"])
def test_a_setting_that_is_no_number_is_refused(value, tmp_path, capsys):
    words = ["generate", "a fox", "--reward", "clip", "--method", "codex", "--set", f"codex.tau={value}", "--out"]
    assert "codex.tau" in refused(capsys, *words, str(tmp_path / "out")) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["images", "steps", "rank", "seed"])
@pytest.mark.parametrize("value", [10**9, 10**30])
def test_a_number_that_nothing_can_hold_is_refused_at_once(option, value, tmp_path, capsys):
    words = ["finetune", "a fox", "--reward", "jpeg"] if option == "rank" else ["generate", "a fox"]
    if option == "seed" and value < 1 << 63:
        pytest.skip("is a seed")
    begun = time.monotonic()
    said = refused(capsys, *words, f"--{option}", str(value), "--quiet", "--out", str(tmp_path / "out"))
    assert option in said and len(said) < 300 and time.monotonic() - begun < 10 and not (tmp_path / "out").exists()
