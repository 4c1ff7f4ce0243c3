"""Best-of-n: of n samples, take the one with the highest proxy reward; no training."""

import math

import torch


def best_of_n(proxy: torch.Tensor, judge: torch.Tensor, *, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen sample's expected scores by the proxy and by the judge, `(P,)` each, from `(P, N)` scores.

    Over all subsets of n of the N samples: sorted by the proxy, the i-th lowest is the highest of a random subset with
    probability `C(i - 1, n - 1) / C(N, n)`, an unbiased estimate of less variance than one subset's (Nakano et al.
    2021, appendix I). Samples with equal proxy scores are chosen equally often.
    """
    total = proxy.shape[1]
    chances = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
    chances = torch.tensor(chances, dtype=torch.float64)
    equal = (proxy.unsqueeze(2) == proxy.unsqueeze(1)).double()
    judge = (equal @ judge.double().unsqueeze(2)).squeeze(2) / equal.sum(2)
    proxy, order = proxy.double().sort()
    return proxy @ chances, judge.gather(1, order) @ chances


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n to the model that is sampled from, in nats: `log n - (n - 1) / n` (Stiennon et al. 2020, G.3).

    Exact where no two scores are equal, otherwise an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def pair_accuracy(proxy: torch.Tensor, judge: torch.Tensor) -> float:
    """Share of the pairs of a prompt's samples, told apart by the judge, that the proxy orders alike; `(P, N)` scores.

    NaN where the judge tells no pair apart.
    """
    better = judge.unsqueeze(2) > judge.unsqueeze(1)
    return (better & (proxy.unsqueeze(2) > proxy.unsqueeze(1))).sum().div(better.sum()).item()
