"""Training with captions, with free queries, and with the teacher's own presence."""

import json
from functools import cache

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner

from tests.test_models.test_teachers.tiny_open_clip import write_configs
from tests.tiny import CLASSES, write_tiny_run

TEACHER = dict(_delete_=True, type='CLIPTeacher', model='tiny-clip', layers=[1, 2])
LOSSES = dict(
    relation=dict(type='InteractionRelationLoss'),
    dynamics=dict(type='InteractionDynamicsLoss'),
)


@cache
def tokenizer(*args):
    """Reading the BPE vocabulary takes longer than a test."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(*args, context_length=16)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny config and captions for its images; image i shows classes i and i + 1."""
    import open_clip

    monkeypatch.setattr(
        open_clip.factory, 'SimpleTokenizer', lambda *args, **kwargs: tokenizer()
    )
    open_clip.add_model_config(write_configs(tmp_path / 'models'))
    config = write_tiny_run(tmp_path)
    images = json.loads((tmp_path / 'train.json').read_text())['images']
    annotations = []
    for i, image in enumerate(images):
        one, other = CLASSES[i % 3], CLASSES[(i + 1) % 3]
        caption = f'A {one} box near a {other} wall.'
        annotations.append(dict(id=i, image_id=image['id'], caption=caption))
    (tmp_path / 'captions.json').write_text(
        json.dumps(dict(images=images, annotations=annotations))
    )

    def load(**options):
        cfg = Config.fromfile(config)
        cfg.merge_from_dict(
            {'model.teacher': TEACHER, 'model.distiller.losses': LOSSES, **options}
        )
        cfg.work_dir = str(tmp_path / 'work')
        return cfg

    return load


def with_captions(cfg, folder):
    """Load captions in the training pipeline."""
    pipeline = cfg.train_dataloader.dataset.pipeline
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'captions')
    pipeline[-1:] = [
        dict(type='LoadCaptions', ann_file=str(folder / 'captions.json')),
        dict(type='PackDetInputs', meta_keys=keys),
    ]
    return cfg


def train(cfg):
    runner = Runner.from_cfg(cfg)
    seen = []
    teacher = runner.model.teacher
    ask = type(teacher).__call__

    def spy(self, *args, **kwargs):
        seen.append(ask(self, *args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(teacher), '__call__', spy)
        runner.train()
    return runner, seen


@pytest.mark.parametrize('kind', ['HungarianAssignment', 'SinkhornAssignment'])
def test_words_of_captions_train_tied_and_free_queries(tiny, tmp_path, kind):
    cfg = tiny(
        **{
            'model.backbone.num_queries': 5,
            'model.teacher': dict(TEACHER, texts='captions', max_free=2),
            'model.distiller.assignment': dict(type=kind, num_tied=3),
        }
    )
    runner, seen = train(with_captions(cfg, tmp_path))
    targets = seen[0]
    rows = [set(t[p].tolist()) for t, p in zip(targets.texts, targets.present)]
    assert all(len(row & {0, 1, 2}) == 2 and row >= {3, 4} for row in rows)
    logs = runner.message_hub.log_scalars
    for name in ('attention', 'relation', 'dynamics'):
        assert torch.isfinite(torch.tensor(logs[f'train/loss_lfi_{name}'].current()))


def test_captions_may_say_which_classes_are_present_without_any_label(tiny, tmp_path):
    cfg = tiny(**{'model.teacher': dict(TEACHER, present='captions')})
    runner, seen = train(with_captions(cfg, tmp_path))
    teacher = runner.model.teacher
    unlabelled = [DetDataSample(metainfo=dict(captions=['Two reds, a red cup', 'A']))]
    assert teacher.present_in(unlabelled).tolist() == [[True, False, False]]
    assert seen[0].present.sum(1).tolist() == [2, 2] and not teacher.needs_labels
    with pytest.raises(ValueError, match="teacher.present='captions' needs: put dict"):
        teacher.present_in([DetDataSample()])
    with pytest.raises(ValueError, match="present='captions' does not go with"):
        MODELS.build(
            tiny(
                **{'model.teacher': dict(TEACHER, present='captions', texts='captions')}
            ).model
        )


def test_captions_that_are_not_loaded_are_named(tiny):
    cfg = tiny(**{'model.teacher': dict(TEACHER, texts='captions')})
    with pytest.raises(ValueError, match="has no captions.*type='LoadCaptions'"):
        train(cfg)


def test_free_words_without_an_assignment_are_refused(tiny, tmp_path):
    cfg = tiny(**{'model.teacher': dict(TEACHER, texts='captions', max_free=2)})
    with pytest.raises(
        ValueError, match='5 texts, but backbone.num_queries=3.*assignm'
    ):
        train(with_captions(cfg, tmp_path))


def test_class_prompts_can_be_matched_to_queries_that_belong_to_no_class(tiny):
    cfg = tiny(
        **{
            'model.backbone.num_queries': 7,
            'model.distiller.assignment': dict(type='HungarianAssignment', num_tied=0),
        }
    )
    runner, _ = train(cfg)
    assert runner.iter == 2


def test_the_teacher_may_decide_which_texts_are_present(tiny):
    cfg = tiny(
        **{
            'model.teacher': dict(
                TEACHER, present='teacher', presence=dict(top=1, threshold=0.0)
            )
        }
    )
    _, seen = train(cfg)
    assert seen[0].texts is None and seen[0].present.sum(1).tolist() == [1, 1]


def test_tiles_and_an_interval_train(tiny):
    cfg = tiny(
        **{
            'model.teacher': dict(
                TEACHER, teacher_view='tiles', tiles=(2, 2), overlap=8
            ),
            'model.distiller.schedule': dict(interval=2),
        }
    )
    runner, seen = train(cfg)
    assert len(seen) == 1 and runner.iter == 2  # the second iteration asks nobody
    assert seen[0].maps.shape[-2:] == (7, 7)
