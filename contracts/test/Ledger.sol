// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {Base} from "./Base.sol";
import {Tree} from "./Tree.sol";

/// @notice What an honest coordinator keeps, each provider's cumulative amounts, debt and every epoch's tree; and what the
/// claiming side keeps, each account's last claim.
abstract contract Ledger is Base {
    struct Leaf {
        address account;
        uint256 cumulativeShares;
        uint256 epochShares;
        uint256 debtBefore;
        uint256 operatorRevenue;
    }

    struct Claimed {
        uint256 shares;
        uint256 debt;
    }

    address[] internal providers;
    /// @dev Of final epochs.
    mapping(address provider => uint256) internal cumulative;
    mapping(address provider => uint256) internal debtOf;
    mapping(address provider => uint256) internal operatorRevenueOf;
    uint256 internal operatorRevenueDivided;
    mapping(uint32 epoch => Leaf[]) internal leavesOf;
    mapping(address account => Claimed) internal claimedOf;

    function addProviders(uint256 count) internal {
        for (uint256 i = 0; i < count; i++) {
            // forge-lint: disable-next-line(unsafe-typecast) -- a handful of providers
            providers.push(address(uint160(0xF000 + i)));
        }
    }

    // ------------------------------------------------------------------ epochs

    /// @dev Gives each provider `weights[i] / Σ weights` of the compute part, and of what the router has set aside for
    /// operators since, the first one also what doesn't divide; then proposes. Weights must not all be zero.
    function proposeShares(uint32 e, uint256 minted, uint256[] memory weights) internal {
        delete leavesOf[e];
        uint256 total = 0;
        for (uint256 i = 0; i < weights.length; i++) {
            total += weights[i];
        }
        (uint256 part, uint256 revenue) = (computePart(minted), router.operatorEarned() - operatorRevenueDivided);
        (uint256 left, uint256 revenueLeft) = (part, revenue);
        for (uint256 i = weights.length; i > 0; i--) {
            uint256 epochShares = i == 1 ? left : part * weights[i - 1] / total;
            uint256 epochRevenue = i == 1 ? revenueLeft : revenue * weights[i - 1] / total;
            (left, revenueLeft) = (left - epochShares, revenueLeft - epochRevenue);
            address account = providers[i - 1];
            leavesOf[e].push(
                Leaf({
                    account: account,
                    cumulativeShares: cumulative[account] + epochShares,
                    epochShares: epochShares,
                    debtBefore: debtOf[account],
                    operatorRevenue: operatorRevenueOf[account] + epochRevenue
                })
            );
        }
        propose(e, Tree.build(hashes(e))[0], minted);
    }

    /// @dev Finalises epoch `e` now and books it, as the next epoch's leaves need it.
    function finalizeShares(uint32 e) internal {
        finalize(e);
        uint256 accAt = finalOf(e).accAt;
        for (uint256 i = 0; i < leavesOf[e].length; i++) {
            Leaf memory leaf = leavesOf[e][i];
            cumulative[leaf.account] = leaf.cumulativeShares;
            debtOf[leaf.account] += leaf.epochShares * accAt;
            operatorRevenueDivided += leaf.operatorRevenue - operatorRevenueOf[leaf.account];
            operatorRevenueOf[leaf.account] = leaf.operatorRevenue;
        }
    }

    function settleShares(uint32 e, uint256 minted, uint256[] memory weights) internal {
        proposeShares(e, minted, weights);
        elapse(WINDOW);
        finalizeShares(e);
    }

    // ------------------------------------------------------------------ claims

    function claimFor(uint32 e, address account) internal {
        IEpochSettlement.Claim memory c = entry(e, account);
        settlement.claim(c, finalOf(e));
        book(c);
    }

    /// @dev Remembers a claim that was made, as `SharesClaimed` tells it.
    function book(IEpochSettlement.Claim memory c) internal {
        claimedOf[c.account] = Claimed(c.cumulativeShares, c.debtBefore + c.epochShares * finalOf(c.epoch).accAt);
    }

    /// @dev The account's claim against epoch `e`.
    function entry(uint32 e, address account) internal view returns (IEpochSettlement.Claim memory) {
        for (uint256 i = 0; i < leavesOf[e].length; i++) {
            Leaf memory leaf = leavesOf[e][i];
            if (leaf.account == account) return claimOf(e, leaf, Tree.proof(Tree.build(hashes(e)), i));
        }
        revert("account has no leaf in this epoch");
    }

    function claimOf(uint32 e, Leaf memory leaf, bytes32[] memory proof)
        internal
        view
        returns (IEpochSettlement.Claim memory)
    {
        return IEpochSettlement.Claim({
            epoch: e,
            account: leaf.account,
            cumulativeShares: leaf.cumulativeShares,
            epochShares: leaf.epochShares,
            debtBefore: leaf.debtBefore,
            operatorRevenue: leaf.operatorRevenue,
            claimedShares: claimedOf[leaf.account].shares,
            claimedDebt: claimedOf[leaf.account].debt,
            proof: proof
        });
    }

    function hashes(uint32 e) internal view returns (bytes32[] memory result) {
        Leaf[] storage leaves = leavesOf[e];
        result = new bytes32[](leaves.length);
        for (uint256 i = 0; i < leaves.length; i++) {
            result[i] = hashOf(leaves[i]);
        }
    }

    function hashOf(Leaf memory l) internal view returns (bytes32) {
        return settlement.leaf(l.account, l.cumulativeShares, l.epochShares, l.debtBefore, l.operatorRevenue);
    }

    function hashOf(IEpochSettlement.Claim memory c) internal view returns (bytes32) {
        return settlement.leaf(c.account, c.cumulativeShares, c.epochShares, c.debtBefore, c.operatorRevenue);
    }

    function weights2(uint256 a, uint256 b) internal pure returns (uint256[] memory weights) {
        weights = new uint256[](2);
        (weights[0], weights[1]) = (a, b);
    }
}
