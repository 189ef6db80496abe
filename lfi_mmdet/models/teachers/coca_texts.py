"""Where the words of a prompt lie among the rows of CoCa's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .prompts import Prompt, token_span
from .prompts import shorten as shorten_prompt


def locate(
    tokenizer: Any, prompts: Sequence[Prompt], shorten: bool = False
) -> tuple[list[str], list[range]]:
    """Find the tokens of the words that prompts ask for.

    Args:
        tokenizer: A BPE tokenizer of open_clip.
        prompts: Texts and words.
        shorten: Let a text that is too long lose its beginning, word by word, until
            the tokens that are asked for are within reach; for captions, whose length
            nobody chose.

    Returns:
        The texts and, in each, the positions of the tokens.

    Raises:
        ValueError: If the tokens are not found.
    """
    texts, spans = [], []
    for prompt in prompts:
        if shorten:
            limit = tokenizer.context_length
            prompt = shorten_prompt(
                prompt, lambda text: 2 + len(tokenizer.encode(text)), limit
            )
        texts.append(prompt.text)
        spans.append(token_span(tokenizer, prompt))
    return texts, spans


def row_table(spans: Sequence[range], shift: int) -> tuple[Tensor, Tensor]:
    """Make tables of the rows to read.

    Args:
        spans: Positions of the tokens of each prompt's words.
        shift: 0 for the rows that read these tokens, 1 for those that predict them.

    Returns:
        Rows, long (P, R), and their weights, (P, R), which sum to 1 and are 0 where a
        prompt has fewer rows.
    """
    rows = torch.zeros(len(spans), max(map(len, spans), default=0)).long()
    weights = torch.zeros(rows.shape)
    for row, weight, span in zip(rows, weights, spans):
        row[: len(span)] = torch.tensor(span) - shift
        weight[: len(span)] = 1 / len(span)
    return rows, weights
