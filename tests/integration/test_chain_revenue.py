"""Buyers' payments, from the signature to shares, operators and treasury, on both back-ends."""

from dataclasses import replace

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from commonweight.chain.authorization import TokenDomain, authorization_digest, permit_digest, sign_authorization
from commonweight.chain.events import OperatorPaid, PaymentCollected, Swept, TreasuryPaid
from commonweight.chain.keys import Key
from commonweight.chain.records import NOBODY, Authorization
from commonweight.chain.reverts import ContractReverted
from commonweight.errors import ChainError
from tests.integration.chain_world import (
    ALICE,
    BOB,
    BUYER,
    COMPUTE,
    COORDINATOR,
    DATA,
    DESIGNER,
    DOLLAR,
    PREC,
    STRANGER,
    STREAM_S,
    TREASURY,
    ChainWorld,
    Earned,
)

HUGE = 2**256 - 1
NONCE = b"\x05" * 32
DOMAIN_FIELDS = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "chainId", "type": "uint256"},
    {"name": "verifyingContract", "type": "address"},
]


def fund(world: ChainWorld, amount: int = 100 * DOLLAR) -> None:
    world.usd().mint(BUYER.address, amount)


def typed(domain: TokenDomain, kind: str, types: dict[str, str], message: dict[str, object], key: Key) -> bytes:
    """What a wallet signs, by eth_account's own reading of EIP-712."""
    data = {
        "types": {
            "EIP712Domain": DOMAIN_FIELDS,
            kind: [{"name": name, "type": type_} for name, type_ in types.items()],
        },
        "primaryType": kind,
        "domain": {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": domain.token,
        },
        "message": message,
    }
    return bytes(Account.sign_message(encode_typed_data(full_message=data), key.secret).signature)


# Signatures


@pytest.mark.parametrize("value", [0, 1, 10**6, HUGE])
@pytest.mark.parametrize(("name", "version"), [("USD Coin", "2"), ("Dollar “ü”", ""), ("", "1")])
def test_an_authorization_is_signed_as_wallets_do(name: str, version: str, value: int) -> None:
    domain = TokenDomain(name, version, 8_453, STRANGER.address)
    signed = sign_authorization(BUYER, domain, ALICE.address, value, 0, HUGE, NONCE)
    types = {"from": "address", "to": "address", "value": "uint256", "validAfter": "uint256", "validBefore": "uint256"}
    times = {"validAfter": 0, "validBefore": HUGE}
    message = {"from": BUYER.address, "to": ALICE.address, "value": value, **times, "nonce": NONCE}
    kind = "TransferWithAuthorization"
    assert signed.signature == typed(domain, kind, {**types, "nonce": "bytes32"}, message, BUYER)
    digest = authorization_digest(domain, BUYER.address, ALICE.address, value, 0, HUGE, NONCE)
    assert Account._recover_hash(digest, signature=signed.signature) == BUYER.address


def test_a_permit_is_signed_as_wallets_do() -> None:
    domain = TokenDomain("USD Coin", "2", 1, STRANGER.address)
    digest = permit_digest(domain, BUYER.address, ALICE.address, 7, 3, 99)
    types = {"owner": "address", "spender": "address", "value": "uint256", "nonce": "uint256", "deadline": "uint256"}
    message = {"owner": BUYER.address, "spender": ALICE.address, "value": 7, "nonce": 3, "deadline": 99}
    assert BUYER.sign_digest(digest) == typed(domain, "Permit", types, message, BUYER)


def test_the_token_takes_an_authorization_once(world: ChainWorld) -> None:
    usd = world.usd(STRANGER)
    fund(world)
    assert (usd.name(), usd.version(), usd.symbol()) == ("Commonweight devnet dollar", "1", "tUSD")
    signed = sign_authorization(BUYER, usd.domain(), ALICE.address, 7, 0, world.chain.timestamp() + 60, NONCE)
    move = usd.action(
        "transferWithAuthorization",
        *(BUYER.address, ALICE.address, 7, signed.valid_after, signed.valid_before, NONCE, signed.signature),
    )
    assert not usd.authorization_used(BUYER.address, NONCE)
    world.sender(STRANGER).send(move)
    assert usd.authorization_used(BUYER.address, NONCE)
    assert usd.balance_of(ALICE.address) == 7
    with pytest.raises(ContractReverted, match="ERC3009UsedAuthorization"):
        world.sender(STRANGER).send(move)


