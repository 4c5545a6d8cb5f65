"""`tilting recipe` in process, small: tables hold what their run folders hold, the published numbers stand beside, nothing is
drawn twice. The numbers are read back from manifests and pictures by other code than the recipe's."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

import tilting_papers
from support.charts import undrawn
from support.commands import manifest
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.models.words import load_words, read_prompt
from tilting.runs.owner import RECIPE, kind_of
from tilting_papers import RECIPES
from tilting_papers.codex.draw import Requests, cost_of
from tilting_papers.numbers import image_values, interval
from tilting_papers.published import published, published_row

PUBLISHED = Path(tilting_papers.__file__).with_name("published.yaml")
OURS = [name for name in RECIPES if name.startswith("codex-")]
pytestmark = pytest.mark.usefixtures("no_bars")


def table_of(name):
    return RECIPES[name]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """--small of three recipes: folder and table.json of each."""
    root = tmp_path_factory.mktemp("recipes")
    found = {}
    for name in ("codex-table1", "codex-table6", "codex-fig7"):
        with pytest.MonkeyPatch.context() as patch:
            undrawn(patch, ("svg", "pdf"))  # of the pages of its evaluations
            assert main(["recipe", name, "--small", "--out", str(root / name), "--quiet"]) == 0
        found[name] = root / name, json.loads((root / name / "table.json").read_text())
    return found


def records(folder, row):
    """By run, (prompt, index) -> record, from the manifests alone."""
    manifests = [manifest(folder / run) for run in row["runs"]]
    return [{(r["prompt"], r["index"]): r for r in m["images"]} for m in manifests], [m["summary"] for m in manifests]


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), float) / 255


@pytest.mark.parametrize("name", ["codex-table1", "codex-table6", "codex-fig7"])
def test_rows_hold_what_their_run_folders_hold(made, name):
    folder, report = made[name]
    (spec,) = report["reward"]
    rows = {row["name"]: row for row in report["rows"]}
    by_name = {n: records(folder, row) for n, row in rows.items()}
    for n, row in rows.items():
        runs, summaries = by_name[n]
        images = [r for run in runs for r in run.values()]
        assert row["images"] == len(images) == 2 * len(runs)
        assert row["rewards"][spec]["mean"] == pytest.approx(np.mean([r["reward"] for r in images]), abs=1e-9)
        assert row["judge"]["mean"] == pytest.approx(np.mean([r["judge"] for r in images]), abs=1e-9)
        for cost in ("evaluations", "decodes", "seconds"):
            assert row[cost] == pytest.approx(sum(s[cost] for s in summaries) / len(images))
        for other, gain in row["against"].items():
            theirs = by_name[other][0]
            apart = [run[k]["reward"] - theirs[0][k]["reward"] for run in runs for k in run]
            assert gain[spec]["mean"] == pytest.approx(np.mean(apart), abs=1e-9)
            by_prompt: dict[str, list[float]] = {}
            for run in runs:
                for k in run:
                    by_prompt.setdefault(k[0], []).append(run[k]["reward"] - theirs[0][k]["reward"])
            (a, b) = (np.mean(v) for v in by_prompt.values())  # two prompts, of as many images
            half = 1.25 * stats.t.ppf(0.975, 1) * abs(a - b) / 2
            bounds = [np.mean(apart) - half, np.mean(apart) + half]
            assert [gain[spec]["low"], gain[spec]["high"]] == pytest.approx(bounds, abs=1e-9)
    assert report["floor"]["fid"] == rows["base"]["fid"] and report["floor"]["cmmd"] == rows["base"]["cmmd"]
    parts = set() if report["references"] else {"parts"}
    assert {f.name for f in folder.iterdir()} == {"table.md", "table.json", "runs", "evaluation", *parts, *report["figures"]}


def test_claims_are_paired_differences_of_the_rewards(made):
    for folder, report in (made["codex-table1"], made["codex-table6"]):
        rows = {row["name"]: row for row in report["rows"]}
        for claim in report["claims"]:
            (ours,), _ = records(folder, rows[claim["winner"]])
            for rival in claim["rivals"]:
                (theirs,), _ = records(folder, rows[rival["rival"]])
                apart = [ours[k]["reward"] - theirs[k]["reward"] for k in ours]
                assert rival["reward"]["mean"] == pytest.approx(np.mean(apart), abs=1e-9)
                half = 1.25 * stats.t.ppf(0.975, 1) * abs(apart[0] - apart[1]) / 2  # one image of each of two prompts
                low, high = np.mean(apart) - half, np.mean(apart) + half
                assert [rival["reward"][k] for k in ("low", "high")] == pytest.approx([low, high], abs=1e-9)
                want = "holds" if low > 0 else "fails" if high < 0 else "undecided"
                assert rival["verdict"] == want
                assert rival["evaluations"] == [rows[claim["winner"]]["evaluations"], rows[rival["rival"]]["evaluations"]]
    assert len(made["codex-table1"][1]["claims"][0]["rivals"]) == 4


def test_distances_are_to_the_base_run_of_another_seed(made):
    """CMMD by its formula on pocket-clip's embeddings of the pictures."""
    import torch

    from tilting.features.clip import ClipEmbedder
    from tilting.metrics.extract import POCKET_CLIP

    folder, report = made["codex-table6"]
    clip = ClipEmbedder(POCKET_CLIP)

    def embeds(run):
        images = np.stack([pixels(f) for f in sorted((folder / run / "images").glob("*.png"))])
        with torch.no_grad():
            return clip.image(torch.from_numpy(images).permute(0, 3, 1, 2).float()).double().numpy()

    def kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / 200).mean()

    seeds = {json.loads((folder / "runs" / n / "manifest.json").read_text())["config"]["seed"] for n in ("base", "reference")}
    assert seeds == {0, 1}
    there = embeds("runs/reference")
    for row in report["rows"][:4]:
        here = embeds(row["runs"][0])
        want = 1000 * (kernel(here, here) + kernel(there, there) - 2 * kernel(here, there))
        assert row["cmmd"] == pytest.approx(want, abs=1e-4)


