from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lfi_mmdet.models.teachers import open_clip_loader
from lfi_mmdet.models.teachers.open_clip_loader import load_open_clip, load_tokenizer

from .tiny_open_clip import CONFIGS


@pytest.fixture
def release(configs, monkeypatch):
    """Pretend that open_clip knows released weights of the tiny CLIP."""
    import open_clip

    tags = dict(
        made_up=dict(
            hf_hub='someone/tiny/', mean=(0.1,) * 3, std=(0.2,) * 3, quick_gelu=True
        )
    )
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-clip', tags)


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
def test_a_local_file_is_loaded_bit_by_bit(configs, saved, tmp_path, suffix):
    from safetensors.torch import save_file

    network, _ = saved('tiny-coca')
    file = str(tmp_path / f'weights{suffix}')
    save = save_file if suffix == '.safetensors' else torch.save
    save(network.state_dict(), file)
    loaded = load_open_clip('tiny-coca', file, model_configs=configs).state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_a_torchscript_archive_is_loaded_as_openai_publishes_them(
    configs, saved, tmp_path
):
    class Holder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    network, _ = saved('tiny-clip')
    holder = Holder()
    for name, child in network.named_children():
        holder.add_module(name, _parameters_only(child))
    for name, value in network.named_parameters(recurse=False):
        holder.register_parameter(name, value)
    file = str(tmp_path / 'jit.pt')
    torch.jit.script(holder).save(file)
    loaded = load_open_clip('tiny-clip', file).state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value), name


def _parameters_only(module: torch.nn.Module) -> torch.nn.Module:
    """The same tree of parameters, without code that TorchScript would compile."""
    bare = torch.nn.Module()
    for name, value in module.named_parameters(recurse=False):
        bare.register_parameter(name, value)
    for name, child in module.named_children():
        bare.add_module(name, _parameters_only(child))
    return bare


def test_position_embeddings_follow_the_image_size(configs, saved, tmp_path):
    _, file = saved('tiny-clip')
    visual = load_open_clip('tiny-clip', file, image_size=[32, 64]).visual
    assert tuple(visual.grid_size) == (4, 8)
    assert visual.positional_embedding.shape[0] == 1 + 4 * 8


def test_random_weights_are_the_same_each_time_and_announced(configs, monkeypatch):
    seen = []
    monkeypatch.setattr(
        open_clip_loader,
        'print_log',
        lambda text, level, **_: seen.append((level, text)),
    )
    torch.manual_seed(1)
    first = load_open_clip('tiny-clip').state_dict()
    torch.manual_seed(2)
    second = load_open_clip('tiny-clip').state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [level for level, _ in seen] == [logging.WARNING] * 2
    assert 'RANDOM' in seen[0][1]


def test_loading_leaves_the_random_state_of_the_student_alone(configs, saved, tmp_path):
    _, file = saved('tiny-clip')
    state = torch.get_rng_state()
    load_open_clip('tiny-clip')
    load_open_clip('tiny-clip', file)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tag_brings_its_statistics_and_its_activation(release, saved, monkeypatch):
    import open_clip

    _, file = saved('tiny-clip')
    for module in (open_clip, open_clip.factory):
        monkeypatch.setattr(module, 'download_pretrained', lambda *_, **__: file)
    network = load_open_clip('tiny-clip', 'made_up')
    view = open_clip_loader.view_of(network)
    assert view == dict(size=(32, 32), mean=(0.1,) * 3, std=(0.2,) * 3)
    activation = network.visual.transformer.resblocks[0].mlp.gelu
    assert isinstance(activation, open_clip.transformer.QuickGELU)


def test_a_file_is_normalised_as_the_models_releases_are(configs, saved, monkeypatch):
    import open_clip

    (webli,) = open_clip.pretrained._PRETRAINED['ViT-B-16-SigLIP'].values()
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, 'tiny-sigmoid', dict(webli=webli)
    )
    view = open_clip_loader.view_of(
        load_open_clip('tiny-sigmoid', saved('tiny-sigmoid')[1])
    )
    assert view['mean'] == view['std'] == (0.5,) * 3


