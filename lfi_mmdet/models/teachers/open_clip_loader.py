"""Load open_clip models: with the weights that were asked for, or not at all."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import print_log
from torch import nn

from lfi_mmdet.shipped import shipped_file

#: Prefixes of model names that bring their own configuration and weights
SCHEMAS = ('local-dir:', 'hf-hub:')
#: Seed of random weights, the same in every process
RANDOM_SEED = 0


def load_open_clip(
    model: str,
    pretrained: str | None = None,
    image_size: int | Sequence[int] | None = None,
    model_configs: str | None = None,
    cache_dir: str | None = None,
) -> nn.Module:
    """Build an open_clip model and load its weights strictly.

    Args:
        model: Name of an open_clip model, or ``'local-dir:<folder>'`` or
            ``'hf-hub:<repository>'``, which hold weights of their own.
        pretrained: Tag of released weights, path of a local file, or None for random
            weights, the same in every process. A tag brings its activation and the
            statistics of its input. A file tells neither: it is taken for one of the
            model's releases, with a warning where these differ. A file with OpenAI's
            weights needs the ``-quickgelu`` variant of the model.
        image_size: Side, or (height, width), of the input in pixels; position
            embeddings are resized at load. None keeps the model's own.
        model_configs: JSON file, or folder of JSON files, with further model
            configurations; the file name is the model's name.
        cache_dir: Where downloads are kept; None for the usual place.

    Returns:
        The model, in float32 on the CPU.

    Raises:
        ImportError: If open_clip is not installed.
        FileNotFoundError: If the weights or ``model_configs`` do not exist.
        ValueError: If the model or the tag is unknown.
        RuntimeError: If weights cannot be fetched, read, or do not fit the model.
    """
    open_clip = import_open_clip()
    if pretrained is not None:
        pretrained = shipped_file(pretrained)
    if model_configs is not None:
        folder = Path(shipped_file(model_configs)).expanduser()
        _add_model_configs(open_clip, folder)
    options: dict[str, Any] = dict(cache_dir=cache_dir)
    if image_size is not None:
        square = isinstance(image_size, int)
        options['force_image_size'] = image_size if square else tuple(image_size)  # type: ignore[arg-type]
    if model.startswith(SCHEMAS):
        if pretrained is not None:
            raise ValueError(
                f'teacher.model={model!r} has weights of its own; remove '
                f'teacher.pretrained={pretrained!r}'
            )
        source = 'its weights'
        options['require_pretrained'] = True
    else:
        model = _known_model(open_clip, model)
        if pretrained is None:
            source = 'random weights'
            print_log(
                f'teacher.pretrained is None: {model} has RANDOM weights, and its '
                'attention means nothing; good for tests only',
                logger='current',
                level=logging.WARNING,
            )
        else:
            source, found = _find_weights(open_clip, model, pretrained, cache_dir)
            options.update(found, require_pretrained=True)
    # whatever the construction draws, the student's own weights stay reproducible
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        try:
            network = open_clip.create_model(model, **options)
        except Exception as error:
            # of another architecture, thousands of keys do not fit
            reason = shorten(str(error), 1000)
            raise RuntimeError(
                f'open_clip cannot build teacher.model={model!r} with {source}: '
                f'{reason}'
            ) from error
        if source == 'random weights':
            _fill_projection(network)
    return network


def _fill_projection(network: Any) -> None:
    """Initialise what open_clip leaves as it finds the memory: CoCa's vocabulary."""
    projection = getattr(
        getattr(network, 'text_decoder', None), 'text_projection', None
    )
    if isinstance(projection, nn.Parameter):
        nn.init.normal_(projection, std=projection.shape[0] ** -0.5)


