// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {Tree} from "./Tree.sol";

/// @notice What an honest coordinator keeps: each provider's cumulative shares and debt, and every epoch's tree.
abstract contract Ledger is Base {
    struct Leaf {
        address account;
        uint256 cumulativeShares;
        uint256 epochShares;
        uint256 debtBefore;
    }

    address[] internal providers;
    mapping(address provider => uint256) internal cumulative;
    mapping(address provider => uint256) internal debtOf;
    mapping(uint32 epoch => Leaf[]) internal leavesOf;

    function addProviders(uint256 count) internal {
        for (uint256 i = 0; i < count; i++) {
            // forge-lint: disable-next-line(unsafe-typecast) -- a handful of providers
            providers.push(address(uint160(0xF000 + i)));
        }
    }

    /// @dev Gives each provider `weights[i] / Σ weights` of the compute part, the first one also what doesn't divide;
    /// then proposes. Weights must not all be zero.
    function proposeShares(uint32 e, uint256 minted, uint256[] memory weights) internal {
        uint256 total = 0;
        for (uint256 i = 0; i < weights.length; i++) {
            total += weights[i];
        }
        uint256 part = computePart(minted);
        uint256 left = part;
        for (uint256 i = weights.length; i > 0; i--) {
            uint256 epochShares = i == 1 ? left : part * weights[i - 1] / total;
            left -= epochShares;
            address account = providers[i - 1];
            cumulative[account] += epochShares;
            leavesOf[e].push(Leaf(account, cumulative[account], epochShares, debtOf[account]));
        }
        propose(e, Tree.build(hashes(e))[0], minted);
    }

    /// @dev After the window: finalises epoch `e` and books its debts, as the next epoch's leaves need them.
    function finalizeShares(uint32 e) internal {
        vm.warp(block.timestamp + WINDOW);
        settlement.finalizeEpoch(e);
        uint256 accAt = settlement.epoch(e).accAt;
        for (uint256 i = 0; i < leavesOf[e].length; i++) {
            Leaf memory leaf = leavesOf[e][i];
            debtOf[leaf.account] += leaf.epochShares * accAt;
        }
    }

    function settleShares(uint32 e, uint256 minted, uint256[] memory weights) internal {
        proposeShares(e, minted, weights);
        finalizeShares(e);
    }

    function claimFor(uint32 e, address account) internal {
        (Leaf memory leaf, bytes32[] memory proof) = entry(e, account);
        settlement.claim(e, account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore, proof);
    }

    /// @dev The account's leaf in epoch `e`, with its proof.
    function entry(uint32 e, address account) internal view returns (Leaf memory leaf, bytes32[] memory proof) {
        for (uint256 i = 0; i < leavesOf[e].length; i++) {
            leaf = leavesOf[e][i];
            if (leaf.account == account) return (leaf, Tree.proof(Tree.build(hashes(e)), i));
        }
        revert("account has no leaf in this epoch");
    }

    function hashes(uint32 e) internal view returns (bytes32[] memory result) {
        Leaf[] storage leaves = leavesOf[e];
        result = new bytes32[](leaves.length);
        for (uint256 i = 0; i < leaves.length; i++) {
            Leaf memory leaf = leaves[i];
            result[i] = settlement.leaf(leaf.account, leaf.cumulativeShares, leaf.epochShares, leaf.debtBefore);
        }
    }

    function weights2(uint256 a, uint256 b) internal pure returns (uint256[] memory weights) {
        weights = new uint256[](2);
        (weights[0], weights[1]) = (a, b);
    }
}