def test_jpeg_rewards_are_the_sizes_of_files(made):
    folder, report = made["codex-table6"]
    for row in report["rows"]:
        sizes = []
        for file in sorted((folder / row["runs"][0] / "images").glob("*.png")):
            buffer = BytesIO()
            Image.open(file).convert("RGB").save(buffer, "jpeg", quality=95)
            sizes.append(-buffer.tell() / 1000)
        assert row["rewards"]["jpeg"]["mean"] == pytest.approx(np.mean(sizes), abs=2e-3)
    best = {row["name"]: row["rewards"]["jpeg"]["mean"] for row in report["rows"]}
    assert best["bon-40"] >= best["bon-4"] >= best["base"]  # nested sets of the same draws


def test_strength_keeps_the_reference_as_it_falls(made):
    folder, report = made["codex-fig7"]
    target = pixels(folder / report["references"][0])
    rows = {row["name"]: row for row in report["rows"]}
    for row in report["rows"]:
        files = sorted((folder / row["runs"][0] / "images").glob("*.png"))
        want = None if row["strength"] is None else np.mean([np.sqrt(((pixels(f) - target) ** 2).mean()) for f in files])
        assert row["to_reference"] == (None if want is None else pytest.approx(want, abs=1e-6))
    for method in ("sdedit", "code", "codex"):
        for key in ("to_reference", "evaluations"):
            assert rows[f"{method}-r0.4"][key] < rows[f"{method}-r0.8"][key]
    # int(6 r), as diffusers has it from a picture of a family such as pocket's
    assert rows["sdedit-r0.4"]["evaluations"] == 2 and rows["sdedit-r0.8"]["evaluations"] == 4


