"""The file of results."""

import multiprocessing

from lfi_mmdet.evaluation.study.results import Results


def put(path, number):
    for i in range(10):
        line = dict(id=f'{number}-{i}', final=True)
        Results(path).replace([line], lambda old: False)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / 'results.jsonl'
    context = multiprocessing.get_context('fork')
    writers = [context.Process(target=put, args=(path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Results(path).ends()) == 40


def test_a_line_that_was_cut_off_is_left_out_and_cleared_by_the_next_change(tmp_path):
    path = tmp_path / 'results.jsonl'
    path.write_text('{"id": "a", "final": true}\n{"id": "b", "fin')
    results = Results(path)
    assert [*results.ends()] == ['a']
    results.replace([dict(id='c', final=True)], lambda old: False)
    assert (
        path.read_text() == '{"id": "a", "final": true}\n{"id": "c", "final": true}\n'
    )


def test_superseded_and_inner_lines_are_no_ends(tmp_path):
    results = Results(tmp_path / 'results.jsonl')
    assert results.ends() == {}
    lines = [
        dict(id='a', final=True, superseded=True),
        dict(id='a'),
        dict(id='b', final=True),
    ]
    results.replace(lines, lambda old: False)
    assert [*results.ends()] == ['b']
