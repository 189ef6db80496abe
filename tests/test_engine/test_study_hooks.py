"""Hooks by which runs of a study start alike and tell what they did."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from lfi_mmdet.engine.hooks import InvalidLossHook
from lfi_mmdet.engine.hooks.invalid_loss_hook import LossDiverged
from lfi_mmdet.engine.hooks.paired_start_hook import weights_digest
from lfi_mmdet.engine.hooks.run_record_hook import RECORD_FILE, _image_ids
from lfi_mmdet.engine.hooks.test_sets_hook import TESTS_FILE
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation.study.start_weights import write_start
from tests.test_tools.conftest import in_place
from tests.tiny import tiny_config_text, write_tiny_coco


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a runner of the tiny detector, with hooks and changed settings."""
    in_place(monkeypatch, tmp_path)
    write_tiny_coco(tmp_path)
    path = tmp_path / 'tiny.py'
    path.write_text(tiny_config_text(tmp_path, max_iters=4, num_workers=1))

    def build(name, seed=0, options=(), **hooks):
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(
            {
                'train_dataloader.persistent_workers': False,
                'train_cfg.val_interval': 2,
                'default_hooks.logger.log_metric_by_epoch': False,
                'default_hooks.iteration_seed': dict(type='IterationSeedHook'),
                **{f'default_hooks.{key}': hook for key, hook in hooks.items()},
                **dict(options),
            }
        )
        cfg.work_dir, cfg.experiment_name = str(tmp_path / name), name
        cfg.randomness = dict(seed=seed)
        return Runner.from_cfg(cfg)

    return build


def twin_model(make):
    model = dict(make('for its config').cfg.model)
    model['backbone'] = dict(model['backbone'], num_queries=0)
    return model


def begin(runner):
    """Do what a training does before its first iteration."""
    runner.call_hook('before_run')
    runner._init_model_weights()
    runner.load_or_resume()
    runner.call_hook('before_train')
    return runner


def test_twin_and_arm_start_alike_though_they_draw_other_numbers(make, tmp_path):
    start = write_start(twin_model(make), 0, tmp_path)
    expected = torch.load(start)['state_dict']
    hook = dict(type='PairedStartHook', start=str(start))
    plain = begin(make('without', seed=5)).model.state_dict()
    runner = begin(make('with', seed=5, start=hook))
    state = runner.model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert any(not torch.equal(plain[name], expected[name]) for name in expected)
    told = runner.message_hub.get_info('paired_start')
    assert told['sha256'] == told['shared_sha256'] == weights_digest(expected)
    assert told['kept'] == 0 and told['new'] == len(state) - len(expected) > 0


def test_what_a_pretraining_gave_is_kept(make, tmp_path):
    start = write_start(twin_model(make), 0, tmp_path)
    given = {
        name: torch.full_like(value, 0.5)
        for name, value in torch.load(start)['state_dict'].items()
        if name.startswith('backbone.blocks')
    }
    # a backbone alone may be stored without its prefix
    bare = {name.removeprefix('backbone.'): value for name, value in given.items()}
    torch.save(dict(state_dict=bare), tmp_path / 'pre.pth')
    hook = dict(
        type='PairedStartHook', start=str(start), keep=[str(tmp_path / 'pre.pth')]
    )
    before = begin(make('without', seed=5)).model.state_dict()
    runner = begin(make('with', seed=5, start=hook))
    state = runner.model.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in given)
    expected = torch.load(start)['state_dict']
    rest = expected.keys() - given.keys()
    assert all(torch.equal(state[name], expected[name]) for name in rest)
    told = runner.message_hub.get_info('paired_start')
    assert told['kept'] == len(given) and told['shared'] == len(rest)
    assert told['shared_sha256'] != told['sha256']


def test_a_weight_that_does_not_fit_is_named_unless_it_is_the_arms_own(make, tmp_path):
    model = twin_model(make)
    model['neck'] = dict(model['neck'], out_channels=8)
    model['rpn_head'] = dict(model['rpn_head'], in_channels=8)
    start = str(write_start(model, 0, tmp_path))
    hook = dict(type='PairedStartHook', start=start)
    with pytest.raises(
        InputError, match=r'neck\..* is \(.*\), the twin has .*own_weigh'
    ):
        begin(make('a', start=hook))
    begin(make('b', start=dict(hook, own=['neck.', 'rpn_head.'])))
    begin(make('c', start=dict(hook, strict=False)))


