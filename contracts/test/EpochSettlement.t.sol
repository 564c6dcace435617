// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelShares} from "../src/interfaces/IModelShares.sol";
import {Ledger} from "./Ledger.sol";

contract EpochSettlementTest is Ledger {
    bytes32 private constant ROOT = keccak256("root");
    uint256 private constant MINTED = 700e18 + 7;

    function setUp() public override {
        super.setUp();
        addProviders(2);
    }

    function expectProposeRevert(bytes memory reason, uint32 e, bytes32 root, uint256 minted) private {
        vm.expectRevert(reason);
        propose(e, root, minted);
    }

    // ------------------------------------------------------------------ propose

    function test_propose_recordsAndEmits() public {
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochProposed(0, ROOT, MINTED, STATEMENT, block.timestamp + WINDOW, "ipfs://statement");
        propose(0, ROOT, MINTED);
        (bool exists, uint32 e) = settlement.pending();
        vm.assertTrue(exists && e == 0, "pending");
        vm.assertEq(settlement.nextEpoch(), 0, "nextEpoch while pending");
        IEpochSettlement.Epoch memory epoch = settlement.epoch(0);
        vm.assertEq(epoch.root, ROOT, "root");
        vm.assertEq(epoch.minted, MINTED, "minted");
        vm.assertEq(epoch.statementHash, STATEMENT, "statementHash");
        vm.assertEq(epoch.finalizableAt, block.timestamp + WINDOW, "finalizableAt");
        vm.assertTrue(!epoch.finalized && epoch.accAt == 0, "finalised already");
        vm.assertEq(shares.totalSupply(), 0, "minted before the window");
    }

    function test_propose_coordinatorOnly() public {
        bytes memory reason = abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotCoordinator.selector, DESIGNER);
        vm.expectRevert(reason);
        vm.prank(DESIGNER);
        settlement.proposeEpoch(0, ROOT, MINTED, STATEMENT, "");
    }

    function test_propose_inOrderOnly() public {
        expectProposeRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementWrongEpoch.selector, 0, 1), 1, ROOT, MINTED
        );
        settle(0, ROOT, MINTED);
        expectProposeRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementWrongEpoch.selector, 1, 0), 0, ROOT, MINTED
        );
        expectProposeRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementWrongEpoch.selector, 1, 2), 2, ROOT, MINTED
        );
        propose(1, ROOT, MINTED);
    }

    function test_propose_oneAtATime() public {
        propose(0, ROOT, MINTED);
        bytes memory reason = abi.encodeWithSelector(IEpochSettlement.EpochSettlementEpochPending.selector, 0);
        expectProposeRevert(reason, 0, keccak256("another root"), MINTED);
        expectProposeRevert(reason, 1, ROOT, MINTED);
        vm.warp(block.timestamp + 365 days); // a pending epoch doesn't lapse into a free root
        expectProposeRevert(reason, 0, keccak256("another root"), MINTED);
    }

    function test_propose_boundedByTheEmissionOfItsEpoch() public {
        for (uint32 e = 0; e < 2 * HALVING_EPOCHS; e++) {
            uint256 limit = INITIAL >> (e / HALVING_EPOCHS);
            vm.assertEq(settlement.emissionOf(e), limit, "emissionOf");
            expectProposeRevert(
                abi.encodeWithSelector(IEpochSettlement.EpochSettlementEmissionExceeded.selector, limit + 1, limit),
                e,
                ROOT,
                limit + 1
            );
            settle(e, ROOT, limit);
        }
        vm.assertEq(shares.totalSupply(), HALVING_EPOCHS * (INITIAL + INITIAL / 2), "supply");
    }

    function test_propose_unmintedSharesAreLost() public {
        settle(0, ROOT, 1);
        expectProposeRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementEmissionExceeded.selector, 2 * INITIAL - 1, INITIAL),
            1,
            ROOT,
            2 * INITIAL - 1
        );
    }

    function test_propose_needsRootAndStatement() public {
        expectProposeRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementZeroRoot.selector), 0, 0, 1);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementZeroStatement.selector));
        vm.prank(COORDINATOR);
        settlement.proposeEpoch(0, ROOT, 1, 0, "");
    }

    function test_propose_emptyEpochAdvances() public {
        settle(0, 0, 0);
        vm.assertEq(settlement.nextEpoch(), 1, "nextEpoch");
        vm.assertEq(shares.totalSupply(), 0, "supply");
        bytes32[] memory proof;
        bytes32 leaf = settlement.leaf(ANYBODY, 1, 1, 0);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, leaf));
        settlement.claim(0, ANYBODY, 1, 1, 0, proof);
    }

    // ------------------------------------------------------------------ finalise

    function test_finalize_splitsWhatWasMinted() public {
        propose(0, ROOT, MINTED);
        vm.warp(block.timestamp + WINDOW);
        (uint256 designer, uint256 data) = (MINTED / 10, MINTED / 20);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochFinalized(0, designer, data, MINTED - designer - data, 0);
        vm.prank(ANYBODY);
        settlement.finalizeEpoch(0);
        vm.assertEq(shares.balanceOf(DESIGNER), designer, "designer");
        vm.assertEq(shares.balanceOf(DATA), data, "data recipient");
        vm.assertEq(shares.balanceOf(address(settlement)), MINTED - designer - data, "compute");
        vm.assertEq(shares.totalSupply(), MINTED, "supply");
        IEpochSettlement.Epoch memory epoch = settlement.epoch(0);
        vm.assertTrue(epoch.finalized, "finalized");
        vm.assertEq(epoch.root, ROOT, "root");
        vm.assertEq(epoch.minted, MINTED, "minted");
        vm.assertEq(epoch.statementHash, STATEMENT, "statementHash");
        vm.assertEq(epoch.finalizableAt, 0, "finalizableAt");
        vm.assertEq(settlement.nextEpoch(), 1, "nextEpoch");
        (bool exists,) = settlement.pending();
        vm.assertTrue(!exists, "still pending");
    }

    function test_finalize_notBeforeTheWindowEnds() public {
        propose(0, ROOT, MINTED);
        uint256 finalizableAt = block.timestamp + WINDOW;
        vm.warp(finalizableAt - 1);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementWindowOpen.selector, finalizableAt));
        settlement.finalizeEpoch(0);
        vm.warp(finalizableAt);
        settlement.finalizeEpoch(0);
    }

    function test_finalize_pendingEpochOnlyAndOnce() public {
        bytes memory reason = abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotPending.selector, 0);
        vm.expectRevert(reason);
        settlement.finalizeEpoch(0);
        settle(0, ROOT, MINTED);
        vm.expectRevert(reason);
        settlement.finalizeEpoch(0);
        propose(1, ROOT, MINTED);
        vm.warp(block.timestamp + WINDOW);
        vm.expectRevert(reason);
        settlement.finalizeEpoch(0);
    }

    // ------------------------------------------------------------------ claim

    function test_claim_byAnybodyPaysTheAccount() public {
        settleShares(0, MINTED, weights2(1, 3));
        uint256 due = cumulative[providers[1]];
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.SharesClaimed(providers[1], 0, due, 0);
        claimFor(0, providers[1]);
        vm.assertEq(shares.balanceOf(providers[1]), due, "account");
        vm.assertEq(shares.balanceOf(address(this)), 0, "caller");
        (uint256 claimedShares, uint256 debt) = settlement.claimed(providers[1]);
        vm.assertEq(claimedShares, due, "claimed");
        vm.assertEq(debt, 0, "debt before any revenue");
    }

    function test_claim_coversSeveralEpochsAndOldProofsStayValid() public {
        settleShares(0, MINTED, weights2(1, 1));
        uint256 afterFirst = cumulative[providers[0]];
        deposit(1_000_000);
        settleShares(1, MINTED, weights2(1, 1));
        claimFor(0, providers[0]); // against the older root
        vm.assertEq(shares.balanceOf(providers[0]), afterFirst, "first epoch");
        claimFor(1, providers[0]);
        claimFor(1, providers[1]);
        vm.assertEq(shares.balanceOf(providers[0]), cumulative[providers[0]], "both epochs, two claims");
        vm.assertEq(shares.balanceOf(providers[1]), cumulative[providers[1]], "both epochs, one claim");
        vm.assertEq(shares.balanceOf(address(settlement)), 0, "unclaimed");
    }

    function test_claim_notTwice() public {
        settleShares(0, MINTED, weights2(1, 1));
        claimFor(0, providers[0]);
        uint256 all = cumulative[providers[0]];
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[0]);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNothingToClaim.selector, all, all));
        settlement.claim(0, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    function test_claim_notAgainstAnOlderRoot() public {
        settleShares(0, MINTED, weights2(1, 1));
        uint256 older = cumulative[providers[0]];
        settleShares(1, MINTED, weights2(1, 1));
        claimFor(1, providers[0]);
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[0]);
        vm.expectRevert(
            abi.encodeWithSelector(
                IEpochSettlement.EpochSettlementNothingToClaim.selector, older, cumulative[providers[0]]
            )
        );
        settlement.claim(0, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    function test_claim_finalisedEpochsOnly() public {
        proposeShares(0, MINTED, weights2(1, 1));
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[0]);
        vm.warp(block.timestamp + WINDOW);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotFinalized.selector, 0));
        settlement.claim(0, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    /// @dev Each word of the leaf, and the proof, is bound by the root.
    function testFuzz_claim_refusesAnyOtherLeaf(uint8 field, uint256 delta) public {
        settleShares(0, MINTED, weights2(1, 1));
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[0]);
        unchecked {
            delta = bound(delta, 1, type(uint96).max);
            field %= 5;
            // forge-lint: disable-next-line(unsafe-typecast) -- delta < 2^96
            if (field == 0) leaf.account = address(uint160(leaf.account) + uint160(delta));
            if (field == 1) leaf.cumulativeShares += delta;
            if (field == 2) leaf.epochShares += delta;
            if (field == 3) leaf.debtBefore += delta;
            if (field == 4) proof[0] = bytes32(uint256(proof[0]) + delta);
        }
        bytes32 hash = settlement.leaf(leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, hash));
        settlement.claim(0, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    function test_claimable_tellsWhatClaimPays() public {
        settleShares(0, MINTED, weights2(1, 3));
        deposit(1_000_000);
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[1]);
        (uint256 amount, uint256 revenueScaled) =
            settlement.claimable(0, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
        vm.assertTrue(revenueScaled > 0, "no revenue to tell apart");
        claimFor(0, providers[1]);
        vm.assertEq(shares.balanceOf(providers[1]), amount, "shares");
        vm.assertEq(shares.owedScaled(providers[1]), revenueScaled, "revenue");
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNothingToClaim.selector, amount, amount));
        settlement.claimable(0, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    // ------------------------------------------------------------------ fairness

    /// @dev Early == late, exactly: one provider claims after each epoch, its twin once at the end; equal work in each of
    /// four epochs with revenue between them.
    function testFuzz_fairness_earlyAndLateClaimsOweTheSame(uint256[4] memory minted, uint256[4] memory revenue)
        public
    {
        uint32 last;
        for (uint32 e = 0; e < 4; e++) {
            // A multiple of 2000 leaves an even compute part, so that the twins get the same.
            minted[e] = bound(minted[e], e == 0 ? 2e18 : 0, INITIAL) / 2000 * 2000;
            settleShares(e, minted[e], weights2(1, 1));
            if (minted[e] > 0) {
                claimFor(e, providers[0]);
                last = e;
            }
            deposit(bound(revenue[e], 1, 1e30));
        }
        uint256 early = shares.owedScaled(providers[0]);
        claimFor(last, providers[1]);
        vm.assertEq(shares.balanceOf(providers[0]), shares.balanceOf(providers[1]), "shares");
        vm.assertEq(early, shares.owedScaled(providers[1]), "revenue, scaled");
        vm.assertTrue(early > 0, "nothing was compared");
    }

    // ------------------------------------------------------------------ what a lying coordinator can't do

    /// @dev One leaf is the whole tree: its hash is the root and the proof is empty.
    function settleLie(uint32 e, uint256 cumulativeShares, uint256 epochShares, uint256 debt) private {
        settle(e, settlement.leaf(ANYBODY, cumulativeShares, epochShares, debt), MINTED);
    }

    function claimLie(uint32 e, uint256 cumulativeShares, uint256 epochShares, uint256 debt) private {
        bytes32[] memory proof;
        settlement.claim(e, ANYBODY, cumulativeShares, epochShares, debt, proof);
    }

    function test_lie_moreSharesThanMinted() public {
        uint256 held = computePart(MINTED);
        settleLie(0, held + 1, held + 1, 0);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientBalance(address,uint256,uint256)", address(settlement), held, held + 1
            )
        );
        claimLie(0, held + 1, held + 1, 0);
    }

    function test_lie_understatedDebtTakesNoHolderRevenue() public {
        settleShares(0, MINTED, weights2(1, 1));
        claimFor(0, providers[0]);
        claimFor(0, providers[1]);
        deposit(1_000_000);
        uint256 owedBefore = shares.owedScaled(providers[0]);
        // All of epoch 1's shares, said to have earned since the beginning: nothing unclaimed earned that.
        uint256 part = computePart(MINTED);
        settleLie(1, part, 0, 0);
        vm.expectRevert(
            abi.encodeWithSelector(IModelShares.ModelSharesAccrualExceeded.selector, part * shares.accPerShare(), 0)
        );
        claimLie(1, part, 0, 0);
        vm.assertEq(shares.owedScaled(providers[0]), owedBefore, "a holder's accrual");
    }

    function test_lie_overstatedDebt() public {
        settleLie(0, 10, 10, 1);
        bytes memory reason = abi.encodeWithSelector(IModelShares.ModelSharesDebtExceeded.selector, 1, 0);
        vm.expectRevert(reason);
        claimLie(0, 10, 10, 1);
        bytes32[] memory proof;
        vm.expectRevert(reason);
        settlement.claimable(0, ANYBODY, 10, 10, 1, proof);
    }

    function test_lie_debtThatFalls() public {
        settle(0, ROOT, MINTED);
        deposit(1_000_000);
        settleLie(1, 10, 10, 0);
        claimLie(1, 10, 10, 0);
        (, uint256 debt) = settlement.claimed(ANYBODY);
        vm.assertTrue(debt > 0, "no debt to fall below");
        settleLie(2, 20, 0, debt - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementInconsistentDebt.selector, debt - 1, debt)
        );
        claimLie(2, 20, 0, debt - 1);
    }
}
