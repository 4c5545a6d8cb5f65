"""What is not in a plain install: where it is missing, one sentence names it and the extra that brings it."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
from PIL import Image

from support.paths import ROOT
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.features.video import mp4, open_frames
from tilting.rewards import nsfw, ocr, vlm

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
APART = ("dev", "docs", "train")
"""Extras of people who work on the package itself."""
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "torchao": "torchao"}
"""Of distributions, where they have another name."""
ASKED_FOR = {"wandb", "trackio"}
"""Trackers, which a user names and installs by their own names."""
BROUGHT = {"pyarrow": "data", "cv2": "nsfw"}
"""By what an extra names, datasets and nudenet."""
DRAW = ("generate", "a fox", "--out", "out")
CASES = {
    ("datasets", "data"): ("condition", "fit", "--data", "labels.parquet", "--out", "out"),
    ("pyarrow", "data"): ("generate", "--prompts", "labels.parquet", "--out", "out"),
    ("nudenet", "nsfw"): (*DRAW, "--reward", "nsfw"),
    ("onnxruntime", "nsfw"): (*DRAW, "--reward", "nsfw"),
    ("rapidocr", "ocr"): (*DRAW, "--reward", "ocr"),
    ("onnxruntime", "ocr"): (*DRAW, "--reward", "ocr"),
    ("rapidfuzz", "ocr"): (*DRAW, "--reward", "ocr"),
    ("openai", "vlm"): (*DRAW, "--reward", "vlm:http://127.0.0.1:9/v1#m"),
    ("gradio", "studio"): ("studio",),
    ("fastapi", "studio"): ("studio",),
    ("uvicorn", "studio"): ("studio",),
    ("psutil", "studio"): ("studio",),
    ("bitsandbytes", "quantize"): (*DRAW, "--quantize", "4bit"),
    ("torchao", "torchao"): (*DRAW, "--quantize", "int8"),
    ("av", "video"): (*DRAW, "--format", "mp4"),
}
"""A command that needs a module, which an extra brings."""
MORE = {
    ("bitsandbytes", "quantize"): [("finetune", "a fox", "--optimizer", "adamw8bit", "--out", "out")],
    ("rapidocr", "ocr"): [
        ("compare", "a fox", "--methods", "base,bon", "--reward", "ocr", "--out", "out"),
        ("finetune", "a fox", "--objective", "ddpo", "--reward", "ocr", "--out", "out"),
        ("finetune", "a fox", "--judge", "ocr", "--out", "out"),
        ("condition", "fit", "--data", ".", "--label-by", "ocr", "--out", "out"),
    ],
}
IMPORTED = re.compile(r"^ *(?:import |from (?=[\w.]+ import)|.*\bimport_module\(\")([A-Za-z]\w*)", re.MULTILINE)
"""The packages that a file imports."""
WORDS = [(*key, words) for key, words in CASES.items()] + [(*key, words) for key, many in MORE.items() for words in many]


def modules(requirements: list[str]) -> set[str]:
    """The modules of requirements."""
    names = {one.split(">")[0].split("[")[0] for one in requirements}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


EXTRAS = {name: modules(said) for name, said in PROJECT["optional-dependencies"].items() if name not in APART}
OPTIONAL = set.union(*EXTRAS.values()) - modules(PROJECT["dependencies"]) | set(BROUGHT)


def test_whatever_is_imported_is_installed_or_brought_by_an_extra_that_a_case_hides():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    used = (
        {name for text in texts for name in IMPORTED.findall(text)}
        - set(sys.stdlib_module_names)
        - {"tilting", "tilting_papers"}
    )
    assert used & OPTIONAL <= {module for module, _ in CASES} | {"cv2"}, "no case hides it"
    assert used - OPTIONAL - ASKED_FOR <= modules(PROJECT["dependencies"]), "neither core nor in an extra"
    for module, extra in CASES:
        assert module in EXTRAS[extra] or BROUGHT[module] == extra


@pytest.mark.parametrize(
    ("module", "extra", "words"), WORDS, ids=lambda one: one if isinstance(one, str) else " ".join(one[:2])
)
def test_a_missing_extra_is_one_sentence_with_its_command(module, extra, words, tmp_path, monkeypatch, capsys):
    hide(monkeypatch, module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1")
    assert main(list(words)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"pip install 'tilting[{extra}]'" in told, told
    assert ("PyAV" if module == "av" else module) in told
    assert not (tmp_path / "out").exists()


def video(read: bool) -> object:
    return open_frames("a.mp4") if read else mp4([Image.new("RGB", (2, 2))], "")


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        *(("openai", "vlm", lambda: vlm("http://127.0.0.1:9/v1#m")), ("nudenet", "nsfw", nsfw), ("rapidfuzz", "ocr", ocr)),
        *(("av", "video", lambda: video(True)), ("av", "video", lambda: video(False))),
    ],
)
def test_in_python_too(module, extra, make, tmp_path, monkeypatch):
    hide(monkeypatch, module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(TiltingError, match=rf"needs {module.replace('av', 'PyAV')}: pip install 'tilting\[{extra}\]'"):
        make()


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """What is not installed: neither found nor imported."""
    for name in {module, *(one for one in sys.modules if one.startswith(f"{module}."))}:
        monkeypatch.setitem(sys.modules, name, None)
