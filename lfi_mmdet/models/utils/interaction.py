"""One interaction between the queries and the patch tokens (DESIGN section 2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """Split (B, N, C) into (B, heads, N, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """Undo :func:`_heads`."""
    return x.transpose(1, 2).flatten(2)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by PyTorch's fused kernels, whatever the widths.

    Those of the CPU, and the fast one of CUDA, want keys and values of one width; with
    others PyTorch falls back to a slow path that keeps the whole map. Zeros change no
    product, so the narrower side is filled up with them.

    Args:
        query: (B, h, N, c).
        key: (B, h, K, c).
        value: (B, h, K, e).

    Returns:
        (B, h, N, e).
    """
    wide, width = query.shape[-1], value.shape[-1]
    if wide < width:
        query, key = (F.pad(x, (0, width - wide)) for x in (query, key))
    elif width < wide:
        value = F.pad(value, (0, wide - width))
    out = F.scaled_dot_product_attention(query, key, value, scale=wide**-0.5)
    return out if out.shape[-1] == width else out[..., :width]


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
        with_cp: Recompute what happens inside in the backward pass. In training it
            then keeps its arguments and results, and nothing else.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_channels: int,
        carry: bool = True,
        query_attention: bool = True,
        feedback: bool = True,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
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
        args = (tokens, queries, previous, valid)
        if self.with_cp and self.training and torch.is_grad_enabled():
            # nothing inside is random, so no state of a generator need be kept
            run: Any = checkpoint(
                self._interact, *args, use_reentrant=False, preserve_rng_state=False
            )
            return run
        return self._interact(*args)

    def _interact(
        self,
        tokens: Tensor,
        queries: Tensor,
        previous: Tensor | None,
        valid: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        key, value, *rest = self._project(self.norm_tokens(tokens))
        logits = self._logits(key, queries, previous)
        scores = logits
        if valid is not None:
            # cheaper than filling, and not -inf, which makes NaN where all is padding
            hidden = torch.zeros_like(valid, dtype=logits.dtype)
            hidden = hidden.masked_fill(~valid, torch.finfo(logits.dtype).min)
            scores = logits + hidden[:, None, None]
        read = scores.softmax(-1).to(value.dtype) @ value
        queries = queries + self.read_out(_joined(read))

        if self.relation is not None:
            qkv = self.relation['qkv'](self.relation['norm'](queries))
            q, k, v = (_heads(part, self.num_heads) for part in qkv.chunk(3, -1))
            related = F.scaled_dot_product_attention(q, k, v)
            queries = queries + self.relation['out'](_joined(related))

        if self.feedback is not None:
            source = self.feedback['norm'](queries)
            back = fused_attention(
                rest[0],
                _heads(self.feedback['query'](source), self.num_heads),
                _heads(self.feedback['value'](source), self.num_heads),
            )
            tokens = torch.addcmul(tokens, self.gamma, _joined(back))
        return tokens, queries, logits

    def _project(self, x: Tensor) -> list[Tensor]:
        """Keys, values and what feedback asks with, (B, h, N, c) each.

        In one product: the tokens are read once, and cast once under autocast. The
        weights it is put together from are small.
        """
        layers: list[Any] = [self.read_key, self.read_value]
        if self.feedback is not None:
            layers.append(self.feedback['token'])
        joint = F.linear(x, torch.cat([layer.weight for layer in layers]))
        return [_heads(part, self.num_heads) for part in joint.chunk(len(layers), -1)]

    def _logits(self, k: Tensor, queries: Tensor, previous: Tensor | None) -> Tensor:
        q = _heads(self.read_query(self.norm_read(queries)), self.num_heads)
        # the losses compare these logits: half precision would be their noise floor
        with torch.autocast(k.device.type, enabled=False):
            if q.dtype in (torch.float16, torch.bfloat16):
                q, k = q.float(), k.float()
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            if self.carry is not None and previous is not None:
                # in place: nobody has seen these logits yet
                logits.addcmul_(self.carry.view(1, -1, 1, 1), previous)
            return logits

    def parameters_reading(self) -> list[nn.Parameter]:
        """Parameters that only reach a loss through queries updated by a reading."""
        modules: list[nn.Module] = [self.read_value, self.read_out]
        if self.relation is not None:
            modules.append(self.relation)
        return [p for module in modules for p in module.parameters()]

    def parameters_writing(self) -> list[nn.Parameter]:
        """Parameters that only reach a loss through tokens that read the queries."""
        if self.feedback is None:
            return []
        return [*self.feedback.parameters(), self.gamma]
