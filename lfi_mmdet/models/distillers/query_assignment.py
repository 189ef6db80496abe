"""Which query stands for which text, where that is not fixed."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

#: Cost that stands for one that is not finite, in nats; far above any real one
_WORST = 1e5


class QueryAssignment(metaclass=ABCMeta):
    """Match free queries to texts by how alike their maps are.

    Query k belongs to text k for the first ``num_tied`` texts. The queries from
    ``num_tied`` on are free: in every image they are given to the rows of other texts
    (or of all texts, if none is tied) so that the sum of costs is low. The cost of a
    row and a query is the mean over the layers of KL(P_row || A_query), in nats.

    Every present row gets a query of its own. If an image has more such rows than
    there are free queries, those that fit worst are marked as not present.

    Args:
        num_tied: Number of queries that belong to the text of the same index.
    """

    def __init__(self, num_tied: int) -> None:
        if num_tied < 0:
            raise ValueError(f'distiller.assignment.num_tied={num_tied} is negative')
        self.num_tied = num_tied

    def check_queries(self, num_queries: int) -> None:
        """Check that the student has free queries.

        Args:
            num_queries: K.

        Raises:
            ValueError: If it has none.
        """
        if num_queries <= self.num_tied:
            raise ValueError(
                f'distiller.assignment.num_tied={self.num_tied} leaves no free query '
                f'of backbone.num_queries={num_queries}; add queries, or leave '
                'distiller.assignment out if every query belongs to a class'
            )

    @torch.no_grad()
    def __call__(
        self,
        log_attention: Tensor | Sequence[Tensor],
        target: Tensor,
        texts: Tensor,
        present: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Find the query of every row.

        Args:
            log_attention: Log of the student's maps, (B, L, K, N), or L tensors
                (B, K, N); large negative, but finite, on padding.
            target: Teacher's maps on the same grid, (B, L, P, N); 0 on padding.
            texts: Long (B, P), the text of each row.
            present: Bool (B, P).

        Returns:
            Queries, long (B, P), different from one another among the present rows of
            an image; and ``present`` without the rows that got no query. The query of
            a row that is not present is valid, but means nothing.

        Raises:
            ValueError: See :meth:`check_queries`.
        """
        if not isinstance(log_attention, Tensor):
            log_attention = torch.stack(list(log_attention), 1)
        num_queries = log_attention.shape[2]
        self.check_queries(num_queries)
        tied = texts < self.num_tied
        if not texts.numel():
            return texts, present
        with torch.autocast(target.device.type, enabled=False):
            free = present & ~tied
            costs = map_costs(log_attention[:, :, self.num_tied :], target)
            found = self.match(costs, free)
        given = found >= 0
        queries = torch.where(given, found + self.num_tied, self.num_tied)
        return torch.where(tied, texts, queries), present & (tied | given)

    @abstractmethod
    def match(self, costs: Tensor, rows: Tensor) -> Tensor:
        """Match rows with columns one to one, as many as there are of the fewer.

        Args:
            costs: (B, P, F), finite.
            rows: Bool (B, P), the rows to match.

        Returns:
            Long (B, P), the column of each row; -1 for a row without.
        """


def map_costs(log_attention: Tensor, target: Tensor) -> Tensor:
    """KL(target || attention) of every row and query, averaged over layers.

    Args:
        log_attention: (B, L, F, N).
        target: (B, L, P, N).

    Returns:
        (B, P, F) in nats, at least float32 and finite.
    """
    if torch.float64 not in (target.dtype, log_attention.dtype):
        target, log_attention = target.float(), log_attention.float()
    # a matrix product instead of all pairs of maps, which would not fit into memory
    entropy = torch.xlogy(target, target).sum(-1, keepdim=True)
    costs = entropy - target @ log_attention.transpose(-1, -2)
    return costs.mean(1).nan_to_num(_WORST, _WORST, _WORST).clamp(max=_WORST)


