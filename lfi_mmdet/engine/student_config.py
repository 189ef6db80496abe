"""The config of a student that is deployed alone."""

from __future__ import annotations

import ast
import copy
from typing import Any

from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.config import Config

from lfi_mmdet.models.backbones import InteractionBackbone, InteractionViT
from lfi_mmdet.models.detectors import LFIDetector, LFIMixin, lfi_class

from .inference import without_teacher
from .preflight import InputError

#: Settings of the backbone that mean nothing without queries
QUERY_SETTINGS = (
    'interaction_layers',
    'interaction_heads',
    'interaction_channels',
    'interaction_cp',
    'carry',
    'query_attention',
    'feedback',
    'text_embeddings',
)
#: Settings that only training reads, besides those that start with ``train_``
TRAINING_SETTINGS = (
    'auto_scale_lr',
    'launcher',
    'load_from',
    'optim_wrapper',
    'param_scheduler',
    'resume',
    'work_dir',
)


def keeps_queries(cfg: Config) -> bool:
    """Whether the queries of a detector change what it predicts.

    Raises:
        InputError: If the config is that of a detector with neither queries nor a
            distiller, or of something else.
    """
    backbone = cfg.get('model', {}).get('backbone')
    if backbone is None:
        raise InputError('the config has no model.backbone; it is no detector')
    stages = _stage_queries(cfg.model)
    if stages is not None:
        return bool(stages.get('feedback', False))
    if _model_class(backbone) is not InteractionViT:
        raise InputError(
            f'model.backbone.type={backbone.get("type")!r} has no queries that could '
            'be exported or left out; choose a config with model.interaction, '
            'InteractionBackbone or InteractionViT'
        )
    if not backbone.get('num_queries', 0):
        distiller = cfg.model.get('distiller')
        if distiller and not getattr(_model_class(distiller), 'needs_queries', True):
            return False
        raise InputError(
            'model.backbone.num_queries=0: this is a plain detector, of which nothing '
            'is to be left out'
        )
    return bool(backbone.get('feedback', True))


def student_config(cfg: Config) -> Config:
    """Reduce the config of a training to what testing and deployment need.

    The teacher, the distiller and all settings of the training go. Queries that never
    write back go as well, and with them the detector class that tends to them.

    Args:
        cfg: Config of the training; is not changed.

    Raises:
        InputError: See :func:`keeps_queries`.
    """
    cfg = copy.deepcopy(cfg)
    for key in list(cfg.keys()):
        if key.startswith('train_') or key in TRAINING_SETTINGS:
            cfg.pop(key)
    if cfg.get('custom_hooks'):
        # it would keep a second copy of weights that are averaged already
        cfg.custom_hooks = [h for h in cfg.custom_hooks if not _is_ema(h)]
    queries = keeps_queries(cfg)
    without_teacher(cfg)
    for name in ('sup_weight', 'unsup_weight', 'sup_labels'):  # of mixed batches
        cfg.model.pop(name, None)
    inner = (cfg.model.get('data_preprocessor') or {}).get('data_preprocessor')
    if inner is not None:
        cfg.model.data_preprocessor = inner
    stages = _stage_queries(cfg.model)
    backbone = cfg.model.backbone
    if stages is not None and stages is backbone:
        alone = backbone.backbone
    else:
        alone = backbone
    backbone.init_cfg = alone.init_cfg = None
    if queries:
        (backbone if stages is None else stages).pop('text_embeddings', None)
        return cfg
    if stages is None:
        for name in QUERY_SETTINGS:
            backbone.pop(name, None)
        backbone.num_queries = 0
    else:
        cfg.model.backbone = alone
        cfg.model.pop('interaction', None)
    plain = plain_type(_model_class(cfg.model))
    if plain is not None:
        cfg.model.type = plain
        for part in ('detector', 'teacher', 'distiller'):
            cfg.model.pop(part, None)
    if not _names_ours(cfg.model):
        _forget_package(cfg)
    return cfg


def _our_types() -> set[str]:
    """Names of all that this package has registered."""
    return {
        name
        for registry in (DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS)
        for name, kind in registry.module_dict.items()
        if kind.__module__.split('.')[0] == 'lfi_mmdet'
    }


def _names_ours(part: Any) -> bool:
    """Whether anything within part of a config is of this package."""
    ours = _our_types()

    def search(part: Any) -> bool:
        if isinstance(part, dict):
            kind = part.get('type')
            name = kind if isinstance(kind, str) else getattr(kind, '__name__', None)
            return name in ours or any(map(search, part.values()))
        return isinstance(part, (list, tuple)) and any(map(search, part))

    return search(part)


