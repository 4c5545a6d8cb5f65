"""Labelled pictures: every row that cannot be used is named, the split is stable, labels mean what they say."""

from __future__ import annotations

import json
import statistics
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tilting.cli import main
from tilting.conditioning.dataset import is_held_out, read_data
from tilting.conditioning.fit_run import condition_fit
from tilting.conditioning.pictures import Pictures, square
from tilting.conditioning.table import cut, settle
from tilting.config.condition_fit import Ask, FitConfig, parse_label
from tilting.errors import TiltingError
from tilting.features.picture import open_rgb


def picture(path: Path, level: int = 128, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, 255 - level)).save(path)
    return path


def table(folder: Path, rows: list[str], header: str = "file,bright", count: int = 12) -> Path:
    """A CSV of ``count`` good rows (no, yes, no, ...) and then ``rows``."""
    good = []
    for i in range(count):
        picture(folder / f"{i}.png", 20 * i)
        good.append(f"{i}.png,{('no', 'yes')[i % 2]}")
    (folder / "labels.csv").write_text("\n".join([header, *good, *rows]) + "\n")
    return folder / "labels.csv"


def corrupt(folder: Path) -> None:
    (folder / "cut.png").write_bytes(picture(folder / "whole.png", size=(64, 64)).read_bytes()[:90])


