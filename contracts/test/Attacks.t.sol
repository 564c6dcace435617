// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IModelShares} from "../src/interfaces/IModelShares.sol";
import {IRevenueRouter} from "../src/interfaces/IRevenueRouter.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {Ledger} from "./Ledger.sol";
import {BlockingToken, FeeToken, ReentrantToken, SilentToken} from "./mocks/HostileTokens.sol";

// EIP-3009's function without its signature check.
contract UnsignedReentrantToken is ReentrantToken {
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        uint8,
        bytes32,
        bytes32
    ) external {
        _transfer(from, to, value);
    }
}

contract UnsignedFeeToken is FeeToken {
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        uint8,
        bytes32,
        bytes32
    ) external {
        _transfer(from, to, value);
    }
}

contract UnsignedBlockingToken is BlockingToken {
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        uint8,
        bytes32,
        bytes32
    ) external {
        _transfer(from, to, value);
    }
}

/// @notice As the old tokens have it: no return value here either.
contract ApprovableSilentToken is SilentToken {
    function approve(address, uint256) external {}
}

/// @notice Hostile revenue tokens, and proofs, roots and payments used where they don't belong.
contract AttacksTest is Ledger {
    uint256 private constant MINTED = 1000e18;

    /// @dev Of the token of this test to call back.
    uint256 private attempts;

    function setUp() public override {
        super.setUp();
        addProviders(4);
    }

    /// @dev A model whose revenue token is `token`, with epoch 0 settled: DESIGNER holds a tenth, DATA a twentieth.
    function openWith(address token) private {
        registry = new ModelRegistry(tokens(token));
        IModelRegistry.Params memory p = params("hostile");
        (p.revenueToken, p.proposerBond) = (token, 0);
        open(p);
        settleFour(0);
        claimAllSplits();
        vm.prank(COORDINATOR);
        router.setCashier(ANYBODY, true);
    }

    function settleFour(uint32 e) private {
        uint256[] memory weights = new uint256[](4);
        (weights[0], weights[1], weights[2], weights[3]) = (1, 2, 3, 4);
        settleShares(e, MINTED, weights);
    }

    function payment(address from, uint256 value) private pure returns (IRevenueRouter.Authorization memory a) {
        (a.from, a.value) = (from, value);
    }

    // ------------------------------------------------------------------ re-entrance

    function expectGuarded(ReentrantToken token) private {
        vm.assertTrue(token.attempts() == ++attempts, "the token never called back");
        vm.assertTrue(!token.succeeded(), "re-entered");
        vm.assertEq(
            // forge-lint: disable-next-line(unsafe-typecast)
            bytes32(bytes4(token.answer())),
            bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector),
            "refused for another reason"
        );
    }

    function test_reentrancy_shares() public {
        UnsignedReentrantToken token = new UnsignedReentrantToken();
        openWith(address(token));
        bytes[2] memory calls =
            [abi.encodeCall(shares.withdrawRevenueFor, (DESIGNER)), abi.encodeCall(shares.depositRevenue, (0))];
        earn(1_000_000);
        for (uint256 i = 0; i < 2; i++) {
            fund(BUYER, address(shares), 500_000);
            token.arm(address(shares), calls[i]);
            vm.prank(BUYER);
            shares.depositRevenue(500_000);
            expectGuarded(token);
        }
        uint256 due = shares.owed(DESIGNER);
        token.arm(address(shares), calls[0]);
        shares.withdrawRevenueFor(DESIGNER);
        expectGuarded(token);
        token.arm(address(shares), calls[1]);
        shares.withdrawRevenueFor(DATA);
        expectGuarded(token);
        vm.assertEq(token.balanceOf(DESIGNER), due, "paid more than once");
    }

    function test_reentrancy_settlement() public {
        UnsignedReentrantToken token = new UnsignedReentrantToken();
        openWith(address(token));
        propose(1, keccak256("root"), MINTED);
        bytes[3] memory calls = [
            abi.encodeCall(settlement.depositBond, (BUYER, 1)),
            abi.encodeCall(settlement.withdrawBond, (BUYER, 1)),
            abi.encodeCall(settlement.challengeEpoch, (1, keccak256("root"), EVIDENCE, URI))
        ];
        for (uint256 i = 0; i < 3; i++) {
            fund(BUYER, address(settlement), 100);
            token.arm(address(settlement), calls[i]);
            vm.prank(BUYER);
            settlement.depositBond(BUYER, 100);
            expectGuarded(token);
            token.arm(address(settlement), calls[i]);
            vm.prank(BUYER);
            settlement.withdrawBond(BUYER, 50);
            expectGuarded(token);
        }
        fund(CHALLENGER, address(settlement), CHALLENGER_BOND);
        token.arm(address(settlement), calls[1]);
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(1, keccak256("root"), EVIDENCE, URI);
        expectGuarded(token);
        vm.assertEq(settlement.bondOf(BUYER), 150, "bond");
        vm.assertEq(token.balanceOf(address(settlement)), uint256(CHALLENGER_BOND) + 150, "held");
    }

    function test_reentrancy_router() public {
        UnsignedReentrantToken token = new UnsignedReentrantToken();
        openWith(address(token));
        token.mint(address(router), 2_000_000);
        router.sweep();
        settleFour(1);
        token.mint(BUYER, 1_000_000);
        token.mint(address(router), 1_000_000);
        IEpochSettlement.Claim memory c = entry(1, providers[0]);
        bytes[4] memory calls = [
            abi.encodeCall(router.collect, (payment(BUYER, 1000), 1000)),
            abi.encodeCall(router.sweep, ()),
            abi.encodeCall(router.payOperator, (c, finalOf(1))),
            abi.encodeCall(router.payTreasury, (TREASURY))
        ];
        uint256 before = vm.snapshotState();
        for (uint256 i = 0; i < 4; i++) {
            token.arm(address(router), calls[i]);
            vm.prank(ANYBODY);
            router.collect(payment(BUYER, 1000), 500);
            expectGuarded(token);
            token.arm(address(router), calls[i]);
            router.sweep();
            expectGuarded(token);
            token.arm(address(router), calls[i]);
            router.payOperator(c, finalOf(1));
            expectGuarded(token);
            token.arm(address(router), calls[i]);
            vm.prank(TREASURY);
            router.payTreasury(TREASURY);
            expectGuarded(token);
            attempts = 0;
            vm.assertTrue(vm.revertToState(before), "snapshot");
        }
    }

    /// @dev Minting isn't guarded: a deposit that triggers a finalisation is divided by the supply after it.
    function test_reentrancy_finaliseWithinADeposit() public {
        UnsignedReentrantToken token = new UnsignedReentrantToken();
        openWith(address(token));
        deposit(999_999);
        propose(1, keccak256("root"), MINTED);
        elapse(WINDOW);
        fund(BUYER, address(shares), 1_000_003);
        token.arm(address(settlement), abi.encodeCall(settlement.finalizeEpoch, (1)));
        vm.prank(BUYER);
        shares.depositRevenue(1_000_003);
        vm.assertTrue(token.succeeded(), "the finalisation didn't happen");
        elapse(PERIOD);
        vm.assertEq(
            shares.owedScaled(DESIGNER) + shares.owedScaled(DATA) + shares.owedScaled(address(settlement))
                + shares.undistributedScaled(),
            2_000_002 * PREC,
            "conservation"
        );
        vm.assertTrue(shares.undistributedScaled() < 2 * MINTED * PERIOD, "divided by another supply");
    }

    // ------------------------------------------------------------------ other tokens

    function test_feeOnTransfer_creditsWhatArrivedOrRefuses() public {
        UnsignedFeeToken token = new UnsignedFeeToken();
        openWith(address(token));
        vm.assertEq(deposit(1_000_000), 990_000, "received");
        vm.assertEq(shares.undistributedScaled(), 990_000 * PREC, "revenue");
        vm.assertEq(token.balanceOf(address(shares)), 990_000, "balance");

        fund(BUYER, address(settlement), 1_000_000);
        vm.prank(BUYER);
        vm.assertEq(settlement.depositBond(BUYER, 1_000_000), 990_000, "bond received");
        vm.assertEq(settlement.bondOf(BUYER), 990_000, "bond");
        propose(1, keccak256("root"), MINTED);
        fund(CHALLENGER, address(settlement), CHALLENGER_BOND);
        vm.expectRevert(
            abi.encodeWithSelector(
                IEpochSettlement.EpochSettlementBondTooSmall.selector, CHALLENGER_BOND / 100 * 99, CHALLENGER_BOND
            )
        );
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(1, keccak256("root"), EVIDENCE, URI);

        token.mint(BUYER, 1_000_000);
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterWrongAmount.selector, 990_000, 1_000_000));
        vm.prank(ANYBODY);
        router.collect(payment(BUYER, 1_000_000), 5);
    }

    function test_returnsNothing_worksAndLiesAreRefused() public {
        ApprovableSilentToken token = new ApprovableSilentToken();
        openWith(address(token));
        deposit(1_000_000);
        elapse(PERIOD);
        shares.withdrawRevenueFor(DATA);
        vm.assertEq(token.balanceOf(DATA), 49_999, "paid");
        postBond(BUYER, 100);
        token.mint(address(router), 1_000_000);
        router.sweep();
        vm.assertEq(token.balanceOf(address(router)), 230_000, "swept");
        fund(BUYER, address(shares), 1_000_000);
        token.lie();
        bytes memory reason = abi.encodeWithSignature("SafeERC20FailedOperation(address)", address(token));
        vm.expectRevert(reason);
        vm.prank(BUYER);
        shares.depositRevenue(1_000_000);
        vm.expectRevert(reason);
        shares.withdrawRevenueFor(DESIGNER);
        vm.expectRevert(reason);
        vm.prank(BUYER);
        settlement.withdrawBond(BUYER, 100);
        vm.expectRevert(reason);
        vm.prank(TREASURY);
        router.payTreasury(TREASURY);
        vm.assertEq(shares.owed(DESIGNER), 99_999, "a refused payment is still owed");
        vm.assertEq(settlement.bondOf(BUYER), 100, "a refused bond is still there");
        vm.assertEq(router.treasuryPool(), 30_000, "the treasury's part is still there");
    }

    function test_blockingToken_stopsOnlyTheBlocked() public {
        UnsignedBlockingToken token = new UnsignedBlockingToken();
        openWith(address(token));
        earn(1_000_000);
        token.mint(address(router), 1_000_000);
        router.sweep();
        settleFour(1);
        token.setBlocked(DESIGNER);
        token.setBlocked(providers[0]);
        token.setBlocked(TREASURY);
        token.setBlocked(BUYER);
        bytes memory reason = abi.encodeWithSelector(BlockingToken.Blocked.selector, DESIGNER);
        vm.expectRevert(reason);
        shares.withdrawRevenueFor(DESIGNER);
        shares.withdrawRevenueFor(DATA);
        vm.prank(DESIGNER);
        shares.withdrawRevenue(ANYBODY); // the blocked can name another payee
        vm.assertTrue(token.balanceOf(ANYBODY) >= 99_999, "payee");
        claimFor(1, providers[0]); // and shares are still theirs

        IEpochSettlement.Claim memory c = entry(1, providers[0]);
        IEpochSettlement.FinalEpoch memory f = finalOf(1);
        vm.expectRevert(abi.encodeWithSelector(BlockingToken.Blocked.selector, providers[0]));
        router.payOperator(c, f);
        router.payOperator(entry(1, providers[1]), f);
        vm.prank(TREASURY);
        router.payTreasury(ANYBODY);
        vm.expectRevert(abi.encodeWithSelector(BlockingToken.Blocked.selector, BUYER));
        vm.prank(ANYBODY);
        router.collect(payment(BUYER, 0), 0);
    }

    function test_donation_isNotCounted() public {
        settleFour(0);
        claimAllSplits();
        usd.mint(address(shares), 1_000_000);
        usd.mint(address(settlement), 1_000_000);
        vm.assertEq(shares.owed(DESIGNER), 0, "owed");
        deposit(10_000);
        vm.assertEq(shares.undistributedScaled(), 10_000 * PREC, "a donation counted as the next deposit");
        postBond(BUYER, 5);
        vm.assertEq(settlement.bondOf(BUYER), 5, "a donation counted as the next bond");
    }

    // ------------------------------------------------------------------ proofs

    function expectInvalid(IEpochSettlement.Claim memory c) private {
        IEpochSettlement.FinalEpoch memory f = finalOf(c.epoch);
        bytes memory reason = abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, hashOf(c));
        vm.expectRevert(reason);
        settlement.claim(c, f);
        vm.expectRevert(reason);
        router.payOperator(c, f);
    }

    function test_replay_onAnotherChain() public {
        settleFour(0);
        IEpochSettlement.Claim memory c = entry(0, providers[3]);
        uint256 here = block.chainid;
        vm.chainId(here + 1);
        expectInvalid(c);
        vm.chainId(here);
        claimFor(0, providers[3]);
    }

    function test_replay_onAnotherModel() public {
        settleFour(0);
        IEpochSettlement.Claim memory c = entry(0, providers[3]);
        bytes32 root = finalOf(0).root;
        open(params("twin"));
        settle(0, root, MINTED); // the very same root
        expectInvalid(c);
    }

    function test_replay_inAnotherEpoch() public {
        settleFour(0);
        settle(1, keccak256("another tree"), MINTED);
        IEpochSettlement.Claim memory c = entry(0, providers[3]);
        c.epoch = 1;
        expectInvalid(c);
    }

    /// @dev A tree over leaves hashed once can't be claimed from: leaves live in another hash domain than inner nodes.
    function test_secondPreimage_singleHashIsNoLeaf() public {
        bytes32 once = keccak256(abi.encode(block.chainid, address(settlement), ANYBODY, 10, 10, 0, 0));
        settle(0, once, MINTED);
        expectInvalid(claimOf(0, Leaf(ANYBODY, 10, 10, 0, 0), new bytes32[](0)));
    }

    /// @dev A path cut short, lengthened, or emptied leads nowhere.
    function test_secondPreimage_pathsOfAnotherLength() public {
        settleFour(0);
        IEpochSettlement.Claim memory c = entry(0, providers[0]);
        bytes32[] memory proof = c.proof;
        vm.assertEq(proof.length, 2, "depth");
        c.proof = new bytes32[](1);
        c.proof[0] = proof[1];
        expectInvalid(c);
        c.proof = new bytes32[](3);
        (c.proof[0], c.proof[1], c.proof[2]) = (proof[0], proof[1], finalOf(0).root);
        expectInvalid(c);
        c.proof = new bytes32[](0);
        expectInvalid(c);
    }

    // ------------------------------------------------------------------ front-running

    /// @dev Whoever claims first on a provider's behalf pays the provider; only the provider's own call, made with the
    /// numbers of before, fails. A later root doesn't break a proof in flight.
    function test_frontRun_claimPaysTheVictim() public {
        settleFour(0);
        (IEpochSettlement.Claim memory c, IEpochSettlement.FinalEpoch memory f) = (entry(0, providers[2]), finalOf(0));
        vm.prank(ANYBODY);
        settlement.claim(c, f);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementStaleClaim.selector, providers[2]));
        settlement.claim(c, f);
        vm.assertEq(shares.balanceOf(providers[2]), c.cumulativeShares, "the victim's shares");
        vm.assertEq(shares.balanceOf(ANYBODY), 0, "front-runner");
    }

    /// @dev EIP-3009 lets anybody send what the payer signed, so the undelivered rest isn't returned then. It costs the
    /// payer no more than it signed, and gives the attacker nothing.
    function test_frontRun_authorizationSentToTheTokenItself() public {
        settleFour(0);
        address payer = vm.addr(PAYER_KEY);
        usd.mint(payer, 10e6);
        IRevenueRouter.Authorization memory a = authorize(4e6, "order");
        vm.prank(ANYBODY);
        usd.transferWithAuthorization(
            a.from, address(router), a.value, a.validAfter, a.validBefore, a.nonce, a.v, a.r, a.s
        );
        vm.prank(COORDINATOR);
        (bool collected,) = address(router).call(abi.encodeCall(router.collect, (a, 3e6)));
        vm.assertTrue(!collected, "collected twice");
        vm.assertEq(usd.balanceOf(payer), 6e6, "payer");
        vm.assertEq(router.unswept(), 4e6, "router");
    }

    // ------------------------------------------------------------------ revenue

    /// @dev Who buys shares just before a deposit, or sweeps one itself, and sells them `held` seconds later has earned at
    /// most what those shares earn in that part of the period.
    function testFuzz_justInTimeBuyer(uint256 revenue, uint256 bought, uint256 held) public {
        settleFour(0);
        claimAllSplits();
        revenue = bound(revenue, 1, 1e30);
        (bought, held) = (bound(bought, 1, 100e18), bound(held, 0, PERIOD));
        vm.prank(DESIGNER);
        require(shares.transfer(ANYBODY, bought));
        deposit(revenue);
        elapse(held);
        vm.prank(ANYBODY);
        require(shares.transfer(DESIGNER, bought));
        elapse(2 * PERIOD);
        vm.assertLe(shares.owedScaled(ANYBODY), revenue * PREC / MINTED * bought * held / PERIOD, "more than its time");
    }

    // ------------------------------------------------------------------ epochs

    /// @dev A statement that can't be fetched is ground enough: the challenge stops the root, and what is proposed anew
    /// can be checked.
    function test_withheldData_isChallenged() public {
        propose(0, keccak256("a root that nobody can recompute"), MINTED);
        challenge(0);
        resolve(0, false);
        vm.assertEq(shares.totalSupply(), 0, "minted");
        postBond(COORDINATOR, PROPOSER_BOND);
        settleFour(0);
        claimFor(0, providers[0]);
    }

    /// @dev Each baseless challenge costs its bond, which the proposer gets, and delays by no more than the arbiter takes.
    function test_challengeGriefing_paysTheProposer() public {
        uint256 before = settlement.bondOf(COORDINATOR);
        for (uint32 e = 0; e < 3; e++) {
            propose(e, keccak256("root"), MINTED);
            challenge(e);
            resolve(e, true);
            finalize(e);
        }
        vm.assertEq(settlement.bondOf(COORDINATOR), before + 3 * CHALLENGER_BOND, "proposer");
        vm.assertEq(settlement.bondOf(CHALLENGER), 0, "griefer");
    }

    /// @dev A coordinator that challenges itself, so that nobody else can, loses half its bond all the same.
    function test_selfChallenge_losesHalfTheBond() public {
        postBond(COORDINATOR, PROPOSER_BOND);
        uint256 standing = settlement.bondOf(COORDINATOR);
        for (uint32 i = 0; i < 2; i++) {
            propose(i, keccak256("root"), MINTED);
            fund(COORDINATOR, address(settlement), CHALLENGER_BOND);
            vm.prank(COORDINATOR);
            settlement.challengeEpoch(i, keccak256("root"), EVIDENCE, URI);
            resolve(i, i == 0);
            standing += CHALLENGER_BOND;
            if (i == 0) finalize(i);
        }
        uint256 burnt = PROPOSER_BOND - PROPOSER_BOND / 2;
        vm.assertEq(settlement.bondOf(COORDINATOR), standing - burnt, "bond");
        vm.assertEq(usd.balanceOf(address(settlement)), standing, "held");
    }

    /// @dev A challenge in flight doesn't hit the root that is proposed after a rejection.
    function test_challenge_ofARejectedRootHitsNoOther() public {
        propose(0, keccak256("wrong"), MINTED);
        challenge(0);
        elapse(ARBITRATION);
        settlement.expireChallenge(0);
        propose(0, keccak256("right"), MINTED);
        fund(BUYER, address(settlement), CHALLENGER_BOND);
        bytes memory reason = abi.encodeWithSelector(
            IEpochSettlement.EpochSettlementWrongRoot.selector, keccak256("right"), keccak256("wrong")
        );
        vm.expectRevert(reason);
        vm.prank(BUYER);
        settlement.challengeEpoch(0, keccak256("wrong"), EVIDENCE, URI);
        challenge(0);
        vm.expectRevert(reason);
        vm.prank(ARBITER);
        settlement.resolveEpoch(0, keccak256("wrong"), block.timestamp + ARBITRATION, false);
    }

    /// @dev Nor does a decision that came too late hit the same root, proposed again with other numbers.
    function test_decision_ofAnExpiredChallengeHitsNoOther() public {
        bytes32 root = keccak256("root");
        propose(0, root, 100);
        challenge(0);
        uint256 until = settlement.pending().resolvableUntil;
        vm.warp(until);
        settlement.expireChallenge(0);
        propose(0, root, MINTED);
        challenge(0);
        vm.expectRevert(
            abi.encodeWithSelector(
                IEpochSettlement.EpochSettlementArbitrationOver.selector, block.timestamp + ARBITRATION
            )
        );
        vm.prank(ARBITER);
        settlement.resolveEpoch(0, root, until, true);
    }

    function test_deployment_tokenTrustsOnlyItsOwnSettlement() public {
        ModelShares first = shares;
        open(params("twin"));
        address other = address(settlement);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesNotSettlement.selector, other));
        vm.prank(other);
        first.mint(ANYBODY, 1);
        vm.assertTrue(address(shares) != address(first), "one token for two models");
    }
}
