"""One interaction between the queries and the patch tokens (DESIGN section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """Split (B, N, C) into (B, heads, N, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class QueryInteraction(nn.Module):
    """Queries read the patches, relate to one another, and may write back.

    One instance serves every interaction layer, so the cost in parameters does not
    grow with the depth. In the notation of DESIGN section 2::

        Z_l = (Wq LN Q)(Wk LN X)^T / sqrt(d_h) + lambda * Z_{l-1}
        Q  <- Q + Wo (softmax_N(Z_l) Wv LN X)
        Q  <- Q + self-attention(LN Q)
        X  <- X + gamma * softmax_K((Wk' LN X)(Wq' LN Q)^T / sqrt(d_h)) Wu LN Q

    Args:
        embed_dims: Channels d of tokens and queries.
        num_heads: Heads h of each attention.
        attn_channels: Channels of queries and keys over all heads.
        carry: Learn ``lambda``, one per head, starting at 0.
        query_attention: Let queries attend to one another.
        feedback: Let patches read from the queries through ``gamma``, one per
            channel, starting at 0: at first the tokens are unchanged.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_channels: int,
        carry: bool = True,
        query_attention: bool = True,
        feedback: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (
            ('embed_dims', embed_dims),
            ('attn_channels', attn_channels),
        ):
            if value % num_heads:
                raise ValueError(
                    f'{name}={value} does not divide into {num_heads} heads'
                )
        self.num_heads = num_heads
        self.norm_tokens = nn.LayerNorm(embed_dims, eps=1e-6)

        def linear(inner: int, outer: int, bias: bool = False) -> nn.Linear:
            return nn.Linear(inner, outer, bias=bias)

        # reading: what the losses on attention supervise
        self.norm_read = nn.LayerNorm(embed_dims, eps=1e-6)
        self.read_query = linear(embed_dims, attn_channels)
        self.read_key = linear(embed_dims, attn_channels)
        self.read_value = linear(embed_dims, attn_channels)
        self.read_out = linear(attn_channels, embed_dims, bias=True)
        self.carry = nn.Parameter(torch.zeros(num_heads)) if carry else None

        self.relation: nn.ModuleDict | None = None
        if query_attention:
            self.relation = nn.ModuleDict(
                dict(
                    norm=nn.LayerNorm(embed_dims, eps=1e-6),
                    qkv=linear(embed_dims, 3 * attn_channels),
                    out=linear(attn_channels, embed_dims, bias=True),
                )
            )
        self.feedback: nn.ModuleDict | None = None
        if feedback:
            self.feedback = nn.ModuleDict(
                dict(
                    norm=nn.LayerNorm(embed_dims, eps=1e-6),
                    token=linear(embed_dims, attn_channels),
                    query=linear(embed_dims, attn_channels),
                    value=linear(embed_dims, embed_dims),
                )
            )
            self.gamma = nn.Parameter(torch.zeros(embed_dims))

    def forward(
        self,
        tokens: Tensor,
        queries: Tensor,
        previous: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Interact once.

        Args:
            tokens: Patch tokens X, (B, N, d).
            queries: Queries Q, (B, K, d).
            previous: Logits Z of the interaction before, (B, h, K, N), or None.
            valid: Bool (B, N), False where a patch is padding; None if none is.

        Returns:
            The new tokens, the new queries and the logits Z, (B, h, K, N), float32
            and not yet masked.
        """
        x = self.norm_tokens(tokens)
        logits = self._logits(x, queries)
        if self.carry is not None and previous is not None:
            logits = logits + self.carry.view(1, -1, 1, 1) * previous
        scores = logits
        if valid is not None:
            scores = logits.masked_fill(
                ~valid[:, None, None], torch.finfo(logits.dtype).min
            )
        value = _heads(self.read_value(x), self.num_heads)
        read = scores.softmax(-1).to(value.dtype) @ value
        queries = queries + self.read_out(read.transpose(1, 2).flatten(2))

        if self.relation is not None:
            q, k, v = (
                _heads(part, self.num_heads)
                for part in self.relation['qkv'](self.relation['norm'](queries)).chunk(
                    3, -1
                )
            )
            related = F.scaled_dot_product_attention(q, k, v)
            queries = queries + self.relation['out'](related.transpose(1, 2).flatten(2))

        if self.feedback is not None:
            source = self.feedback['norm'](queries)
            back = F.scaled_dot_product_attention(
                _heads(self.feedback['token'](x), self.num_heads),
                _heads(self.feedback['query'](source), self.num_heads),
                _heads(self.feedback['value'](source), self.num_heads),
            )
            tokens = tokens + self.gamma * back.transpose(1, 2).flatten(2)
        return tokens, queries, logits

    def _logits(self, x: Tensor, queries: Tensor) -> Tensor:
        q = _heads(self.read_query(self.norm_read(queries)), self.num_heads)
        k = _heads(self.read_key(x), self.num_heads)
        # the losses compare these logits: half precision would be their noise floor
        with torch.autocast(x.device.type, enabled=False):
            if q.dtype in (torch.float16, torch.bfloat16):
                q, k = q.float(), k.float()
            return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)

    def parameters_reading(self) -> list[nn.Parameter]:
        """Parameters that only reach a loss through queries updated by a reading."""
        modules: list[nn.Module] = [self.read_value, self.read_out]
        if self.relation is not None:
            modules.append(self.relation)
        return [p for module in modules for p in module.parameters()]
