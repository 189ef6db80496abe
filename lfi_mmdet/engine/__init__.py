from . import amp, hooks, optimizers

__all__ = ['amp', 'hooks', 'optimizers']
