"""What is kept of finished parts: the same table without pictures and weights, nothing made again, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from tilting.errors import TiltingError
from tilting_papers import parts
from tilting_papers.codex import draw
from tilting_papers.codex.table import Claim, Row, Table
from tilting_papers.draft import measure
from tilting_papers.draft.charts import progress
from tilting_papers.draft.study import TRAIN, Size, Study, Training, Variant
from tilting_papers.field import METHODS, Asked, Rival, cells

pytestmark = pytest.mark.usefixtures("no_bars", "undrawn_pages")

FIELD = replace(
    METHODS, rivals=(Rival("bon", least=2, small=True),), rewards={"jpeg": Asked("- kilobytes", False, ("a fox", "a cat"))}
)
STUDY = Study(
    name="one-run",
    about="a run and a variant of it",
    paper="our own",
    runs=(Training("draft-1.x", "draft-k", k=1),),
    variants=lambda results: [Variant("half", ((results.lora("draft-1.x"), 0.5),))],
    figures=lambda results: [progress(results, results.out / "progress.png")],
    sets={"train": TRAIN},
    tiny=Size(steps=2, train_steps=2, batch=1, images=1, evaluations=1, prompts=9),
)
TABLE = Table(
    name="two-rows",
    about="a claim",
    paper="our own",
    title="two rows",
    after="no table",
    prompts=("a fox", "a cat"),
    reward=("jpeg",),
    units={"jpeg": "kB"},
    rows=(Row("base", "base"), Row("bon", "bon", 2), Row("more", "bon", 3)),
    against=("base", "bon"),
    claims=(Claim("more", ("bon",), "more is better"),),
)


def run(recipe, out):
    report = recipe.run(out, True, lambda line: None)
    return report, (out / "table.json").read_bytes(), (out / "table.md").read_text()


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    out = tmp_path_factory.mktemp("parts") / "field"
    return out, run(FIELD, out)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("parts") / "study"
    return out, run(STUDY, out)


def copied(out, to):
    """As one copies parts out of the repository."""
    to.mkdir()
    shutil.copytree(out / "parts", to / "parts")
    return to


def never(*arguments, **options):
    raise AssertionError("made again")


def test_methods_are_the_same_table_from_their_parts_alone(field, tmp_path, monkeypatch):
    out, (_, table, page) = field
    other = copied(out, tmp_path / "other")
    monkeypatch.setattr(cells.generating, "run", never)
    assert run(FIELD, other)[1:] == (table, page) and not (other / "runs").exists()
    assert "tmp" not in "".join(file.read_text() for file in (other / "parts").iterdir())


def test_parts_are_written_of_runs_that_are_there(field, tmp_path, monkeypatch):
    out, (_, table, _) = field
    shutil.copytree(out / "runs", tmp_path / "old" / "runs")
    monkeypatch.setattr(cells.generating, "load_parts", never)
    assert json.loads(run(FIELD, tmp_path / "old")[1]) == json.loads(table)
    kept = [{file.name: file.read_bytes() for file in (one / "parts").iterdir()} for one in (out, tmp_path / "old")]
    assert kept[0] == kept[1] and len(kept[0]) == 2


def test_a_study_is_the_same_rows_from_its_parts_alone_and_says_which_figures_it_leaves_out(study, tmp_path, monkeypatch):
    out, (report, _, _) = study
    other = copied(out, tmp_path / "other")
    monkeypatch.setattr(measure, "train", never)
    again, _, page = run(STUDY, other)
    assert again == {**report, "left_out": ["progress.png"], "figures": []} and [r["name"] for r in again["rows"]][-1] == "half"
    assert "**Left out**" in page and "progress.png" in page and not (other / "runs").exists()
    (other / "parts" / "half.json").unlink()
    assert [row["name"] for row in run(STUDY, other)[0]["rows"]] == ["base", "draft-1.x"]
    assert json.loads((other / "table.json").read_bytes())["left_out"] == ["half", "progress.png"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("parts") / "table"
    return out, run(TABLE, out)


def test_rows_of_a_table_are_the_same_from_their_parts_and_pictures_of_base_alone(table, tmp_path, monkeypatch):
    out, (report, _, _) = table
    assert {file.stem for file in (out / "parts").iterdir()} == {"bon", "more"}
    other, drawn, true = copied(out, tmp_path / "other"), [], draw.generating.run
    monkeypatch.setattr(draw.generating, "run", lambda config, *a, **k: drawn.append(config.method) or true(config, *a, **k))
    again = run(TABLE, other)
    assert set(drawn) == {"base"} and {one.name for one in (other / "runs").iterdir()} == {"base", "reference"}
    seconds = [{**row, "seconds": 0} for one in (report, again[0]) for row in one["rows"]]
    assert seconds[:3] == seconds[3:] and again[0]["claims"] == report["claims"] and len(seconds) == 6
    (other / "parts" / "more.json").unlink()
    shutil.rmtree(other / "runs")
    drawn.clear()
    assert run(TABLE, other)[0]["claims"] == report["claims"] and drawn.count("bon") == 1
    file = other / "parts" / "bon.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "measured": {"tclip": 3}}))
    with pytest.raises(TiltingError, match=r"bon\.json.*measured"):
        run(TABLE, other)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("config", {"steps": 9}, "with other steps (9 there, 4 now)"),
        ("config", {"prompts": ["a fox", "a dog"]}, "with other prompts"),
        ("model", {"sha256": "0"}, "whose model had other weights"),
        ("images", [{}], "corrupt (it.images[0] lacks 'prompt')"),
        ("summary", {"seconds": "fast"}, 'it.summary.seconds is "fast"'),
        ("images", "../../secret", 'it.images is "../../secret"'),
    ],
)
def test_a_part_of_another_request_or_shape_is_refused_by_one_sentence(key, value, said, field, tmp_path):
    other = copied(field[0], tmp_path / "other")
    file = other / "parts" / "jpeg-8-bon.json"
    part = json.loads(file.read_text())
    file.write_text(json.dumps({**part, key: {**part[key], **value} if isinstance(value, dict) else value}))
    with pytest.raises(TiltingError) as refused:
        run(FIELD, other)
    assert said in str(refused.value) and "jpeg-8-bon.json" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("train-steps", 1, "train-steps (1 there, 2 now)"), ("lr", 1.0, "another lr"), ("seed", 3, "seed")],
)
def test_a_training_of_another_request_is_refused(key, value, said, study, tmp_path):
    other = copied(study[0], tmp_path / "other")
    file = other / "parts" / "draft-1.x.json"
    part = json.loads(file.read_text())
    file.write_text(json.dumps({**part, "config": {**part["config"], key: value}}))
    with pytest.raises(TiltingError, match=r"draft-1\.x\.json") as refused:
        run(STUDY, other)
    assert said in str(refused.value)


def test_every_prompt_of_a_set_is_looked_at(study):
    for file, sets in (("draft-1.x", ("summary", "points", 0, "sets")), ("half", ("held",))):
        found = json.loads((study[0] / "parts" / f"{file}.json").read_text())
        for key in sets:
            found = found[key]
        assert found["train"]["prompts"] == list(TRAIN[:9])


def test_a_training_looked_at_in_another_way_is_refused(study, tmp_path):
    other = copied(study[0], tmp_path / "other")
    with pytest.raises(TiltingError, match="looked at in another way"):
        run(replace(STUDY, tiny=replace(STUDY.tiny, images=2)), other)
    file = other / "parts" / "draft-1.x.json"
    part = json.loads(file.read_text())
    part["summary"]["points"][-1]["sets"]["train"]["prompts"][8] = TRAIN[0]  # the first eight alone, as a look once was
    file.write_text(json.dumps(part))
    with pytest.raises(TiltingError, match="looked at in another way"):
        run(STUDY, other)


def test_names_of_parts_are_names(tmp_path):
    for name in ("../a", "a/b", "/a", ""):
        with pytest.raises(TiltingError, match="the part"):
            parts.file_of(tmp_path, name if name else "\0")


@pytest.mark.parametrize(
    ("value", "shape", "found"),
    [
        ({"a": [1, 2.5]}, {"a": [int | float]}, None),
        ({"a": [1, True]}, {"a": [int]}, "it.a[1] is true"),
        ({"a": {"x": 1, "y": None}}, {"a": {str: int}}, "it.a.y is null"),
        ({"b": 1}, {"a": int}, "it lacks 'a'"),
        ([], {"a": int}, "it is []"),
        ({"a": True}, {str: object}, None),
    ],
)
def test_where_a_value_is_not_of_its_shape(value, shape, found):
    assert parts.odd(value, shape) == found
