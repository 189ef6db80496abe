"""The trainings of a study, with their configs and what they wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from lfi_mmdet.engine.preflight import InputError

from .datasets import SettingData, data_digest, draw_labels, prepare_data, rest_file
from .hashes import value_digest
from .plan import Arm, Setting, Stage, Study
from .run_config import (
    apply,
    load,
    plain,
    relocate,
    set_length,
    test_sets,
)
from .start_weights import write_start
from .variables import substitute

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Task:
    """One training: a run of an arm, or a stage that one or more runs wait for.

    Args:
        id: Unique in the study, e.g. ``scenes/lfi/seed0``.
        folder: Its work dir.
        config: As plain values.
        digest: Of the config, without the folders of this machine.
        iterations: Its length.
        val_interval: Iterations between evaluations; None for a stage.
        facts: What its lines in the results say of it.
        needs: Stages whose checkpoint it starts from.
    """

    id: str
    folder: Path
    config: dict[str, Any]
    digest: str
    iterations: int
    val_interval: int | None
    facts: dict[str, Any]
    needs: list[Task] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """What it leaves at its end."""
        return self.folder / f'iter_{self.iterations}.pth'

    @property
    def points(self) -> list[int]:
        """Iterations at which it is evaluated."""
        if self.val_interval is None:
            return []
        inner = range(self.val_interval, self.iterations, self.val_interval)
        return [*inner, self.iterations]


class TaskMaker:
    """Makes the tasks of a study.

    Args:
        study: The study.
        work: Its work dir.
        workers: Processes that draw scenes.
    """

    def __init__(self, study: Study, work: Path, workers: int = 1) -> None:
        self.study, self.work, self.workers = study, work.resolve(), workers
        self.folders = {str(self.work): 'WORK', str(ROOT): 'REPO'}
        self._data: dict[str, SettingData] = {}
        self._digests: dict[tuple[str, int], dict[str, str]] = {}
        self._stages: dict[str, Task] = {}

    def make(self, setting: Setting, arm: Arm, seed: int) -> Task:
        """Make one run; what it needs is in ``needs``."""
        data = self.data(setting)
        labels = draw_labels(data, setting, seed, self.work)
        twin = self.study.arms[arm.twin] if arm.twin else arm
        start = self._start(setting, twin, labels, seed)
        variables: dict[str, Any] = dict(
            data=str(data.folder),
            labels=str(labels),
            rest=str(rest_file(labels)),
            seed=seed,
            iterations=setting.iterations,
            setting=setting.name,
            arm=arm.name,
        )
        needs: list[Task] = []
        for stage in arm.stages:
            task = self._stage(stage, setting, arm, seed, start, variables, needs)
            needs.append(task)
            variables['stage.checkpoint'] = str(task.checkpoint)
            variables[f'stage.{stage.name}.checkpoint'] = str(task.checkpoint)
        cfg = self._base(setting, arm, labels, variables)
        keep = _feed(cfg, arm.stages, needs)
        _add_hooks(
            cfg,
            seed,
            start,
            labels,
            keep=keep,
            own=arm.own_weights,
            tests=test_sets(cfg, data.tests),
        )
        content = plain(cfg)
        key = (str(labels), seed)
        if key not in self._digests:
            self._digests[key] = data_digest(data, labels)
        identity = f'{setting.name}/{arm.name}/seed{seed}'
        return Task(
            id=identity,
            folder=self.work / 'runs' / setting.name / arm.name / f'seed{seed}',
            config=content,
            digest=value_digest(content, self.folders),
            iterations=setting.iterations,
            val_interval=setting.val_interval,
            facts=dict(
                setting=setting.name,
                arm=arm.name,
                seed=seed,
                pretrain_iters=arm.pretrain_iters,
                iterations=setting.iterations,
                batch_size=labelled_batch(content['train_dataloader']),
                schedule_hash=value_digest(
                    [content['optim_wrapper'], content.get('param_scheduler')]
                ),
                data_hash=self._digests[key],
                needs=[task.id for task in needs],
            ),
            needs=needs,
        )

    def data(self, setting: Setting) -> SettingData:
        """Data of a setting; made at the first call."""
        if setting.source not in self._data:
            self._data[setting.source] = prepare_data(setting, self.work, self.workers)
        return self._data[setting.source]

    def _base(
        self, setting: Setting, arm: Arm, labels: Path, variables: Mapping[str, Any]
    ) -> Config:
        path = arm.config or setting.config
        assert path is not None  # read_study saw to it
        groups = {
            'study.options': self.study.options,
            f'settings.{setting.source}.options': setting.options,
            f'arms.{arm.name}.options': arm.options,
        }
        cfg = load(_find(path), list(groups.values()))
        relocate(cfg, self.data(setting), labels, setting.root)
        set_length(cfg, setting.iterations, setting.val_interval)
        for where, options in groups.items():
            apply(cfg, substitute(options, variables, where), where)
        return cfg

    def _start(self, setting: Setting, twin: Arm, labels: Path, seed: int) -> Path:
        # the options that name files do not change the twin's architecture
        variables = _Anything(seed=seed, data=str(self.data(setting).folder))
        cfg = self._base(setting, twin, labels, variables)
        return write_start(plain(cfg)['model'], seed, self.work / 'starts')

    def _stage(
        self,
        stage: Stage,
        setting: Setting,
        arm: Arm,
        seed: int,
        start: Path,
        variables: Mapping[str, Any],
        before: list[Task],
    ) -> Task:
        where = f'arms.{arm.name}.stages.{stage.name}'
        labels = Path(variables['labels'])
        groups = {
            'study.stage_options': self.study.stage_options,
            f'settings.{setting.source}.stage_options': setting.stage_options,
            f'{where}.options': stage.options,
        }
        cfg = load(_find(stage.config), list(groups.values()))
        relocate(cfg, self.data(setting), labels, setting.root)
        # without evaluations: only checkpoints to resume from
        interval = max(stage.iterations // 4, 1)
        set_length(cfg, stage.iterations, interval)
        for key, options in groups.items():
            apply(cfg, substitute(options, variables, key), key)
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        keep = _feed(cfg, arm.stages[: len(before)], before)
        _add_hooks(cfg, seed, start, None, keep=keep, strict=False)
        content = plain(cfg)
        digest = value_digest(content, self.folders)
        if digest not in self._stages:
            # arms that pre-train alike share it, whatever else differs
            name = f'{stage.name}-{digest[:12]}'
            self._stages[digest] = Task(
                id=f'stages/{name}/seed{seed}',
                folder=self.work / 'stages' / name / f'seed{seed}',
                config=content,
                digest=digest,
                iterations=stage.iterations,
                val_interval=None,
                facts=dict(stage=stage.name, seed=seed, iterations=stage.iterations),
                needs=list(before),
            )
        return self._stages[digest]


class _Anything(dict):
    """Variables of which unknown ones stand for themselves."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return f'{{{name}}}'


