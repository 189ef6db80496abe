"""What reading and writing a store of targets raises."""

from __future__ import annotations

from lfi_mmdet.engine.preflight import InputError


class TargetStoreError(InputError):
    """A store cannot be used as it is; the message says why and what to do."""


class MissingTargetsError(TargetStoreError, KeyError):
    """The store has no targets of an image."""

    def __str__(self) -> str:
        # a KeyError would show its message in quotes
        return ' '.join(map(str, self.args))
