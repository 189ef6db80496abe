"""Preprocessors of mixed batches."""

from __future__ import annotations

from typing import Any

from mmdet.models.data_preprocessors import MultiBranchDataPreprocessor


def plain_preprocessor(preprocessor: Any) -> Any:
    """The preprocessor of a single batch, also inside of one for several branches.

    It is the one that knows mean, standard deviation and order of the channels.
    """
    if isinstance(preprocessor, MultiBranchDataPreprocessor):
        return preprocessor.data_preprocessor
    return preprocessor