def test_the_token_takes_a_permit_once(world: ChainWorld) -> None:
    usd, deadline = world.usd(STRANGER), world.chain.timestamp() + 60
    digest = permit_digest(usd.domain(), BUYER.address, ALICE.address, 7, usd.nonces(BUYER.address), deadline)
    signature = BUYER.sign_digest(digest)
    r, s, v = signature[:32], signature[32:64], signature[64]
    permit = usd.action("permit", BUYER.address, ALICE.address, 7, deadline, v, r, s)
    world.sender(STRANGER).send(permit)
    assert usd.allowance(BUYER.address, ALICE.address) == 7
    assert usd.nonces(BUYER.address) == 1
    with pytest.raises(ContractReverted, match="ERC2612InvalidSigner"):
        world.sender(STRANGER).send(permit)


# Collecting


def test_what_was_not_delivered_goes_back_at_once(world: ChainWorld) -> None:
    router, usd = world.router(), world.usd()
    fund(world)
    authorization = world.authorize(BUYER, 10 * DOLLAR)
    quote = world.sender().dry_run(router.collect_action(authorization, 3 * DOLLAR))
    receipt = router.collect(authorization, 3 * DOLLAR)
    assert receipt.gas_used <= quote.gas_limit
    assert usd.balance_of(BUYER.address) == 97 * DOLLAR
    assert usd.balance_of(router.address) == router.unswept() == 3 * DOLLAR
    assert usd.authorization_used(BUYER.address, NONCE)
    (event,) = router.events(PaymentCollected, from_=BUYER.address)
    assert (event.nonce, event.value, event.charged) == (NONCE, 10 * DOLLAR, 3 * DOLLAR)
    for charged in (3 * DOLLAR, 0):
        with pytest.raises(ContractReverted, match="ERC3009UsedAuthorization"):
            router.collect(authorization, charged)
    assert usd.balance_of(BUYER.address) == 97 * DOLLAR


@pytest.mark.parametrize("charged", [0, 10 * DOLLAR])
def test_nothing_or_all_can_be_charged(world: ChainWorld, charged: int) -> None:
    fund(world)
    world.router().collect(world.authorize(BUYER, 10 * DOLLAR), charged)
    assert world.usd().balance_of(BUYER.address) == 100 * DOLLAR - charged
    assert world.router().unswept() == charged


def test_what_the_payer_did_not_sign_is_refused(world: ChainWorld) -> None:
    fund(world)
    signed, router, later = world.authorize(BUYER, 10 * DOLLAR), world.router(), world.chain.timestamp() + 1_000
    for error, authorization, charged in (
        ("RevenueRouterChargedTooMuch", signed, 10 * DOLLAR + 1),
        ("RevenueRouterChargedTooMuch", signed, HUGE),
        ("ERC3009InvalidSignature", replace(signed, value=11 * DOLLAR), 1),
        ("ERC3009InvalidSignature", replace(signed, from_=ALICE.address), 1),
        ("ERC3009InvalidSignature", replace(signed, nonce=bytes(32)), 1),
        ("ERC3009InvalidSignature", replace(signed, valid_before=HUGE), 1),
        ("ERC20InsufficientBalance", world.authorize(BUYER, HUGE), 1),
        ("ERC20InsufficientBalance", world.authorize(ALICE, 1), 1),
        ("TestUSDExpired", world.authorize(BUYER, 1, valid_before=1), 1),
        ("TestUSDNotYetValid", world.authorize(BUYER, 1, valid_after=later), 1),
    ):
        with pytest.raises(ContractReverted) as caught:
            router.collect(authorization, charged)
        assert caught.value.error == error, authorization
        assert error in str(caught.value)
    for signature in (bytes(65), signed.signature[:64] + b"\xff"):
        with pytest.raises(ContractReverted, match="ECDSAInvalidSignature"):
            router.collect(replace(signed, signature=signature), 1)
    for signature in (b"", signed.signature[:64], signed.signature + b"\x00"):
        with pytest.raises(ChainError, match="a signature has 65 bytes"):
            router.collect(replace(signed, signature=signature), 1)
    assert world.usd().balance_of(BUYER.address) == 100 * DOLLAR
    router.collect(signed, 1)