def load_tokenizer(
    model: str,
    cache_dir: str | None = None,
    folder: str | None = None,
    model_configs: str | None = None,
) -> Any:
    """Return the tokenizer that belongs to a model.

    Args:
        model: As for :func:`load_open_clip`, which has to be called before.
        cache_dir: Where downloads are kept.
        folder: Folder of a Hugging Face tokenizer to take in place of the model's;
            for models that have one, and machines without network.
        model_configs: As for :func:`load_open_clip`. A model there may have a
            vocabulary of its own: ``text_cfg.tokenizer_kwargs.bpe_path`` names its
            file, relative to that of the model.

    Raises:
        FileNotFoundError: If there is no such folder, or no such vocabulary.
        RuntimeError: If it cannot be made, e.g. because it has to be downloaded.
    """
    open_clip = import_open_clip()
    if not model.startswith(SCHEMAS):
        model = _known_model(open_clip, model)
    options: dict[str, Any] = {}
    if folder is not None:
        if not os.path.isdir(os.path.expanduser(folder)):
            raise FileNotFoundError(f'teacher.tokenizer={folder!r} is no folder')
        text_cfg = (open_clip.get_model_config(model) or {}).get('text_cfg', {})
        options = dict(text_cfg.get('tokenizer_kwargs', {}))
        options['context_length'] = text_cfg.get('context_length', 77)
    vocabulary = _own_vocabulary(open_clip, model, model_configs)
    try:
        if folder is not None:
            from open_clip.tokenizer import HFTokenizer

            return HFTokenizer(os.path.expanduser(folder), **options)
        return open_clip.get_tokenizer(model, cache_dir=cache_dir, **vocabulary)
    except Exception as error:
        wanted = (open_clip.get_model_config(model) or {}).get('text_cfg', {})
        name = wanted.get('hf_tokenizer_name')
        hint = (
            f'; without network, download the tokenizer {name!r} on another machine '
            'and give its folder: teacher.tokenizer=/path/to/folder (the extra '
            '`lfi_mmdet[siglip]` brings transformers)'
            if name
            else ''
        )
        raise RuntimeError(
            f'the tokenizer of teacher.model={model!r} cannot be loaded '
            f'({type(error).__name__}: {shorten(str(error), 300)}){hint}'
        ) from error


def _own_vocabulary(
    open_clip: ModuleType, model: str, model_configs: str | None
) -> dict[str, str]:
    """Find the vocabulary that a model's configuration names, beside that file."""
    text_cfg = (open_clip.get_model_config(model) or {}).get('text_cfg', {})
    named = text_cfg.get('tokenizer_kwargs', {}).get('bpe_path')
    if named is None or model_configs is None:
        return {}
    path = Path(shipped_file(model_configs)).expanduser()
    file = (path if path.is_dir() else path.parent) / named
    if not file.is_file():
        raise FileNotFoundError(
            f'text_cfg.tokenizer_kwargs.bpe_path={named!r} of teacher.model={model!r}: '
            f'there is no {file}'
        )
    return dict(bpe_path=str(file))


def view_of(network: Any) -> dict[str, Any]:
    """Return size, mean and std of a model's input, as TeacherView takes them."""
    preprocess = import_open_clip().get_model_preprocess_cfg(network)
    return dict(
        size=tuple(network.visual.image_size),
        mean=preprocess['mean'],
        std=preprocess['std'],
    )


def vision_transformer(network: Any, model: str) -> Any:
    """Return the image tower, which must be open_clip's own vision transformer.

    Raises:
        ValueError: If it is another tower, or pixels are left over at the border.
    """
    from open_clip.transformer import VisionTransformer

    visual = network.visual
    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f'teacher.model={model!r} has the image tower {type(visual).__name__}; '
            "only open_clip's own VisionTransformer has patches to read (no ResNet, "
            'no timm model), e.g. ViT-B-16'
        )
    pairs = zip(visual.image_size, visual.patch_size)
    if any(side % patch for side, patch in pairs):
        raise ValueError(
            f'teacher.image_size={tuple(visual.image_size)} is no multiple of the '
            f'patch size {tuple(visual.patch_size)} of {model}'
        )
    return visual


