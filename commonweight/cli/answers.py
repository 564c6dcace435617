"""What an epoch's answers come to: how many were sealed, and how much of them each stage is paid for."""

from dataclasses import dataclass
from typing import Any

from commonweight.rules.statement import Statement


@dataclass(frozen=True)
class AnswerTotals:
    """Of an epoch that is right."""

    sealed: int
    tokens: int
    """Delivered, prompts included."""
    unpaid: dict[int, int]
    """By stage, of these tokens those that its providers aren't paid for; of stages with any."""

    def facts(self) -> dict[str, Any]:
        """For programs."""
        unpaid = [{"stage": stage, "tokens": tokens} for stage, tokens in self.unpaid.items()]
        return {"answers": {"sealed": self.sealed, "tokens": self.tokens, "unpaid": unpaid}}

    def fields(self) -> dict[str, object]:
        """For people; of what there was."""
        if not self.sealed:
            return {}
        unpaid = [f"stage {stage}: {tokens:,} of {self.tokens:,} tokens" for stage, tokens in self.unpaid.items()]
        sealed = f"{self.sealed:,} sealed, each signed by its gateway and all stages: {self.tokens:,} tokens"
        return {"answers": sealed} | ({"unpaid answers": unpaid} if unpaid else {})


def count_answers(statement: Statement) -> AnswerTotals:
    """Of a statement that is right."""
    tokens = sum(sealed.delivered for sealed in statement.rounds)
    left = {report.stage: tokens for report in statement.rounds[0].reports}
    for line in statement.served:
        left[line.stage] -= line.tokens
    sealed = sum(len(each.answers) for each in statement.rounds)
    return AnswerTotals(sealed, tokens, {stage: unpaid for stage, unpaid in left.items() if unpaid})