def test_a_file_that_may_want_something_else_is_warned_of(configs, saved, monkeypatch):
    import open_clip

    seen = []
    monkeypatch.setattr(
        open_clip_loader,
        'print_log',
        lambda text, level, **_: seen.append((level, text)),
    )
    usual = dict(hf_hub='someone/tiny/', mean=(0.1,) * 3, std=(0.2,) * 3)
    tags = dict(
        odd=dict(usual, mean=(0.5,) * 3), a=usual, quick=dict(usual, quick_gelu=True)
    )
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-clip', tags)
    view = open_clip_loader.view_of(load_open_clip('tiny-clip', saved('tiny-clip')[1]))
    assert view['mean'] == (0.1,) * 3
    ((level, text),) = seen
    assert level == logging.WARNING and "['odd', 'quick']" in text
    seen.clear()
    for tag in ('odd', 'quick'):
        tags.pop(tag)
    load_open_clip('tiny-clip', saved('tiny-clip')[1])
    assert not seen


def test_an_unknown_model_gets_close_names():
    with pytest.raises(ValueError, match='coca_ViT-L-14') as error:
        load_open_clip('coca_ViTL14', 'laion2b_s13b_b90k')
    assert "teacher.model='coca_ViTL14'" in str(error.value)


def test_an_unknown_tag_gets_the_tags_of_the_model():
    with pytest.raises(ValueError, match='mscoco_finetuned_laion2b_s13b_b90k'):
        load_open_clip('coca_ViT-L-14', 'openai')


@pytest.mark.parametrize(
    'model, tag, advice',
    [
        (
            'coca_ViT-L-14',
            'laion2b_s13b_b90k',
            ['laion/CoCa-ViT-L-14-laion2B-s13B-b90k', 'open_clip_pytorch_model.bin'],
        ),
        ('ViT-B-32', 'openai', ['ViT-B-32.pt', "teacher.model='ViT-B-32-quickgelu'"]),
    ],
)
def test_weights_that_cannot_be_fetched_say_what_to_download(
    monkeypatch, model, tag, advice
):
    import open_clip

    def no_network(*_, **__):
        raise ConnectionError('no route to host')

    monkeypatch.setattr(open_clip.pretrained, 'hf_hub_download', no_network)
    with pytest.raises(RuntimeError, match='no route to host') as error:
        load_open_clip(model, tag)
    for words in [repr(tag), 'teacher.pretrained=/path/to/file', *advice]:
        assert words in str(error.value)


def test_a_download_of_nothing_is_no_random_model(release, monkeypatch):
    import open_clip

    for module in (open_clip, open_clip.factory):
        monkeypatch.setattr(module, 'download_pretrained', lambda *_, **__: '')
    with pytest.raises(RuntimeError, match='nothing was downloaded.*someone/tiny'):
        load_open_clip('tiny-clip', 'made_up')


def test_a_missing_file_is_named(tmp_path):
    file = str(tmp_path / 'absent.pt')
    with pytest.raises(FileNotFoundError, match='absent.pt'):
        load_open_clip('ViT-B-32', file)


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@pytest.mark.parametrize('share', [0, 0.5, 0.999])
def test_a_truncated_file_is_named(configs, saved, tmp_path, suffix, share):
    from safetensors.torch import save_file

    file = tmp_path / f'cut{suffix}'
    save = save_file if suffix == '.safetensors' else torch.save
    save(saved('tiny-clip')[0].state_dict(), str(file))
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RuntimeError, match=f'cut{suffix}.*truncated'):
        load_open_clip('tiny-clip', str(file))


def test_a_file_without_weights_is_named(configs, saved, tmp_path):
    file = tmp_path / 'odd.pt'
    torch.save(dict(epoch=3), file)
    with pytest.raises(RuntimeError, match='odd.pt.*no checkpoint'):
        load_open_clip('tiny-clip', str(file))


