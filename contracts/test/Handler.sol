// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EpochSettlement} from "../src/EpochSettlement.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {Ledger} from "./Ledger.sol";

/// @notice The actions of an invariant run, and a reference ledger kept beside them in the plainest way: as if every
/// provider's shares moved to it the moment its epoch is finalised.
contract Handler is Ledger {
    address[] internal holders;
    /// @dev Finalised shares that the provider has not claimed.
    mapping(address provider => uint256) public unclaimed;
    /// @dev Scaled revenue that the account's shares, claimed or not, have earned.
    mapping(address account => uint256) public earned;
    mapping(address account => uint256) public withdrawnBy;
    mapping(uint32 epoch => bytes32) public rootOf;
    mapping(uint32 epoch => uint256) public mintedIn;

    /// @dev Actions of this run, counted by `counted`.
    uint256 public actions;
    uint256 public minted;
    uint256 public deposited;
    uint256 public withdrawn;
    uint256 public donated;
    uint256 public claims;
    uint256 public transfers;
    uint256 public withdrawals;
    uint32 public finalizedEpochs;
    uint256 private lastAcc;
    bool public accFell;

    modifier counted() {
        actions++;
        _;
    }

    constructor() {
        setUp();
        addProviders(4);
        for (uint256 i = 0; i < providers.length; i++) {
            holders.push(providers[i]);
        }
        holders.push(DESIGNER);
        holders.push(DATA);
    }

    function fixture() external view returns (ModelShares, EpochSettlement, TestUSD, address[] memory) {
        return (shares, settlement, usd, holders);
    }

    /// @dev Revenue not yet withdrawn that the account could reach by claiming first.
    function reachable(address account) external view returns (uint256 revenueScaled) {
        revenueScaled = shares.owedScaled(account);
        if (unclaimed[account] == 0) return revenueScaled;
        (Leaf memory leaf, bytes32[] memory proof) = entry(finalizedEpochs - 1, account);
        (uint256 amount, uint256 more) = settlement.claimable(
            finalizedEpochs - 1, account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof
        );
        vm.assertEq(amount, unclaimed[account], "claimable shares");
        return revenueScaled + more;
    }

    // ------------------------------------------------------------------ actions

    /// @dev Proposes the next epoch, or finalises the pending one.
    function advance(uint256 amount, uint256[4] memory seeds) external counted {
        uint32 e = settlement.nextEpoch();
        (bool exists,) = settlement.pending();
        if (!exists) {
            uint256[] memory weights = new uint256[](4);
            for (uint256 i = 0; i < 4; i++) {
                weights[i] = bound(seeds[i], i == 0 ? 1 : 0, 1e12);
            }
            mintedIn[e] = bound(amount, e == 0 ? 10e18 : 0, settlement.emissionOf(e));
            proposeShares(e, mintedIn[e], weights);
            rootOf[e] = settlement.epoch(e).root;
            return;
        }
        finalizeShares(e);
        finalizedEpochs = e + 1;
        minted += mintedIn[e];
        for (uint256 i = 0; i < leavesOf[e].length; i++) {
            unclaimed[leavesOf[e][i].account] += leavesOf[e][i].epochShares;
        }
    }

    /// @dev Claims for a provider against any epoch that still gives it something, newest first by `back`.
    function claim(uint256 who, uint256 back) external counted {
        address account = providers[who % providers.length];
        if (unclaimed[account] == 0) return;
        (uint256 before,) = settlement.claimed(account);
        uint32 e = finalizedEpochs - 1 - uint32(bound(back, 0, finalizedEpochs - 1));
        (Leaf memory leaf,) = entry(e, account);
        if (leaf.cumulativeShares <= before) {
            e = finalizedEpochs - 1;
            (leaf,) = entry(e, account);
        }
        claimFor(e, account);
        unclaimed[account] -= leaf.cumulativeShares - before;
        claims++;
    }

    function transfer(uint256 from, uint256 to, uint256 amount) external counted {
        address sender = holders[from % holders.length];
        amount = bound(amount, 0, shares.balanceOf(sender));
        vm.prank(sender);
        require(shares.transfer(holders[to % holders.length], amount), "transfer");
        transfers++;
    }

    function depositRevenue(uint256 amount) external counted {
        if (shares.totalSupply() < shares.MIN_SUPPLY()) return;
        amount = bound(amount, 1, 1e24);
        uint256 acc = shares.accPerShare();
        deposit(amount);
        deposited += amount;
        uint256 perShare = shares.accPerShare() - acc;
        for (uint256 i = 0; i < holders.length; i++) {
            earned[holders[i]] += (shares.balanceOf(holders[i]) + unclaimed[holders[i]]) * perShare;
        }
        if (shares.accPerShare() < lastAcc) accFell = true;
        lastAcc = shares.accPerShare();
    }

    function withdrawRevenue(uint256 who) external counted {
        address holder = holders[who % holders.length];
        if (shares.owed(holder) == 0) return;
        uint256 amount = shares.withdrawRevenueFor(holder);
        withdrawnBy[holder] += amount;
        withdrawn += amount;
        withdrawals++;
    }

    function donate(uint256 amount) external counted {
        amount = bound(amount, 1, 1e12);
        usd.mint(address(shares), amount);
        donated += amount;
    }

    function wait(uint256 time) external counted {
        vm.warp(block.timestamp + bound(time, 1, 30 days));
    }
}
