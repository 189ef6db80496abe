"""The targets of one image, as they are kept."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

#: By how much the sum of a map may differ from 1
SUM_TOLERANCE = 1e-3
#: By how much the cosine of texts i and j may differ from that of j and i
SYMMETRY_TOLERANCE = 1e-3


@dataclass
class StoredTargets:
    """What a teacher saw in one image, on L layers, for P texts, on a grid (h, w).

    Attributes:
        maps: float32 (L, P, h, w); each sums to 1 and covers the whole original image,
            however it was resized for the teacher.
        texts: int64 (P,), which text each row is: the index of a class, or, from the
            number of classes on, a free word of a caption. P may be 0.
        present: Bool (P,), whether the text described the image when it was stored.
        relations: float32 (L, P, P), cosines between the features of the texts, or
            None.
        features: float32 (L, P, C), text-conditioned features, or None.
        words: The free words of the image: ``words[j]`` is what the text (number of
            classes + j) stands for. None where all texts are classes.
    """

    maps: np.ndarray
    texts: np.ndarray
    present: np.ndarray
    relations: np.ndarray | None = None
    features: np.ndarray | None = None
    words: tuple[str, ...] | None = None

    def check(self) -> None:
        """Check what every reader relies on.

        Raises:
            ValueError: If shapes do not fit, a value is not finite, a map is no
                distribution, a text occurs twice or the relations are not symmetric.
        """
        if self.maps.ndim != 4:
            raise ValueError(f'maps of shape {self.maps.shape} are not (L, P, h, w)')
        layers, rows = self.maps.shape[:2]
        shapes: dict[str, tuple[int | None, ...]] = dict(
            texts=(rows,),
            present=(rows,),
            relations=(layers, rows, rows),
            features=(layers, rows, None),
        )
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            if len(value.shape) != len(shape) or any(
                wanted not in (None, got) for wanted, got in zip(shape, value.shape)
            ):
                raise ValueError(
                    f'{name} of shape {value.shape} do not fit maps of shape '
                    f'{self.maps.shape}'
                )
        for name in ('maps', 'relations', 'features'):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f'{name} hold a value that is not finite')
        if self.maps.size:
            sums = self.maps.sum((-2, -1))
            if self.maps.min() < 0 or np.abs(sums - 1).max() > SUM_TOLERANCE:
                raise ValueError(
                    f'a map is no distribution: least value {self.maps.min():.3g}, '
                    f'sums from {sums.min():.6g} to {sums.max():.6g}'
                )
        if len(np.unique(self.texts)) != rows or (rows and self.texts.min() < 0):
            raise ValueError(f'texts {self.texts.tolist()} are no distinct ids')
        if self.relations is not None and self.relations.size:
            skew = np.abs(self.relations - self.relations.swapaxes(1, 2)).max()
            if skew > SYMMETRY_TOLERANCE:
                raise ValueError(f'relations are not symmetric, they differ by {skew}')

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredTargets):
            return NotImplemented
        return all(
            _same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )


def _same(a: np.ndarray | tuple | None, b: np.ndarray | tuple | None) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return type(a) is type(b) and a == b
