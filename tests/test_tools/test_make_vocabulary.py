"""CLIP's vocabulary, cut down to the words of some captions."""

import importlib.util
import json
from pathlib import Path

import pytest

from lfi_mmdet.models.teachers.open_clip_loader import load_open_clip, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool():
    path = ROOT / 'tools' / 'make_vocabulary.py'
    spec = importlib.util.spec_from_file_location('make_vocabulary', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_words_that_are_kept_are_one_token_each_and_others_are_still_read(
    tool, tmp_path
):
    from open_clip.tokenizer import SimpleTokenizer

    file = tmp_path / 'words.txt.gz'
    assert tool.main([str(file), '--scenes', '40', '--words', 'a photo of']) == 0
    tokenizer = SimpleTokenizer(bpe_path=str(file))
    assert tokenizer.vocab_size < 1500
    for word in ('circle', 'crescent', 'photo', 'of'):
        assert len(tokenizer.encode(word)) == 1
    assert tokenizer.decode(tokenizer.encode('zebra')).strip() == 'zebra'


def test_the_same_words_give_the_same_bytes(tool, tmp_path):
    files = [tmp_path / name for name in ('a.txt.gz', 'b.txt.gz')]
    for file in files:
        tool.main([str(file), '--scenes', '20'])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_shipped_model_reads_its_vocabulary_beside_its_configuration():
    config = ROOT / 'configs' / 'teachers' / 'coca_shapes.json'
    network = load_open_clip('coca_shapes', model_configs=str(config))
    tokenizer = load_tokenizer('coca_shapes', model_configs=str(config))
    rows = network.text.token_embedding.weight.shape[0]
    assert tokenizer.vocab_size == rows
    assert int(tokenizer(['a photo of a crescent.']).max()) < rows
    assert len(tokenizer.encode('crescent')) == 1


def test_the_shipped_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = 'configs/teachers/coca_shapes.json'
    load_open_clip('coca_shapes', model_configs=config)
    assert load_tokenizer('coca_shapes', model_configs=config).vocab_size > 0


def test_a_vocabulary_that_is_missing_is_named(tmp_path):
    config = json.loads((ROOT / 'configs/teachers/coca_shapes.json').read_text())
    (tmp_path / 'coca_wordless.json').write_text(json.dumps(config))
    load_open_clip('coca_wordless', model_configs=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'coca_shapes_bpe\.txt\.gz'):
        load_tokenizer('coca_wordless', model_configs=str(tmp_path))
