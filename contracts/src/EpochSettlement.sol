// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EmissionSchedule} from "./EmissionSchedule.sol";
import {IEpochSettlement} from "./interfaces/IEpochSettlement.sol";
import {IModelShares} from "./interfaces/IModelShares.sol";

/// @title EpochSettlement
/// @notice See {IEpochSettlement}. Deployed by the registry as an ERC-1167 clone whose immutable arguments are the
/// `Terms`. The only privileged function after deployment is `proposeEpoch`.
contract EpochSettlement is IEpochSettlement {
    using SafeCast for uint256;

    /// @param finalizableAt Non-zero exactly while epoch `nextEpoch` is pending.
    /// @param minted What the pending epoch will mint; stale while none is pending.
    struct Progress {
        uint32 nextEpoch;
        uint40 finalizableAt;
        uint96 minted;
    }

    /// @dev accAt <= 2^149, see {ModelShares}.
    struct Sealed {
        bytes32 root;
        bytes32 statementHash;
        uint152 accAt;
        uint96 minted;
        bool finalized;
    }

    /// @param debt <= 2^96 · 2^149 = 2^245 under correct roots.
    struct Claimed {
        uint96 shares;
        uint256 debt;
    }

    /// @dev The deployer of the implementation; every clone shares it.
    address private immutable REGISTRY = msg.sender;

    Progress private _progress;
    mapping(uint32 epoch => Sealed) private _epochs;
    mapping(address account => Claimed) private _claimed;

    /// @inheritdoc IEpochSettlement
    function deployShares(
        address implementation,
        address revenueToken,
        uint256 maxSupply,
        string calldata name,
        string calldata symbol
    ) external returns (address token) {
        if (msg.sender != REGISTRY) revert EpochSettlementNotRegistry(msg.sender);
        token = Clones.cloneWithImmutableArgs(
            implementation, abi.encode(address(this), revenueToken, maxSupply, name, symbol)
        );
        assert(token == shares());
    }

    /// @inheritdoc IEpochSettlement
    function proposeEpoch(uint32 e, bytes32 root, uint256 minted, bytes32 statementHash, string calldata uri) external {
        Terms memory t = terms();
        if (msg.sender != t.coordinator) revert EpochSettlementNotCoordinator(msg.sender);
        Progress memory progress = _progress;
        if (progress.finalizableAt != 0) revert EpochSettlementEpochPending(progress.nextEpoch);
        if (e != progress.nextEpoch) revert EpochSettlementWrongEpoch(progress.nextEpoch, e);
        uint256 limit = EmissionSchedule.emission(t.initialEmission, t.halvingEpochs, e);
        if (minted > limit) revert EpochSettlementEmissionExceeded(minted, limit);
        if (root == bytes32(0) && minted != 0) revert EpochSettlementZeroRoot();
        if (statementHash == bytes32(0)) revert EpochSettlementZeroStatement();

        uint256 finalizableAt = block.timestamp + t.window;
        _progress = Progress({nextEpoch: e, finalizableAt: finalizableAt.toUint40(), minted: minted.toUint96()});
        _epochs[e].root = root;
        _epochs[e].statementHash = statementHash;
        emit EpochProposed(e, root, minted, statementHash, finalizableAt, uri);
    }

    /// @inheritdoc IEpochSettlement
    function finalizeEpoch(uint32 e) external {
        Progress memory progress = _progress;
        if (progress.finalizableAt == 0 || e != progress.nextEpoch) revert EpochSettlementNotPending(e);
        // Validators can shift the time by seconds, against windows of minutes to days.
        // forge-lint: disable-next-line(block-timestamp)
        if (block.timestamp < progress.finalizableAt) revert EpochSettlementWindowOpen(progress.finalizableAt);
        _progress = Progress({nextEpoch: e + 1, finalizableAt: 0, minted: progress.minted});

        Terms memory t = terms();
        (uint256 designer, uint256 data, uint256 compute) =
            EmissionSchedule.split(progress.minted, t.designerBps, t.dataBps);
        uint256 accAt = IModelShares(shares()).mintEpoch(t.designer, designer, t.dataRecipient, data, compute);
        Sealed storage epoch_ = _epochs[e];
        (epoch_.accAt, epoch_.minted, epoch_.finalized) = (accAt.toUint152(), progress.minted, true);
        emit EpochFinalized(e, designer, data, compute, accAt);
    }

    /// @inheritdoc IEpochSettlement
    function claim(
        uint32 e,
        address account,
        uint256 cumulativeShares,
        uint256 epochShares,
        uint256 debtBefore,
        bytes32[] calldata proof
    ) external {
        uint256 debt = _verify(e, account, cumulativeShares, epochShares, debtBefore, proof);
        (uint256 amount, uint256 newDebt) = _unclaimed(account, cumulativeShares, debt);
        _claimed[account] = Claimed({shares: cumulativeShares.toUint96(), debt: debt});
        uint256 revenueScaled = IModelShares(shares()).release(account, amount, newDebt);
        emit SharesClaimed(account, e, amount, revenueScaled);
    }

    /// @inheritdoc IEpochSettlement
    function claimable(
        uint32 e,
        address account,
        uint256 cumulativeShares,
        uint256 epochShares,
        uint256 debtBefore,
        bytes32[] calldata proof
    ) external view returns (uint256 amount, uint256 revenueScaled) {
        uint256 debt = _verify(e, account, cumulativeShares, epochShares, debtBefore, proof);
        (amount, debt) = _unclaimed(account, cumulativeShares, debt);
        uint256 gross = amount * IModelShares(shares()).accPerShare();
        if (debt > gross) revert IModelShares.ModelSharesDebtExceeded(debt, gross);
        revenueScaled = gross - debt;
    }

    /// @dev Checks that the leaf is in epoch `e`'s tree. Every root is kept, so a proof doesn't expire with the next one.
    /// @return debt Σ_{k<=e} shares_k · accAt[k]: what the account's cumulative shares must not earn.
    function _verify(
        uint32 e,
        address account,
        uint256 cumulativeShares,
        uint256 epochShares,
        uint256 debtBefore,
        bytes32[] calldata proof
    ) private view returns (uint256 debt) {
        Sealed storage epoch_ = _epochs[e];
        (uint256 accAt, bool finalized) = (epoch_.accAt, epoch_.finalized);
        if (!finalized) revert EpochSettlementNotFinalized(e);
        bytes32 leaf_ = leaf(account, cumulativeShares, epochShares, debtBefore);
        if (!MerkleProof.verifyCalldata(proof, epoch_.root, leaf_)) revert EpochSettlementInvalidProof(leaf_);
        debt = debtBefore + epochShares * accAt;
    }

    /// @dev The n shares not claimed yet and their debt; the token pays n·acc − debt, the same whenever it is claimed.
    function _unclaimed(address account, uint256 cumulativeShares, uint256 debt)
        private
        view
        returns (uint256 amount, uint256 newDebt)
    {
        Claimed storage before = _claimed[account];
        (uint256 claimedShares, uint256 claimedDebt) = (before.shares, before.debt);
        if (cumulativeShares <= claimedShares) revert EpochSettlementNothingToClaim(cumulativeShares, claimedShares);
        if (debt < claimedDebt) revert EpochSettlementInconsistentDebt(debt, claimedDebt);
        return (cumulativeShares - claimedShares, debt - claimedDebt);
    }

    /// @inheritdoc IEpochSettlement
    function leaf(address account, uint256 cumulativeShares, uint256 epochShares, uint256 debtBefore)
        public
        view
        returns (bytes32)
    {
        // Hashed twice, so that no inner node (64 bytes, hashed once) can pass for a leaf.
        return keccak256(
            bytes.concat(
                keccak256(abi.encode(block.chainid, address(this), account, cumulativeShares, epochShares, debtBefore))
            )
        );
    }

    /// @inheritdoc IEpochSettlement
    function nextEpoch() external view returns (uint32) {
        return _progress.nextEpoch;
    }

    /// @inheritdoc IEpochSettlement
    function pending() external view returns (bool exists, uint32 e) {
        exists = _progress.finalizableAt != 0;
        if (exists) e = _progress.nextEpoch;
    }

    /// @inheritdoc IEpochSettlement
    function epoch(uint32 e) external view returns (Epoch memory) {
        Sealed memory s = _epochs[e];
        Progress memory progress = _progress;
        bool isPending = progress.finalizableAt != 0 && e == progress.nextEpoch;
        return Epoch({
            root: s.root,
            minted: isPending ? progress.minted : s.minted,
            statementHash: s.statementHash,
            accAt: s.accAt,
            finalizableAt: isPending ? progress.finalizableAt : 0,
            finalized: s.finalized
        });
    }

    /// @inheritdoc IEpochSettlement
    function claimed(address account) external view returns (uint256, uint256) {
        Claimed memory c = _claimed[account];
        return (c.shares, c.debt);
    }

    /// @inheritdoc IEpochSettlement
    function emissionOf(uint32 e) external view returns (uint256) {
        Terms memory t = terms();
        return EmissionSchedule.emission(t.initialEmission, t.halvingEpochs, e);
    }

    /// @inheritdoc IEpochSettlement
    function shares() public view returns (address) {
        // The address of the first contract that this one created, keccak256(rlp([this, 1])): cheaper than a storage read,
        // and the token can name this contract in its own immutable arguments.
        return address(uint160(uint256(keccak256(abi.encodePacked(hex"d694", address(this), hex"01")))));
    }

    /// @inheritdoc IEpochSettlement
    function terms() public view returns (Terms memory) {
        return abi.decode(Clones.fetchCloneArgs(address(this)), (Terms));
    }
}
