"""The grammar of --reward, without weights; and that it needs no torch."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilting.errors import RewardError, TiltingError
from tilting.models.words import load_words
from tilting.rewards.spec import CATALOG, Spec, catalog, parse_spec, parse_specs

finite = st.floats(allow_nan=False, allow_infinity=False)
arguments = {
    "style": st.sampled_from(load_words().styles),
    "quality": st.floats(1, 100).map(repr),
    "folder": st.from_regex(r"[a-zA-Z0-9_./ =:+-]{0,20}/", fullmatch=True).filter(lambda path: ".py" not in path),
}


@st.composite
def written(draw):
    name = draw(st.sampled_from(sorted(CATALOG)))
    kind = CATALOG[name].argument
    argument = draw(st.none() | arguments[kind]) if kind else None
    weight = draw(st.none() | finite)
    text = name + ("" if argument is None else f":{argument}") + ("" if weight is None else f"={weight!r}")
    return Spec(name, argument, 1.0 if weight is None else weight, text)


@given(written())
def test_round_trip(spec):
    assert parse_spec(spec.text) == spec


@pytest.mark.parametrize(
    ("text", "name", "argument", "weight"),
    [
        ("clip", "clip", None, 1.0),
        ("clip=0.5", "clip", None, 0.5),
        (" clip=-2e-3 ", "clip", None, -2e-3),
        ("style:noto=+3", "style", "noto", 3.0),
        ("clip:a=b/c", "clip", "a=b/c", 1.0),
        ("clip:a=b/c=.5", "clip", "a=b/c", 0.5),
        ("jpeg-diff:80", "jpeg-diff", "80", 1.0),
        ("jpeg-up=0", "jpeg-up", None, 0.0),
    ],
)
def test_reads(text, name, argument, weight):
    assert parse_spec(text) == Spec(name, argument, weight, text.strip())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("clpi", "did you mean 'clip'"),
        ("zzzzqqq", "there is: clip, "),
        ("style:notto", "did you mean 'noto'"),
        ("style:", "no style after it"),
        ("jpeg:80", "takes nothing after a colon"),
        ("jpeg-diff:0", "between 1 and 100"),
        ("jpeg-diff:high", "between 1 and 100"),
        ("clip=nan", "finite"),
        ("clip=-inf", "finite"),
        ("clip=1e999", "finite"),
        ("clip=much", "must be a number, not 'much'"),
        ("clip=", "must be a number"),
        ("http://localhost:8000/score=2", "not available yet"),
        ("HTTPS://host", "not available yet"),
        ("pickscore", "not available yet"),
        ("/nowhere/mine.py:score", "there is no file '/nowhere/mine.py'"),
        ("/nowhere/mine.py", "must name a function"),
        ("mine.py:not a name", "must name a function"),
    ],
)
def test_refuses_in_one_sentence(text, says):
    with pytest.raises(TiltingError) as caught:
        parse_spec(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_files_come_first(tmp_path):
    file = tmp_path / "clip=x:y.py"
    file.write_text("raise SystemExit('opened')")
    spec = parse_spec(f"{file}:score=-0.25")
    assert spec == Spec(str(file), "score", -0.25, f"{file}:score=-0.25") and spec.is_file


def test_twice_is_refused():
    assert [s.weight for s in parse_specs(["clip", "jpeg=2"])] == [1.0, 2.0]
    with pytest.raises(TiltingError, match="twice"):
        parse_specs(["clip", "jpeg", "clip"])


def test_the_catalog_is_a_copy_and_complete():
    listed = catalog()
    assert set(listed) == {"clip", "style", "jpeg", "jpeg-up", "jpeg-diff", "jpeg-diff-up"}
    listed.clear()
    assert catalog()


def test_errors_are_the_same_classes_everywhere():
    from tilting import types

    assert types.TiltingError is TiltingError and types.RewardError is RewardError
    assert RewardError("x", 3).row == 3 and RewardError("x").row is None


def test_no_torch():
    code = (
        "import sys; from tilting.rewards.spec import parse_spec, catalog; catalog(); parse_spec('style:noto=2');"
        "assert not {'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