def _forget_package(cfg: Config) -> None:
    """Leave out what would need this package, so that a stock model runs without it."""
    for key in ('custom_hooks', 'default_hooks'):
        hooks = cfg.get(key)
        if isinstance(hooks, dict):
            cfg[key] = {k: v for k, v in hooks.items() if not _names_ours(v)}
        elif hooks:
            cfg[key] = [hook for hook in hooks if not _names_ours(hook)]
    imports = cfg.get('custom_imports')
    if imports and not any(_names_ours(value) for value in cfg.values()):
        left = [name for name in imports['imports'] if name != 'lfi_mmdet']
        if left:
            cfg.custom_imports.imports = left
        else:
            cfg.pop('custom_imports')


def _stage_queries(model: Any) -> Any:
    """The settings of the queries beside a backbone that has none of its own, if any.

    Those of ``model.interaction``, or of an ``InteractionBackbone``.
    """
    if model.get('interaction') is not None:
        return model.interaction
    if _model_class(model.backbone) is InteractionBackbone:
        return model.backbone
    return None


def plain_type(detector: Any) -> str | None:
    """The registered detector that an LFI detector is made of, if there is one.

    Args:
        detector: A class such as ``class LFIMaskRCNN(LFIMixin, MaskRCNN)``.

    Returns:
        Its name; None for a class that adds something of its own.
    """
    bases: tuple[type, ...] = getattr(detector, '__bases__', ())
    if len(bases) != 2 or bases[0] is not LFIMixin:
        return None
    own = [name for name in vars(detector) if not name.startswith('_')]
    if own or '__init__' in vars(detector):
        return None
    name = bases[1].__name__
    return name if MODELS.get(name) is bases[1] else None


def config_of_checkpoint(text: object, path: str) -> Config:
    """Read the config that mmengine keeps in a checkpoint.

    Args:
        text: ``checkpoint['meta']['cfg']``.
        path: The checkpoint, for messages.

    Raises:
        InputError: If there is none, or it does more than to state settings. Reading
            a config runs it, and a checkpoint may come from anywhere.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'checkpoint {path} holds no config; name it with --config')
    try:
        stated = all(_states(node) for node in ast.parse(text).body)
    except SyntaxError:
        stated = False
    if not stated:
        raise InputError(
            f'checkpoint {path}: the config in it is not made of plain settings, so it '
            'is not run; name the config with --config'
        )
    return Config.fromstring(text, '.py')


def stated_setting(text: object, name: str) -> Any:
    """Value of one setting in the text of a config, of which nothing is run.

    Args:
        text: ``checkpoint['meta']['cfg']``.
        name: The setting, e.g. ``'model'``.

    Returns:
        None if the text does not state it as constants, lists and dicts.
    """
    try:
        body = ast.parse(text).body if isinstance(text, str) else []
        values = [
            node.value
            for node in body
            if isinstance(node, ast.Assign)
            and any(getattr(target, 'id', None) == name for target in node.targets)
        ]
        if not values or not _states(values[-1]):
            return None
        code = compile(ast.Expression(values[-1]), name, 'eval')
        return eval(code, {'__builtins__': {}, 'dict': dict})
    except (SyntaxError, TypeError, ValueError):
        return None


def _states(node: ast.AST) -> bool:
    """Whether code is but ``name = value`` of constants, lists and dicts."""
    if isinstance(node, ast.Assign):
        names = [getattr(target, 'id', '_base_') for target in node.targets]
        return '_base_' not in names and _states(node.value)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _states(node.operand)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return all(_states(entry) for entry in node.elts)
    if isinstance(node, ast.Dict):
        entries = (*node.keys, *node.values)
        return all(entry is not None and _states(entry) for entry in entries)
    if isinstance(node, ast.Call):
        called = isinstance(node.func, ast.Name) and node.func.id == 'dict'
        return called and all(map(_states, (*node.args, *node.keywords)))
    if isinstance(node, ast.keyword):
        return node.arg is not None and _states(node.value)
    return isinstance(node, ast.Constant)


def _model_class(cfg: Any) -> Any:
    kind = cfg.get('type')
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if found is LFIDetector:
        detector = cfg.get('detector')
        found = MODELS.get(detector) if isinstance(detector, str) else detector
        return lfi_class(found)
    return found


def _is_ema(hook: Any) -> bool:
    kind = hook.get('type') if isinstance(hook, dict) else type(hook)
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] == 'EMAHook'