def test_only_cashiers_and_the_coordinator_collect(world: ChainWorld) -> None:
    fund(world)
    signed = world.authorize(BUYER, DOLLAR)
    assert not world.router().is_cashier(STRANGER.address)
    with pytest.raises(ContractReverted, match="RevenueRouterNotCashier"):
        world.router(STRANGER).collect(signed, 1)
    with pytest.raises(ContractReverted, match="RevenueRouterNotCoordinator"):
        world.router(STRANGER).set_cashier(STRANGER.address, True)
    world.router().set_cashier(STRANGER.address, True)
    assert world.router().is_cashier(STRANGER.address)
    world.router(STRANGER).collect(signed, 1)
    world.router().set_cashier(STRANGER.address, False)
    with pytest.raises(ContractReverted, match="RevenueRouterNotCashier"):
        world.router(STRANGER).collect(world.authorize(BUYER, DOLLAR, bytes(32)), 1)


# Splitting


def pay(world: ChainWorld, amount: int, nonce: bytes = NONCE) -> None:
    world.usd().mint(BUYER.address, amount)
    world.router().collect(world.authorize(BUYER, amount, nonce), amount)


def test_a_sweep_divides_every_cent(world: ChainWorld) -> None:
    router, usd, shares = world.router(STRANGER), world.usd(), world.shares()
    with pytest.raises(ContractReverted, match="RevenueRouterNothingToSweep"):
        router.sweep()
    amount = 10 * DOLLAR + 7
    pay(world, 10 * DOLLAR)
    usd.mint(router.address, 7)  # a plain transfer, as from any wallet
    assert router.unswept() == amount
    router.sweep()
    (swept,) = router.events(Swept)
    assert swept.to_operators == amount * 2_000 // 10_000 == router.operator_earned() == router.operator_pool()
    assert swept.to_treasury == amount * 500 // 10_000 == router.treasury_pool()
    assert swept.to_shares == amount - swept.to_operators - swept.to_treasury == shares.deposited()
    assert usd.balance_of(shares.address) == swept.to_shares
    assert usd.balance_of(router.address) == swept.to_operators + swept.to_treasury
    assert router.unswept() == 0
    with pytest.raises(ContractReverted, match="RevenueRouterNotTreasury"):
        router.pay_treasury(STRANGER.address)
    world.router(TREASURY).pay_treasury(ALICE.address)
    assert usd.balance_of(ALICE.address) == swept.to_treasury
    assert router.treasury_pool() == 0
    assert [(event.to, event.amount) for event in router.events(TreasuryPaid)] == [(ALICE.address, swept.to_treasury)]


def test_operators_are_paid_what_final_epochs_say(world: ChainWorld) -> None:
    router, usd = world.router(STRANGER), world.usd()
    pay(world, 10 * DOLLAR)
    router.sweep()
    pool = router.operator_pool()
    first, second = pool // 4, pool // 2
    claims = world.finalise({ALICE: Earned(COMPUTE, COMPUTE, operator=first), BOB: Earned(0, 0, operator=second)})
    assert world.sender(STRANGER).dry_run(router.pay_operator_action(claims[ALICE])).gas > 21_000
    router.pay_operator(claims[ALICE])
    router.pay_operator(claims[BOB])
    assert (usd.balance_of(ALICE.address), usd.balance_of(BOB.address)) == (first, second)
    assert (router.operator_paid(ALICE.address), router.operator_pool()) == (first, pool - first - second)
    assert router.operator_earned() == pool
    with pytest.raises(ContractReverted, match="RevenueRouterNothingToPay"):
        router.pay_operator(claims[ALICE])
    with pytest.raises(ContractReverted, match="EpochSettlementInvalidProof"):
        router.pay_operator(replace(claims[ALICE], operator_revenue=HUGE))

    too_much = world.finalise({ALICE: Earned(COMPUTE, 0, operator=first + pool)}, epoch=1)
    with pytest.raises(ContractReverted, match="RevenueRouterPoolTooSmall"):
        router.pay_operator(too_much[ALICE])
    fits = world.finalise({ALICE: Earned(COMPUTE, 0, operator=first + 5), STRANGER: Earned(0, 0, operator=1)}, epoch=2)
    router.pay_operator(fits[ALICE])
    assert usd.balance_of(ALICE.address) == first + 5
    events = router.events(OperatorPaid, account=ALICE.address)
    assert [(event.epoch, event.amount) for event in events] == [(0, first), (2, 5)]


