"""What the instrument must know of a model: its geometry, read off the model and checked."""

from dataclasses import dataclass

from interp.errors import SiteError
from interp.sites import Head


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of a decoder.

    Attributes:
        architecture: class name of the model.
        attention_layers: the layers that have attention rows; linear-attention and state-space
            layers have none, and their heads are *not applicable*, never zero.
        windows: sliding-window width of each layer, None where attention is global.
        softcap: bound of the attention logits, None where there is none.
        has_sinks: a learned sink logit enters the softmax denominator.
        context_length: the longest sequence the model was made for, None when it does not say.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_vocab: int
    attention_layers: tuple[int, ...]
    windows: tuple[int | None, ...]
    softcap: float | None
    has_sinks: bool
    context_length: int | None

    @property
    def n_groups(self) -> int:
        """Query heads that share one key-value head; head h reads kv head h // n_groups."""
        return self.n_heads // self.n_kv_heads

    def kv_head(self, head: int) -> int:
        """The key-value head that a query head reads."""
        return head // self.n_groups

    def heads(self) -> list[Head]:
        """All heads that have attention rows, layer by layer."""
        return [Head(layer, h) for layer in self.attention_layers for h in range(self.n_heads)]

    def check_head(self, head: Head) -> None:
        """Raise SiteError when the model has no such head."""
        if not (0 <= head.layer < self.n_layers and 0 <= head.head < self.n_heads):
            raise SiteError(
                f"no head {head}: this model has layers 0-{self.n_layers - 1} "
                f"and heads 0-{self.n_heads - 1}"
            )
        if head.layer not in self.attention_layers:
            raise SiteError(f"layer {head.layer} has no attention rows; not applicable")