def test_a_second_run_draws_nothing(made, monkeypatch, capsys):
    def load(name, *more, **how):
        raise AssertionError("a model was loaded")

    folder, report = made["codex-table1"]
    assert kind_of(folder) is RECIPE
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.glob("runs/*/images/*.png")}
    monkeypatch.setattr("tilting.generation.run.load", load)
    assert main(["recipe", "codex-table1", "--small", "--out", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == report == json.loads((folder / "table.json").read_text())
    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.glob("runs/*/images/*.png")} == before
    assert f"row 3 of {len(report['rows']) + 1}: code-4 (drawn before)" in err


def test_only_a_lost_row_is_drawn_again_and_is_the_same(made, capsys):
    import shutil

    folder, report = made["codex-fig7"]
    lost = folder / report["rows"][1]["runs"][0]
    pictures = {f.name: pixels(f) for f in (lost / "images").iterdir()}
    shutil.rmtree(lost)
    others = {f: f.stat().st_mtime_ns for f in folder.glob("runs/*/images/*.png")}
    assert main(["recipe", "codex-fig7", "--small", "--out", str(folder)]) == 0
    assert capsys.readouterr().err.count("(drawn before)") == len(report["rows"])
    assert all(f.stat().st_mtime_ns == at for f, at in others.items())
    for name, picture in pictures.items():
        assert np.abs(pixels(lost / "images" / name) - picture).max() <= 1 / 255
    again = json.loads((folder / "table.json").read_text())["rows"][1]
    assert again["rewards"]["clip"]["mean"] == pytest.approx(report["rows"][1]["rewards"]["clip"]["mean"], abs=1e-5)


def test_the_published_numbers(made):
    """Typed here from the thesis: its Tables 1, 4 and 6."""
    table = yaml.safe_load(PUBLISHED.read_text())
    for name, (_, report) in made.items():
        for row in report["rows"]:
            if row["published"] is not None:
                key = report["published"]
                assert list(row["published"]) == table[key]["columns"], name
                assert list(row["published"].values()) == table[key][row["published_row"]]
    known = {"reward": 8.37, "fid": 90.65, "cmmd": 0.634, "t_clip": 0.772, "minutes": 13.20}
    assert published_row("codex-table1", "codex-schedule-multinomial") == known
    assert published_row("codex-table4", "code-40") == {"reward": 0.24244, "cmmd": 0.5116, "t_clip": 0.8246, "minutes": 16.89}
    assert published_row("codex-table6", "codex-zo10")["reward"] == -59.048
    markdown = (made["codex-table1"][0] / "table.md").read_text()
    line = next(line for line in markdown.splitlines() if line.startswith("| codex-4-greedy |"))
    assert line.endswith("| 8.26 | 93.46 | 0.657 | 0.772 | 11.67 |")
    with pytest.raises(TiltingError, match="did you mean 'code-4'"):
        published_row("codex-table1", "code4")


@pytest.mark.parametrize("name", OURS)
def test_every_recipe_is_sound(name):
    """Prompts that pocket was taught and can read, rows that are told apart, every published row of the table used once."""
    table, words = table_of(name), load_words()
    assert table.name == name
    for prompt in (*table.prompts, *table.sources):
        asked = read_prompt(words, prompt)
        assert asked.concept is not None
        assert (asked.concept, asked.style, asked.background) not in words.held_out
    assert len(set(table.prompts)) == len(table.prompts) >= table.size.prompts
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names) and "base" in names
    assert all(other in names for other in table.against)
    for claim in table.claims:
        assert {claim.winner, *claim.rivals} <= set(names)
    if table.published[0]:
        theirs = [row.published for row in table.rows if row.published]
        assert sorted(theirs) == sorted(set(published(table.published[0])) - {"columns"})
        assert len(set(theirs)) == len(theirs)