def test_a_file_of_another_model_is_refused(make, tmp_path):
    torch.save(dict(state_dict={'x': torch.zeros(1)}), tmp_path / 'x.pth')
    hook = dict(type='PairedStartHook', start=str(tmp_path / 'x.pth'), strict=False)
    with pytest.raises(
        InputError, match=r"no weight of the twin .* those of .*\['x'\]"
    ):
        begin(make('a', start=hook))


def record(runner):
    return json.loads((tmp(runner) / RECORD_FILE).read_text())


def tmp(runner):
    return Path(runner.work_dir)


def test_record_of_a_resumed_run_is_that_of_an_uninterrupted_one(make, tmp_path):
    hooks = dict(
        record=dict(type='RunRecordHook', labelled=str(tmp_path / 'train.json'))
    )
    whole = make('whole', **hooks)
    whole.train()
    told = record(whole)
    assert told['finished'] and told['iteration'] == 4
    assert [*told['evaluations']] == ['2', '4']
    assert 'coco/segm_mAP' in told['evaluations']['4']
    assert told['order']['images'] == told['order']['labelled_images'] == 8
    resumed = make(
        'resumed',
        options=dict(resume=True, load_from=str(tmp_path / 'whole' / 'iter_2.pth')),
        **hooks,
    )
    # as the interrupted run left it, with an evaluation too many
    (tmp_path / 'resumed' / RECORD_FILE).write_text(json.dumps(told))
    resumed.train()
    assert record(resumed) == told


def test_order_is_that_of_the_seed_and_counts_labelled_images_alone(make, tmp_path):
    def order(name, seed, labelled):
        hook = dict(type='RunRecordHook', labelled=labelled and str(labelled))
        runner = make(name, seed, record=hook, options={'val_cfg': None,
            'val_dataloader': None, 'val_evaluator': None})  # fmt: skip
        runner.train()
        return record(runner)['order']

    some = tmp_path / 'some.json'
    some.write_text(json.dumps(dict(images=[dict(id=1), dict(id=2)])))
    first = order('a', 0, None)
    assert order('c', 1, None)['sha256'] != first['sha256']
    part = order('d', 0, some)
    assert part['labelled_images'] == 4 and part['images'] == 8
    assert part['sha256'] != first['sha256']


class Sample:
    def __init__(self, number):
        self.metainfo = dict(img_id=number)


def test_images_of_a_batch_with_branches_are_all_found():
    batch = dict(unsup=[Sample(3), None], sup=[Sample(1), Sample(2)])
    assert [*_image_ids(batch)] == [1, 2, 3]
    assert [*_image_ids(None)] == []


def test_a_loss_that_is_not_finite_ends_the_training_and_is_written_down(make):
    runner = make(
        'nan',
        loss=dict(type='InvalidLossHook'),
        options={'optim_wrapper.optimizer.lr': 1e30},
    )
    with pytest.raises(LossDiverged, match='loss.* not finite at iteration'):
        runner.train()
    told = json.loads((tmp(runner) / 'diverged.json').read_text())
    assert told['iteration'] == runner.iter + 1 > 1 and 'loss' in told['reason']
    assert not (tmp(runner) / f'iter_{told["iteration"]}.pth').exists()


def test_losses_are_looked_at_every_so_often(make):
    runner = begin(make('often'))
    hook = InvalidLossHook(interval=2)
    hook.after_train_iter(runner, 0, None, dict(loss=torch.tensor(float('nan'))))
    runner.train_loop._iter = 1
    with pytest.raises(LossDiverged, match='^loss not finite at iteration 2$'):
        hook.after_train_iter(runner, 1, None, dict(loss=torch.tensor(float('inf'))))


def test_further_sets_are_evaluated_after_the_last_iteration(make, tmp_path):
    write_tiny_coco(tmp_path, num_images=2, split='other')
    cfg = make('for its config').cfg
    loader = dict(cfg.val_dataloader)
    loader['dataset'] = dict(
        loader['dataset'], ann_file='other.json', data_prefix=dict(img='other/')
    )
    evaluator = dict(cfg.val_evaluator, ann_file=str(tmp_path / 'other.json'))
    tests = dict(other=dict(dataloader=loader, evaluator=evaluator))
    runner = make('run', tests=dict(type='TestSetsHook', tests=tests))
    runner.train()
    told = json.loads((tmp(runner) / TESTS_FILE).read_text())
    assert [*told] == ['other'] and 0 <= told['other'].get('coco/bbox_mAP', 0) <= 1
