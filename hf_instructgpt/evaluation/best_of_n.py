"""Best-of-n without optimising anything: of n samples the one that the proxy reward model likes best."""

import math

import torch


def best_of_n(proxy: torch.Tensor, judge: torch.Tensor, *, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The choice's expected score by the proxy and by the judge, over all subsets of n of the N samples.

    Sorted by the proxy, the i-th lowest of N is the highest of a random subset of n with probability
    `C(i - 1, n - 1) / C(N, n)`: an estimate without bias, of less variance than one subset's (Nakano et al. 2021,
    appendix I). Of samples with equal proxy scores each is chosen as often.

    Args:
        proxy, judge (`torch.Tensor` of shape `(P, N)`): Scores of N samples to each of P prompts.
        n (`int`): Samples to choose from, 1 to N.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(P,)`: the proxy's and the judge's.
    """
    total = proxy.shape[1]
    chances = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
    chances = torch.tensor(chances, dtype=torch.float64)
    equal = (proxy.unsqueeze(2) == proxy.unsqueeze(1)).double()
    judge = (equal @ judge.double().unsqueeze(2)).squeeze(2) / equal.sum(2)
    proxy, order = proxy.double().sort()
    return proxy @ chances, judge.gather(1, order) @ chances


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n to the model that is sampled from, nats: `log n - (n - 1) / n` (Stiennon et al. 2020, G.3).

    Exact where no two scores are equal; in general an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def pair_accuracy(proxy: torch.Tensor, judge: torch.Tensor) -> float:
    """Share of the pairs of one prompt's samples, told apart by the judge, in which the proxy prefers the same one.

    Args:
        proxy, judge (`torch.Tensor` of shape `(P, N)`): Scores of N samples to each of P prompts.

    Returns:
        `float`: NaN where the judge tells no pair apart.
    """
    better = judge.unsqueeze(2) > judge.unsqueeze(1)
    return (better & (proxy.unsqueeze(2) > proxy.unsqueeze(1))).sum().div(better.sum()).item()
