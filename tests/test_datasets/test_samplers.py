"""Samplers of mixed batches."""

from itertools import islice

import numpy as np
import pytest
from mmdet.registry import DATA_SAMPLERS
from mmengine.dataset import InfiniteSampler

from lfi_mmdet.datasets.samplers import SeededGroupMultiSourceSampler
from lfi_mmdet.engine.preflight import InputError


class Images:
    """As many images as there are letters: w for a wide, t for a tall one."""

    def __init__(self, shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def get_data_info(self, index):
        wide = self.shapes[index] == 'w'
        return dict(width=9 if wide else 3, height=6)


class Both:
    """What the samplers use of a ConcatDataset."""

    def __init__(self, *shapes):
        self.datasets = [Images(one) for one in shapes]
        self.cumulative_sizes = np.cumsum([len(one) for one in shapes]).tolist()
        self.shapes = ''.join(shapes)

    def __len__(self):
        return len(self.shapes)


def batches(data, count=20, seed=0, kind=SeededGroupMultiSourceSampler):
    sampler = kind(data, batch_size=4, source_ratio=[3, 1], seed=seed)
    flat = list(islice(sampler, 4 * count))
    return [flat[i : i + 4] for i in range(0, len(flat), 4)]


def test_a_batch_mixes_the_sources_in_their_ratio_and_has_one_shape():
    data = Both('wtwwtwttw', 'twwtt')
    for batch in batches(data):
        assert [index >= 9 for index in batch] == [False, False, False, True]
        assert len({data.shapes[index] for index in batch}) == 1
    shapes = {data.shapes[batch[0]] for batch in batches(data)}
    assert shapes == {'w', 't'}


def test_the_seed_alone_decides_whatever_was_drawn_in_between():
    data = Both('wtwwtwttw', 'twwtt')
    np.random.seed(0)
    first = batches(data)
    np.random.seed(1)
    assert batches(data) == first != batches(data, seed=1)


@pytest.mark.parametrize(
    'kind',
    [SeededGroupMultiSourceSampler, DATA_SAMPLERS.get('mmdet.MultiSourceSampler')],
)
def test_images_of_one_shape_come_in_the_order_of_an_infinite_sampler(kind):
    """So a twin on labelled images alone sees them in the order of mixed batches."""
    data = Both('w' * 7, 'w' * 5)
    labelled = [i for batch in batches(data, kind=kind) for i in batch if i < 7]
    alone = InfiniteSampler(data.datasets[0], seed=0)
    assert labelled == list(islice(alone, len(labelled)))


def test_a_shape_that_one_source_lacks_is_refused_instead_of_waited_for():
    with pytest.raises(InputError, match='have 1 and 0 tall images.*MultiSourceSamp'):
        batches(Both('wwt', 'ww'))
