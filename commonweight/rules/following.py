"""How a newcomer comes to the version that the others train next: it fetches one, and follows them by the gradients of
the rounds that were sealed meanwhile, with which it steps as they did.

A state is as many bytes as three gradients, each of which every replica has to send and to get in a round anyway. So
whose line carries a gradient in less than a round has fetched a state before it is four rounds behind, and then comes
nearer with each gradient. Nobody waits for it.
"""

import math

FOLLOWED_ROUNDS = 4
"""So many gradients are kept of the last rounds; who is further behind fetches a state."""
NEWCOMERS_S = 3.0
"""Between two rounds, for newcomers to get to the state that the next begins with, and to open their pipes."""


def is_to_be_waited_for(behind: int, before: float, fetch_s: float, follow_s: float) -> bool:
    """Whether others do well to wait for who is so many rounds behind, and was `before` when it came to its version
    before (infinite: to none): it doesn't come nearer by itself, and would be there within NEWCOMERS_S after the next
    seal. `fetch_s`, `follow_s`: what a state, and a gradient with its step, take it; infinite where not known.
    """
    following_s = (behind + 1) * follow_s if behind < FOLLOWED_ROUNDS else math.inf
    return behind > 0 and before <= behind and min(fetch_s, following_s) <= NEWCOMERS_S
