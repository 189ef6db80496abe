"""What a benchmark compares: a twin, and the LFI config in one variant or more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from lfi_mmdet.datasets.target_store import inner_teacher
from lfi_mmdet.engine.command_line import read_config
from lfi_mmdet.engine.inference import forget_weights, without_teacher
from lfi_mmdet.engine.option_values import parse_option_value
from lfi_mmdet.engine.preflight import InputError

#: Where the targets of the distillation come from
TARGETS = ('none', 'cached', 'online')
#: What can be measured
MEASURES = (
    'parameters',
    'flops',
    'inference',
    'inference_memory',
    'train_step',
    'train_memory',
    'checkpoint',
    'loader',
)


@dataclass(frozen=True)
class Variant:
    """One of the models that are compared.

    Attributes:
        name: As it appears in tables.
        config: File of the config.
        targets: ``'none'``: the student alone, without teacher and distiller;
            ``'online'``: the config's teacher runs in every step; ``'cached'``: a
            store holds what it would say. A ``CachedTeacher`` in the config stands
            for the teacher that it names, in either case.
        measures: What is measured, of ``MEASURES``.
        compile: Module of the detector that ``torch.compile`` is applied to, each
            child of its own if it is a list; None for none.
        options: What is changed in the config.
    """

    name: str
    config: str
    targets: str = 'none'
    measures: tuple[str, ...] = MEASURES
    compile: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f'variant {self.name}'
        if self.targets not in TARGETS:
            raise InputError(
                f'{where}: targets={self.targets!r} is not known; choose from {TARGETS}'
            )
        unknown = [name for name in self.measures if name not in MEASURES]
        if unknown or not self.measures:
            raise InputError(
                f'{where}: measure={",".join(self.measures)}: {unknown} are not known; '
                f'choose from {MEASURES}'
            )

    @classmethod
    def parse(
        cls,
        words: Sequence[str],
        config: str,
        measures: tuple[str, ...],
        compile: str | None = None,
    ) -> Variant:
        """Read ``NAME KEY=VALUE ...`` of a command line.

        The keys ``targets``, ``config``, ``measure`` and ``compile`` are those of this
        class; keys with a dot are settings of the config.

        Args:
            words: The name and the pairs.
            config: Unless a pair says otherwise.
            measures: Unless a pair says otherwise.
            compile: Unless a pair says otherwise.

        Raises:
            InputError: If a word does not fit.
        """
        name, *pairs = words
        if '=' in name:
            raise InputError(f'a variant starts with its name, not with {name!r}')
        given: dict[str, Any] = dict(config=config, measures=measures, compile=compile)
        options: dict[str, Any] = {}
        for pair in pairs:
            key, found, value = pair.partition('=')
            if not found:
                raise InputError(f'variant {name}: {pair!r} is not KEY=VALUE')
            if key == 'measure':
                given['measures'] = tuple(value.split(','))
            elif key in ('targets', 'config', 'compile'):
                given[key] = value
            elif '.' in key:
                try:
                    options[key] = parse_option_value(value)
                except ValueError as error:
                    raise InputError(f'variant {name}: {error}') from None
            else:
                raise InputError(
                    f'variant {name}: {key!r} is neither of targets, config, measure, '
                    'compile nor a setting of the config, which has a dot'
                )
        return cls(name=name, options=options, **given)

    def read_config(self, options: dict[str, Any] | None, pretrained: bool) -> Config:
        """Read the config, with options, and as this variant wants it.

        Weights are not downloaded: the student starts from random ones.

        Args:
            options: For all variants; those of this one come after them.
            pretrained: Whether the teacher's weights are loaded.

        Raises:
            InputError: If the config cannot be read, or has no teacher where one is
                asked for.
        """
        cfg = read_config(self.config, {**(options or {}), **self.options})
        if self.targets == 'none':
            without_teacher(cfg)
        elif not cfg.model.get('teacher'):
            raise InputError(
                f'variant {self.name}: targets={self.targets}, but in {self.config} '
                'model.teacher is None; choose a config with a teacher, or targets=none'
            )
        teacher = cfg.model.get('teacher')
        if 'teacher' in cfg.model:
            cfg.model.teacher = None
        forget_weights(cfg.model, ('init_cfg',))
        if teacher is not None:
            if not pretrained:
                forget_weights(teacher, ('pretrained',))
            # what is cached is asked itself, or written into a store of its own
            cfg.model.teacher = inner_teacher(teacher)
        return cfg
