"""Labelled pictures as people have them: folders of splits, tables of other tools, pictures in parquet; and what must not be
learnt in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tilting.cli import main
from tilting.conditioning.dataset import Dataset, is_held_out, read_data, read_tables
from tilting.conditioning.pictures import Pictures
from tilting.conditioning.table import FILES, INSIDE, SPLIT, SPLITS, settle, side_of, single, why_empty
from tilting.config.condition_fit import Ask, FitConfig, parse_label
from tilting.errors import TiltingError
from tilting.features.schema import Schema
from tilting.models.control_spec import ControlInfo

COUNT = 16
NAMES = ["dark" if i % 2 else "light" for i in range(COUNT)]


def picture(path: Path, i: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (10 * i, 5, 255 - 10 * i)).save(path)
    return path


def read(data: Path, **options: Any) -> Dataset:
    return read_data(FitConfig.resolve({"data": str(data), **options}))


def refused(data: Path, **options: Any) -> str:
    with pytest.raises(TiltingError) as caught:
        read(data, **options)
    return str(caught.value)


def said(dataset: Dataset) -> dict[str, Any]:
    """Label of each picture by what its first pixel is, whatever it is called."""
    pixels = Pictures([record.path for record in dataset.records], 8)(range(len(dataset.records)))
    numbers = (pixels[:, 0, 0, 0] * 25.5).round().int().tolist()
    return {number: record.labels for number, record in zip(numbers, dataset.records, strict=True)}


WANTED = {i: {"class": NAMES[i]} for i in range(COUNT)}


def class_folders(folder: Path, of: Any) -> Path:
    for i in range(COUNT):
        picture(folder / of(i) / NAMES[i] / f"{i}.png", i)
    return folder


@pytest.mark.parametrize("first", [name for name in SPLITS if SPLITS[name] == "train"])
@pytest.mark.parametrize("second", [name for name in SPLITS if SPLITS[name] == "held out"])
def test_folders_of_splits_are_splits_and_not_classes(tmp_path, first, second):
    data = read(class_folders(tmp_path / "data", lambda i: first.capitalize() if i < 12 else second))
    assert said(data) == WANTED and data.columns[0].classes == ("dark", "light")
    learn, held_out = data.split(0)
    assert {int(Path(data.records[i].file).stem) for i in held_out} == {12, 13, 14, 15} and len(learn) == 12
    assert data.split(5) == data.split(0) and "12 pictures are learnt from and 4 held out" in data.told(learn)[0]
    (table,) = read_tables([str(tmp_path / "data")])  # classifier-free fine-tuning has no held-out side
    assert len(table.records) == 12 and "4 pictures that the data hold out are not learnt from" in table.notes


def test_a_lone_split_is_split_by_the_hash(tmp_path):
    data = read(class_folders(tmp_path / "data", lambda i: "train"))
    assert said(data) == WANTED
    held_out = [i for i, r in enumerate(data.records) if is_held_out(0, r.file)]
    assert data.split(0)[1] == held_out != []


def test_folders_in_class_folders_are_not_guessed_at(tmp_path):
    class_folders(tmp_path / "deep", lambda i: ("inside", "outside")[i % 3 == 0])
    assert "whose class may be 'inside' or 'dark'" in refused(tmp_path / "deep")
    class_folders(tmp_path / "zip", lambda i: "images")
    assert f"give {str(tmp_path / 'zip' / 'images')!r}" in refused(tmp_path / "zip")
    assert said(read(tmp_path / "zip" / "images")) == WANTED


def rows(folder: Path = Path()) -> list[dict[str, Any]]:
    return [{"file": (folder / f"{i}.png").as_posix(), "class": NAMES[i]} for i in range(COUNT)]


def write(file: Path, rows: list[dict[str, Any]], column: str = "file") -> Path:
    """Rows as a file of the kind that its name says; ";" stands for a .csv of semicolons."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{column if key == "file" else key: value for key, value in row.items()} for row in rows]
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), file)
    else:
        mark = "\t" if file.suffix == ".tsv" else ";" if ";" in file.name else ","
        file.write_text("\n".join(mark.join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))) + "\n")
    return file