def test_rivals_are_given_at_least_the_evaluations_of_codex(tmp_path):
    asked = Requests(table_of("codex-table2"), tmp_path, small=False, seed=0)
    cost = {row.name: cost_of(asked.row(row, [])[0]) for row in asked.rows}
    by_name = {row.name: row for row in asked.rows}
    assert cost["codex-4"].evaluations == 4 * (20 + 12)  # every one of the draws 8 ... 19, Alg. 1
    for name, row in by_name.items():
        if row.equal:
            particles = asked.row(row, [])[0].particles or 1
            each = cost[name].evaluations / particles
            assert cost["codex-4"].evaluations <= cost[name].evaluations < cost["codex-4"].evaluations + each
    assert cost["ug"].evaluations == 6 * 20 and cost["freedom"].evaluations == 20 + 9 * 9  # T + (K - 1) W


def test_intervals_are_over_prompts_however_many_their_images():
    """Two prompts whose images agree: the standard error is half of what they are apart, and t_1 is 12.706, a quarter wider."""
    ours = {(0, p, i): v for p, v in (("a", 1.0), ("b", 3.0)) for i in range(50)}
    half = 5 / 4 * 12.706204736
    assert interval(ours) == pytest.approx({"mean": 2.0, "low": 2.0 - half, "high": 2.0 + half})
    theirs = {(0, p, i): v - 0.5 for (_, p, i), v in ours.items()}
    three = {(k, p, i): v for k in range(3) for (_, p, i), v in ours.items()}
    assert interval(three, theirs) == {"mean": 0.5, "low": 0.5, "high": 0.5}  # several runs against a lone one
    assert interval(ours, {}) is None
    seeds = {(k, p, 0): v + 2 * k for k in range(2) for p, v in (("a", 1.0), ("b", 3.0))}
    alone, seeded = interval(seeds), interval(seeds, seeded=True)  # runs 2 apart, as the prompts are
    assert alone and seeded and seeded["high"] - 3.0 == pytest.approx(2**0.5 * (alone["high"] - 3.0)) and alone["mean"] == 3.0


def test_values_are_read_by_bare_spec():
    record = {"prompt": "a", "index": 0, "judge": None, "rewards": {"style": -1.0, "clip=50": 0.3}}
    assert image_values([{"images": [record]}], "clip") == {(0, "a", 0): 0.3}
    assert image_values([{"images": [record]}], "judge") == {}


REFUSED = [
    (("recipe", "codex-tabel1", "--out", "OUT"), "did you mean 'codex-table"),
    (("recipe", "codex-table1"), "--out DIR"),
    (("recipe", "codex-table1", "--out", "a_file"), "a_file"),
    (("recipe", "codex-table1", "--out", "OUT", "--seed", "-1"), "seed"),
    (("recipe", "mixture-bias", "--out", "OUT", "--seed", "1"), "leave --seed out"),
    (("recipe", "codex-table3", "--out", "OUT", "--small", "--steps", "3"), "row codex: codex's schedule of 5 parts"),
    (("recipe", "codex-table3", "--out", "OUT", "--small", "--reward", "jpeg"), "mpgd needs a differentiable reward"),
    (("recipe", "codex-table1", "--out", "OUT", "--smal"), "did you mean '--small'"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(w[1:]) for w, _ in REFUSED])
