"""Three estimators of the gradient of an integral KL, as losses whose gradient it is. Pure functions.

All take the student's log-probabilities at the recorded states and a reward that is a constant. Each is tested against
the exact gradient by enumeration.
"""

from __future__ import annotations

from torch import Tensor

from objectives.divergences import _expectation


def marginalised(log_probs: Tensor, reward_table: Tensor) -> Tensor:
    """−Σ_v p_ν(v) r(v): the expectation over the token taken exactly (2503.15457, 2602.19066).

    A masked position's reward depends on the token drawn there only through the table's column, so no sampling noise of
    the token is left.

    Args:
        log_probs: (N, V), differentiable. reward_table: (N, V).

    Returns:
        (N,).
    """
    return -_expectation(log_probs, reward_table)


def per_token(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """−A · log p_ν(x): the score function with one reward a token. All (N,)."""
    return -advantage * log_prob


def score_function(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """−A · Σ log p_ν over a row's revealed tokens: the score function of whole rows (2509.25035, eq. for ∇L).

    Args:
        log_prob: (B,) summed over the positions that the moves revealed, not divided by length. advantage: (B,).
    """
    return -advantage * log_prob


def grouped_advantage(reward: Tensor, group: int, clamp: float, epsilon: float = 1e-8) -> Tensor:
    """(R − mean) / (std + ε) within groups of consecutive rows, clamped (grouped reward normalisation, 2509.25035).

    Args:
        reward: (B,), B a multiple of ``group``. The standard deviation is that of the sample (n − 1).
    """
    groups = reward.view(-1, group)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + epsilon)).clamp(-clamp, clamp).view(-1)


def grouped_token_advantage(reward: Tensor, used: Tensor, group: int, clamp: float, epsilon: float = 1e-8) -> Tensor:
    """The same for one reward a token: mean and standard deviation over the ``used`` tokens of a group.

    Args:
        reward, used: (B, L).
    """
    rows, length = reward.shape
    reward_group, used_group = (x.view(-1, group * length) for x in (reward, used.to(reward)))
    n = used_group.sum(1, keepdim=True).clamp(min=2)
    mean = (reward_group * used_group).sum(1, keepdim=True) / n
    variance = ((reward_group - mean).square() * used_group).sum(1, keepdim=True) / (n - 1)
    return ((reward_group - mean) / (variance.sqrt() + epsilon)).clamp(-clamp, clamp).view(rows, length)