@MODELS.register_module()
class HungarianAssignment(QueryAssignment):
    """The assignment with the least sum of costs, by SciPy, on the CPU.

    The costs are fetched from the device in one transfer, for which the host waits,
    and the queries are sent back in another. Equal costs are decided by SciPy, always
    in the same way.

    Args:
        num_tied: See :class:`QueryAssignment`.
    """

    def match(self, costs: Tensor, rows: Tensor) -> Tensor:
        """See :meth:`QueryAssignment.match`."""
        # other rows are marked in the costs themselves: one transfer instead of two
        marked = costs.masked_fill(~rows[..., None], torch.inf).cpu().numpy()
        found = torch.full(rows.shape, -1)
        for image, table in zip(found, marked):
            wanted = (table[:, 0] < _WORST * 2).nonzero()[0]
            matched, columns = linear_sum_assignment(table[wanted])
            image[torch.from_numpy(wanted[matched])] = torch.from_numpy(columns)
        return found.to(costs.device, non_blocking=True)


@MODELS.register_module()
class SinkhornAssignment(QueryAssignment):
    """Entropic optimal transport on the device; the host never waits.

    Rows and queries hold a mass of 1 each. What is left over, of queries or of rows,
    goes to a slack row or column at no cost. The transport plan is computed in log
    space by Sinkhorn's iterations and then read off greedily: the largest entry gives
    its query to its row, both are taken out, and so on, as often as there are rows or
    queries. So every row has one query and no query two rows; where two rows want the
    same query, the one with more of the plan gets it, and the other the best of the
    rest. Among equal entries the first counts.

    The sum of costs is the least for small ``epsilon`` and many ``iterations``, and
    close to it otherwise. M. Cuturi, "Sinkhorn Distances", NeurIPS 2013.

    Args:
        num_tied: See :class:`QueryAssignment`.
        epsilon: Weight of the plan's entropy, in nats as the costs are.
        iterations: Number of times that rows and columns are scaled.
    """

    def __init__(
        self, num_tied: int, epsilon: float = 0.05, iterations: int = 50
    ) -> None:
        super().__init__(num_tied)
        if epsilon <= 0:
            raise ValueError(f'distiller.assignment.epsilon={epsilon} is not positive')
        if iterations < 1:
            raise ValueError(
                f'distiller.assignment.iterations={iterations} is less than 1'
            )
        self.epsilon, self.iterations = epsilon, iterations

    def plan(self, costs: Tensor, rows: Tensor) -> Tensor:
        """Log of the transport plan without its slack; see :meth:`match`.

        Returns:
            (B, P, F); very low in rows that are not to be matched.
        """
        wanted = rows.sum(1, keepdim=True)
        columns = costs.shape[2]
        row_mass = torch.cat([rows, (columns - wanted).clamp(min=0)], 1)
        column_mass = torch.cat(
            [torch.ones_like(costs[:, 0]), (wanted - columns).clamp(min=0)], 1
        )
        # log 0 as a number: an empty row stays empty, and nothing becomes NaN
        log_rows = row_mass.to(costs.dtype).log().clamp(min=-1e9)
        log_columns = column_mass.log().clamp(min=-1e9)
        kernel = F.pad(-costs / self.epsilon, (0, 1, 0, 1))
        across = torch.zeros_like(log_columns)
        for _ in range(self.iterations):
            down = log_rows - (kernel + across[:, None]).logsumexp(2)
            across = log_columns - (kernel + down[:, :, None]).logsumexp(1)
        return (kernel + down[:, :, None] + across[:, None])[:, :-1, :-1]

    def match(self, costs: Tensor, rows: Tensor) -> Tensor:
        """See :meth:`QueryAssignment.match`."""
        plan = self.plan(costs, rows).masked_fill(~rows[..., None], -torch.inf)
        count, columns = plan.shape[1:]
        row_index = torch.arange(count, device=plan.device)
        column_index = torch.arange(columns, device=plan.device)
        found = torch.full_like(rows, -1, dtype=torch.long)
        for _ in range(min(count, columns)):
            value, entry = plan.flatten(1).max(1, keepdim=True)
            row = entry.div(columns, rounding_mode='floor') == row_index
            column = entry % columns
            # in an image that has no rows left, the largest entry is -inf
            found = torch.where(row & (value > -torch.inf), column, found)
            used = row[..., None] | (column == column_index)[:, None]
            plan = plan.masked_fill(used, -torch.inf)
        return found
