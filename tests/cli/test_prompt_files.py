"""Files of prompts as people have them: every kind, the usual names of the column, and what else a row says of its prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tilting.cli import main
from tilting.config.finetune import FinetuneConfig
from tilting.config.generate import GenerateConfig
from tilting.config.prompts import NAMES, prompts_of, read_prompts
from tilting.errors import TiltingError

ROWS = [
    {"prompt": "a fox; red, sly", "tag": "animal"},
    {"prompt": 'a "cat"', "tag": "pet, small"},
    {"prompt": "ein Fuß", "tag": ""},
]
KINDS = ("jsonl", "json", "csv", "csv;", "csv\t", "tsv", "parquet")


def written(folder: Path, kind: str, name: str) -> Path:
    """`ROWS` as a file of a kind, their column called so."""
    rows = [{"id": i, name: row["prompt"], "tag": row["tag"]} for i, row in enumerate(ROWS)]
    file = folder / f"p.{kind[:3] if kind.startswith('csv') else kind}"
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), file)
    else:
        mark = {"csv": ",", "csv;": ";"}.get(kind, "\t")
        lines = [["id", name, "tag"], *([str(row["id"]), row[name], row["tag"]] for row in rows)]
        quoted = (mark.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines)
        file.write_text("\ufeff" + "\r\n".join(quoted) + "\r\n")
    return file


@pytest.mark.parametrize("name", [*NAMES, "Prompt", "Prompts", "Caption"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_says_the_same(tmp_path, kind, name):
    found = read_prompts(written(tmp_path, kind, name))
    assert list(found.texts) == [row["prompt"] for row in ROWS]
    assert [row["tag"] for row in found.metadata] == [row["tag"] for row in ROWS]
    assert [int(row["id"]) for row in found.metadata] == [0, 1, 2] and all(name not in row for row in found.metadata)


AS_DOWNLOADED = {
    # PartiPrompts: tabs, quotation marks that are none of CSV's, a note that may be missing
    "PartiPrompts.tsv": (
        'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology\n"a sign" by a lake\tSigns\tWriting & Symbols\n',
        ["bond", '"a sign" by a lake'],
        {"Category": "Abstract", "Challenge": "Basic", "Note": "Biology"},
    ),
    # DrawBench
    "drawbench.csv": (
        'Prompts,Category\nA red colored car.,Colors\n"A bird, scaring a scarecrow.",Conflicting\n',
        ["A red colored car.", "A bird, scaring a scarecrow."],
        {"Category": "Colors"},
    ),
    # HPDv2's benchmark: a list of texts
    "anime.json": ('["a fox, anime", "a cat"]', ["a fox, anime", "a cat"], None),
    # GenEval
    "evaluation_metadata.jsonl": (
        '{"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"}\n',
        ["a photo of two dogs"],
        {"tag": "counting", "include": [{"class": "dog", "count": 2}]},
    ),
    # MJHQ-30K: mappings by number
    "meta_data.json": ('{"a1": {"category": "animals", "prompt": "a fox"}}', ["a fox"], {"category": "animals"}),
    # captions of COCO: a list beside others
    "captions.json": (
        '{"images": [{"id": 3}], "annotations": [{"image_id": 3, "caption": "a fox"}]}',
        ["a fox"],
        {"image_id": 3},
    ),
    "wrapped.json": ('{"version": 1, "prompts": ["a fox", "a cat"]}', ["a fox", "a cat"], None),
}


@pytest.mark.parametrize("name", AS_DOWNLOADED)
def test_lists_as_they_are_downloaded(tmp_path, name):
    text, texts, first = AS_DOWNLOADED[name]
    (tmp_path / name).write_text(text)
    found = read_prompts(tmp_path / name)
    assert list(found.texts) == texts
    assert (found.metadata[0] if found.metadata else None) == first


def test_blank_lines_are_no_prompts_and_told_of(tmp_path):
    """As in HPSv2's own list; a blank cell of a table is refused, for a row is more than its prompt. Of a table too, whose
    other rows keep their numbers."""
    (tmp_path / "p.txt").write_text("\na fox\n\n  \na cat  \n\n")
    with pytest.warns(UserWarning, match=r"3 blank lines of .*p.txt', the first is line 1, are no prompts"):
        assert read_prompts(tmp_path / "p.txt").texts == ("a fox", "a cat")
    (tmp_path / "p.jsonl").write_text('\n{"prompt": "a fox", "n": 1}\n \n"a cat"\n\n')
    (tmp_path / "p.csv").write_text("prompt,n\na fox,1\n,\n\n  ,\na cat,\n")
    for name, first in (
        ("p.jsonl", "2 blank lines of .*, the first is line 1"),
        ("p.csv", "2 blank rows of .*the first is row 2"),
    ):
        with pytest.warns(UserWarning, match=f"{first}, are no prompts"):
            assert read_prompts(tmp_path / name).texts == ("a fox", "a cat")
    (tmp_path / "q.jsonl").write_text('"a fox"\n\n{"prompt": 3}\n')
    with pytest.raises(TiltingError, match=r"line 3 of .* has no text"):
        read_prompts(tmp_path / "q.jsonl")
    (tmp_path / "q.csv").write_text("prompt,n\na fox,1\n,2\n")
    with pytest.raises(TiltingError, match=r"prompt 2 in .* is blank"):
        read_prompts(tmp_path / "q.csv")


def test_metadata_is_in_the_config_and_in_what_it_prints(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt,count\na fox,1\na fox,\na cat,2\n")
    config = GenerateConfig.resolve({"prompts": str(tmp_path / "p.csv")})
    assert config.metadata == ({"count": "1"}, {"count": ""}, {"count": "2"})
    assert GenerateConfig.resolve(config.mapping()) == config
    assert main(["generate", "--prompts", str(tmp_path / "p.csv"), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["metadata"][2] == {"count": "2"}
    (tmp_path / "c.yaml").write_text(printed)
    assert main(["generate", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    mixed = FinetuneConfig.resolve({"prompts": [{"prompt": "a fox", "count": 1}, "a cat"]})
    assert mixed.prompts == ("a fox", "a cat") and mixed.metadata == ({"count": 1}, {})
    assert "metadata" not in GenerateConfig.resolve({"prompts": ["a fox"]}).mapping()


@pytest.mark.parametrize(
    ("metadata", "said"), [([{}], "1 mappings for 2 prompts"), (["x", {}], "a mapping for each prompt"), (3, "metadata")]
)
def test_metadata_that_is_none_is_refused(metadata, said):
    with pytest.raises(TiltingError, match=said):
        GenerateConfig.resolve({"prompts": ["a fox", "a cat"], "metadata": metadata})


@pytest.mark.parametrize("value", [[None], [3], [["a fox"]], {"text": "a fox"}, [{"prompt": None}], 3, b"a fox"])
def test_what_is_no_prompt_is_refused(value):
    with pytest.raises(TiltingError):
        prompts_of(value)


def test_values_of_metadata_are_those_of_json(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from datetime import date

    rows = [
        {"prompt": "a fox", "on": date(2020, 1, 2), "score": float("nan"), "of": [1, 2], "image": {"bytes": b"x", "path": "p"}}
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    (told,) = read_prompts(tmp_path / "p.parquet").metadata
    assert json.loads(json.dumps(told, allow_nan=False)) == {"on": "2020-01-02", "score": None, "of": [1, 2]}