def import_open_clip() -> ModuleType:
    """Import open_clip, which only these teachers need."""
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            'this teacher needs open_clip: `pip install open_clip_torch`, or install '
            'the extra `lfi_mmdet[clip]`'
        ) from error
    return open_clip


def _add_model_configs(open_clip: ModuleType, path: Path) -> None:
    """Register custom models; open_clip itself would skip over bad ones."""
    files = [path] if path.is_file() else sorted(path.glob('*.json'))
    if not files:
        raise FileNotFoundError(
            f'teacher.model_configs={str(path)!r} is neither a JSON file nor a folder '
            'with JSON files'
        )
    for file in files:
        try:
            config = json.loads(file.read_text(encoding='utf-8'))
        except ValueError as error:
            raise ValueError(
                f'teacher.model_configs: {file} is no JSON: {error}'
            ) from (error)
        needed = {'embed_dim', 'vision_cfg', 'text_cfg'}
        missing = sorted(needed - set(config)) if isinstance(config, dict) else needed
        if missing:
            raise ValueError(
                f'teacher.model_configs: {file} is no open_clip model configuration; '
                f'it lacks {", ".join(sorted(missing))}'
            )
    open_clip.add_model_config(path)


def _known_model(open_clip: ModuleType, model: str) -> str:
    """Return the name open_clip knows the model by."""
    name, known = model.replace('/', '-'), open_clip.list_models()
    if name in known:
        return name
    close = get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f'did you mean {", ".join(close)}?' if close else 'no name is close to it'
    raise ValueError(
        f'teacher.model={model!r} is not known to open_clip {open_clip.__version__}; '
        f'{hint} (all: open_clip.list_models(); own ones: teacher.model_configs)'
    )


def _find_weights(
    open_clip: ModuleType, model: str, pretrained: str, cache_dir: str | None
) -> tuple[str, dict[str, Any]]:
    """Find the file behind ``pretrained`` and check that it can be read.

    Returns:
        Words for messages, and the options of ``open_clip.create_model``.
    """
    release = open_clip.get_pretrained_cfg(model, pretrained)
    if release:
        source = f'the released weights {pretrained!r}'
        try:
            file = _fetch_once(open_clip, release, cache_dir)
            if not os.path.isfile(file):
                raise FileNotFoundError(f'nothing was downloaded ({file!r})')
        except Exception as error:
            raise RuntimeError(
                f'teacher.pretrained={pretrained!r} of {model} cannot be fetched '
                f'({type(error).__name__}: {error}). Download on another machine '
                f'{_where(open_clip, model, release)}, and give the path of the file: '
                'teacher.pretrained=/path/to/file'
            ) from error
        # open_clip only warns if the activation is not that of the training
        quick_gelu = bool(release.get('quick_gelu'))
        options: dict[str, Any] = dict(
            pretrained=pretrained, force_quick_gelu=quick_gelu
        )
    else:
        file = os.path.expanduser(pretrained)
        if not os.path.isfile(file):
            tags = open_clip.list_pretrained_tags_by_model(model)
            if os.sep in pretrained or Path(pretrained).suffix:
                raise FileNotFoundError(
                    f'teacher.pretrained={pretrained!r}: there is no such file '
                    f'(and no such tag of {model}; its tags: {tags})'
                )
            raise ValueError(
                f'teacher.pretrained={pretrained!r} is no tag of {model}; choose from '
                f'{tags} or give the path of a file'
            )
        source = f'the file {file!r}'
        options = dict(pretrained=file, **_as_released(open_clip, model, file))
    # torch reads TorchScript archives, as OpenAI's files are, without unpickling
    if _is_torchscript(file):
        options['weights_only'] = False
    if not release:
        _check_file(open_clip, model, file, options.get('weights_only', True))
    return source, options


