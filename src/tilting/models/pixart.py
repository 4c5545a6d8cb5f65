"""PixArt-Sigma (Chen et al. 2024): a transformer with cross-attention to T5's tokens, their padding masked.

It learnt its variance too, the second half of its output, which no sampler here uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilting.models.adapter import Adapter, square
from tilting.models.families import FAMILIES
from tilting.models.schedulers import schedule_of
from tilting.models.text import Text, distinct, token_ids
from tilting.types import Time

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 300
"""As in the pipeline."""


@FAMILIES.declare("pixart-sigma", "PixArt-Sigma", ("PixArtSigmaPipeline",), steps=20, cfg=4.5)
class PixArtSigma(Adapter):
    """PixArt-Sigma.

    Made of a loaded diffusers PixArtSigmaPipeline, whose scheduler is read, not used.
    """

    component = "transformer"
    lengths = (TOKENS,)
    transformer: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float):
        super().__init__(pipe, name, steps, cfg, schedule_of(pipe.scheduler), square(pipe.transformer))

    def encode_prompts(self, prompts: list[str]) -> Text:
        """T5's tokens (n, tokens, width) and which of them are the prompt's; case does not matter."""
        return distinct([p.lower().strip() for p in prompts], self._encode, self.device)

    def _encode(self, texts: list[str]) -> Text:
        ids, mask = token_ids(self.tokenizer, texts, self.device, TOKENS)
        return Text(self.text_encoder(ids, attention_mask=mask)[0].to(self.dtype), mask=mask)

    def network(self, x: Tensor, t: Time, context: Text) -> Tensor:
        """The transformer's output; see `Adapter.network`."""
        inputs = {"encoder_hidden_states": context.sequence, "encoder_attention_mask": context.mask}
        inputs |= {"timestep": self.times(x, t), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        out = self.transformer(x.to(self.dtype), **inputs, return_dict=False)
        return out[0][:, : x.shape[1]].to(x.dtype)
