"""A pipeline's time is that of its transforms, each on its own."""

import copy
import time

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from lfi_mmdet.evaluation import PipelineTimer, time_loaders


class Clock:
    """Stands still unless a transform lets time pass."""

    now = 0.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(Clock, 'now', 0.0)
    monkeypatch.setattr(time, 'perf_counter', lambda: Clock.now)
    return Clock


class Slow(BaseTransform):
    """Takes ``seconds``, and so many times that for the image with id 2."""

    def __init__(self, seconds, factor=1):
        self.seconds, self.factor = seconds, factor

    def note(self, image):
        """For tests that look."""

    def transform(self, results):
        self.note(results['img_id'])
        Clock.now += self.seconds * (self.factor if results['img_id'] == 2 else 1)
        return results


class Slower(Slow):
    pass


class Drop(BaseTransform):
    def transform(self, results):
        return None


@pytest.fixture
def timer(tiny_config, monkeypatch):
    for cls in (Slow, Slower, Drop):
        monkeypatch.setitem(TRANSFORMS.module_dict, cls.__name__, cls)

    def build(*pipeline, **wrapper):
        cfg = copy.deepcopy(tiny_config)
        dataset = cfg.train_dataloader.dataset
        dataset.pipeline = [*dataset.pipeline[:1], *pipeline]
        if wrapper:
            cfg.train_dataloader.dataset = dict(wrapper, dataset=dataset)
        return PipelineTimer(cfg)

    return build


def test_shares_are_those_of_the_whole_time_and_of_each_image(timer):
    slow = timer(dict(type='Slow', seconds=3), dict(type='Slower', seconds=1, factor=3))
    plain = timer(dict(type='Slow', seconds=2))
    ours, twin = time_loaders([slow, plain], images=3, transform='Slower')
    assert (
        ours['seconds']['values'] == [4, 6, 4] and twin['seconds']['values'] == [2] * 3
    )
    assert ours['share'] == pytest.approx(5 / 14)
    assert ours['shares']['values'] == [0.25, 0.5, 0.25]
    assert [row['name'] for row in ours['transforms']] == [
        'get_data_info', 'LoadImageFromFile', 'Slow', 'Slower'
    ]  # fmt: skip
    assert ours['transforms'][3]['mean_s'] == pytest.approx(5 / 3)
    assert twin['share'] is None and twin['shares'] is None


def test_every_image_is_loaded_once_before_it_is_timed(timer, monkeypatch):
    seen = []
    monkeypatch.setattr(Slow, 'note', lambda self, image: seen.append(image))
    timers = [timer(dict(type='Slow', seconds=1)) for _ in range(2)]
    time_loaders(timers, images=2, transform='Slow')
    assert seen == [1, 1, 1, 1, 2, 2, 2, 2]


def test_all_pipelines_see_the_same_random_state(timer, monkeypatch):
    drawn = []
    monkeypatch.setattr(Slow, 'note', lambda *args: drawn.append(np.random.rand()))
    timers = [timer(dict(type='Slow', seconds=1)) for _ in range(2)]
    time_loaders(timers, images=2, transform='Slow', seed=5)
    assert len(set(drawn[:4])) == len(set(drawn[4:])) == 1 and drawn[0] != drawn[4]


def test_there_are_no_more_images_than_there_are(timer):
    slow = timer(dict(type='Slow', seconds=1))
    (result,) = time_loaders([slow], images=100, transform='Slow')
    assert result['images'] == 4


def test_a_dataset_in_a_wrapper_is_found(timer):
    wrapped = timer(dict(type='Slow', seconds=1), type='RepeatDataset', times=2)
    assert wrapped.names[-1] == 'Slow' and len(wrapped) == 4


def test_several_pipelines_are_refused(timer):
    with pytest.raises(ValueError, match="MultiImageMixDataset' has more than one"):
        timer(type='MultiImageMixDataset', pipeline=[dict(type='Slow', seconds=1)])


def test_nothing_to_time_is_refused(timer):
    with pytest.raises(ValueError, match='images=0'):
        time_loaders([timer()], images=0, transform='Slow')
    with pytest.raises(ValueError, match='drops all of the first 4 images'):
        time_loaders([timer(dict(type='Drop'))], images=9, transform='Slow')