def test_bad_input_is_one_sentence_and_leaves_nothing(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("x")
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tilting: ") and err.count("\n") == 1 and said in err
    assert [p.name for p in tmp_path.iterdir()] == ["a_file"]


def test_another_recipe_or_seed_is_refused_in_a_folder_of_one(made, capsys):
    folder, _ = made["codex-table1"]
    before = (folder / "table.json").read_bytes()
    for words, said in (
        (("codex-table4", "--small"), "another recipe"),
        (("codex-table1",), "another small"),
        (("codex-table1", "--small", "--seed", "3"), "another seed"),
    ):
        assert main(["recipe", *words, "--out", str(folder)]) == 2
        assert said in capsys.readouterr().err
    assert (folder / "table.json").read_bytes() == before


def test_the_list_and_the_config(capsys, tmp_path):
    assert main(["recipe"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    assert main(["recipe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == RECIPES.keys()
    assert main(["recipe", "codex-fig5", "--small", "--out", "X", "--print-config"]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    assert main(["recipe", "--config", str(file), "--seed", "4", "--print-config"]) == 0
    told = {"recipe": "codex-fig5", "out": "X", "small": True, "seed": 4, "shard": None}
    assert yaml.safe_load(capsys.readouterr().out) == told


def test_the_chosen_strength_is_the_weakest_with_nearly_the_most_gain_whose_judge_does_not_fall():
    from tilting_papers.codex.strengths import chosen

    def row(strength, gain, high):
        return {
            "method": "dps",
            "set": {"dps.strength": strength},
            "judge": {"mean": -1.0},
            "against": {"base": {"judge": {"high": high}, "clip": {"mean": gain}}},
        }

    def of(*rows):
        return chosen({"reward": ["clip"], "rows": rows})["dps"]

    rising = row(0.1, 0.3, 0.2), row(0.2, 0.5, 0.0), row(0.4, 0.9, -0.1)
    assert of(*rising) == 0.2  # .4 has more, and its judge falls
    assert of(*rising[2:]) is None
    flat = row(0.1, 0.98, 0.2), row(0.2, 0.995, 0.1), row(0.4, 1.0, 0.0)
    assert of(*flat) == 0.2  # 99 % of the most; .1 has 98 %
    assert of(row(0.1, -0.2, 0.2), row(0.2, -0.1, 0.2)) == 0.2  # nothing gains: the best


def test_a_table_has_the_strengths_that_its_tuning_chooses():
    """Of a reward without a ceiling the most usable gain; the weakest of the grid where the judge falls at every strength."""
    from tilting_papers.codex.strengths import GRIDS, ODDS, settings

    def row(method, value, gain, high):
        names = GRIDS[method][0]
        against = {"base": {"judge": {"high": high}, "odds": {"mean": gain}}}
        return {"method": method, "set": {f"{method}.{n}": value for n in names}, "judge": {"mean": -1.0}, "against": against}

    rows = [row("dps", 0.1, 5.0, 0.1), row("dps", 0.2, 5.04, 0.1), row("dps", 0.4, 6.0, -0.1)]
    rows += [row("tfg", 0.1, 5.0, 0.1), row("tfg", 0.2, 4.0, 0.1), row("ug", 0.2, 5.0, -0.2), row("ug", 0.1, 4.0, -0.1)]
    assert settings({"reward": ["odds"], "rows": rows}, 1.0) == {
        "dps": {"strength": 0.2},
        "tfg": {"rho": 0.1, "mu": 0.1},
        "ug": {"rate": 0.1},
    }
    table = table_of("codex-table2")
    assert table.tuned is ODDS and ODDS.near == 1.0 and (table.reward, table.total) == (ODDS.reward, "odds")
    assert {row.method for row in table.rows} - set(GRIDS) == {"base", "code", "bon"}
    assert table.size.prompts * table.size.images >= 200


def test_the_weighted_sum_of_rewards_is_a_number_of_its_own():
    record = {
        "prompt": "a fox",
        "index": 0,
        "reward": 2.5,
        "judge": -1.0,
        "rewards": {"style:noto": -0.5, "style:fluent=-0.5": -6.0},
    }
    assert image_values([{"images": [record]}], "odds", "odds") == {(0, "a fox", 0): 2.5}
    assert image_values([{"images": [record]}], "style:fluent", "odds") == {(0, "a fox", 0): -6.0}
    assert image_values([{"images": [record]}], "odds") == {}


def test_strengths_are_tuned_on_prompts_of_their_own():
    tuned = {p for name in OURS if "strengths" in name for p in table_of(name).prompts}
    others = {p for name in OURS if "strengths" not in name for p in table_of(name).prompts}
    concepts = {read_prompt(load_words(), p).concept for p in others}
    assert not tuned & others
    assert not {read_prompt(load_words(), p).concept for p in tuned} & concepts
