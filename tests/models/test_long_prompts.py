"""Prompts that are longer than what a model reads: their lost words are named, as diffusers names them."""

from __future__ import annotations

import warnings

import pytest
import torch

import tilting as tl
from support.small import write_small
from support.tiny_pipelines import make
from support.today import LETTERS, flux, sdxl, words
from tilting.cli import _tell, main
from tilting.errors import TiltingError
from tilting.models.text import tell_of_cuts

LONG = " ".join(["a fox on a hill"] * 9) + " under a large moon"


class Reads:
    """A model of these tokenizers."""

    def __init__(self, *of, name="mine"):
        self.name, self.of = name, of

    def tokenizers(self):
        return list(self.of)


def told(model, texts) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tell_of_cuts(model, texts)
    return [str(one.message) for one in seen]


@pytest.fixture(scope="module")
def pocket():
    return tl.load("pocket")


def test_the_words_that_are_lost_are_those_that_diffusers_names(pocket):
    tokenizer = pocket.tokenizer
    most = tokenizer.model_max_length
    whole = tokenizer(LONG)["input_ids"]
    lost = tokenizer.batch_decode([whole[most - 1 : -1]])[0]  # as StableDiffusionPipeline.encode_prompt has it
    (line,) = told(pocket, ["a fox", LONG, LONG])
    assert f"reads {most} tokens of a prompt: it does not see {lost!r} of {LONG[:57]!r}"[:-1] in line and lost.endswith("moon")
    assert told(pocket, ["a fox", ""]) == [] and told(pocket, []) == [] and told(object(), [LONG]) == []
    cut = tokenizer.decode(whole[1 : most - 1])
    first, second = (one["prompt_embeds"] for one in pocket.texts([LONG, f"{cut} and anything at all"], 4.0))
    assert torch.equal(first, second)


def test_prompts_that_are_one_to_the_model_are_named(pocket):
    first, second = f"{LONG} in summer", f"{LONG} in winter"
    cut, alike = told(pocket, [first, second, "a fox"])
    assert "and the ends of 1 more" in cut and f"{first!r} and {second!r} are one prompt to 'pocket'" in alike
    assert len(told(pocket, ["A FOX", "a fox"])) == 0  # one to its tokenizer by its own rule, nothing is cut


def test_every_tokenizer_says_what_it_loses():
    """Of a model with two, a prompt that the second still tells apart is not one with another."""
    clip, other = words(), words()
    lines = told(Reads((clip, None), (other, 400)), [LONG, f"{LONG} and more"])
    assert len(lines) == 1 and f"reads {clip.model_max_length} tokens" in lines[0]
    short = told(Reads((clip, 5)), ["a fox on a hill"])
    assert "reads 5 tokens" in short[0] and LETTERS


@pytest.mark.parametrize("way", ["generate", "negative", "finetune"])
def test_whoever_draws_is_told(pocket, way):
    prompt, more = ("a fox", {"negative_prompt": LONG}) if way == "negative" else (LONG, {})

    def draw():
        if way == "finetune":
            return tl.finetune(pocket, prompt, "clip", train_steps=1, steps=1, batch_size=1, rank=1)
        return tl.generate(pocket, prompt, steps=1, cfg=2.0, **more)

    with pytest.warns(UserWarning, match="it does not see"):
        draw()


def test_a_command_says_it_in_a_line(capsys):
    _tell(UserWarning("one\n  line"), UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "tilting: warning: one line\n"


def test_a_reward_that_reads_prompts_says_what_it_does_not_see(pocket):
    clip = tl.rewards.clip()
    with pytest.warns(UserWarning, match=r"'pocket-clip' reads \d+ tokens .* it does not see .*moon'"):
        clip(torch.rand(1, 3, 64, 64), [LONG])


# Read in chunks

SHORT, MOON, SUN = (
    "a cat",
    f"{LONG} in summer",
    f"{LONG} in winter, a sun, a star, a hill, a fox, a cat, a tree, and more of them",
)


def by_hand(pipe, text):
    """(hidden states, pooled) of a text as diffusers' own encoders give them of its windows, each a prompt of its own."""
    rows = []
    most = pipe.tokenizer.model_max_length - 2
    ids = pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
    for i in range(0, max(1, len(ids)), most):
        some, pads = ids[i : i + most], most - len(ids[i : i + most])
        rows.append([pipe.tokenizer.bos_token_id, *some, pipe.tokenizer.eos_token_id, *[pipe.tokenizer.pad_token_id] * pads])
    given = torch.tensor(rows)
    with torch.no_grad():
        if not hasattr(pipe, "text_encoder_2"):
            return pipe.text_encoder(given)[0].flatten(0, 1)[None], None
        first, second = (e(given, output_hidden_states=True) for e in (pipe.text_encoder, pipe.text_encoder_2))
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1).flatten(0, 1)[None], second[0][:1]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def chunked(request, tmp_path_factory):
    """(a model that reads in chunks, the pipeline, its folder)."""
    from diffusers import DiffusionPipeline

    folder = tmp_path_factory.mktemp("long") / request.param
    if request.param == "sd":
        write_small(folder)
    else:
        sdxl().save_pretrained(folder)
    return tl.load(str(folder), long_prompts="chunk"), DiffusionPipeline.from_pretrained(folder), str(folder)


