// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IModelShares} from "../src/interfaces/IModelShares.sol";
import {Ledger} from "./Ledger.sol";

contract EpochSettlementTest is Ledger {
    bytes32 private constant ROOT = keccak256("root");
    bytes32 private constant OTHER_ROOT = keccak256("another root");
    bytes32 private constant TIP = keccak256("tip");
    bytes32 private constant OTHER_TIP = keccak256("another tip");
    uint256 private constant MINTED = 700e18 + 7;
    address private constant SUCCESSOR = address(0xC1);

    function setUp() public override {
        super.setUp();
        addProviders(2);
    }

    // ------------------------------------------------------------------ bonds

    function test_bond_isDepositedForAnyAccountAndWithdrawn() public {
        vm.assertEq(settlement.bondOf(COORDINATOR), PROPOSER_BOND, "the fixture's bond");
        fund(BUYER, address(settlement), 100);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.BondDeposited(CHALLENGER, BUYER, 100);
        vm.prank(BUYER);
        vm.assertEq(settlement.depositBond(CHALLENGER, 100), 100, "received");
        vm.assertEq(settlement.bondOf(CHALLENGER), 100, "bondOf");
        vm.assertEq(settlement.bondOf(BUYER), 0, "the payer's bond");
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.BondWithdrawn(CHALLENGER, ANYBODY, 40);
        vm.prank(CHALLENGER);
        settlement.withdrawBond(ANYBODY, 40);
        vm.assertEq(usd.balanceOf(ANYBODY), 40, "paid");
        vm.assertEq(settlement.bondOf(CHALLENGER), 60, "left");
        vm.assertEq(usd.balanceOf(address(settlement)), PROPOSER_BOND + 60, "held");
    }

    function test_bond_depositRefusesNothingAndNobody() public {
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNothingReceived.selector));
        settlement.depositBond(ANYBODY, 0);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidPayee.selector, address(0)));
        settlement.depositBond(address(0), 1);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientAllowance(address,uint256,uint256)", address(settlement), 0, type(uint256).max
            )
        );
        settlement.depositBond(ANYBODY, type(uint256).max);
    }

    function test_bond_withdrawalIsBoundedByTheBond() public {
        uint256[2] memory tooMuch = [uint256(PROPOSER_BOND) + 1, type(uint256).max];
        for (uint256 i = 0; i < 2; i++) {
            vm.expectRevert(
                abi.encodeWithSelector(IEpochSettlement.EpochSettlementBondTooSmall.selector, PROPOSER_BOND, tooMuch[i])
            );
            vm.prank(COORDINATOR);
            settlement.withdrawBond(COORDINATOR, tooMuch[i]);
        }
        address[2] memory refused = [address(0), address(settlement)];
        for (uint256 i = 0; i < 2; i++) {
            vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidPayee.selector, refused[i]));
            vm.prank(COORDINATOR);
            settlement.withdrawBond(refused[i], 1);
        }
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, PROPOSER_BOND);
        vm.assertEq(settlement.bondOf(COORDINATOR), 0, "left");
    }

    function test_bond_isLockedWhileTheProposersEpochIsPending() public {
        postBond(BUYER, 5);
        settle(0, 0, 0); // so that the number in the error is not a default
        propose(1, ROOT, MINTED);
        bytes memory locked = abi.encodeWithSelector(IEpochSettlement.EpochSettlementBondLocked.selector, 1);
        vm.expectRevert(locked);
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, 1);
        vm.prank(BUYER);
        settlement.withdrawBond(BUYER, 5); // others' bonds aren't
        challenge(1);
        resolve(1, true);
        vm.expectRevert(locked);
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, 1);
        finalize(1);
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, PROPOSER_BOND);
    }

    // ------------------------------------------------------------------ beacon

    function commit(uint32 e, bytes32 tip) private {
        vm.prank(COORDINATOR);
        settlement.commitBeacon(e, tip);
    }

    function expectCommitRevert(bytes memory reason, uint32 e, bytes32 tip) private {
        vm.expectRevert(reason);
        commit(e, tip);
    }

    function committed(uint32 e) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IEpochSettlement.EpochSettlementBeaconCommitted.selector, e);
    }

    function test_beacon_isRecordedAndEmitted() public {
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.BeaconCommitted(1, COORDINATOR, TIP);
        commit(1, TIP); // ahead: no epoch need be final before
        vm.assertEq(settlement.beaconOf(1, COORDINATOR), TIP, "beaconOf");
        vm.assertEq(settlement.beaconOf(0, COORDINATOR), 0, "of another epoch");
        checkNothingPending(0);
        commit(0, OTHER_TIP);
        commit(type(uint32).max, TIP);
        settle(0, ROOT, MINTED);
        vm.assertEq(settlement.beaconOf(0, COORDINATOR), OTHER_TIP, "once final");
        vm.assertEq(settlement.commitmentOf(0), keccak256(abi.encode(ROOT, 0, MINTED)), "commitmentOf");
    }

    function test_beacon_isItsCommittersOnly() public {
        vm.prank(DESIGNER);
        settlement.commitBeacon(0, TIP);
        vm.assertEq(settlement.beaconOf(0, COORDINATOR), 0, "of another");
        commit(0, OTHER_TIP);
        vm.assertEq(settlement.beaconOf(0, COORDINATOR), OTHER_TIP, "the coordinator's");
        vm.assertEq(settlement.beaconOf(0, DESIGNER), TIP, "the other's");
    }

    function test_beacon_isNotZero() public {
        expectCommitRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementZeroBeacon.selector), 0, 0);
    }

    function test_beacon_isNeverReplaced() public {
        commit(0, TIP);
        expectCommitRevert(committed(0), 0, OTHER_TIP);
        expectCommitRevert(committed(0), 0, TIP);
        propose(0, ROOT, MINTED);
        challenge(0);
        resolve(0, false);
        expectCommitRevert(committed(0), 0, OTHER_TIP);
        vm.assertEq(settlement.beaconOf(0, COORDINATOR), TIP, "beaconOf");
    }

    // ------------------------------------------------------------------ propose

    function expectProposeRevert(bytes memory reason, uint32 e, bytes32 root, uint256 minted) private {
        vm.expectRevert(reason);
        propose(e, root, minted);
    }

    function checkNothingPending(uint32 next) private view {
        IEpochSettlement.Pending memory nothing;
        nothing.epoch = next;
        vm.assertEq(keccak256(abi.encode(settlement.pending())), keccak256(abi.encode(nothing)), "pending");
        vm.assertEq(settlement.nextEpoch(), next, "nextEpoch");
        vm.assertEq(settlement.commitmentOf(next), 0, "commitment of nothing");
    }

    function test_propose_recordsAndEmits() public {
        checkNothingPending(0);
        uint256 finalizableAt = block.timestamp + WINDOW;
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochProposed(0, ROOT, COORDINATOR, MINTED, STATEMENT, finalizableAt, URI);
        propose(0, ROOT, MINTED);
        IEpochSettlement.Pending memory p = settlement.pending();
        vm.assertTrue(p.exists && p.epoch == 0, "pending");
        vm.assertEq(p.root, ROOT, "root");
        vm.assertEq(p.minted, MINTED, "minted");
        vm.assertEq(p.proposer, COORDINATOR, "proposer");
        vm.assertEq(p.finalizableAt, finalizableAt, "finalizableAt");
        vm.assertEq(p.challenger, address(0), "challenger");
        vm.assertEq(p.resolvableUntil, 0, "resolvableUntil");
        vm.assertTrue(!p.upheld, "upheld");
        vm.assertEq(settlement.commitmentOf(0), ROOT, "commitmentOf");
        vm.assertEq(settlement.nextEpoch(), 0, "nextEpoch while pending");
        vm.assertEq(shares.totalSupply(), 0, "minted before the window");
    }

    function test_propose_coordinatorOnly() public {
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotCoordinator.selector, DESIGNER));
        vm.prank(DESIGNER);
        settlement.proposeEpoch(0, ROOT, MINTED, STATEMENT, URI);
    }

    function test_propose_needsTheBond() public {
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, 1);
        expectProposeRevert(
            abi.encodeWithSelector(
                IEpochSettlement.EpochSettlementBondTooSmall.selector, PROPOSER_BOND - 1, PROPOSER_BOND
            ),
            0,
            ROOT,
            MINTED
        );
        postBond(COORDINATOR, 1);
        propose(0, ROOT, MINTED);
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
        expectProposeRevert(reason, 0, OTHER_ROOT, MINTED);
        expectProposeRevert(reason, 1, ROOT, MINTED);
        elapse(365 days); // a pending epoch doesn't lapse into a free root
        expectProposeRevert(reason, 0, OTHER_ROOT, MINTED);
    }

    function test_propose_boundedByTheEmissionOfItsEpoch() public {
        for (uint32 e = 0; e < 2 * HALVING_EPOCHS; e++) {
            uint256 limit = INITIAL >> (e / HALVING_EPOCHS);
            vm.assertEq(settlement.emissionOf(e), limit, "emissionOf");
            uint256[2] memory tooMuch = [limit + 1, type(uint256).max];
            for (uint256 i = 0; i < 2; i++) {
                expectProposeRevert(
                    abi.encodeWithSelector(
                        IEpochSettlement.EpochSettlementEmissionExceeded.selector, tooMuch[i], limit
                    ),
                    e,
                    ROOT,
                    tooMuch[i]
                );
            }
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
        settlement.proposeEpoch(0, ROOT, 1, 0, URI);
    }

    function test_propose_emptyEpochAdvances() public {
        settle(0, 0, 0);
        checkNothingPending(1);
        vm.assertEq(shares.totalSupply(), 0, "supply");
        expectInvalid(Leaf(ANYBODY, 1, 1, 0, 0));
    }

    // ------------------------------------------------------------------ finalise

    function test_finalize_mintsAllToTheSettlement() public {
        propose(0, ROOT, MINTED);
        elapse(WINDOW);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochFinalized(0, ROOT, MINTED, 0);
        vm.prank(ANYBODY);
        settlement.finalizeEpoch(0);
        vm.assertEq(shares.balanceOf(address(settlement)), MINTED, "settlement");
        vm.assertEq(shares.totalSupply(), MINTED, "supply");
        vm.assertEq(settlement.commitmentOf(0), keccak256(abi.encode(ROOT, 0, MINTED)), "commitment");
        checkNothingPending(1);
    }

    function test_finalize_keepsTheAccumulator() public {
        settle(0, ROOT, MINTED);
        earn(1_000_003);
        propose(1, ROOT, 5);
        elapse(WINDOW);
        uint256 accAt = shares.accPerShare();
        vm.assertTrue(accAt > 0, "no revenue");
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochFinalized(1, ROOT, 5, accAt);
        settlement.finalizeEpoch(1);
        vm.assertEq(settlement.commitmentOf(1), keccak256(abi.encode(ROOT, accAt, 5)), "commitment");
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
        elapse(WINDOW);
        vm.expectRevert(reason);
        settlement.finalizeEpoch(0);
    }

    // ------------------------------------------------------------------ challenges

    function test_challenge_recordsAndEmits() public {
        propose(0, ROOT, MINTED);
        fund(CHALLENGER, address(settlement), CHALLENGER_BOND);
        uint256 until = block.timestamp + ARBITRATION;
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochChallenged(0, ROOT, CHALLENGER, EVIDENCE, until, URI);
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
        IEpochSettlement.Pending memory p = settlement.pending();
        vm.assertTrue(p.exists && !p.upheld, "pending");
        vm.assertEq(p.challenger, CHALLENGER, "challenger");
        vm.assertEq(p.resolvableUntil, until, "resolvableUntil");
        vm.assertEq(usd.balanceOf(CHALLENGER), 0, "the bond was not taken");
        vm.assertEq(usd.balanceOf(address(settlement)), uint256(PROPOSER_BOND) + CHALLENGER_BOND, "held");
        vm.assertEq(settlement.bondOf(CHALLENGER), 0, "an open challenge's bond can be withdrawn");
    }

    function test_challenge_withinTheWindowOnly() public {
        fund(CHALLENGER, address(settlement), CHALLENGER_BOND);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotPending.selector, 0));
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
        propose(0, ROOT, MINTED);
        uint256 finalizableAt = block.timestamp + WINDOW;
        vm.warp(finalizableAt);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementWindowClosed.selector, finalizableAt));
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
        vm.warp(finalizableAt - 1);
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
    }

    function test_challenge_oncePerProposal() public {
        propose(0, ROOT, MINTED);
        challenge(0);
        bytes memory reason =
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementAlreadyChallenged.selector, 0, CHALLENGER);
        fund(BUYER, address(settlement), CHALLENGER_BOND);
        vm.expectRevert(reason);
        vm.prank(BUYER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
        resolve(0, true); // within the window: the decision stands
        vm.expectRevert(reason);
        vm.prank(BUYER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
    }

    function test_challenge_namesTheRoot() public {
        propose(0, ROOT, MINTED);
        bytes memory reason =
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementWrongRoot.selector, ROOT, OTHER_ROOT);
        vm.expectRevert(reason);
        settlement.challengeEpoch(0, OTHER_ROOT, EVIDENCE, URI);
        challenge(0);
        vm.expectRevert(reason);
        vm.prank(ARBITER);
        settlement.resolveEpoch(0, OTHER_ROOT, block.timestamp + ARBITRATION, false);
    }

    function test_challenge_stopsFinalisation() public {
        propose(0, ROOT, MINTED);
        challenge(0);
        bytes memory reason =
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementAlreadyChallenged.selector, 0, CHALLENGER);
        elapse(WINDOW);
        vm.expectRevert(reason);
        settlement.finalizeEpoch(0);
        elapse(ARBITRATION); // nor does the arbiter's silence finalise it
        vm.expectRevert(reason);
        settlement.finalizeEpoch(0);
    }

    function test_challenge_needsTheBond() public {
        propose(0, ROOT, MINTED);
        fund(CHALLENGER, address(settlement), CHALLENGER_BOND - 1);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientAllowance(address,uint256,uint256)",
                address(settlement),
                CHALLENGER_BOND - 1,
                CHALLENGER_BOND
            )
        );
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
    }

    function test_challenge_costsNothingWhereTheModelSaysSo() public {
        IModelRegistry.Params memory p = params("no bonds");
        (p.proposerBond, p.challengerBond) = (0, 0);
        open(p);
        propose(0, ROOT, MINTED);
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(0, ROOT, EVIDENCE, URI);
        resolve(0, false);
        vm.assertEq(settlement.bondOf(CHALLENGER), 0, "bond");
        checkNothingPending(0);
    }

    function test_resolve_upheld() public {
        propose(0, ROOT, MINTED);
        challenge(0);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochUpheld(0, ROOT);
        resolve(0, true);
        vm.assertTrue(settlement.pending().upheld, "upheld");
        vm.assertEq(settlement.bondOf(COORDINATOR), uint256(PROPOSER_BOND) + CHALLENGER_BOND, "proposer");
        vm.assertEq(settlement.bondOf(CHALLENGER), 0, "challenger");
        finalize(0); // at once, within the window
        vm.assertEq(settlement.commitmentOf(0), keccak256(abi.encode(ROOT, 0, MINTED)), "commitment");
        checkNothingPending(1);
        propose(1, ROOT, MINTED); // and nothing of it carries over
        vm.assertTrue(!settlement.pending().upheld && settlement.pending().challenger == address(0), "carried over");
    }

    function test_resolve_rejected() public {
        propose(0, ROOT, MINTED);
        challenge(0);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochRejected(0, ROOT, true);
        resolve(0, false);
        vm.assertEq(settlement.bondOf(COORDINATOR), 0, "proposer");
        vm.assertEq(settlement.bondOf(CHALLENGER), PROPOSER_BOND / 2 + CHALLENGER_BOND, "challenger");
        vm.assertEq(shares.totalSupply(), 0, "minted");
        checkNothingPending(0);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotPending.selector, 0));
        settlement.finalizeEpoch(0);
        expectProposeRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementBondTooSmall.selector, 0, PROPOSER_BOND),
            0,
            OTHER_ROOT,
            MINTED
        );
        postBond(COORDINATOR, PROPOSER_BOND);
        settle(0, OTHER_ROOT, 5);
        vm.assertEq(shares.totalSupply(), 5, "the new root's shares");
        vm.prank(CHALLENGER);
        settlement.withdrawBond(CHALLENGER, PROPOSER_BOND / 2 + CHALLENGER_BOND);
        vm.assertEq(usd.balanceOf(address(settlement)), PROPOSER_BOND + (PROPOSER_BOND - PROPOSER_BOND / 2), "burnt");
    }

    function test_resolve_arbiterOnlyAndOnceAndInTime() public {
        propose(0, ROOT, MINTED);
        uint256 until = block.timestamp + ARBITRATION;
        bytes memory notChallenged = abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotChallenged.selector, 0);
        vm.expectRevert(notChallenged);
        vm.prank(ARBITER);
        settlement.resolveEpoch(0, ROOT, until, true);
        challenge(0);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotArbiter.selector, COORDINATOR));
        vm.prank(COORDINATOR);
        settlement.resolveEpoch(0, ROOT, until, true);
        vm.warp(until);
        bytes memory over = abi.encodeWithSelector(IEpochSettlement.EpochSettlementArbitrationOver.selector, until);
        vm.expectRevert(over);
        vm.prank(ARBITER);
        settlement.resolveEpoch(0, ROOT, until, true);
        vm.warp(until - 1);
        vm.expectRevert(over);
        vm.prank(ARBITER);
        settlement.resolveEpoch(0, ROOT, until + 1, true);
        resolve(0, true);
        vm.expectRevert(notChallenged);
        vm.prank(ARBITER);
        settlement.resolveEpoch(0, ROOT, until, false);
        vm.expectRevert(notChallenged);
        settlement.expireChallenge(0);
    }

    function test_expire_silenceRejectsAndBothBondsGoBack() public {
        propose(0, ROOT, MINTED);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotChallenged.selector, 0));
        settlement.expireChallenge(0);
        challenge(0);
        uint256 until = block.timestamp + ARBITRATION;
        vm.warp(until - 1);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementArbitrationOpen.selector, until));
        settlement.expireChallenge(0);
        vm.warp(until);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.EpochRejected(0, ROOT, false);
        vm.prank(ANYBODY);
        settlement.expireChallenge(0);
        vm.assertEq(settlement.bondOf(COORDINATOR), PROPOSER_BOND, "proposer");
        vm.assertEq(settlement.bondOf(CHALLENGER), CHALLENGER_BOND, "challenger");
        checkNothingPending(0);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotPending.selector, 0));
        settlement.expireChallenge(0);
        settle(0, ROOT, MINTED);
    }

    // ------------------------------------------------------------------ a replaced coordinator

    function replaceCoordinator() private {
        registry.proposeCoordinator(modelId, SUCCESSOR);
        elapse(3 days);
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
    }

    /// @dev A dead coordinator's key ends nothing: its pending epoch goes its way and its successor proposes the next.
    function test_deadCoordinator_isReplaced() public {
        propose(0, ROOT, MINTED);
        challenge(0);
        replaceCoordinator();
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementBondLocked.selector, 0));
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, 1);
        settlement.expireChallenge(0);
        expectProposeRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotCoordinator.selector, COORDINATOR),
            0,
            ROOT,
            MINTED
        );
        postBond(SUCCESSOR, PROPOSER_BOND);
        vm.prank(SUCCESSOR);
        settlement.proposeEpoch(0, OTHER_ROOT, MINTED, STATEMENT, URI);
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, PROPOSER_BOND); // not the proposer of the pending one
        elapse(WINDOW);
        finalize(0);
    }

    function test_replacedCoordinator_itsEpochStaysValid() public {
        propose(0, ROOT, MINTED);
        replaceCoordinator();
        finalize(0);
        vm.assertEq(shares.totalSupply(), MINTED, "supply");
        vm.prank(COORDINATOR);
        settlement.withdrawBond(COORDINATOR, PROPOSER_BOND);
    }

    // ------------------------------------------------------------------ claim

    function expectClaimRevert(bytes memory reason, IEpochSettlement.Claim memory c) private {
        IEpochSettlement.FinalEpoch memory f = finalOf(c.epoch);
        vm.expectRevert(reason);
        settlement.claim(c, f);
        vm.expectRevert(reason);
        settlement.claimable(c, f);
    }

    /// @dev The leaf isn't in epoch 0's tree of itself alone.
    function expectInvalid(Leaf memory leaf) private {
        bytes32[] memory proof;
        IEpochSettlement.Claim memory c = claimOf(0, leaf, proof);
        expectInvalid(c);
    }

    function expectInvalid(IEpochSettlement.Claim memory c) private {
        bytes memory reason = abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, hashOf(c));
        expectClaimRevert(reason, c);
        IEpochSettlement.FinalEpoch memory f = finalOf(c.epoch);
        vm.expectRevert(reason);
        settlement.checkLeaf(c, f);
    }

    function test_claim_byAnybodyPaysTheAccount() public {
        settleShares(0, MINTED, weights2(1, 3));
        uint256 due = cumulative[providers[1]];
        vm.assertEq(settlement.claimedCommitmentOf(providers[1]), 0, "before the first claim");
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.SharesClaimed(providers[1], 0, due, 0, due, 0);
        vm.prank(ANYBODY);
        settlement.claim(entry(0, providers[1]), finalOf(0));
        vm.assertEq(shares.balanceOf(providers[1]), due, "account");
        vm.assertEq(shares.balanceOf(ANYBODY), 0, "caller");
        vm.assertEq(settlement.claimedCommitmentOf(providers[1]), keccak256(abi.encode(due, 0)), "commitment");
    }

    function test_claim_tellsWhatTheNextOneNeeds() public {
        settleShares(0, MINTED, weights2(1, 1));
        earn(1_000_003);
        settleShares(1, MINTED, weights2(1, 1));
        earn(1_000_003);
        IEpochSettlement.Claim memory c = entry(1, providers[0]);
        uint256 debt = c.epochShares * finalOf(1).accAt;
        uint256 revenueScaled = c.cumulativeShares * shares.accPerShare() - debt;
        vm.assertTrue(debt > 0 && revenueScaled > 0, "nothing to tell");
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.SharesClaimed(
            providers[0], 1, c.cumulativeShares, revenueScaled, c.cumulativeShares, debt
        );
        settlement.claim(c, finalOf(1));
        vm.assertEq(
            settlement.claimedCommitmentOf(providers[0]), keccak256(abi.encode(c.cumulativeShares, debt)), "commitment"
        );
        vm.assertEq(shares.owedScaled(providers[0]), revenueScaled, "revenue");
    }

    function test_claim_coversAllEpochs() public {
        settleShares(0, MINTED, weights2(1, 1));
        claimFor(0, providers[0]);
        vm.assertEq(shares.balanceOf(providers[0]), cumulative[providers[0]], "first epoch");
        earn(1_000_000);
        settleShares(1, MINTED, weights2(1, 1));
        claimFor(1, providers[0]);
        claimFor(1, providers[1]);
        vm.assertEq(shares.balanceOf(providers[0]), cumulative[providers[0]], "both epochs, two claims");
        vm.assertEq(shares.balanceOf(providers[1]), cumulative[providers[1]], "both epochs, one claim");
        claimAllSplits();
        vm.assertEq(shares.balanceOf(address(settlement)), 0, "unclaimed");
    }

    function test_claim_notTwice() public {
        settleShares(0, MINTED, weights2(1, 1));
        IEpochSettlement.Claim memory stale = entry(0, providers[0]);
        claimFor(0, providers[0]);
        expectClaimRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementStaleClaim.selector, providers[0]), stale
        );
        uint256 all = cumulative[providers[0]];
        expectClaimRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementNothingToClaim.selector, all, all),
            entry(0, providers[0])
        );
    }

    function test_claim_notAgainstAnOlderRoot() public {
        settleShares(0, MINTED, weights2(1, 1));
        settleShares(1, MINTED, weights2(1, 1));
        bytes memory replaced = abi.encodeWithSelector(IEpochSettlement.EpochSettlementRootReplaced.selector, 0);
        IEpochSettlement.Claim memory c = entry(0, providers[0]);
        expectClaimRevert(replaced, c);
        IEpochSettlement.FinalEpoch memory f = finalOf(0);
        vm.expectRevert(replaced);
        settlement.checkLeaf(c, f);
        proposeShares(2, MINTED, weights2(1, 1)); // a pending root replaces nothing
        claimFor(1, providers[0]);
    }

    /// @dev Whoever hands in numbers of its own for what was claimed gets nothing more.
    function testFuzz_claim_bindsWhatWasClaimedBefore(uint256 claimedShares, uint256 claimedDebt, bool first) public {
        settleShares(0, MINTED, weights2(1, 1));
        if (!first) claimFor(0, providers[0]);
        earn(1_000_003);
        settleShares(1, MINTED, weights2(1, 1));
        IEpochSettlement.Claim memory c = entry(1, providers[0]);
        vm.assume(claimedShares != c.claimedShares || claimedDebt != c.claimedDebt);
        (c.claimedShares, c.claimedDebt) = (claimedShares, claimedDebt);
        expectClaimRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementStaleClaim.selector, providers[0]), c);
    }

    function test_claim_finalEpochsOnly() public {
        proposeShares(0, MINTED, weights2(1, 1));
        IEpochSettlement.Claim memory c = entry(0, providers[0]);
        bytes memory unknown = abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 0);
        elapse(WINDOW);
        IEpochSettlement.FinalEpoch memory f =
            IEpochSettlement.FinalEpoch({root: settlement.commitmentOf(0), accAt: 0, minted: MINTED});
        vm.expectRevert(unknown);
        settlement.claim(c, f);
        finalizeShares(0);
        settlement.checkLeaf(c, f);
        c.epoch = 1;
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 1));
        settlement.claim(c, f);
    }

    /// @dev A pending epoch's word is its proposer's choice: it may be a commitment to a tree of its own.
    function test_claim_notAgainstAPendingCommitment() public {
        settle(0, ROOT, MINTED);
        IEpochSettlement.Claim memory c = claimOf(1, Leaf(ANYBODY, 10, 10, 0, 0), new bytes32[](0));
        IEpochSettlement.FinalEpoch memory f = IEpochSettlement.FinalEpoch({root: hashOf(c), accAt: 0, minted: MINTED});
        propose(1, keccak256(abi.encode(f.root, f.accAt, f.minted)), MINTED);
        bytes memory unknown = abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 1);
        vm.expectRevert(unknown);
        settlement.claim(c, f);
        vm.expectRevert(unknown);
        settlement.checkLeaf(c, f);
        elapse(WINDOW);
        finalize(1);
        vm.expectRevert(unknown);
        settlement.claim(c, f);
    }

    /// @dev The epoch's numbers are bound by its commitment.
    function testFuzz_claim_refusesAnyOtherNumbers(uint8 field, uint256 delta) public {
        settleShares(0, MINTED, weights2(1, 1));
        IEpochSettlement.Claim memory c = entry(0, providers[0]);
        IEpochSettlement.FinalEpoch memory f = finalOf(0);
        vm.assume(delta != 0);
        unchecked {
            if (field % 3 == 0) f.root = bytes32(uint256(f.root) + delta);
            if (field % 3 == 1) f.accAt += delta;
            if (field % 3 == 2) f.minted += delta;
        }
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 0));
        settlement.claim(c, f);
    }

    /// @dev Each word of the leaf, and the proof, is bound by the root.
    function testFuzz_claim_refusesAnyOtherLeaf(uint8 field, uint256 delta) public {
        settleShares(0, MINTED, weights2(1, 1));
        IEpochSettlement.Claim memory c = entry(0, providers[0]);
        unchecked {
            delta = bound(delta, 1, type(uint96).max);
            field %= 6;
            // forge-lint: disable-next-line(unsafe-typecast) -- delta < 2^96
            if (field == 0) c.account = address(uint160(c.account) + uint160(delta));
            if (field == 1) c.cumulativeShares += delta;
            if (field == 2) c.epochShares += delta;
            if (field == 3) c.debtBefore += delta;
            if (field == 4) c.operatorRevenue += delta;
            if (field == 5) c.proof[0] = bytes32(uint256(c.proof[0]) + delta);
        }
        expectInvalid(c);
    }

    function test_claimable_tellsWhatClaimPays() public {
        settleShares(0, MINTED, weights2(1, 3));
        earn(1_000_000);
        IEpochSettlement.Claim memory c = entry(0, providers[1]);
        (uint256 amount, uint256 revenueScaled) = settlement.claimable(c, finalOf(0));
        vm.assertTrue(revenueScaled > 0, "no revenue to tell apart");
        claimFor(0, providers[1]);
        vm.assertEq(shares.balanceOf(providers[1]), amount, "shares");
        vm.assertEq(shares.owedScaled(providers[1]), revenueScaled, "revenue");
    }

    function test_claimMany_isAllOrNothing() public {
        settleShares(0, MINTED, weights2(1, 3));
        IEpochSettlement.Claim[] memory claims = new IEpochSettlement.Claim[](2);
        (claims[0], claims[1]) = (entry(0, providers[0]), entry(0, providers[1]));
        IEpochSettlement.FinalEpoch memory f = finalOf(0);
        claims[1].cumulativeShares++;
        bytes32 wrong = hashOf(claims[1]);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, wrong));
        settlement.claimMany(claims, f);
        vm.assertEq(shares.balanceOf(providers[0]), 0, "the first was paid");
        claims[1].cumulativeShares--;
        settlement.claimMany(claims, f);
        vm.assertEq(shares.balanceOf(providers[0]), cumulative[providers[0]], "first");
        vm.assertEq(shares.balanceOf(providers[1]), cumulative[providers[1]], "second");
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementStaleClaim.selector, providers[0]));
        settlement.claimMany(claims, f);
    }

    // ------------------------------------------------------------------ split

    function test_claimSplit_paysBothPartsAndWhatTheyEarned() public {
        settle(0, ROOT, MINTED);
        earn(1_000_003);
        settle(1, ROOT, 333);
        earn(2_000_003);
        vm.assertEq(settlement.splitClaimedUntil(), 0, "before");
        (uint256 d0, uint256 d1, uint256 s0, uint256 s1) = (MINTED / 10, 33, MINTED / 20, 16);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.SplitClaimed(0, 2, d0 + d1, s0 + s1);
        vm.prank(ANYBODY);
        settlement.claimSplit(finalsOf(0, 2));
        vm.assertEq(settlement.splitClaimedUntil(), 2, "after");
        vm.assertEq(shares.balanceOf(DESIGNER), d0 + d1, "designer");
        vm.assertEq(shares.balanceOf(DATA), s0 + s1, "data recipient");
        (uint256 acc, uint256 accAt) = (shares.accPerShare(), finalOf(1).accAt);
        vm.assertEq(shares.owedScaled(DESIGNER), (d0 + d1) * acc - d1 * accAt, "designer's revenue");
        vm.assertEq(shares.owedScaled(DATA), (s0 + s1) * acc - s1 * accAt, "data recipient's revenue");
    }

    function test_claimSplit_inOrderAndOnce() public {
        settle(0, ROOT, MINTED);
        settle(1, OTHER_ROOT, MINTED);
        IEpochSettlement.FinalEpoch[] memory none;
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 0));
        settlement.claimSplit(none);
        IEpochSettlement.FinalEpoch[] memory second = finalsOf(1, 2);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 0));
        settlement.claimSplit(second);
        settlement.claimSplit(finalsOf(0, 1));
        IEpochSettlement.FinalEpoch[] memory both = finalsOf(0, 2);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 1));
        settlement.claimSplit(both);
        settlement.claimSplit(second);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 2));
        settlement.claimSplit(second);
        propose(2, keccak256(abi.encode(ROOT, 0, 900e18)), MINTED); // a pending commitment
        second[0] = IEpochSettlement.FinalEpoch({root: ROOT, accAt: 0, minted: 900e18});
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 2));
        settlement.claimSplit(second);
    }

    function test_claimSplit_skipsPartsThatAreZero() public {
        IModelRegistry.Params memory p = params("no split");
        (p.designerBps, p.dataBps) = (0, 1);
        open(p);
        settle(0, ROOT, 9_999);
        settle(1, ROOT, 10_000);
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.SplitClaimed(0, 1, 0, 0);
        settlement.claimSplit(finalsOf(0, 1));
        vm.expectEmit(address(settlement));
        emit IEpochSettlement.SplitClaimed(1, 2, 0, 1);
        settlement.claimSplit(finalsOf(1, 2));
        vm.assertEq(shares.balanceOf(DESIGNER), 0, "designer");
        vm.assertEq(shares.balanceOf(DATA), 1, "data recipient");
    }

    /// @dev However the epochs are grouped, designer and data recipient get the same, and nothing is left over.
    function testFuzz_claimSplit_groupingDoesNotMatter(uint256[4] memory minted, uint256[4] memory revenue, uint256 cut)
        public
    {
        for (uint32 e = 0; e < 4; e++) {
            settleShares(e, bound(minted[e], e == 0 ? 2e18 : 0, INITIAL), weights2(1, 1));
            deposit(bound(revenue[e], 1, 1e30));
            elapse(bound(revenue[e], 0, 2 * PERIOD));
        }
        uint256 end = block.timestamp + 2 * PERIOD;
        uint256 before = vm.snapshotState();
        claimAllSplits();
        vm.warp(end);
        (uint256 designer, uint256 data) = (shares.balanceOf(DESIGNER), shares.balanceOf(DATA));
        (uint256 designerRevenue, uint256 dataRevenue) = (shares.owedScaled(DESIGNER), shares.owedScaled(DATA));
        vm.assertTrue(vm.revertToState(before), "snapshot");
        // forge-lint: disable-next-line(unsafe-typecast) -- at most 3
        settlement.claimSplit(finalsOf(0, uint32(bound(cut, 1, 3))));
        elapse(PERIOD / 3);
        claimAllSplits();
        vm.warp(end);
        vm.assertEq(shares.balanceOf(DESIGNER), designer, "designer");
        vm.assertEq(shares.balanceOf(DATA), data, "data recipient");
        vm.assertEq(shares.owedScaled(DESIGNER), designerRevenue, "designer's revenue");
        vm.assertEq(shares.owedScaled(DATA), dataRevenue, "data recipient's revenue");
        claimFor(3, providers[0]);
        claimFor(3, providers[1]);
        vm.assertEq(shares.balanceOf(address(settlement)), 0, "parts don't add up");
        vm.assertEq(shares.owedScaled(address(settlement)), 0, "revenue doesn't add up");
    }

    // ------------------------------------------------------------------ fairness

    /// @dev Early == late, exactly: one provider claims after each epoch, its twin once at the end; equal work in each of
    /// four epochs with revenue, also half streamed, between them.
    function testFuzz_fairness_earlyAndLateClaimsOweTheSame(
        uint256[4] memory minted,
        uint256[4] memory revenue,
        uint256[4] memory waits
    ) public {
        for (uint32 e = 0; e < 4; e++) {
            // A multiple of 2000 leaves an even compute part, so that the twins get the same.
            minted[e] = bound(minted[e], e == 0 ? 2e18 : 0, INITIAL) / 2000 * 2000;
            settleShares(e, minted[e], weights2(1, 1));
            elapse(bound(waits[e], 0, PERIOD) / 2);
            if (minted[e] > 0) claimFor(e, providers[0]);
            deposit(bound(revenue[e], 1, 1e30));
            elapse(bound(waits[e], 0, 2 * PERIOD));
        }
        uint256 early = shares.owedScaled(providers[0]);
        claimFor(3, providers[1]);
        vm.assertEq(shares.balanceOf(providers[0]), shares.balanceOf(providers[1]), "shares");
        vm.assertEq(early, shares.owedScaled(providers[1]), "revenue, scaled");
        elapse(2 * PERIOD);
        vm.assertEq(shares.owedScaled(providers[0]), shares.owedScaled(providers[1]), "revenue afterwards");
        vm.assertTrue(shares.owedScaled(providers[0]) > 0, "nothing was compared");
    }

    // ------------------------------------------------------------------ what a lying coordinator can't do

    /// @dev One leaf is the whole tree: its hash is the root and the proof is empty.
    function settleLie(uint32 e, Leaf memory leaf) private {
        settle(e, hashOf(leaf), MINTED);
    }

    function lie(uint32 e, Leaf memory leaf) private view returns (IEpochSettlement.Claim memory) {
        return claimOf(e, leaf, new bytes32[](0));
    }

    /// @dev What a wrong root promises to accounts that wait ends with the next final root.
    function test_lie_takesNothingOfLaterEpochs() public {
        settleLie(0, Leaf(ANYBODY, MINTED, MINTED, 0, 1_000));
        settleShares(1, MINTED, weights2(1, 1));
        expectLieRefused(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementRootReplaced.selector, 0),
            0,
            Leaf(ANYBODY, MINTED, MINTED, 0, 1_000)
        );
        claimFor(1, providers[0]);
        claimFor(1, providers[1]);
    }

    function expectLieRefused(bytes memory reason, uint32 e, Leaf memory leaf) private {
        (IEpochSettlement.Claim memory c, IEpochSettlement.FinalEpoch memory f) = (lie(e, leaf), finalOf(e));
        vm.expectRevert(reason);
        settlement.claim(c, f);
    }

    function test_lie_moreSharesThanMinted() public {
        Leaf memory leaf = Leaf(ANYBODY, MINTED + 1, MINTED + 1, 0, 0);
        settleLie(0, leaf);
        expectLieRefused(
            abi.encodeWithSignature(
                "ERC20InsufficientBalance(address,uint256,uint256)", address(settlement), MINTED, MINTED + 1
            ),
            0,
            leaf
        );
    }

    function test_lie_allTheSharesThereCouldBe() public {
        settle(0, ROOT, MINTED);
        earn(1_000_003);
        Leaf memory leaf = Leaf(ANYBODY, type(uint256).max, type(uint256).max, type(uint256).max, type(uint256).max);
        settleLie(1, leaf);
        expectLieRefused(abi.encodeWithSignature("Panic(uint256)", 0x11), 1, leaf);
    }

    function test_lie_understatedDebtTakesNoHolderRevenue() public {
        settleShares(0, MINTED, weights2(1, 1));
        claimFor(0, providers[0]);
        claimFor(0, providers[1]);
        claimAllSplits();
        earn(1_000_000);
        uint256 owedBefore = shares.owedScaled(providers[0]);
        // All of epoch 1's shares, said to have earned since the beginning: nothing unclaimed earned that.
        Leaf memory leaf = Leaf(ANYBODY, MINTED, 0, 0, 0);
        settleLie(1, leaf);
        expectLieRefused(
            abi.encodeWithSelector(IModelShares.ModelSharesAccrualExceeded.selector, MINTED * shares.accPerShare(), 0),
            1,
            leaf
        );
        vm.assertEq(shares.owedScaled(providers[0]), owedBefore, "a holder's accrual");
    }

    function test_lie_overstatedDebt() public {
        Leaf memory leaf = Leaf(ANYBODY, 10, 10, 1, 0);
        settleLie(0, leaf);
        expectClaimRevert(abi.encodeWithSelector(IModelShares.ModelSharesDebtExceeded.selector, 1, 0), lie(0, leaf));
    }

    function test_lie_debtThatFalls() public {
        settle(0, ROOT, MINTED);
        earn(1_000_000);
        settleLie(1, Leaf(ANYBODY, 10, 10, 0, 0));
        IEpochSettlement.Claim memory c = lie(1, Leaf(ANYBODY, 10, 10, 0, 0));
        settlement.claim(c, finalOf(1));
        book(c);
        uint256 debt = claimedOf[ANYBODY].debt;
        vm.assertTrue(debt > 0, "no debt to fall below");
        Leaf memory leaf = Leaf(ANYBODY, 20, 0, debt - 1, 0);
        settleLie(2, leaf);
        expectClaimRevert(
            abi.encodeWithSelector(IEpochSettlement.EpochSettlementInconsistentDebt.selector, debt - 1, debt),
            lie(2, leaf)
        );
    }
}
