// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IRevenueRouter} from "../src/interfaces/IRevenueRouter.sol";
import {Ledger} from "./Ledger.sol";
import {Tree} from "./Tree.sol";

/// @notice Gas of whole transactions (21,000 and calldata included, through forge's isolation) against the design's
/// targets. Unless a test's name says otherwise the state is the costly usual one: 17 hashes in a proof (100,000 leaves), a
/// stream of revenue that runs and has credited something since each account's last checkpoint, designer's and data
/// recipient's parts not zero, slots that a call writes each time not zero before it.
/// forge-config: default.isolate = true
contract GasTest is Ledger {
    uint256 private constant MINTED = 800e18;
    uint256 private constant REVENUE = 1_234_567_890;
    uint256 private constant ACCOUNTS = 16;
    /// @dev Above the 4 levels of the tree of `ACCOUNTS` leaves.
    uint256 private constant MORE_LEVELS = 13;

    address private veteran;

    /// @dev Epochs 0 to 2 pay all accounts alike, revenue after each, paid through the router; only the first account has
    /// claimed, epoch 0.
    function setUp() public override {
        super.setUp();
        addProviders(ACCOUNTS);
        veteran = providers[0];
        vm.prank(COORDINATOR);
        router.setCashier(COORDINATOR, true);
        for (uint32 e = 0; e < 3; e++) {
            proposePlanted(e);
            elapse(WINDOW);
            finalizeShares(e);
            usd.mint(address(router), REVENUE);
            router.sweep();
            elapse(1);
            if (e == 0) claimPlanted(e, veteran);
        }
        elapse(WINDOW);
        usd.mint(veteran, 1);
        usd.mint(vm.addr(PAYER_KEY), 2 * REVENUE);
        fund(BUYER, address(shares), REVENUE + 1);
    }

    /// @dev Equal weights; the tree is the real one under more levels.
    function proposePlanted(uint32 e) private {
        uint256 part = computePart(MINTED) / ACCOUNTS;
        uint256 revenue = (router.operatorEarned() - operatorRevenueDivided) / ACCOUNTS;
        for (uint256 i = 0; i < ACCOUNTS; i++) {
            address account = providers[i];
            leavesOf[e].push(
                Leaf({
                    account: account,
                    cumulativeShares: cumulative[account] + part,
                    epochShares: part,
                    debtBefore: debtOf[account],
                    operatorRevenue: operatorRevenueOf[account] + revenue
                })
            );
        }
        bytes32 root = Tree.build(hashes(e))[0];
        for (uint256 i = 0; i < MORE_LEVELS; i++) {
            root = Hashes.commutativeKeccak256(root, sibling(e, i));
        }
        propose(e, root, MINTED);
    }

    function sibling(uint32 e, uint256 level) private pure returns (bytes32) {
        return keccak256(abi.encode(e, level));
    }

    function planted(uint32 e, address account) private view returns (IEpochSettlement.Claim memory c) {
        c = entry(e, account);
        bytes32[] memory proof = new bytes32[](c.proof.length + MORE_LEVELS);
        for (uint256 i = 0; i < proof.length; i++) {
            proof[i] = i < c.proof.length ? c.proof[i] : sibling(e, i - c.proof.length);
        }
        c.proof = proof;
    }

    function claimPlanted(uint32 e, address account) private {
        IEpochSettlement.Claim memory c = planted(e, account);
        settlement.claim(c, finalOf(e));
        book(c);
    }

    function check(uint256 limit) private view {
        used(limit, vm.lastCallGas().gasTotalUsed);
    }

    /// @dev The lower bound shows that a whole transaction was measured.
    function used(uint256 limit, uint256 gas) private pure {
        vm.assertLe(21_000, gas, "less than a transaction: isolation is off");
        vm.assertLe(gas, limit, string.concat("gas used: ", vm.toString(gas)));
    }

    // ------------------------------------------------------------------ settlement

    function test_commitBeacon() public {
        vm.prank(COORDINATOR);
        settlement.commitBeacon(3, keccak256("tip"));
        check(50_000);
    }

    function test_proposeEpoch() public {
        vm.prank(COORDINATOR);
        settlement.proposeEpoch(3, keccak256("root"), MINTED, STATEMENT, URI);
        check(80_000);
    }

    function test_finalizeEpoch() public {
        propose(3, keccak256("root"), MINTED);
        elapse(WINDOW);
        settlement.finalizeEpoch(3);
        check(90_000);
    }

    function test_claim_new() public {
        IEpochSettlement.Claim memory c = planted(2, providers[1]);
        vm.assertEq(c.proof.length, 17, "depth");
        settlement.claim(c, finalOf(2));
        check(145_000);
    }

    function test_claim_repeat() public {
        IEpochSettlement.Claim memory c = planted(2, veteran);
        settlement.claim(c, finalOf(2));
        check(110_000);
    }

    /// @dev Ten new accounts in one transaction, per account.
    function test_claimMany_newPerClaim() public {
        IEpochSettlement.Claim[] memory claims = new IEpochSettlement.Claim[](10);
        for (uint256 i = 0; i < 10; i++) {
            claims[i] = planted(2, providers[i + 1]);
        }
        settlement.claimMany(claims, finalOf(2));
        used(105_000, vm.lastCallGas().gasTotalUsed / 10);
    }

    /// @dev Both parts of two epochs; designer and data recipient were paid for the first.
    function test_claimSplit() public {
        settlement.claimSplit(finalsOf(0, 1));
        IEpochSettlement.FinalEpoch[] memory epochs = finalsOf(1, 3);
        elapse(1);
        settlement.claimSplit(epochs);
        check(105_000);
    }

    // ------------------------------------------------------------------ shares

    function test_depositRevenue() public {
        vm.prank(BUYER);
        shares.depositRevenue(REVENUE);
        check(70_000);
    }

    function test_withdrawRevenue() public {
        vm.prank(veteran);
        shares.withdrawRevenue(veteran);
        check(65_000);
    }

    function test_transfer() public {
        claimPlanted(2, providers[1]);
        elapse(1);
        vm.prank(veteran);
        require(shares.transfer(providers[1], 1e18));
        check(60_000);
    }

    // ------------------------------------------------------------------ router

    function test_collect() public {
        IRevenueRouter.Authorization memory a = authorize(1_000_000, "order");
        vm.prank(COORDINATOR);
        router.collect(a, 700_000);
        check(90_000);
    }

    function test_sweep() public {
        usd.mint(address(router), REVENUE);
        router.sweep();
        check(100_000);
    }

    function test_payOperator() public {
        IEpochSettlement.Claim memory c = planted(2, providers[1]);
        router.payOperator(c, finalOf(2));
        check(125_000);
    }
}
