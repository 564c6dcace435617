// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EpochSettlement} from "../src/EpochSettlement.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IModelShares} from "../src/interfaces/IModelShares.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {Ledger} from "./Ledger.sol";
import {BlockingToken, FeeToken, MintableToken, ReentrantToken, SilentToken} from "./mocks/HostileTokens.sol";

/// @notice Hostile revenue tokens, and proofs used where they don't belong.
contract AttacksTest is Ledger {
    uint256 private constant MINTED = 1000e18;

    function setUp() public override {
        super.setUp();
        addProviders(4);
    }

    /// @dev A model whose revenue token is `token`, with epoch 0 settled: DESIGNER holds a tenth, DATA a twentieth.
    function registerWith(address token) private {
        IModelRegistry.Params memory p = params("hostile");
        p.revenueToken = token;
        (shares, settlement) = register(p);
        settle(0, keccak256("root"), MINTED);
    }

    function depositHostile(MintableToken token, uint256 amount) private returns (uint256 received) {
        token.mint(BUYER, amount);
        vm.prank(BUYER);
        token.approve(address(shares), amount);
        vm.prank(BUYER);
        return shares.depositRevenue(amount);
    }

    // ------------------------------------------------------------------ tokens

    function expectGuarded(ReentrantToken token, uint256 attempts) private view {
        vm.assertEq(token.attempts(), attempts, "the token never called back");
        vm.assertTrue(!token.succeeded(), "re-entered");
        vm.assertEq(
            // forge-lint: disable-next-line(unsafe-typecast)
            bytes32(bytes4(token.answer())),
            bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector),
            "refused for another reason"
        );
    }

    function test_reentrancy_fromDepositAndWithdraw() public {
        ReentrantToken token = new ReentrantToken();
        registerWith(address(token));
        depositHostile(token, 1_000_000);
        bytes memory withdraw = abi.encodeCall(shares.withdrawRevenueFor, (DESIGNER));
        bytes memory depositAgain = abi.encodeCall(shares.depositRevenue, (0));

        token.mint(BUYER, 1_000_000);
        vm.prank(BUYER);
        token.approve(address(shares), 1_000_000);
        token.arm(address(shares), withdraw);
        vm.prank(BUYER);
        shares.depositRevenue(500_000);
        expectGuarded(token, 1);
        token.arm(address(shares), depositAgain);
        vm.prank(BUYER);
        shares.depositRevenue(500_000);
        expectGuarded(token, 2);

        uint256 due = shares.owed(DESIGNER);
        token.arm(address(shares), withdraw);
        shares.withdrawRevenueFor(DESIGNER);
        expectGuarded(token, 3);
        token.arm(address(shares), depositAgain);
        shares.withdrawRevenueFor(DATA);
        expectGuarded(token, 4);
        vm.assertEq(token.balanceOf(DESIGNER), due, "paid more than once");
    }

    /// @dev Minting isn't guarded: a deposit that triggers a finalisation is divided by the supply after it.
    function test_reentrancy_finaliseWithinADeposit() public {
        ReentrantToken token = new ReentrantToken();
        registerWith(address(token));
        propose(1, keccak256("root"), MINTED);
        vm.warp(block.timestamp + WINDOW);
        token.mint(BUYER, 1_000_003);
        vm.prank(BUYER);
        token.approve(address(shares), 1_000_003);
        token.arm(address(settlement), abi.encodeCall(settlement.finalizeEpoch, (1)));
        vm.prank(BUYER);
        shares.depositRevenue(1_000_003);
        vm.assertTrue(token.succeeded(), "the finalisation didn't happen");
        vm.assertEq(
            shares.owedScaled(DESIGNER) + shares.owedScaled(DATA) + shares.owedScaled(address(settlement))
                + shares.remainder(),
            1_000_003 * shares.PREC(),
            "conservation"
        );
    }

    function test_feeOnTransfer_creditsWhatArrived() public {
        FeeToken token = new FeeToken();
        registerWith(address(token));
        vm.assertEq(depositHostile(token, 1_000_000), 990_000, "received");
        vm.assertEq(shares.deposited(), 990_000, "deposited");
        vm.assertEq(token.balanceOf(address(shares)), 990_000, "balance");
    }

    function test_returnsNothing_worksAndLiesAreRefused() public {
        SilentToken token = new SilentToken();
        registerWith(address(token));
        token.mint(BUYER, 2_000_000);
        vm.prank(BUYER);
        shares.depositRevenue(1_000_000);
        shares.withdrawRevenueFor(DATA);
        vm.assertEq(token.balanceOf(DATA), 49_999, "paid");
        token.lie();
        bytes memory reason = abi.encodeWithSignature("SafeERC20FailedOperation(address)", address(token));
        vm.expectRevert(reason);
        vm.prank(BUYER);
        shares.depositRevenue(1_000_000);
        vm.expectRevert(reason);
        shares.withdrawRevenueFor(DESIGNER);
        vm.assertEq(shares.owed(DESIGNER), 99_999, "a refused payment is still owed");
    }

    function test_blockingToken_stopsOnlyTheBlocked() public {
        BlockingToken token = new BlockingToken();
        registerWith(address(token));
        depositHostile(token, 1_000_000);
        token.setBlocked(DESIGNER);
        vm.expectRevert(abi.encodeWithSelector(BlockingToken.Blocked.selector, DESIGNER));
        shares.withdrawRevenueFor(DESIGNER);
        shares.withdrawRevenueFor(DATA);
        settle(1, keccak256("root"), MINTED); // shares are still minted to the blocked
        vm.prank(DESIGNER);
        shares.withdrawRevenue(ANYBODY); // and they can name another payee
        vm.assertEq(token.balanceOf(ANYBODY), 99_999, "payee");
    }

    function test_donation_isNotCounted() public {
        settle(0, keccak256("root"), MINTED);
        usd.mint(address(shares), 1_000_000);
        vm.assertEq(shares.owed(DESIGNER), 0, "owed");
        deposit(10_000);
        vm.assertEq(shares.deposited(), 10_000, "a donation counted as the next deposit");
    }

    // ------------------------------------------------------------------ proofs

    function settleFour() private {
        uint256[] memory weights = new uint256[](4);
        (weights[0], weights[1], weights[2], weights[3]) = (1, 2, 3, 4);
        settleShares(0, MINTED, weights);
    }

    function expectInvalid(EpochSettlement where, Leaf memory leaf, bytes32[] memory proof) private {
        bytes32 hash = where.leaf(leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, hash));
        where.claim(0, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    function test_replay_onAnotherChain() public {
        settleFour();
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[3]);
        uint256 here = block.chainid;
        vm.chainId(here + 1);
        expectInvalid(settlement, leaf, proof);
        vm.chainId(here);
        claimFor(0, providers[3]);
    }

    function test_replay_onAnotherModel() public {
        settleFour();
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[3]);
        bytes32 root = settlement.epoch(0).root;
        (, settlement) = register(params("twin"));
        settle(0, root, MINTED); // the very same root
        expectInvalid(settlement, leaf, proof);
    }

    function test_replay_inAnotherEpoch() public {
        settleFour();
        settle(1, keccak256("another tree"), MINTED);
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[3]);
        bytes32 hash = settlement.leaf(leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, hash));
        settlement.claim(1, leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    /// @dev A tree over leaves hashed once can't be claimed from: leaves live in another hash domain than inner nodes.
    function test_secondPreimage_singleHashIsNoLeaf() public {
        bytes32 once = keccak256(abi.encode(block.chainid, address(settlement), ANYBODY, 10, 10, 0));
        settle(0, once, MINTED);
        bytes32[] memory proof;
        expectInvalid(settlement, Leaf(ANYBODY, 10, 10, 0), proof);
    }

    /// @dev A path cut short, lengthened, or emptied leads nowhere.
    function test_secondPreimage_pathsOfAnotherLength() public {
        settleFour();
        (Leaf memory leaf, bytes32[] memory proof) = entry(0, providers[0]);
        vm.assertEq(proof.length, 2, "depth");
        bytes32[] memory cut = new bytes32[](1);
        cut[0] = proof[1];
        expectInvalid(settlement, leaf, cut);
        bytes32[] memory longer = new bytes32[](3);
        (longer[0], longer[1], longer[2]) = (proof[0], proof[1], settlement.epoch(0).root);
        expectInvalid(settlement, leaf, longer);
        expectInvalid(settlement, leaf, new bytes32[](0));
    }

    /// @dev A proof in flight can't be broken by the next root, and whoever sends it pays the account, not themselves.
    function test_frontRun_claimsAndRootsDoNotBreakIt() public {
        settleFour();
        uint256 due = cumulative[providers[2]];
        settle(1, keccak256("another tree"), MINTED);
        vm.prank(ANYBODY);
        claimFor(0, providers[2]);
        vm.assertEq(shares.balanceOf(providers[2]), due, "account");
        vm.assertEq(shares.balanceOf(ANYBODY), 0, "front-runner");
    }

    function test_deployment_tokenTrustsOnlyItsOwnSettlement() public {
        (ModelShares other, EpochSettlement otherSettlement) = register(params("twin"));
        vm.expectRevert(
            abi.encodeWithSelector(IModelShares.ModelSharesNotSettlement.selector, address(otherSettlement))
        );
        vm.prank(address(otherSettlement));
        shares.mintEpoch(ANYBODY, 1, ANYBODY, 1, 1);
        vm.assertTrue(address(other) != address(shares), "one token for two models");
    }
}
