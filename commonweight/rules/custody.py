"""What it costs to hold a whole model. The contract ProviderRegistry enforces the cap."""


def least_owners(stages: int, max_stages_per_owner: int) -> int:
    """How many staked owners must act as one to hold a replica of every stage."""
    return -(-stages // max_stages_per_owner)


def least_stake(stages: int, seat_stake: int) -> int:
    """The stake that buys one replica of every stage, in the bond token's smallest unit, over whatever owners.

    An economic bound, not a cryptographic one: an owner who can make up many identities pays this and no more.
    """
    return stages * seat_stake
