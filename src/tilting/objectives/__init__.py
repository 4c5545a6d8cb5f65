"""The objectives by name: frozen values with the published defaults, each world -> losses."""

from __future__ import annotations

from tilting.objectives.adjoint import AdjointMatching
from tilting.objectives.dpg import Dpg
from tilting.objectives.gradient import Draft, DraftLv, Refl
from tilting.objectives.policy import PolicyGradient
from tilting.objectives.supervised import PreferencePairs, Raft, RewardWeighted
from tilting.objectives.truncate import Truncation


def draft(kl: float = 0.0, eps_kl: float = 0.0, dropout: float = 0.0) -> Draft:
    """DRaFT: back-propagation through the whole chain, one checkpoint a step (Clark et al. 2024)."""
    return Draft(Truncation("all"), kl, eps_kl, dropout, "draft")


def draft_k(k: int = 1, kl: float = 0.0, eps_kl: float = 0.0, dropout: float = 0.0) -> Draft:
    """DRaFT-K: gradients in the last K steps only; K = 1 learns fastest, quality falls for K above 10 (Clark et al. 2024)."""
    return Draft(Truncation("last", k), kl, eps_kl, dropout, "draft-k")


def draft_lv(copies: int = 2, single: bool = False, dropout: float = 0.0, eps_kl: float = 0.0) -> DraftLv:
    """DRaFT-LV: DRaFT-1 with n re-noised copies of the finished sample (Clark et al. 2024)."""
    return DraftLv(copies, single, dropout, eps_kl)


def refl(last: int | None = None, shape: str = "linear", ceiling: float = 2.0) -> Refl:
    """ReFL: the reward of the estimate at a random late step (Xu et al. 2023)."""
    return Refl(last, shape, ceiling)  # type: ignore[arg-type]


def alignprop(rule: str = "random", share: float = 0.5, kl: float = 0.0) -> Draft:
    """AlignProp: DRaFT with a random truncation, per batch or, as in the older code, per step (Prabhudesai et al. 2023)."""
    return Draft(Truncation("step" if rule == "step" else "random", share=share), kl, name="alignprop")


def ddpo(ratio: bool = True, clip: float = 1e-4, epochs: int = 1, chunks: int = 1, kl: float = 0.0, reduction: str = "mean",
         advantage: str = "buffer") -> PolicyGradient:  # fmt: skip
    """DDPO, importance-sampled or REINFORCE (``ratio=False``), with statistics per prompt (Black et al. 2023)."""
    return PolicyGradient(advantage, ratio, clip, 5.0, kl, reduction, epochs, chunks, name="ddpo")  # type: ignore[arg-type]


def dpok(kl: float = 0.01, reduction: str = "sum") -> PolicyGradient:
    """DPOK: policy gradient with the KL of every step to the base model (Fan et al. 2023)."""
    return PolicyGradient("plain", False, 1.0, 1e9, kl, reduction, name="dpok")  # type: ignore[arg-type]


def grpo(
    size: int = 4, clip: float = 1e-4, epochs: int = 1, chunks: int = 1, kl: float = 0.0, reduction: str = "mean"
) -> PolicyGradient:
    """GRPO: advantages within the K images of a prompt (Liu et al. 2025, Flow-GRPO; Xue et al. 2025, DanceGRPO)."""
    return PolicyGradient("group", True, clip, 5.0, kl, reduction, epochs, chunks, size=size, name="grpo")  # type: ignore[arg-type]


def dpg(last: int | None = None, count: int | None = None) -> Dpg:
    """Deterministic policy gradient with the reward, adapted by a LoRA of its own, as critic (Clark et al. 2024, C.2)."""
    return Dpg(last, count)


def rwr(beta: float = 0.05, times: int = 4, source: str = "current") -> RewardWeighted:
    """Reward-weighted regression on the current model's samples, or the pre-trained one's (Lee et al. 2023)."""
    return RewardWeighted(beta, times, source)  # type: ignore[arg-type]


def raft(size: int = 4, times: int = 4) -> Raft:
    """RAFT: fit the best of each prompt's images (Dong et al. 2023)."""
    return Raft(size, times)


def dpo(beta: float = 5000.0, size: int = 2, times: int = 4) -> PreferencePairs:
    """Diffusion-DPO on reward-ranked pairs of the model's own samples (Wallace et al. 2024)."""
    return PreferencePairs(beta, size, times)


def adjoint(beta: float = 0.05, share: float = 1.0, clip: float | None = None) -> AdjointMatching:
    """Adjoint matching: the exact tilt, on a memoryless schedule (Domingo-Enrich et al. 2024)."""
    return AdjointMatching(beta, share, clip)


OBJECTIVES = {
    "draft": draft, "draft-k": draft_k, "draft-lv": draft_lv, "refl": refl, "alignprop": alignprop, "ddpo": ddpo, "dpok": dpok,
    "grpo": grpo, "dpg": dpg, "rwr": rwr, "raft": raft, "dpo": dpo, "adjoint": adjoint,
}  # fmt: skip
