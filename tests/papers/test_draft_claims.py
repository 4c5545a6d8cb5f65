"""Verdicts of the DRaFT recipes on curves made by hand, whose crossings, differences and fronts are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tilting.training.run import load_parts
from tilting_papers.cache import PartsCache
from tilting_papers.draft import fig29 as draft_fig29
from tilting_papers.draft.claims import areas, behind, crossing, dearer, falls, faster, higher, near, ratio, sooner
from tilting_papers.draft.fig4 import FIG4
from tilting_papers.draft.study import Protocol, Results, Size, Training


def made(curves, prompts=6, paid: Any = 1, tilt=0.0, seeds=None):
    """Results of arms whose prompt p has the reward level (1 + tilt p) + p/10 at every look; a look is 10 steps and ``paid``
    queries. ``seeds``: by arm, the levels of its further training seeds."""
    study = replace(FIG4, runs=tuple(Training(name, "draft-k") for name in curves))
    protocol = Protocol({"train": tuple(f"p{i}" for i in range(prompts))}, 1, ("clip",), 0)
    results = Results(study, Size(), Path("nowhere"), False, PartsCache(load_parts), protocol)
    runs = [(name, levels) for name, levels in curves.items()]
    runs += [(name, levels) for name, more in (seeds or {}).items() for levels in more]
    for name, levels in runs:
        queries = paid if isinstance(paid, int) else paid[name]
        summary = {
            "points": [
                {
                    "step": 10 * i,
                    "images": 10 * i,
                    "seconds": float(i),
                    "reward_calls": queries * i,
                    "sets": {
                        "train": {
                            "prompts": list(protocol.sets["train"]),
                            "judge": [-level - p for p in range(prompts)],
                            "rewards": {"clip": [level * (1 + tilt * p) + p / 10 for p in range(prompts)]},
                            "apart": {},
                            "spread": None,
                        }
                    },
                }
                for i, level in enumerate(levels)
            ]
        }
        if name in results.summaries:
            results.repeats.setdefault(name, []).append(summary)
        else:
            results.summaries[name] = summary
    return results


def test_crossings_are_linear_between_looks():
    assert crossing([0, 10, 20], [0.0, 1.0, 3.0], 2.0) == 15
    assert crossing([0, 10, 20], [0.0, 1.0, 3.0], 4.0) is None
    assert crossing([0, 10], [5.0, 6.0], 2.0) == 0
    assert crossing([0, 10, 20], [0.0, 2.0, 1.0], 1.0) == 5  # the first time, though it falls again
    assert ratio([0, 10, 20], [0.0, 2.0, 4.0], [0, 10, 20], [0.0, 1.0, 2.0]) == 0.5  # to half of the gain: 5 of 10 steps
    assert ratio([0, 10, 20], [0.0, 0.5, 1.0], [0, 10, 20], [0.0, 3.0, 4.0]) == math.inf
    assert ratio([0, 10, 20], [1.0, 2.0, 3.0], [0, 10, 20], [1.0, 4.0, 5.0]) == pytest.approx(20 / (20 / 3))
    assert math.isnan(ratio([0, 10], [0.0, 1.0], [0, 10], [0.0, -1.0]))


def test_sooner_holds_where_a_curve_is_twice_as_fast_and_fails_where_it_is_not():
    results = made({"fast": [0, 2, 4], "slow": [0, 1, 2], "flat": [0, 0, 0]})
    found = sooner("fast", "slow")(results)
    assert found is not None
    assert found["verdict"] == "holds"
    assert (found["ratio"], found["low"], found["high"]) == pytest.approx((0.5, 0.5, 0.5))
    back = sooner("slow", "fast")(results)
    assert back is not None and back["verdict"] == "fails" and back["ratio"] == 2.0  # level 2 at step 20, and at 10
    never = sooner("slow", "far")(made({"slow": [0, 1, 2], "far": [0, 3, 8]}))
    assert never is not None and never["verdict"] == "fails" and never["ratio"] is None  # infinity
    flat = sooner("fast", "flat")(results)
    assert flat is not None and flat["verdict"] == "undecided"
    assert sooner("fast", "absent")(results) is None


def test_faster_compares_the_mean_gain_over_training_prompt_by_prompt():
    """Levels 0, 2, 4 have (0 + 2) / 2 / 2 + (2 + 4) / 2 / 2 = 2, and 0, 1, 2 have 1; prompt p has 1 + p / 2 of it."""
    results = made({"fast": [0, 2, 4], "slow": [0, 1, 2]}, prompts=3, tilt=0.5)
    assert areas(results, "fast") == {(0, f"p{p}", 0): pytest.approx(2 * (1 + p / 2)) for p in range(3)}
    found = faster("fast", "slow")(results)
    assert found is not None and found["difference"]["mean"] == pytest.approx(1.5)  # of 1, 1.5 and 2
    assert found["difference"]["high"] - 1.5 == pytest.approx(7 / 6 * 4.302652730 * 0.5 / math.sqrt(3))
    again = made({"fast": [0, 2, 4], "slow": [0, 1, 2]})
    assert faster("fast", "slow")(again)["verdict"] == "holds" and faster("slow", "fast")(again)["verdict"] == "fails"  # type: ignore
    late = made({"late": [0, 0, 4], "early": [0, 4, 4]})
    assert faster("early", "late")(late)["difference"]["mean"] == pytest.approx(2)  # type: ignore[index]  the same end


def test_training_seeds_are_paired_and_widen_the_interval():
    """Gains of a over b of 1, 2 and 3 by seed, the same for all prompts: mean 2, s = 1 / √3 over seeds, 0 over prompts."""
    one = made({"a": [0, 2], "b": [0, 1]}, seeds={"a": [[0, 4], [0, 6]], "b": [[0, 2], [0, 3]]})
    assert len(one.of_seeds("a")) == 3 and len(one.values("a")) == 18
    found = higher("a", "b")(one)
    assert found is not None and found["difference"]["mean"] == pytest.approx(2)
    half = 7 / 6 * 4.302652730 / math.sqrt(3)
    assert (found["difference"]["low"], found["difference"]["high"]) == pytest.approx((2 - half, 2 + half))
    assert found["verdict"] == "undecided" and found["found"].endswith("; 5 training seeds and 9 prompts would decide")
    over_base = higher("a", "base")(one)  # each seed over the one look before training
    assert over_base is not None and over_base["difference"]["mean"] == pytest.approx(4)
    fewer = made({"a": [0, 2], "b": [0, 1]}, seeds={"a": [[0, 9], [0, 9]]})  # seeds that b has not are left out
    assert higher("a", "b")(fewer)["difference"]["mean"] == pytest.approx(1)  # type: ignore[index]
    assert higher("a", "base")(fewer)["difference"]["mean"] == pytest.approx(20 / 3)  # type: ignore[index]
    paces = made({"a": [0, 2, 4], "b": [0, 1, 2]}, seeds={"a": [[0, 2, 4]], "b": [[0, 4, 8]]})
    pace = sooner("a", "b")(paces)  # halves of b's mean curve 0, 2.5, 5: at 10; a's 0, 2, 4 gets to 2.5 at 12.5
    assert pace is not None and pace["ratio"] == pytest.approx(1.25) and pace["low"] < 1.25


def test_a_step_is_dear_by_its_evaluations():
    """Evaluations 2 and 1 an image, and 3 and 1 steps back: 8 against 3."""
    results = made({"a": [0, 1], "b": [0, 1]}, paid={"a": 30, "b": 10})
    for name, each in (("a", 2), ("b", 1)):
        results.points(name)[-1]["evaluations"] = 10 * each
    found = dearer("a", "b", 2.5)(results)
    assert found is not None and (found["verdict"], found["times"]) == ("fails", pytest.approx(8 / 3))
    assert dearer("a", "b", 3.0)(results)["verdict"] == "holds"  # type: ignore[index]


def test_orders_falls_and_nearness():
    results = made({"a": [0, 1, 2], "b": [0, 1, 1.98], "c": [0, 0.5, 1]})
    assert higher("a", "c")(results)["verdict"] == "holds" and higher("c", "a")(results)["verdict"] == "fails"  # type: ignore
    assert higher("a", "c")(results)["difference"]["mean"] == pytest.approx(1)  # type: ignore[index]
    assert higher("a", "a")(results)["verdict"] == "undecided"  # type: ignore[index]
    assert near("a", "b")(results)["verdict"] == "holds" and near("a", "c")(results)["verdict"] == "fails"  # type: ignore
    assert falls("a")(results)["verdict"] == "holds"  # type: ignore[index]  the judge is made to fall as the reward rises
    assert falls("a", "clip")(results)["verdict"] == "fails"  # type: ignore[index]


def test_behind_asks_for_the_queries_too():
    curves = {"fast": [0, 1, 2], "slow": [5, 5.1, 5.2], "even": [0, 2, 4]}
    found = behind("slow", "fast", 2.0)(made(curves, paid={"fast": 10, "slow": 40, "even": 40}))
    assert found is not None and found["verdict"] == "holds" and found["difference"]["mean"] == pytest.approx(1.8)
    assert "does not reach" in found["found"] and found["queries"] == [80, 20]
    assert behind("slow", "fast", 2.0)(made(curves))["verdict"] == "undecided"  # type: ignore[index]  as many queries only
    caught = behind("even", "fast", 2.0)(made(curves, paid={"fast": 10, "slow": 40, "even": 40}))
    assert caught is not None and caught["verdict"] == "fails" and "after 40 queries, 2.0 times" in caught["found"]


def test_a_front_lies_above_another_by_the_mean_height_over_its_inner_points():
    front = [(0.0, 0.0), (1.0, -1.0), (2.0, -4.0)]
    assert draft_fig29.at(front, 1.5) == -2.5 and draft_fig29.at(front, 2.5) is None
    other = [(0.0, 0.0), (0.5, -1.0), (1.5, -3.0), (2.0, -4.0)]
    assert draft_fig29.gap(front, other) == pytest.approx(((-0.5 + 1) + (-2.5 + 3)) / 2)
    assert draft_fig29.gap(front, [(0, 0), (5, 5), (6, 6)]) is None
