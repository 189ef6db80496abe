"""torchrun, ending with one line instead of its own traceback when a process fails."""

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        cause = f'signal {failure.signal_name()}' if code < 0 else f'exit code {code}'
        raise SystemExit(
            f'process {rank} was the first to fail, with {cause}; see above'
        ) from None
