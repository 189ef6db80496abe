"""Weights as they are before the first iteration."""

from __future__ import annotations

from mmengine.logging import MMLogger
from mmengine.model import BaseModule


def initialise_quietly(model: BaseModule) -> None:
    """Initialise as training does, without a log entry for every single weight."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
