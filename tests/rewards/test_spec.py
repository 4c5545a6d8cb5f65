"""The grammar of --reward, without weights; and that it needs no torch."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilting.config.finetune import FinetuneConfig
from tilting.config.generate import GenerateConfig
from tilting.config.variants import parse_variants
from tilting.errors import RewardError, TiltingError
from tilting.features.packaged import POCKET_CLIP
from tilting.features.sources import identity
from tilting.models.words import load_words
from tilting.presets import METHODS
from tilting.rewards.spec import REWARDS, Spec, parse_spec, parse_specs, same

finite = st.floats(allow_nan=False, allow_infinity=False)
ADDRESS = r"//[a-z]{1,9}(:[1-9][0-9]{1,3})?/[a-z/.]{0,9}(\?([a-z]=[0-9]&)?[a-z]=[0-9.]{1,3})?"
arguments = {
    "LR|UD|BOTH": st.sampled_from(["lr", "ud", "both"]),
    "COLOUR": st.from_regex(r"(#[0-9a-f]{6}|#[0-9A-F]{3}|red|Teal)(,mean)?", fullmatch=True),
    "//HOST/PATH": st.from_regex(ADDRESS, fullmatch=True),
    "STYLE": st.sampled_from(load_words().styles),
    "QUALITY": st.floats(1, 100).map(repr),
    "FOLDER": st.from_regex(r"[a-zA-Z0-9_./ =:+-]{0,20}/", fullmatch=True).filter(lambda path: ".py" not in path),
}


@st.composite
def written(draw):
    name = draw(st.sampled_from(sorted(n for n, e in REWARDS.items() if e.argument is None or e.argument.metavar in arguments)))
    kind = REWARDS[name].argument
    some = arguments[kind.metavar] if kind else st.none()
    argument = draw(some if kind and kind.required else st.none() | some)
    weight = draw(st.none() | finite)
    text = name + ("" if argument is None else f":{argument}") + ("" if weight is None else f"={weight!r}")
    url = f"{name}:{argument}" if name == "http" else argument
    return Spec(name, url, 1.0 if weight is None else weight, text)


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
        ("color:#ff8800=2", "color", "#ff8800", 2.0),
        ("color:red,mean", "color", "red,mean", 1.0),
        ("http://localhost:8000/score", "http", "http://localhost:8000/score", 1.0),
        ("http://localhost:8000/score=2", "http", "http://localhost:8000/score", 2.0),
        ("HTTPS://host/a.py?k=5", "http", "HTTPS://host/a.py?k=5", 1.0),
        ("http://host/a?k=5&n=7=-.5", "http", "http://host/a?k=5&n=7", -0.5),
    ],
)
def test_reads(text, name, argument, weight):
    assert parse_spec(text) == Spec(name, argument, weight, text.strip())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("clpi", "did you mean 'clip'"),
        ("zzzzqqq", "there is: aesthetic, aesthetic-v2-5, classify, clip, "),
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
        ("http://:80/score", "must be http://HOST"),
        ("http://me:secret@host/", "must be http://HOST"),
        ("http:score", "must be http://HOST"),
        ("https://host/sc ore", "must be http://HOST"),
        ("http://host:http/", "must be http://HOST"),
        ("http://host/=inf", "finite"),
        ("http", "needs more after a colon: http://HOST/PATH"),
        ("symmetry:lrud", "there is no mirror 'lrud'"),
        ("rotation:90", "takes nothing after a colon"),
        ("color", "needs more after a colon: color:COLOUR"),
        ("color:rde", "did you mean 'red'"),
        ("color:#12345", "must be #rgb or #rrggbb"),
        ("color:red,men", "only ',mean' may stand"),
        ("colour:red", "did you mean 'color'"),
        ("gram:nothing.png", "there is no file 'nothing.png', the picture"),
        ("diversity:nothing.pth", "there is no file 'nothing.pth', the weights of VGG16"),
        ("likelihood:nowhere#day=1", "there is no classifier in 'nowhere'"),
        ("likelihood:nowhere#day", "must be likelihood:FOLDER#LABEL=VALUE"),
        ("likelihood:nowhere", "must be likelihood:FOLDER#LABEL=VALUE"),
        ("/nowhere/mine.py:score", "there is no file '/nowhere/mine.py'"),
        ("/nowhere/mine.py", "must name a function"),
        ("mine.py:not a name", "must name a function"),
    ],
)
def test_refuses_in_one_sentence(text, says):
    with pytest.raises(TiltingError) as caught:
        parse_spec(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("reward", [("clip=0",), ("clip=0.0", "style:noto=-0")])
def test_rewards_that_all_weigh_nothing_are_refused(reward):
    for config, more in ((FinetuneConfig, {"prompts": ("a fox",)}), (GenerateConfig, {"prompts": ("a fox",), "method": "bon"})):
        with pytest.raises(TiltingError, match="asks for nothing: give one of them a weight that is not 0"):
            config.checked({**more, "reward": reward})
        config.checked({**more, "reward": (*reward, "jpeg=0.1")})  # what weighs nothing is told beside it


@pytest.fixture
def fitted(tmp_path):
    """Descriptions alone: that is all a spec is checked against."""
    for name, schema in {"day": {"classes": ["0", "1"]}, "warmth": {"kind": "gaussian"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "classifier.safetensors").write_bytes(b"")
        config = {"schema": {"label": name} | schema, "network": {"name": "cnn"}}
        (tmp_path / name / "classifier.json").write_text(json.dumps(config))
    return tmp_path


def test_a_file_without_a_function_is_told_those_that_it_has(tmp_path):
    """Of a reward and of a method, which listed every method; the file is not run."""
    file, none = tmp_path / "mine.py", tmp_path / "none.py"
    file.write_text("raise SystemExit\ndef score(images, prompts): ...\ndef _inner(): ...\ndef other(): ...\n")
    none.write_text("x = 1\n")
    asks = (parse_spec, METHODS.find, parse_variants_of)
    for ask in asks:
        for text in (str(file), f"{file}:"):
            with pytest.raises(TiltingError) as caught:
                ask(text)
            assert str(caught.value).endswith(f"must name a function, file.py:function; there is: {file}:score, {file}:other")
        with pytest.raises(TiltingError, match="; it defines none"):
            ask(str(none))
    with pytest.raises(TiltingError, match=r"there is no file 'gone.py' for the method 'gone.py'"):
        METHODS.find("gone.py")


def parse_variants_of(text):
    return parse_variants((text,))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache with the weights of owner/net."""
    there = tmp_path / "hub" / "models--owner--net"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text("abc")
    (there / "snapshots" / "abc").mkdir(parents=True)
    for name, held in (("config.json", b"{}"), ("model.safetensors", b"1"), ("pytorch_model.bin", b"2")):
        (there / "snapshots" / "abc" / name).write_bytes(held)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_network_is_known_by_its_weights_whatever_its_name(tmp_path, hub, monkeypatch):
    """A name on the hub, a copy of it with fewer files, other spellings of the copy's path, a link."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "pytorch_model.bin").write_bytes(b"2")
    (tmp_path / "link").symlink_to(copy)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"3")
    monkeypatch.chdir(tmp_path)
    for name in ("owner/net", "copy", "./copy/", str(copy), "link"):
        assert identity(name) & identity("owner/net"), name
        assert same(parse_spec(f"pickscore:{name}=2"), parse_spec("pickscore:copy")), name
        assert not same(parse_spec(f"clip:{name}"), parse_spec("pickscore:copy")), name
        assert not same(parse_spec(f"pickscore:{name}"), parse_spec("pickscore:other")), name
        with pytest.raises(TiltingError, match="is the reward itself"):
            FinetuneConfig.resolve({"prompts": ["a fox"], "reward": [f"pickscore:{name}"], "judge": "pickscore:copy"})
    assert same(parse_spec("clip"), parse_spec(f"clip:{POCKET_CLIP}")) and identity("no/one") == {"no/one"}
    assert not same(parse_spec("style:noto"), parse_spec("style:twemoji")) and not same(parse_spec("clip"), parse_spec("jpeg"))
    (tmp_path / "r.py").write_text("def f(images, prompts): ...\n")
    assert same(parse_spec("r.py:f=2"), parse_spec(f"{tmp_path}/./r.py:f")) and not same(
        parse_spec("r.py:f"), parse_spec("r.py:g")
    )


def test_a_likelihoods_value_is_not_its_weight(fitted):
    for text, argument, weight in (
        ("day#day=1", "day#day=1", 1),
        ("day#day=1=.5", "day#day=1", 0.5),
        ("warmth#warmth=-3e-1", "warmth#warmth=-3e-1", 1),
    ):
        spec = f"likelihood:{fitted}/{text}"
        assert parse_spec(spec) == Spec("likelihood", f"{fitted}/{argument}", weight, spec)
    for text, says in [
        ("day#day=2", "no class '2'; there is: 0, 1"),
        ("day#dya=1", "tells 'day', not 'dya'"),
        ("warmth#warmth=hot", "takes a finite number, not 'hot'"),
        ("warmth#warmth=nan", "finite"),
        ("day#day=", "LABEL=VALUE"),
    ]:
        with pytest.raises(TiltingError, match=says):
            parse_spec(f"likelihood:{fitted}/{text}")


def test_files_of_a_reward(tmp_path):
    for name in ("a.png", "v.pth", "l.pth"):
        (tmp_path / name).write_bytes(b"")
    for argument in (
        f"gram:{tmp_path}/a.png",
        f"gram:{tmp_path}/a.png#{tmp_path}/v.pth",
        "diversity",
        f"diversity:{tmp_path}/v.pth#{tmp_path}/l.pth",
    ):
        assert parse_spec(f"{argument}=3").weight == 3
    with pytest.raises(TiltingError, match=r"there is no file .*w\.pth', the weights of VGG16"):
        parse_spec(f"gram:{tmp_path}/a.png#{tmp_path}/w.pth")
    with pytest.raises(TiltingError, match="the weights of LPIPS"):
        parse_spec(f"diversity:{tmp_path}/v.pth#")


def test_files_come_first(tmp_path):
    file = tmp_path / "clip=x:y.py"
    file.write_text("raise SystemExit('opened')")
    spec = parse_spec(f"{file}:score=-0.25")
    assert spec == Spec(str(file), "score", -0.25, f"{file}:score=-0.25") and spec.is_file
    plain = tmp_path / "lr=0.1" / "r.py"
    plain.parent.mkdir()
    plain.write_text("")
    assert parse_spec(f"{plain}:score") == Spec(str(plain), "score", 1.0, f"{plain}:score")


def test_a_home_after_the_colon_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "r.py").write_text("")
    assert parse_spec("gram:~/a.png=2") == Spec("gram", f"{tmp_path}/a.png", 2.0, "gram:~/a.png=2")
    (tmp_path / "v.pth").write_bytes(b"")
    assert parse_spec("gram:~/a.png#~/v.pth").argument == f"{tmp_path}/a.png#{tmp_path}/v.pth"
    assert parse_spec("~/r.py:score") == Spec(f"{tmp_path}/r.py", "score", 1.0, "~/r.py:score")


def test_twice_is_refused():
    assert [s.weight for s in parse_specs(["clip", "jpeg=2"])] == [1.0, 2.0]
    with pytest.raises(TiltingError, match="twice"):
        parse_specs(["clip", "jpeg", "clip"])


def test_the_registry_is_complete():
    assert set(REWARDS) == {
        "clip",
        "style",
        "jpeg",
        "jpeg-up",
        "jpeg-diff",
        "jpeg-diff-up",
        "rotation",
        "symmetry",
        "color",
        "gram",
        "likelihood",
        "diversity",
        "http",
        "aesthetic",
        "pickscore",
        "hpsv2",
        "imagereward",
        "detect",
        "classify",
        "aesthetic-v2-5",
        "mps",
        "hpsv3",
        "unifiedreward",
        "vqascore",
        "ocr",
        "nsfw",
        "geneval",
        "geneval-strict",
        "vlm",
    }


def test_errors_are_the_same_classes_everywhere():
    from tilting import types

    assert types.TiltingError is TiltingError and types.RewardError is RewardError
    assert RewardError("x", 3).row == 3 and RewardError("x").row is None


def test_no_torch():
    code = (
        "import sys; from tilting.rewards.spec import parse_spec, REWARDS; list(REWARDS); parse_spec('style:noto=2');"
        "parse_spec('http://host/score'); parse_spec('symmetry:ud');"
        "assert not {'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules), sorted(sys.modules);"
        "parse_spec('color:red,mean'); assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_reward_of_the_catalog_is_an_attribute():
    """A declaration is enough for ``tilting.rewards.NAME``."""
    from tilting import rewards

    for name, entry in rewards.REWARDS.items():
        found = getattr(rewards, name.replace("-", "_"))
        assert getattr(found, "func", found) is entry.make, name
    assert rewards.jpeg_up().name != rewards.jpeg().name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = rewards.nothing_of_the_kind