@pytest.mark.parametrize('other', ['tiny-coca', 'tiny-clip-scaled'])
def test_a_file_of_another_architecture_is_named(configs, saved, tmp_path, other):
    _, file = saved(other)
    with pytest.raises(RuntimeError, match=f'{other}.pt') as error:
        load_open_clip('tiny-clip', file)
    assert "teacher.model='tiny-clip'" in str(error.value)


@pytest.mark.parametrize('change', ['missing', 'surplus', 'shape'])
def test_one_odd_key_is_enough_to_refuse_a_file(configs, saved, tmp_path, change):
    state = dict(saved('tiny-clip')[0].state_dict())
    if change == 'missing':
        del state['visual.ln_post.weight']
    elif change == 'surplus':
        state['visual.extra'] = torch.zeros(3)
    else:
        state['visual.ln_post.weight'] = torch.zeros(3)
    file = tmp_path / 'odd.pt'
    torch.save(state, file)
    with pytest.raises(RuntimeError, match='odd.pt.*visual'):
        load_open_clip('tiny-clip', str(file))


def test_text_positions_of_another_length_are_not_stretched(configs, saved, tmp_path):
    _, file = saved('tiny-clip')
    with pytest.raises(RuntimeError, match='16 positions, but the model has 20'):
        load_open_clip('tiny-clip-longtext', file)


def test_a_folder_with_a_model_is_loaded(configs, saved, tmp_path):
    network, _ = saved('tiny-clip')
    config = dict(model_cfg=copy.deepcopy(CONFIGS['tiny-clip']))
    (tmp_path / 'open_clip_config.json').write_text(json.dumps(config))
    model = f'local-dir:{tmp_path}'
    with pytest.raises(RuntimeError, match='could not be loaded'):
        load_open_clip(model)
    torch.save(network.state_dict(), tmp_path / 'open_clip_pytorch_model.bin')
    loaded = load_open_clip(model).state_dict()
    assert torch.equal(loaded['visual.proj'], network.visual.proj)
    assert load_tokenizer(model).context_length == 16
    with pytest.raises(ValueError, match='weights of its own'):
        load_open_clip(model, 'openai')


@pytest.mark.parametrize(
    'text, complaint',
    [
        ('{"embed_dim": 4}', 'lacks text_cfg, vision_cfg'),
        ('{', 'no JSON'),
        ('[]', 'lacks'),
    ],
)
def test_a_bad_model_config_is_named(tmp_path, text, complaint):
    (tmp_path / 'broken.json').write_text(text)
    with pytest.raises(ValueError, match=f'broken.json.*{complaint}'):
        load_open_clip('broken', model_configs=str(tmp_path))


def test_missing_model_configs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='model_configs'):
        load_open_clip('ViT-B-32', model_configs=str(tmp_path / 'absent'))


def test_without_open_clip_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'open_clip', None)
    with pytest.raises(ImportError, match=r'open_clip_torch.*lfi_mmdet\[clip\]'):
        load_open_clip('ViT-B-32')


@pytest.mark.slow
def test_importing_the_teachers_does_not_import_open_clip():
    code = (
        'import sys; sys.modules["open_clip"] = None; import lfi_mmdet.models.teachers'
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, '-c', code], check=True, cwd=root)


@pytest.mark.parametrize(
    'rank, order', [(0, ['fetch', 'wait']), (1, ['wait', 'fetch'])]
)
def test_the_first_process_of_a_machine_fetches_before_the_others(
    monkeypatch, rank, order
):
    seen = []

    class OpenClip:
        @staticmethod
        def download_pretrained(release, cache_dir):
            seen.append('fetch')
            return 'file'

    monkeypatch.setattr(open_clip_loader, 'get_local_rank', lambda: rank)
    monkeypatch.setattr(open_clip_loader, 'barrier', lambda: seen.append('wait'))
    assert open_clip_loader._fetch_once(OpenClip, {}, None) == 'file'
    assert seen == order


def test_random_weights_are_random_everywhere_and_the_same_each_time(configs):
    one, other = (
        open_clip_loader.load_open_clip('tiny-coca').state_dict() for _ in range(2)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    projection = one['text_decoder.text_projection']
    assert 0.9 < projection.std() * projection.shape[0] ** 0.5 < 1.1
