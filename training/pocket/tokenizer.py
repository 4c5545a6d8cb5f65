"""A small byte-level BPE in CLIP's format: 2 x 256 bytes, merges learned on our own prompts, two special tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from data import COLOURS, STYLES, read_concepts
from tilting.models.words import article

LENGTH = 24  # tokens in a padded prompt


def corpus() -> list[str]:
    names = [article(name) for _, name, _ in read_concepts()]
    texts = [f"{name} on a {colour} background, {style} style" for name in names for colour in COLOURS for style in STYLES]
    extra = ["a drawing of a photo of an emoji in the style of with and without on the a an bright dark light big small"] * 50
    return texts + extra


def build(folder: Path) -> CLIPTokenizer:
    """The tokenizer in ``folder``, trained and written first if there is none: it is frozen once it exists.

    (The trainer breaks ties in no fixed order, so a second training would number the tokens otherwise.)
    """
    import json

    if (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder)

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_word(), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1600, end_of_word_suffix="</w>", initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys(alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges]))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=LENGTH)
    clip.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _word():
    from tokenizers import Regex

    return Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")


if __name__ == "__main__":
    from data import ASSETS

    t = build(ASSETS / "pocket" / "tokenizer")
    print(len(t), t.model_max_length)
    for text in ("", "a fox on a blue background, noto style", "an owl", "日本 café XYZ"):
        ids = t(text, padding="max_length", truncation=True).input_ids
        print(text, ids, t.convert_ids_to_tokens(ids)[:14])