def refused(capsys, data: Path, *words: str) -> str:
    """The one sentence of a refusal; nothing was written."""
    out = data.parent / "FIT" if data.is_file() else data.parent / f"{data.name}-FIT"
    assert main(["condition", "fit", "--data", str(data), "--out", str(out), "--quiet", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and not out.exists()
    return said.err


BAD = {
    "gone.png,yes": ("row 13 of 'labels.csv'", "'gone.png' is not there"),
    "cut.png,yes": ("row 13 of 'labels.csv'", "'cut.png' cannot be read as a picture"),
    "0.png,": ("row 13 of 'labels.csv'", "'bright' is empty"),
    "0.png,NaN": ("row 13 of 'labels.csv'", "'bright' is NaN"),
    ",yes": ("row 13 of 'labels.csv'", "the cell of the file is empty"),
    "0.png": ("row 13 of 'labels.csv'", "'bright' is empty"),
    "0.png,yes,again": ("row 13 of 'labels.csv'", "more cells than the 2 columns"),
}


@pytest.mark.parametrize("row", BAD)
def test_a_bad_row_is_named_or_left_out_and_listed(tmp_path, capsys, row):
    data = table(tmp_path, [row])
    corrupt(tmp_path)
    said = refused(capsys, data)
    assert all(part in said for part in BAD[row]) and "--skip-bad" in said
    found = read_data(FitConfig.resolve({"data": str(data), "skip-bad": True}))
    assert len(found.records) == 12 and len(found.bad) == 1
    assert all(part in found.bad[0] for part in BAD[row])


def test_a_label_outside_of_its_schema_is_named_with_the_nearest(tmp_path, capsys):
    data = table(tmp_path, ["0.png,yess"])
    said = refused(capsys, data, "--label", "bright=no,yes")
    assert "row 13" in said and "no class 'yess'; did you mean 'yes'?" in said
    found = read_data(FitConfig.resolve({"data": str(data), "label": "bright=yes,no", "skip-bad": True}))
    assert found.columns[0].classes == ("yes", "no") and len(found.bad) == 1  # in the order they were given


def test_a_number_that_is_none_is_named(tmp_path, capsys):
    rows = [f"{i}.png,{i / 7:.3f}" for i in range(12)]
    data = table(tmp_path, [*rows, "3.png,high", "4.png,inf"], count=0)
    for i in range(12):
        picture(tmp_path / f"{i}.png")
    assert "row 13 of 'labels.csv': the label 'bright' is 'high', no finite number" in refused(capsys, data)
    found = read_data(FitConfig.resolve({"data": str(data), "skip-bad": True}))
    assert found.columns[0].kind == "gaussian" and len(found.bad) == 2
    assert [r.labels["bright"] for r in found.records] == [float(f"{i / 7:.3f}") for i in range(12)]


def test_one_class_and_small_classes(tmp_path, capsys):
    data = table(tmp_path, ["0.png,rare", "1.png,rare"])
    said = refused(capsys, data)
    assert "row 13 of 'labels.csv': the class 'rare' of 'bright' has 2 items, fewer than 5" in said
    found = read_data(FitConfig.resolve({"data": str(data), "skip-bad": True}))
    assert found.columns[0].classes == ("no", "yes") and len(found.records) == 12 and len(found.bad) == 2
    one = tmp_path / "one"
    one.mkdir()
    only = table(one, [], count=0)
    only.write_text("file,bright\n" + "".join(f"{picture(one / f'{i}.png').name},yes\n" for i in range(8)))
    assert "'bright' has one class only ('yes')" in refused(capsys, only)
    assert "one class only" in refused(capsys, only, "--skip-bad")
    only.write_text("file,bright\n" + "".join(f"{i}.png,0.5\n" for i in range(8)))
    assert "the same number, 0.5, everywhere" in refused(capsys, only)


def test_columns_and_sources_are_refused_by_name(tmp_path, capsys):
    data = table(tmp_path, [])
    assert "no column 'brigth' of labels; did you mean 'bright'?" in refused(capsys, data, "--label", "brigth")
    assert "there is no kind of label 'clases'; did you mean 'classes'?" in refused(capsys, data, "--label", "bright=clases")
    assert "no file or folder" in refused(capsys, tmp_path / "labels.tsv")
    picture(tmp_path / "labels.png")
    assert "read from a folder or from .csv, .tsv, .jsonl, .json, .parquet" in refused(capsys, tmp_path / "labels.png")
    data.write_text("picture,bright\n0.png,yes\n")
    assert "has no column 'file'" in refused(capsys, data)
    data.write_text("file,bright\n")
    assert "holds no labelled pictures" in refused(capsys, data)
    loose = picture(tmp_path / "loose" / "a.png").parent
    assert "holds 'a.png' outside of class folders" in refused(capsys, loose)
    vgg = tmp_path / "vgg.safetensors"
    vgg.write_bytes(b"of a reward that a label cannot be")
    for words, part in (
        (["--kind", "cn"], "'cn' is none of them"),
        (["--bins", "1"], "bins must be at least 2"),
        (["--lr", "0"], "lr must be above 0"),
        (["--label-by", "jpg"], "there is no reward 'jpg'; did you mean 'jpeg'?"),
        (["--label-by", "jpeg=2"], "a weight, which a label has no use for"),
        (["--label-by", f"diversity:{vgg}"], "cannot label pictures one by one"),
        (["--label-by", "http://here/score"], "cannot label pictures one by one"),
        (["--label", "bright", "--label", "bright"], "'bright' is given twice"),
        (["--kind", "cnn", "--embedder", "nowhere"], "--embedder is the CLIP of --kind mlp"),
    ):
        assert part in refused(capsys, table(tmp_path, []), *words)


def test_sides_depend_on_seed_and_file_alone(tmp_path):
    names = [f"{i}.png" for i in range(4000)]
    sides = [is_held_out(3, name) for name in names]
    assert abs(sum(sides) / 4000 - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5
    both = sum(a and is_held_out(4, name) for a, name in zip(sides, names, strict=True))
    assert abs(both / 4000 - 0.04) < 4 * (0.04 * 0.96 / 4000) ** 0.5  # another seed, independent sides
    big = read_data(FitConfig.resolve({"data": str(table(tmp_path, [], count=40))}))
    few = tmp_path / "few.csv"
    few.write_text("file,bright\n" + "".join(f"./{i}.png,{('no', 'yes')[i % 2]}\n" for i in reversed(range(5, 40))))
    small = read_data(FitConfig.resolve({"data": str(few)}))
    held = [{data.records[i].file for i in data.split(1)[1]} for data in (big, small)]
    assert held[1] == held[0] - {f"{i}.png" for i in range(5)} and held[1]
    assert big.digest() != small.digest()


def test_rows_of_one_group_are_on_one_side(tmp_path, capsys):
    """Views of a thing are no news beside each other; the side is that of the group, whatever its files are called."""
    rows = [f"{i}.png,{('no', 'yes')[i % 2]},{i // 4}" for i in range(12)]
    lone = [f"v{i}.png,{('no', 'yes')[i % 2]}," for i in range(4)]
    for i in range(4):
        picture(tmp_path / f"v{i}.png")
    data = table(tmp_path, [])
    data.write_text("\n".join(["file,bright,thing", *rows, *lone]))
    seed = next(s for s in range(50) if 0 < sum(is_held_out(s, str(g)) for g in range(3)) < 3)
    together = read_data(FitConfig.resolve({"data": str(data), "group": "thing"}))
    assert [column.name for column in together.columns] == ["bright"]
    held = {together.records[i].file for i in together.split(seed)[1]}
    lonely = {f"v{i}.png" for i in range(4) if is_held_out(seed, f"v{i}.png")}
    assert held == {f"{i}.png" for i in range(12) if is_held_out(seed, str(i // 4))} | lonely
    assert together.digest() != read_data(FitConfig.resolve({"data": str(data), "label": "bright"})).digest()
    assert "no column 'thng' to keep together; did you mean 'thing'?" in refused(capsys, data, "--group", "thng")


def test_a_class_that_is_all_held_out_is_refused(tmp_path):
    """Five items of a class, all of which the hash of seed 0 holds out."""
    held = [n for n in (f"{i}.png" for i in range(200)) if is_held_out(0, n)][:5]
    rest = [n for n in (f"{i}.png" for i in range(200)) if n not in held][:12]
    rows = [f"{n},{'rare' if n in held else ('no', 'yes')[i % 2]}" for i, n in enumerate([*held, *rest])]
    for n in (*held, *rest):
        picture(tmp_path / n)
    (tmp_path / "labels.csv").write_text("\n".join(["file,bright", *rows]))
    data = read_data(FitConfig.resolve({"data": str(tmp_path / "labels.csv")}))
    with pytest.raises(TiltingError, match="class 'rare' of 'bright' is held out with --seed 0"):
        data.split(0)
    assert {data.records[i].file for i in data.split(1)[1]} == {n for n in (*held, *rest) if is_held_out(1, n)}


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["b", "a", "b"], "classes", ("a", "b")),
        (["10", "9", "10"], "classes", ("9", "10")),
        (["1.0", "2.0"], "classes", ("1", "2")),
        ([True, False], "classes", ("false", "true")),
        (["0.5", "1.5", "2"], "gaussian", ()),
        ([str(i) for i in range(21)], "gaussian", ()),
        (["1", "2", "many"], "classes", ("1", "2", "many")),
        ([0.5, 1.25, 3.75, "slip"], "gaussian", ()),
    ],
)
def test_what_a_column_means(cells, kind, classes):
    column, values, reasons = settle(Ask("y"), cells)
    assert (column.kind, column.classes) == (kind, classes)
    assert values.count(None) == len(reasons) == cells.count("slip")


def test_a_column_means_what_it_is_told_to():
    assert settle(parse_label("y=gaussian"), ["1", "2"])[1] == [1.0, 2.0]
    assert settle(parse_label("y=classes"), ["0.5", "1.5"])[0].classes == ("0.5", "1.5")
    assert parse_label("y=dark, light") == Ask("y", "classes", ("dark", "light"))


def test_bins_are_quantiles():
    values = [float(v) for v in np.random.default_rng(0).gamma(2, size=103)]
    column, classes = cut(Ask("y"), values, 4)
    edges = statistics.quantiles(values, n=4, method="inclusive")
    assert column.edges == pytest.approx(edges, rel=1e-12)
    assert classes == [str(sum(v >= e for e in edges)) for v in values]
    assert cut(Ask("y", None, ("low", "high")), [1.0, 2.0, 3.0, 4.0], 2)[1] == ["low", "low", "high", "high"]
    with pytest.raises(TiltingError, match="too few different values"):
        cut(Ask("y"), [1.0, 1.0, 1.0, 2.0], 3)
    with pytest.raises(TiltingError, match="names 2 classes for 3 bins"):
        cut(Ask("y", None, ("a", "b")), [1.0, 2.0, 3.0], 3)


@pytest.mark.parametrize(
    ("words", "said", "asked"),
    [
        ({"label": ["warm=a,b"], "bins": 3}, "names 2 classes for 3 bins", 0),
        ({"label": ["warm=a,b"]}, "has no class '1'", 1),
        ({"label": ["warm=gaussian"]}, "no finite number", 2),
        ({"label": ["warm"], "group": "who"}, "no column 'who'", 0),
        ({"label": ["warm"], "device": "cuda:9"}, "there is no device 'cuda:9' here", 0),
    ],
)
def test_what_can_be_known_is_refused_before_pictures_are_labelled(tmp_path, words, said, asked):
    """Each of them said so after the last picture; a word that is no value of its label says so at its own picture."""
    for i in range(12):
        picture(tmp_path / f"pics/a/{i}.png")
    wrong = "'cold' if calls == 2 else 1.0" if asked == 2 else "1"
    (tmp_path / "w.py").write_text(
        f"calls = 0\ndef warm(images, prompts):\n    global calls\n    calls += 1\n"
        f"    open({str(tmp_path / 'calls')!r}, 'a').write('.')\n    return {wrong}\n"
    )
    given = {"data": str(tmp_path / "pics"), "label_by": f"{tmp_path / 'w.py'}:warm", "out": str(tmp_path / "out"), **words}
    with pytest.raises(TiltingError, match=said):
        condition_fit(FitConfig.resolve(given), quiet=True)
    calls = tmp_path / "calls"
    assert (calls.stat().st_size if calls.exists() else 0) == asked and not (tmp_path / "out").exists()


def test_class_folders_jsonl_and_parquet_say_the_same(tmp_path):
    rows = []
    for i in range(12):
        name = f"pics/{('cat', 'dog')[i % 2]}/{i}.png"
        picture(tmp_path / name)
        rows.append({"file": name, "animal": ("cat", "dog")[i % 2], "prompt": f"a {('cat', 'dog')[i % 2]}"})
    (tmp_path / "pics" / ".hidden").mkdir()
    picture(tmp_path / "pics" / ".hidden" / "x.png")
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    lines = read_data(FitConfig.resolve({"data": str(tmp_path / "l.jsonl")}))
    folder = read_data(FitConfig.resolve({"data": str(tmp_path / "pics"), "label": ["animal"]}))
    assert {r.path: r.labels for r in lines.records} == {r.path: r.labels for r in folder.records}
    assert lines.columns == folder.columns and lines.records[1].prompt == "a dog" and folder.records[0].prompt is None
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    assert read_data(FitConfig.resolve({"data": str(tmp_path / "l.parquet")})).records[5]._replace(where="") == lines.records[
        5
    ]._replace(where="")


def noisy(folder: Path, count: int = 15) -> None:
    """Pictures of growing detail, at sizes of their own, as a run of `tilting generate` has them."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    records = []
    for i in range(count):
        pixels = np.clip(128 + rng.normal(0, 6 * i, (16 + 2 * (i % 3), 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        records.append({"file": f"images/{i}.png", "prompt": f"p{i}"})
    (folder / "manifest.json").write_text(json.dumps({"images": records}))


def test_jpeg_size_labels_a_run(tmp_path, capsys):
    run = tmp_path / "run"
    noisy(run)
    assert "give --label-by" in refused(capsys, run)
    data = read_data(FitConfig.resolve({"data": str(run), "label-by": "jpeg", "bins": 2, "label": "small=no,yes"}))
    sizes = []
    for i in range(15):
        file = BytesIO()
        Image.open(run / "images" / f"{i}.png").save(file, "jpeg", quality=95)
        sizes.append(file.tell() / 1000)
    middle = statistics.median(sizes)
    assert [r.labels["small"] for r in data.records] == ["yes" if s <= middle else "no" for s in sizes]
    assert data.columns[0].edges == (pytest.approx(-middle, rel=1e-6),)
    numbers = read_data(FitConfig.resolve({"data": str(run), "label-by": "jpeg"}))
    assert numbers.columns[0].name == "jpeg" and numbers.columns[0].kind == "gaussian"


def test_a_function_of_the_users_labels_by_words_or_numbers(tmp_path, capsys):
    run = tmp_path / "run"
    noisy(run)
    (tmp_path / "own.py").write_text(
        "def tall(images, prompts):\n    return ['tall' if images.shape[2] > images.shape[3] else 'square']\n"
        "def number(images, prompts):\n    return [int(prompts[0][1:]) + 0.5]\n"
        "def broken(images, prompts):\n    if prompts[0] == 'p7':\n        raise KeyError('seven')\n"
        "    return [images.mean()]\n"
    )
    words = read_data(FitConfig.resolve({"data": str(run), "label-by": f"{tmp_path / 'own.py'}:tall"}))
    assert [r.labels["tall"] for r in words.records] == ["tall" if i % 3 else "square" for i in range(15)]
    numbers = read_data(FitConfig.resolve({"data": str(run), "label-by": f"{tmp_path / 'own.py'}:number"}))
    assert [r.labels["number"] for r in numbers.records] == [i + 0.5 for i in range(15)]
    said = refused(capsys, run, "--label-by", f"{tmp_path / 'own.py'}:broken")
    assert "'images/7.png'" in said and "raised KeyError: 'seven'" in said
    rest = read_data(FitConfig.resolve({"data": str(run), "label-by": f"{tmp_path / 'own.py'}:broken", "skip-bad": True}))
    assert len(rest.records) == 14 and len(rest.bad) == 1


def test_pictures_are_upright_on_white_and_cut_to_their_middle(tmp_path):
    wide = Image.new("RGB", (12, 4), "red")
    wide.paste((0, 0, 255), (4, 0, 8, 4))
    assert (square(wide, 4) == np.array([0, 0, 255])).all()
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert open_rgb(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (6, 2), "green").save(tmp_path / "turned.jpg", exif=exif)
    assert open_rgb(tmp_path / "turned.jpg").size == (2, 6)
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(TiltingError, match="more than 8 bits"):
        open_rgb(tmp_path / "deep.png")


def test_pictures_are_read_when_asked_for_and_kept_while_there_is_room(tmp_path):
    paths = [picture(tmp_path / f"{i}.png", 50 * i) for i in range(3)]
    kept, none = Pictures(paths, 4), Pictures(paths, 4, kept_bytes=0)
    first = kept([2, 0])
    assert first.shape == (2, 3, 4, 4) and first[0, 0, 0, 0] == pytest.approx(100 / 255) and first[1, 2, 0, 0] == 1
    none([2])
    for path in paths:
        path.unlink()
    assert (kept([2, 0]) == first).all()
    for pictures, row in ((kept, 1), (none, 2)):
        with pytest.raises(TiltingError, match=rf"{row}\.png' is not there"):
            pictures([row])
