"""Teachers that are asked in words: class prompts, synonyms, captions."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.logging import print_log
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionTargets

from .base import FrozenTeacher, check_choice
from .caption_words import CaptionWord, caption_words, class_synonyms
from .presence import present_texts
from .prompts import Prompt, class_prompts, fill_template
from .tiles import stitch_targets


@dataclass
class Reading:
    """What was read for M pairs of an image and a prompt.

    Attributes:
        maps: (M, L, N), float32, each sums to 1 over the N patches.
        log_mass: (M, L), see :class:`InteractionTargets`.
        features: (M, L, C), float32, or None.
    """

    maps: Tensor
    log_mass: Tensor
    features: Tensor | None = None


class PromptTeacher(FrozenTeacher):
    """A teacher whose texts are prompts; it asks, the subclass answers.

    A subclass loads a network, sets ``grid_size`` and implements
    :meth:`encode_prompts`, :meth:`encode_images`, :meth:`read` and, if it can tell
    whether a text describes an image, :meth:`score`. Maps, features and log masses of
    a class are averaged over its prompts, those of a word over its occurrences.

    Args:
        view: See :class:`FrozenTeacher`.
        template: Prompt with ``{}`` in the place of the class name, or several.
        synonyms: Further names by class name, or ``'coco'`` for
            :data:`.coco_synonyms.COCO_SYNONYMS`.
        texts: ``'classes'``: one row per class; ``'captions'``: the words of the
            image's captions, see :func:`caption_words`. The pipeline then needs
            ``LoadCaptions``. A class counts as present if a caption names it and,
            with ``present='ground_truth'``, the image has it; free words always do.
        max_free: With captions, rows for words that name no class.
        more_texts: Texts that are no classes, but have maps worth learning, such as
            ``'red object'`` or ``'sky'``: their rows, and queries, come after those of
            the classes. Nobody says which images show them, so this needs
            ``present='all'``.
        **common: For :class:`FrozenTeacher`. Here ``present`` may also be
            ``'captions'``: the classes that a caption of the image names, asked for in
            their own prompts. So images need no labels; the pipeline then needs
            ``LoadCaptions``.
    """

    PRESENT = ('ground_truth', 'teacher', 'captions', 'all')
    #: Names of the accepted ``texts`` choices
    TEXTS = ('classes', 'captions')
    #: Whether words of a caption are read within it, or in the first template
    IN_CONTEXT = True

    #: Rows and columns of patches; set by the subclass
    grid_size: tuple[int, int]

    def __init__(
        self,
        view: dict,
        template: str | Sequence[str] = 'a photo of a {}.',
        synonyms: str | Mapping[str, Sequence[str]] | None = None,
        texts: str = 'classes',
        max_free: int = 0,
        more_texts: Sequence[str] = (),
        **common: Any,
    ) -> None:
        super().__init__(view=view, **common)
        self.more_texts = self._checked_more_texts(more_texts, texts)
        check_choice('texts', texts, self.TEXTS)
        if max_free and texts != 'captions':
            raise ValueError(
                f"teacher.max_free={max_free} needs teacher.texts='captions': class "
                'prompts have no other words'
            )
        if texts == 'captions' and self.present in ('teacher', 'captions'):
            raise ValueError(
                f'teacher.present={self.present!r} does not go with '
                "teacher.texts='captions'; choose 'ground_truth' or 'all'"
            )
        if (
            self.view.num_tiles > 1
            and self.reading == 'attention'
            and self.present != 'teacher'
        ):
            print_log(
                "teacher.teacher_view='tiles' with teacher.reading='attention': "
                'attention sums to 1 in every tile, so that tiles count nearly alike, '
                'whether or not they show what a text names; other readings, or '
                "teacher.present='teacher', tell them apart",
                logger='current',
                level=logging.WARNING,
            )
        self.templates = (template,) if isinstance(template, str) else tuple(template)
        if not self.templates:
            raise ValueError('teacher.template is an empty list')
        for one in self.templates:
            fill_template(one, [])
        self.text_source, self.max_free, self.synonyms = texts, max_free, synonyms
        self._rows = torch.zeros(0, dtype=torch.long)

    def _checked_more_texts(
        self, more_texts: Sequence[str], texts: str
    ) -> tuple[str, ...]:
        if isinstance(more_texts, str):
            raise ValueError(f'teacher.more_texts={more_texts!r} must be a list')
        names = tuple(more_texts)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f'teacher.more_texts has {twice} more than once')
        if names and (texts != 'classes' or self.present != 'all'):
            raise ValueError(
                "teacher.more_texts needs teacher.texts='classes' and teacher.present="
                f"'all', not {texts!r} and {self.present!r}: nobody says which images "
                'show them'
            )
        return names

    # -- what a subclass implements ----------------------------------------------------
    @abstractmethod
    def encode_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Encode the text side of prompts; the first axis of each tensor is theirs."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Any:
        """Run the image side over (B, 3, S, S), once for all prompts."""

    @abstractmethod
    def read(
        self, images: Any, prompts: dict[str, Tensor], pairs: tuple[Tensor, Tensor]
    ) -> Reading:
        """Read the maps of M pairs of an image and a prompt.

        Args:
            images: What :meth:`encode_images` returned.
            prompts: What :meth:`encode_prompts` returned.
            pairs: Indices of the images and of the prompts, long (M,), on the
                device; M may be 0.
        """

    def score(self, images: Any, prompts: dict[str, Tensor]) -> Tensor | None:
        """Score from 0 to 1 that each prompt describes each image, (B, P).

        None, the default, if the teacher has no such score.
        """
        return None

    def dense_tokens(self, images: Any) -> Tensor | None:
        """The patches of images, of the kind :attr:`wants_tokens`, (B, L, N, C).

        None, the default, if the teacher has no such tokens.

        Args:
            images: What :meth:`encode_images` returned.
        """
        del images
        return None

    def class_embeds(self) -> Tensor | None:
        """Unit vectors of the classes in the joint space, (T, C); None without one."""
        return None

    def merge_prompts(
        self, prompts: dict[str, Tensor], rows: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Average prompts of one class where that can be done before any image.

        Args:
            prompts: What :meth:`encode_prompts` returned.
            rows: Long (P,) on the CPU, the class of each.

        Returns:
            The same for fewer prompts; by default nothing is merged.
        """
        return prompts, rows

    # -- class prompts -----------------------------------------------------------------
    @property
    def num_prompted(self) -> int:
        """Number of texts that have prompts: classes, then :attr:`more_texts`."""
        return len(self.class_names or ()) + len(self.more_texts)

    @property
    def num_texts(self) -> int:
        """One row per class, then one per further text or free word."""
        return self.num_prompted + self.max_free

    @torch.no_grad()
    def encode_texts(self, class_names: Sequence[str]) -> None:
        """Encode the prompts of all classes and further texts, once.

        Raises:
            ValueError: If a further text is a class.
        """
        known = sorted(set(class_names) & set(self.more_texts))
        if known:
            raise ValueError(f'teacher.more_texts has {known}, which are classes')
        synonyms = class_synonyms(class_names, self.synonyms)
        synonyms = [*synonyms, *[()] * len(self.more_texts)]
        names = [*class_names, *self.more_texts]
        prompts = class_prompts(self.templates, names, synonyms)
        rows = torch.tensor([prompt.row for prompt in prompts], dtype=torch.long)
        self.texts, self._rows = self.merge_prompts(self.encode_prompts(prompts), rows)

    def interact(self, images: Tensor, present: Tensor | None) -> InteractionTargets:
        """Maps and features of the present classes, see :class:`FrozenTeacher`.

        Classes that are not present have uniform maps and features of zeros.
        """
        self.texts = {name: t.to(images.device) for name, t in self.texts.items()}
        encoded = self.encode_images(images)
        scores = self._class_scores(encoded)
        if present is None:
            assert scores is not None, 'checked by PRESENT'
            present = self.presence(scores)
        rows = self._rows.to(present.device)
        image_ids, prompt_ids = present[:, rows].nonzero(as_tuple=True)
        row_ids = rows[prompt_ids]
        ids = [i.to(images.device, non_blocking=True) for i in (image_ids, prompt_ids)]
        reading = self.read(encoded, self.texts, (ids[0], ids[1]))
        targets = self._gather(reading, (image_ids, row_ids), present, scores)
        return self._with_tokens(targets, encoded)

    def _class_scores(self, encoded: Any) -> Tensor | None:
        """Scores of the classes, (B, T): those of their best prompts."""
        scores = self.score(encoded, self.texts)
        if scores is None:
            return None
        scores = scores.float()
        if len(self._rows) == self.num_prompted:
            return scores
        rows = self._rows.to(scores.device).expand(len(scores), -1)
        best = scores.new_zeros(len(scores), self.num_prompted)
        return best.scatter_reduce(1, rows, scores, 'amax')

    def _gather(
        self,
        reading: Reading,
        rows: tuple[Tensor, Tensor],
        present: Tensor,
        scores: Tensor | None,
    ) -> InteractionTargets:
        """Average the readings of each (image, row) into targets.

        Args:
            reading: M readings.
            rows: Image and row of each, long (M,), on the CPU or the device.
            present: Bool (B, T).
            scores: (B, T) or None.
        """
        device, patches = reading.maps.device, reading.maps.shape[-1]
        batch, texts = present.shape
        flat = (rows[0] * texts + rows[1]).to(device, non_blocking=True)
        count = torch.zeros(batch * texts, device=device)
        count = count.index_add(0, flat, torch.ones(len(flat), device=device))

        def mean(values: Tensor, empty: float) -> Tensor:
            """Average (M, L, ...) into (B, L, T, ...)."""
            shape = (batch * texts, *values.shape[1:])
            total = values.new_zeros(shape).index_add(0, flat, values)
            weight = count.view(-1, *[1] * (values.ndim - 1))
            filled = torch.where(weight > 0, total / weight.clamp(min=1), empty)
            return filled.unflatten(0, (batch, texts)).transpose(1, 2)

        return InteractionTargets(
            maps=mean(reading.maps, 1 / patches).unflatten(-1, self.grid_size),
            present=present,
            features=None if reading.features is None else mean(reading.features, 0.0),
            log_mass=mean(reading.log_mass, float(torch.finfo(torch.float32).min)),
            scores=scores,
        )

    def _with_tokens(
        self, targets: InteractionTargets, encoded: Any
    ) -> InteractionTargets:
        """Add dense tokens to the targets, if they are wanted."""
        tokens = None if self.wants_tokens is None else self.dense_tokens(encoded)
        if tokens is None:
            return targets
        embeds = self.class_embeds() if self.wants_tokens == 'joint' else None
        if embeds is not None:
            embeds = embeds[: len(self.class_names or ())]
        return replace(
            targets,
            tokens=tokens.float().unflatten(2, self.grid_size),
            class_embeds=None if embeds is None else embeds.float().to(tokens.device),
        )

    # -- captions ----------------------------------------------------------------------
    def words_of(self, data_samples: SampleList) -> list[list[CaptionWord]]:
        """The words of each image's captions.

        Raises:
            ValueError: If the data samples have no captions.
        """
        assert self.class_names is not None
        asks = 'texts' if self.text_source == 'captions' else 'present'
        words = []
        for sample in data_samples:
            captions = sample.get('captions')
            if captions is None:
                raise ValueError(
                    f'{sample.get("img_path", "an image")} has no captions, which '
                    f"teacher.{asks}='captions' needs: put dict(type='LoadCaptions', "
                    "ann_file=...) into the pipeline and 'captions' into the "
                    'meta_keys of PackDetInputs'
                )
            words.append(
                caption_words(
                    captions, self.class_names, self.synonyms, max_free=self.max_free
                )
            )
        return words

    def present_in(self, data_samples: SampleList) -> Tensor | None:
        """Classes, or words of the captions, bool (B, T) on the CPU."""
        if self.text_source == 'classes' and self.present != 'captions':
            return super().present_in(data_samples)
        classes = len(self.class_names or ())
        present = torch.zeros(len(data_samples), self.num_texts, dtype=torch.bool)
        for mask, words in zip(present, self.words_of(data_samples)):
            mask[[word.row for word in words]] = True
        if self.present != 'captions':
            present[:, :classes] &= present_texts(self.present, data_samples, classes)
        return present

    def targets(
        self,
        batch_inputs: Tensor,
        data_samples: SampleList,
        present: Tensor | None,
        preprocessor: nn.Module,
    ) -> InteractionTargets:
        """Make the teacher's view of the batch and read the maps off it."""
        if self.text_source == 'classes':
            return super().targets(batch_inputs, data_samples, present, preprocessor)
        words = self.words_of(data_samples)
        images = self.view(batch_inputs, data_samples, preprocessor)
        words = [one for one in words for _ in range(self.view.num_tiles)]
        present = self.view.per_tile(present)
        assert present is not None
        return stitch_targets(self.interact_words(images, words, present), self.view)

    def interact_words(
        self, images: Tensor, words: list[list[CaptionWord]], present: Tensor
    ) -> InteractionTargets:
        """Maps and features of the words of captions.

        Args:
            images: (B, 3, S, S).
            words: Those of each image.
            present: Bool (B, T) on the CPU, the rows that are wanted.
        """
        asked: dict[Prompt, int] = {}
        image_ids, prompt_ids, row_ids = [], [], []
        for image, own in enumerate(words):
            for word in own:
                if not present[image, word.row]:
                    continue
                prompt = self._prompt_of(word)
                image_ids.append(image)
                prompt_ids.append(asked.setdefault(prompt, len(asked)))
                row_ids.append(word.row)
        rows = (torch.tensor(image_ids).long(), torch.tensor(row_ids).long())
        device = images.device
        pairs = (rows[0].to(device), torch.tensor(prompt_ids).long().to(device))
        prompts = {k: v.to(device) for k, v in self.encode_prompts(list(asked)).items()}
        encoded = self.encode_images(images)
        targets = self._gather(self.read(encoded, prompts, pairs), rows, present, None)
        return self._with_tokens(targets, encoded)

    def _prompt_of(self, word: CaptionWord) -> Prompt:
        """The caption itself, or the word in the first template."""
        if self.IN_CONTEXT:
            return Prompt(word.caption, word.start, word.stop, 0)
        (prompt,) = class_prompts(self.templates[:1], [word.text])
        return prompt