@pytest.mark.parametrize("name", ["l.csv", "l;.csv", "l.tsv", "l.json", "l.jsonl", "l.parquet"])
@pytest.mark.parametrize("column", [*FILES, "Image", "FILENAME"])
def test_every_kind_of_table_and_name_of_its_files(tmp_path, name, column):
    for i in range(COUNT):
        picture(tmp_path / f"{i}.png", i)
    assert said(read(write(tmp_path / name, rows(), column))) == WANTED


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", INSIDE)
def test_a_table_in_the_folder_that_is_given(tmp_path, name, kind):
    for i in range(COUNT):
        picture(tmp_path / "data" / "pics" / f"{i}.png", i)
    write(tmp_path / "data" / f"{name}{kind}", rows(Path("pics")), "file_name")
    assert said(read(tmp_path / "data")) == WANTED


def test_tables_of_splits(tmp_path):
    """One beside the other, one in each folder of a split, and one with a column that says which."""
    whole = rows()
    for i in range(COUNT):
        for place in ("beside", "column", f"each/{'train' if i < 12 else 'test'}"):
            picture(tmp_path / place / f"{i}.png", i)
    write(tmp_path / "beside" / "train.csv", whole[:12])
    write(tmp_path / "beside" / "validation.csv", whole[12:])
    write(tmp_path / "each" / "train" / "metadata.csv", whole[:12], "file_name")
    write(tmp_path / "each" / "test" / "metadata.jsonl", whole[12:], "file_name")
    sides = [{**row, "split": "train" if i < 12 else "val"} for i, row in enumerate(whole)]
    for column in SPLIT:
        renamed = [{column if k == "split" else k: v for k, v in row.items()} for row in sides]
        write(tmp_path / "column" / f"{column}.csv", renamed)
    places = [tmp_path / "beside", tmp_path / "each", *(tmp_path / "column" / f"{column}.csv" for column in SPLIT)]
    for place in places:
        data = read(place)
        assert said(data) == WANTED, place
        assert {int(Path(data.records[i].file).stem) for i in data.split(0)[1]} == {12, 13, 14, 15}
    write(tmp_path / "beside" / "train.jsonl", whole)
    assert "give one of them by its name" in refused(tmp_path / "beside")


def test_a_column_that_only_happens_to_be_called_split_is_a_label(tmp_path):
    for i in range(COUNT):
        picture(tmp_path / f"{i}.png", i)
    data = read(write(tmp_path / "l.csv", [{"file": f"{i}.png", "split": ("pea", "log")[i % 2]} for i in range(COUNT)]))
    assert [column.name for column in data.columns] == ["split"] and side_of("testament") == ""


@pytest.mark.parametrize("struct", [True, False])
def test_pictures_inside_parquet_and_classes_by_number(tmp_path, struct):
    """As `datasets` writes them, and as bare bytes; in a folder of shards as the hub has them."""
    datasets, parquet = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    whole = []
    for i in range(COUNT):
        data = picture(tmp_path / f"{i}.png", i).read_bytes()
        whole.append(
            {"image": {"bytes": data, "path": f"{i}.png"} if struct else data, "class": ("dark", "light").index(NAMES[i])}
        )
        (tmp_path / f"{i}.png").unlink()
    if struct:
        features = datasets.Features({"image": datasets.Image(), "class": datasets.ClassLabel(names=["dark", "light"])})
        table = datasets.Dataset.from_list(whole, features=features).data.table
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
        wanted = WANTED
    else:
        table = pyarrow.Table.from_pylist(whole)
        wanted = {i: {"class": str(row["class"])} for i, row in enumerate(whole)}
    parquet.write_table(table, tmp_path / "whole.parquet")
    data = read(tmp_path / "whole.parquet")
    assert said(data) == wanted and len(data.digest()) == 16
    parquet.write_table(
        table[:12], (tmp_path / "hub" / "data").mkdir(parents=True) or tmp_path / "hub/data/train-00000-of-00001.parquet"
    )
    parquet.write_table(table[12:], tmp_path / "hub/data/test-00000-of-00001.parquet")
    shards = read(tmp_path / "hub")
    assert said(shards) == wanted and len(shards.split(0)[1]) == 4
    assert len(read(tmp_path / "whole.parquet", **{"label-by": "jpeg"}).records) == COUNT


