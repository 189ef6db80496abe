from .seeded_group_sampler import SeededGroupMultiSourceSampler

__all__ = ['SeededGroupMultiSourceSampler']
