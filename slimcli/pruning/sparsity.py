"""How sparse a vector of magnitudes is, and how much of it may go: the PQ-index and SAP's step (arXiv:2302.05601)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from slimcli.settings import check_pq, check_sap


def pq_index(magnitudes: Tensor, p: float, q: float) -> float:
    """`I = 1 - d^(1/q - 1/p) * ||w||_p / ||w||_q` of a vector of any shape, `d` its length; in [0, 1).

    0 for equal magnitudes (and, by convention, for zeros alone), the larger the sparser. It does not change when the vector is
    scaled or repeated. Pass what survived: pruned entries would count as zeros. Raises `SettingsError` unless
    `0 < p <= 1 <= q` and `p < q`, `ValueError` for an empty vector or one that is not finite.
    """
    check_pq(p, q)
    if magnitudes.numel() == 0:
        raise ValueError("the PQ-index of no magnitudes is not defined")
    values = magnitudes.detach().double().abs().flatten()
    largest = float(values.max())
    if not math.isfinite(largest):
        raise ValueError("the PQ-index is for finite magnitudes")
    if largest == 0:
        return 0.0
    values = values / largest  # powers of very large or very small values would leave the range of floats
    # The means over d take the factor d^(1/q - 1/p) in; a mean cannot overflow.
    ratio = float(values.pow(p).mean()) ** (1 / p) / float(values.pow(q).mean()) ** (1 / q)
    return float(min(max(0.0, 1 - ratio), math.nextafter(1.0, 0.0)))  # rounding alone can leave [0, 1)


def sap_amount(magnitudes: Tensor, p: float, q: float, gamma: float = 1.0, beta: float = 0.9, eta: float = 0.0) -> int:
    """How many of the smallest go in one of SAP's steps: `floor(d * min(gamma * (1 - r / d), beta))`; at least one stays.

    `r = d * (1 + eta)^(-q / (q - p)) * (1 - I)^(q p / (q - p))` is SAP's lower bound on how many must stay. `gamma` scales the
    step, `beta` is the largest share that may go at once. Raises as `pq_index`, and `SettingsError` for parameters outside
    their ranges.
    """
    check_sap(gamma, beta, eta)
    count = magnitudes.numel()
    index = pq_index(magnitudes, p, q)
    stay = (1 + eta) ** (-q / (q - p)) * (1 - index) ** (q * p / (q - p))
    return int(min(math.floor(count * min(gamma * (1 - stay), beta)), count - 1))


def sap_share(vectors: Iterable[Tensor], p: float, q: float, gamma: float = 1.0, beta: float = 0.9, eta: float = 0.0) -> float:
    """The share of all these magnitudes together that goes in one of SAP's steps: `sap_amount` over their length."""
    together = torch.cat([vector.detach().flatten() for vector in vectors])
    return sap_amount(together, p, q, gamma, beta, eta) / together.numel()