def test_a_picture_in_parquet_that_is_none_is_named(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    whole = [{"image": picture(tmp_path / "a.png", i).read_bytes(), "class": NAMES[i]} for i in range(COUNT)]
    whole[3]["image"] = b"no picture"
    parquet.write_table(pyarrow.Table.from_pylist(whole), tmp_path / "l.parquet")
    assert "row 4 of 'l.parquet': the file 'l.parquet/3' cannot be read as a picture" in refused(tmp_path / "l.parquet")
    assert len(read(tmp_path / "l.parquet", **{"skip-bad": True}).records) == COUNT - 1


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1", "level_0", "__index_level_0__", "id", "index"])
def test_a_column_that_counts_rows_is_no_label(tmp_path, name):
    for i in range(COUNT):
        picture(tmp_path / f"{i}.png", i)
    file = write(tmp_path / "l.csv", [{name: i, **row} for i, row in enumerate(rows())])
    data = read(file)
    assert said(data) == WANTED
    if name in ("id", "index"):
        assert any(f"{name!r} counts the rows" in note for note in data.told([]))
        assert [c.name for c in read(file, label=[f"{name}=gaussian"]).columns] == [name]


@pytest.mark.parametrize(("first", "second"), [("Yes", "yes"), ("TRUE", "true"), ("Straße", "STRASSE"), ("ﬁne", "fine")])
def test_classes_that_differ_in_capitals_alone_are_asked_about(first, second):
    cells = [first, second, second, "no"]
    with pytest.raises(TiltingError, match=f"--label y=({second},no|no,{second}) takes them as one"):
        settle(Ask("y"), cells)
    assert settle(parse_label(f"y=no,{second}"), cells)[1] == [second, second, second, "no"]
    assert settle(parse_label(f"y={first},no,{second}"), cells)[1] == cells


@pytest.mark.parametrize("cell", [["dark"], ("dark",), '["dark"]', "['dark']", " [ 'dark' ] "])
def test_a_list_of_one_is_its_value(cell):
    assert single(cell) == "dark"


@pytest.mark.parametrize("cell", [[0, 1], "[1, 0, 0]", "[0. 1.]", [1.0, 0.0], ["a", "b"], {"dark": 1}, "{'dark': 1}"])
def test_a_list_of_several_is_no_class(tmp_path, cell):
    for i in range(COUNT):
        picture(tmp_path / f"{i}.png", i)
    told = refused(write(tmp_path / "l.jsonl", [*rows(), {"file": "0.png", "class": cell}]))
    assert "row 17 of 'l.jsonl': the label 'class' is" in told and "give one class or number for each picture" in told


@pytest.mark.parametrize("cell", ["n/a", "#N/A", "<NA>", "NULL", "null", " NaN ", float("nan"), "", None])
def test_what_programs_write_for_no_value_is_no_class(cell):
    assert why_empty(cell)
    assert not any(map(why_empty, ["None", "no", "0", 0]))


def test_files_are_found_by_the_paths_of_windows(tmp_path):
    for i in range(COUNT):
        picture(tmp_path / "a" / f"{i}.png", i)
    assert said(read(write(tmp_path / "l.csv", [{**row, "file": f".\\a\\{row['file']}"} for row in rows()]))) == WANTED


def test_decimal_commas_are_numbers_where_cells_end_at_semicolons(tmp_path):
    for i in range(COUNT):
        picture(tmp_path / f"{i}.png", i)
    file = tmp_path / "l.csv"
    file.write_text("file;bright\n" + "".join(f"{i}.png;{i},5\n" for i in range(COUNT)))
    data = read(file)
    assert data.columns[0].kind == "gaussian" and [r.labels["bright"] for r in data.records] == [i + 0.5 for i in range(COUNT)]


def test_copies_are_told_of(tmp_path):
    """Every picture twice: with both labels, and on both sides of the split."""
    whole = []
    for i in range(COUNT):
        for copy in "ab":
            picture(tmp_path / f"{i}{copy}.png", i)
            whole.append({"file": f"{i}{copy}.png", "class": NAMES[i + (copy == "b" and i < 3)], "of": f"v{i}"})
    file = write(tmp_path / "l.csv", whole)
    data = read(file, label=["class"])
    assert sorted(data.copies) == [(2 * i, 2 * i + 1) for i in range(COUNT)]
    several, across = data.told(data.split(0)[0])
    assert (
        "3 pictures are in the data several times (such as '0a.png' and '0b.png')" in several and "values of 'class'" in several
    )
    learn = set(data.split(0)[0])
    assert across.startswith(f"{sum(len(learn & set(c)) == 1 for c in data.copies)} picture") and "--group" in across
    kept = read(file, label=["class"], group="of")
    assert len(kept.told(kept.split(0)[0])) == 1


@pytest.mark.slow
def test_each_label_learns_from_the_rows_that_have_it(tmp_path, capsys):
    """Half of the pictures have one label, half the other, a few both: each classifier is that of a table of its own rows."""
    whole = []
    for i in range(24):
        Image.new("RGB", (8, 8), (10 * i, 5, 200)).save(tmp_path / f"{i}.png")
        both = {"warm": "yes" if i > 11 else "no", "size": f"{i / 7:.3f}"}
        gone = {"warm": ""} if i % 5 == 0 else {"size": ""} if i % 5 == 1 else {}
        whole.append({"file": f"{i}.png", **both, **gone})
    whole.append({**whole[3], "warm": "yes", "size": ""})
    words = ["condition", "fit", "--epochs", "1", "--widths", "4", "--size", "8", "--seed", "3", "--data"]
    assert main([*words, str(write(tmp_path / "both.csv", whole)), "--out", str(tmp_path / "BOTH")]) == 0
    assert "several values of 'warm'" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "BOTH" / "metrics.json").read_bytes())
    for label in ("warm", "size"):
        own = [{"file": row["file"], label: row[label]} for row in whole if row[label]]
        file = write(tmp_path / f"{label}.csv", own)
        assert main([*words, str(file), "--out", str(tmp_path / label)]) == 0
        assert json.loads((tmp_path / label / "metrics.json").read_bytes()) == metrics[label]
    (table,) = read_tables([str(tmp_path / "both.csv")])
    assert sum(r.labels["warm"] is None for r in table.records) == 5
    bare = write(tmp_path / "bare.csv", [*whole, {"file": "0.png", "warm": "", "size": ""}])
    assert "row 26 of 'bare.csv': the label 'warm' is empty" in refused(bare)


@pytest.mark.parametrize(("value", "far"), [(5, True), ("-1", True), (0.53, False), ("0.9", False), (0.98, True)])
def test_a_number_far_from_those_that_were_learnt_is_told_of(value, far):
    info = ControlInfo((Schema("bright", "gaussian", shift=0.53, scale=0.22, std=0.1), Schema("kind", classes=("a", "b"))))
    told = info.doubts({"bright": value, "kind": "a"})
    assert len(told) == far and all(f"bright={value} is" in line and "0.53" in line for line in told)