def _as_released(open_clip: ModuleType, model: str, file: str) -> dict[str, Any]:
    """Say of a file what only its release can tell: the statistics of its input.

    open_clip would take CLIP's for every file, also for SigLIP's.

    Returns:
        Options of ``open_clip.create_model``; none for a model without releases.
    """
    releases = {
        tag: open_clip.get_pretrained_cfg(model, tag)
        for tag in open_clip.list_pretrained_tags_by_model(model)
    }
    if not releases:
        return {}

    def statistics(release: dict[str, Any]) -> tuple[tuple, tuple]:
        return tuple(release['mean']), tuple(release['std'])

    kinds = Counter(map(statistics, releases.values()))
    usual = max(kinds, key=lambda kind: kinds[kind])
    quick_gelu = bool(open_clip.get_model_config(model).get('quick_gelu'))
    others = [
        tag
        for tag, release in releases.items()
        if statistics(release) != usual or bool(release.get('quick_gelu')) != quick_gelu
    ]
    if others:
        print_log(
            f'teacher.pretrained={file!r}: a file tells neither how its input is '
            f'normalised nor its activation. Taken are mean={usual[0]}, std={usual[1]} '
            f'(of most releases) and {"QuickGELU" if quick_gelu else "GELU"} (of '
            f'{model}), which is wrong for {others}: for one of these, give its tag, '
            "or its repository's folder as teacher.model='local-dir:<folder>'",
            logger='current',
            level=logging.WARNING,
        )
    mean, std = usual
    return dict(force_preprocess_cfg=dict(mean=mean, std=std))


def _fetch_once(
    open_clip: ModuleType, release: dict[str, Any], cache_dir: str | None
) -> str:
    """Let the first process of a machine download; open_clip itself has no lock."""
    if get_local_rank() != 0:
        barrier()
    file = open_clip.download_pretrained(release, cache_dir=cache_dir)
    if get_local_rank() == 0:
        barrier()
    return file


def _check_file(
    open_clip: ModuleType, model: str, file: str, weights_only: bool
) -> None:
    """Check what open_clip does not: that a file is whole, and its text length."""
    try:
        state = open_clip.factory.load_state_dict(file, weights_only=weights_only)
        shapes = {name: tuple(value.shape) for name, value in state.items()}
    except Exception as error:
        raise RuntimeError(
            f'the weights in {file!r} cannot be read; the file is truncated, damaged '
            f'or no checkpoint ({type(error).__name__}: {error})'
        ) from error
    # open_clip would quietly stretch position embeddings of another length
    text_cfg = open_clip.get_model_config(model)['text_cfg']
    wanted = text_cfg.get('context_length', 77) + bool(text_cfg.get('embed_cls'))
    for name in ('positional_embedding', 'text.positional_embedding'):
        if name in shapes and shapes[name][0] != wanted:
            raise RuntimeError(
                f'the weights in {file!r} do not fit teacher.model={model!r}: {name} '
                f'has {shapes[name][0]} positions, but the model has {wanted}'
            )


def _is_torchscript(file: str) -> bool:
    """Whether ``torch.load`` takes a file for a TorchScript archive."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(
            name.rpartition('/')[2] == 'constants.pkl' for name in archive.namelist()
        )


def _where(open_clip: ModuleType, model: str, release: dict[str, Any]) -> str:
    """Say where released weights lie, as far as open_clip knows."""
    places = []
    if release.get('hf_hub'):
        repository, name = os.path.split(release['hf_hub'])
        names = [name] if name else []
        if not names:
            constants = open_clip.constants
            names = [constants.HF_SAFE_WEIGHTS_NAME, constants.HF_WEIGHTS_NAME]
        places.append(
            f'{" or ".join(names)} from the Hugging Face repository {repository}'
        )
    if release.get('url'):
        places.append(release['url'])
    text = ', or '.join(places) or 'the weights (open_clip does not say from where)'
    quick = f'{model}-quickgelu'
    if release.get('quick_gelu') and quick in open_clip.list_models():
        text += (
            f' (for teacher.model={quick!r}, as a file does not tell its activation)'
        )
    return text
