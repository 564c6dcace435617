"""What an answer costs: integers, rounded up once per request."""

from dataclasses import dataclass

MTOK = 10**6


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in the revenue token's smallest unit."""

    prompt_per_mtok: int
    completion_per_mtok: int

    def __post_init__(self) -> None:
        if min(self.prompt_per_mtok, self.completion_per_mtok) < 0:
            raise ValueError(f"a price can't be negative: {self.prompt_per_mtok}, {self.completion_per_mtok}")

    @property
    def is_free(self) -> bool:
        """Whether no payment is asked for."""
        return self.prompt_per_mtok == self.completion_per_mtok == 0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """ceil((prompt · price + completion · price) / 10^6)."""
        millionths = prompt_tokens * self.prompt_per_mtok + completion_tokens * self.completion_per_mtok
        return -(-millionths // MTOK)