def _find(path: str) -> str:
    """A config relative to the current folder or to the project."""
    return path if Path(path).is_file() else str(ROOT / path)


def labelled_batch(loader: Mapping[str, Any]) -> int:
    """Labelled images of a batch; mixed batches have them from their first source."""
    size, ratio = loader['batch_size'], loader['sampler'].get('source_ratio')
    return size * ratio[0] // sum(ratio) if ratio else size


def _feed(cfg: Config, stages: Any, tasks: list[Task]) -> list[str]:
    keep = []
    for stage, task in zip(stages, tasks):
        path = str(task.checkpoint)
        if stage.feeds == 'backbone':
            cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
        elif stage.feeds == 'load_from':
            cfg.load_from = path
        keep.append(path)
    # a stage that fed the next stage only is overwritten by what that one wrote
    return keep[-1:]


def _add_hooks(
    cfg: Config,
    seed: int,
    start: Path,
    labels: Path | None,
    keep: list[str],
    own: tuple[str, ...] = (),
    strict: bool = True,
    tests: Mapping[str, dict] | None = None,
) -> None:
    if not cfg.train_dataloader.get('num_workers'):
        raise InputError(
            f'{cfg.filename}: train_dataloader.num_workers=0, so the augmentation '
            'would draw from the random numbers of the model, and twin and arm would '
            'see different flips; choose 1 or more'
        )
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    hooks = cfg.default_hooks
    hooks.setdefault('iteration_seed', dict(type='IterationSeedHook'))
    hooks.study_start = dict(
        type='PairedStartHook',
        start=str(start),
        keep=keep,
        own=list(own),
        strict=strict,
    )
    hooks.study_record = dict(
        type='RunRecordHook', labelled=None if labels is None else str(labels)
    )
    hooks.study_loss = dict(type='InvalidLossHook')
    if tests:
        hooks.study_tests = dict(type='TestSetsHook', tests=tests)


def select(
    study: Study,
    maker: TaskMaker,
    wanted: Callable[[Setting, Arm, int], bool],
) -> list[Task]:
    """Make the tasks of a part of a study, stages before the runs that need them."""
    tasks: dict[str, Task] = {}
    for setting, arm, seed in study.runs():
        if wanted(setting, arm, seed):
            run = maker.make(setting, arm, seed)
            for task in (*run.needs, run):
                tasks.setdefault(task.id, task)
    return list(tasks.values())
