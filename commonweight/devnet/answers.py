"""What became of the answers that were sold on a devnet, from the statements: how many were sealed, who was paid."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from commonweight.rules.statement import Statement


@dataclass(frozen=True)
class SoldAnswers:
    """Of all final epochs."""

    sealed: int = 0
    tokens: int = 0
    """Delivered with these: prompts and completions."""
    paid: Mapping[str, int] = field(default_factory=dict)
    """Tokens that a provider is paid for, by the node's address. Of an honest one: all."""

    def fields(self) -> dict[str, object]:
        """As in the report."""
        return {"sealed": self.sealed, "tokens": self.tokens, "paid_tokens": dict(self.paid)}


def count_sold_answers(statements: Iterable[Statement]) -> SoldAnswers:
    """All answers of these epochs."""
    sealed = tokens = 0
    paid: Counter[str] = Counter()
    for statement in statements:
        lines = [line for round_ in statement.rounds for line in round_.answers]
        sealed += len(lines)
        tokens += sum(line.delivered for line in lines)
        for served in statement.served:
            paid[served.node] += served.tokens
    return SoldAnswers(sealed, tokens, dict(paid))
