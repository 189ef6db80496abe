"""The trainings of a study, with their configs and what they wait for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.shipped import shipped_root

from .datasets import (
    SettingData,
    data_digest,
    draw_labels,
    folder_names,
    prepare_data,
    rest_file,
)
from .feeding import feed
from .hashes import named_files, value_digest
from .plan import Arm, Setting, Stage, Study
from .run_config import (
    apply,
    check_placed,
    load,
    place_validation,
    plain,
    relocate,
    set_length,
    test_sets,
)
from .start_weights import write_start
from .variables import substitute

ROOT = shipped_root()


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
        #: Of this machine, and what stands for them in messages
        self.folders = {sys.prefix: 'PYTHON', str(ROOT): 'REPO', str(self.work): 'WORK'}
        self._own_folders = dict(self.folders)
        self._data: dict[str, SettingData] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._recipes: dict[tuple[str, str], tuple[str, list[str]]] = {}
        self._digests: dict[tuple[str, int], dict[str, str]] = {}
        self._stages: dict[str, Task] = {}

    def make(self, setting: Setting, arm: Arm, seed: int) -> Task:
        """Make one run; what it needs is in ``needs``."""
        data = self.data(setting)
        labels = draw_labels(data, setting, seed, self.work)
        twin = self.study.arms[arm.twin] if arm.twin else arm
        start = self._start(setting, twin, labels, seed)
        variables = self._variables(setting, arm, seed, labels)
        recipe, stage_recipes = self._recipe_hashes(setting, arm)
        needs: list[Task] = []
        for number, stage in enumerate(arm.stages):
            cfg = self._stage_config(
                stage, setting, arm, seed, start, variables, _checkpoints(needs)
            )
            task = self._stage(stage, cfg, setting, seed, needs, stage_recipes[number])
            needs.append(task)
            _name_checkpoint(variables, stage, task.checkpoint)
        cfg = self._run_config(
            setting, arm, seed, start, labels, variables, _checkpoints(needs)
        )
        check_placed(cfg, data, labels, f'settings.{setting.source}')
        content = plain(cfg)
        key = (str(labels), seed)
        if key not in self._digests:
            self._digests[key] = data_digest(data, labels)
        identity = f'{setting.name}/{arm.name}/seed{seed}'
        return Task(
            id=identity,
            folder=self.work / 'runs' / setting.name / arm.name / f'seed{seed}',
            config=content,
            digest=self._digest(setting, content),
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
                recipe_hash=recipe,
                needs=[task.id for task in needs],
            ),
            needs=needs,
        )

    def data(self, setting: Setting) -> SettingData:
        """Data of a setting; made at the first call."""
        if setting.source not in self._data:
            data = prepare_data(setting, self.work, self.workers)
            names = folder_names(data, self.work)
            self._data[setting.source] = data
            # of this setting only: another one may use other files of the same folder
            self._names[setting.source] = {**names, **self._own_folders}
            self.folders = {**names, **self.folders}
        return self._data[setting.source]

    def _digest(self, setting: Setting, value: Any) -> str:
        self.data(setting)
        return value_digest(value, self._names[setting.source])

    def _variables(
        self, setting: Setting, arm: Arm, seed: int, labels: Path
    ) -> dict[str, Any]:
        return dict(
            data=str(self.data(setting).folder),
            labels=str(labels),
            rest=str(rest_file(labels)),
            seed=seed,
            iterations=setting.iterations,
            setting=setting.name,
            arm=arm.name,
        )

    def _recipe_hashes(self, setting: Setting, arm: Arm) -> tuple[str, list[str]]:
        """What all seeds of an arm share: digests of its run and of its stages.

        They are of the configs as they are with names in the place of what depends on
        the seed, so that options may use it as well, and of the files they name. That
        of a training has those of the stages before it. Settings that differ in the
        amount of labels share a stage, so only that of a run has the amount.
        """
        key = setting.name, arm.name
        if key not in self._recipes:
            seed, start, labels = -1, Path('/START'), Path('/LABELS/instances_.json')
            variables = self._variables(setting, arm, seed, labels)
            recipes: list[str] = []
            stages: list[str] = []
            paths: list[str] = []

            def add(cfg: Config) -> None:
                content = plain(cfg)
                files = named_files(content, ROOT, ROOT / 'configs')
                whole = [content, files, setting.labels, recipes]
                recipes.append(self._digest(setting, whole))
                stages.append(self._digest(setting, [content, files, stages]))

            for number, stage in enumerate(arm.stages):
                add(
                    self._stage_config(
                        stage, setting, arm, seed, start, variables, paths
                    )
                )
                paths.append(f'/STAGE{number}')
                _name_checkpoint(variables, stage, paths[-1])
            add(self._run_config(setting, arm, seed, start, labels, variables, paths))
            self._recipes[key] = recipes[-1], stages[:-1]
        return self._recipes[key]

    def _run_config(
        self,
        setting: Setting,
        arm: Arm,
        seed: int,
        start: Path,
        labels: Path,
        variables: Mapping[str, Any],
        checkpoints: Sequence[str],
    ) -> Config:
        cfg = self._base(setting, arm, labels, variables)
        keep = feed(cfg, arm, checkpoints)
        _add_hooks(
            cfg,
            seed,
            start,
            labels,
            keep=keep,
            own=arm.own_weights,
            tests=test_sets(cfg, self.data(setting).tests),
        )
        return cfg

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
        place_validation(cfg, self.data(setting))
        set_length(cfg, setting.iterations, setting.val_interval)
        for where, options in groups.items():
            apply(cfg, substitute(options, variables, where), where)
        return cfg

    def _start(self, setting: Setting, twin: Arm, labels: Path, seed: int) -> Path:
        # the options that name files do not change the twin's architecture
        variables = _Anything(seed=seed, data=str(self.data(setting).folder))
        cfg = self._base(setting, twin, labels, variables)
        return write_start(plain(cfg)['model'], seed, self.work / 'starts')

    def _stage_config(
        self,
        stage: Stage,
        setting: Setting,
        arm: Arm,
        seed: int,
        start: Path,
        variables: Mapping[str, Any],
        before: Sequence[str],
    ) -> Config:
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
        _add_hooks(cfg, seed, start, None, keep=feed(cfg, arm, before), strict=False)
        return cfg

    def _stage(
        self,
        stage: Stage,
        cfg: Config,
        setting: Setting,
        seed: int,
        before: list[Task],
        recipe: str,
    ) -> Task:
        content = plain(cfg)
        digest = self._digest(setting, content)
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
                facts=dict(
                    stage=stage.name,
                    seed=seed,
                    iterations=stage.iterations,
                    recipe_hash=recipe,
                ),
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


def _checkpoints(tasks: Sequence[Task]) -> list[str]:
    return [str(task.checkpoint) for task in tasks]


def _name_checkpoint(
    variables: dict[str, Any], stage: Stage, checkpoint: str | Path
) -> None:
    variables['stage.checkpoint'] = str(checkpoint)
    variables[f'stage.{stage.name}.checkpoint'] = str(checkpoint)


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