# Streams


def held(world: ChainWorld) -> int:
    """Σ owedScaled of everybody, and what is not credited yet."""
    shares = world.shares()
    accounts = (DESIGNER.address, DATA.address, ALICE.address, BOB.address, shares.settlement(), NOBODY)
    return sum(shares.owed_scaled(account) for account in accounts) + shares.undistributed_scaled()


def test_a_deposit_is_credited_over_its_period_and_adds_up_at_any_time(world: ChainWorld) -> None:
    shares, usd = world.shares(STRANGER), world.usd()
    claims = world.finalise({ALICE: Earned(COMPUTE // 3, COMPUTE // 3), BOB: Earned(7, 7)})
    amount = 1_000 * DOLLAR + 1
    world.give(STRANGER, amount, shares.address)
    before = world.chain.timestamp()
    shares.deposit_revenue(amount)
    assert before + STREAM_S <= shares.stream_end() <= world.chain.timestamp() + STREAM_S
    world.later(STREAM_S // 2)
    assert 0.4 < shares.undistributed_scaled() / (amount * PREC) < 0.6
    assert held(world) == amount * PREC
    world.settlement().claim(claims[ALICE])
    half = shares.owed(ALICE.address)
    shares.withdraw_revenue_for(ALICE.address)
    assert usd.balance_of(ALICE.address) >= half > 0
    world.later(STREAM_S)
    assert shares.stream_end() <= world.chain.timestamp()
    assert shares.undistributed_scaled() < PREC
    world.shares(DESIGNER).withdraw_revenue(BOB.address)
    paid = sum(event.amount for event in shares.withdrawals())
    assert paid == usd.balance_of(ALICE.address) + usd.balance_of(BOB.address)
    assert held(world) + paid * PREC == amount * PREC
    assert [(event.from_, event.amount) for event in shares.deposits()] == [(STRANGER.address, amount)]
    assert shares.deposited() == amount


def test_a_deposit_into_a_running_stream_merges_with_it(world: ChainWorld) -> None:
    shares = world.shares(STRANGER)
    world.give(STRANGER, 30 * DOLLAR, shares.address)
    shares.deposit_revenue(10 * DOLLAR)
    world.later(STREAM_S // 2)
    end = shares.stream_end()
    shares.deposit_revenue(20 * DOLLAR)
    assert end < shares.stream_end() < world.chain.timestamp() + STREAM_S
    assert held(world) == 30 * DOLLAR * PREC
    world.later(2 * STREAM_S)
    assert held(world) == 30 * DOLLAR * PREC
    assert shares.undistributed_scaled() < PREC


def test_a_share_earns_for_who_held_it(world: ChainWorld) -> None:
    shares = world.shares(DESIGNER)
    world.give(STRANGER, 75 * DOLLAR, shares.address)
    world.shares(STRANGER).deposit_revenue(75 * DOLLAR)
    world.later(2 * STREAM_S)
    owed = shares.owed(DESIGNER.address)
    assert owed in (50 * DOLLAR - 1, 50 * DOLLAR)
    shares.transfer(ALICE.address, shares.balance_of(DESIGNER.address))
    assert (shares.owed(DESIGNER.address), shares.owed(ALICE.address)) == (owed, 0)
    with pytest.raises(ContractReverted, match="ModelSharesNothingOwed"):
        world.shares(ALICE).withdraw_revenue(ALICE.address)
    with pytest.raises(ContractReverted, match="ModelSharesInvalidPayee"):
        shares.withdraw_revenue(NOBODY)


def test_a_payment_that_nobody_signed_is_no_record() -> None:
    with pytest.raises(ChainError, match="this one has 0"):
        Authorization(COORDINATOR.address, 1, 0, 1, NONCE, b"").to_struct()