def test_a_picture_of_a_long_prompt_is_that_of_diffusers_with_its_embeddings(chunked):
    """A prompt and a negative of as many windows: diffusers takes no others."""
    model, pipe, _ = chunked
    prompt, negative = (by_hand(pipe, text) for text in (MOON, LONG))
    assert prompt[0].shape == negative[0].shape and prompt[0].shape[1] > pipe.tokenizer.model_max_length
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    pooled = {} if prompt[1] is None else {"pooled_prompt_embeds": prompt[1], "negative_pooled_prompt_embeds": negative[1]}
    told = {"prompt_embeds": prompt[0], "negative_prompt_embeds": negative[0], **pooled}
    pipe.set_progress_bar_config(disable=True)
    want = pipe(**told, latents=latents.clone(), num_inference_steps=4, guidance_scale=3.0, eta=0.0, output_type="pt").images
    got = tl.generate(model, MOON, latents=latents, steps=4, cfg=3.0, eta=0.0, negative_prompt=LONG).images
    assert (got - want).abs().max() < 1e-4


@pytest.mark.parametrize(
    "inputs",
    [
        {"clip_skip": 1},
        {"prompt_2": "a red truck at night"},
        {"negative_prompt_2": "a dog"},
        {"clip_skip": 2, "prompt_2": "an owl", "negative_prompt_2": "a dog"},
    ],
)
def test_inputs_of_the_text_count_in_chunks_as_they_do_without(chunked, inputs):
    _, pipe, folder = chunked
    if not hasattr(pipe, "text_encoder_2"):
        inputs = {k: v for k, v in inputs.items() if k == "clip_skip" and hasattr(pipe.text_encoder, "text_model")}
    if not inputs:
        pytest.skip("it has one text encoder, and diffusers asks it for a part that newer transformers do not have")
    models = [tl.load(folder, long_prompts=how, **inputs) for how in ("chunk", "cut")]
    plain = tl.load(folder, long_prompts="chunk")
    x = torch.randn(1, *plain.latent_shape, generator=torch.Generator().manual_seed(1))
    t, rows = plain.schedule.grid(3)[0], torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        chunk, cut, none = (one.denoiser([SHORT], 3.0, "an owl")(x, t, rows).x0 for one in (*models, plain))
        assert (chunk - cut).abs().max() < 1e-4 < (none - cut).abs().max()
        long = models[0].denoiser([MOON], 3.0, "an owl")(x, t, rows).x0
        assert (long - plain.denoiser([MOON], 3.0, "an owl")(x, t, rows).x0).abs().max() > 1e-4


def test_a_controlnet_reads_no_chunks():
    pipe, told = make("sd15_controlnet")
    with pytest.raises(TiltingError, match="long-prompts chunk is for models that read by CLIP alone"):
        tl.load(pipe, long_prompts="chunk", **told)


def test_prompts_of_several_lengths_are_each_as_alone(chunked):
    model, _, folder = chunked
    x = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    t = model.schedule.grid(3)[0]
    with torch.no_grad():
        whole = model.denoiser([SHORT, MOON, SUN], 3.0)(x, t, torch.arange(3)).x0
        for i, text in enumerate((SHORT, MOON, SUN)):
            alone = model.denoiser([text], 3.0)(x[i : i + 1], t, torch.zeros(1, dtype=torch.long)).x0
            assert (whole[i] - alone[0]).abs().max() < 1e-4
        cut = tl.load(folder).denoiser([SHORT], 3.0)(x[:1], t, torch.zeros(1, dtype=torch.long)).x0
        assert (whole[0] - cut[0]).abs().max() < 1e-4  # a prompt that fits is read as ever
    assert told(model, [MOON, SUN]) == []
    assert not torch.equal(
        *(one["prompt_embeds"] for one in model.texts([f"{LONG} {end}" for end in ("a fox", "an owl")], 3.0))
    )


def test_chunks_are_an_option_of_models_that_read_by_clip_alone(chunked, tmp_path, capsys):
    _, _, folder = chunked
    words = ["generate", MOON, "--model", folder, "--steps", "2", "--quiet", "--out"]
    for name, how in (("cut", []), ("said", ["--long-prompts", "cut"]), ("chunk", ["--long-prompts", "chunk"])):
        assert main([*words, str(tmp_path / name), *how]) == 0
    cut, said, chunk = ((tmp_path / name / "images" / "00000.png").read_bytes() for name in ("cut", "said", "chunk"))
    assert cut == said != chunk
    capsys.readouterr()
    assert main([*words, str(tmp_path / "cut"), "--long-prompts", "chunk"]) == 2
    assert "other long-prompts" in capsys.readouterr().err
    tuned = [
        "finetune",
        MOON,
        "--model",
        folder,
        "--reward",
        "jpeg",
        "--objective",
        "ddpo",
        "--train-steps",
        "1",
        "--steps",
        "2",
    ]
    assert main([*tuned, "--long-prompts", "chunk", "--sample-every", "0", "--quiet", "--out", str(tmp_path / "T")]) == 0
    flux().save_pretrained(tmp_path / "flux")
    assert main(["generate", "a", "--model", str(tmp_path / "flux"), "--long-prompts", "chunk", "--out", "no"]) == 2
    assert "long-prompts chunk is for models that read by CLIP alone" in capsys.readouterr().err


def test_any_pipeline_says_what_it_reads_by(tmp_path):
    """Of a pipeline's own call: CLIP's tokens their most, T5's what the call is told."""
    from diffusers import FluxPipeline

    from tilting.models.pipeline import Pipeline

    pipe: FluxPipeline = flux()
    for told_length, more in ((512, {}), (64, {"max_sequence_length": 64})):
        model = Pipeline(pipe, inputs={"height": 16, "width": 16, **more})
        (clip, most), (t5, length) = model.tokenizers()
        assert (clip, most, t5, length) == (pipe.tokenizer, None, pipe.tokenizer_2, told_length)
