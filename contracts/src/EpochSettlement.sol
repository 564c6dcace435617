// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EmissionSchedule} from "./EmissionSchedule.sol";
import {IEpochSettlement} from "./interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "./interfaces/IModelRegistry.sol";
import {IModelShares} from "./interfaces/IModelShares.sol";

/// @title EpochSettlement
/// @notice See {IEpochSettlement}. Deployed by the registry as an ERC-1167 clone whose immutable arguments are the
/// `Terms`. It has no owner; what the coordinator and the arbiter can do is bounded by the rules of an epoch's way.
///
/// @dev The bond token is held for bonds alone: its balance here is at least Σ `bondOf` plus the bond of an undecided
/// challenge. Every function that moves it is guarded against re-entrance; the share token, which the others call, is this
/// contract's own and calls nobody back.
contract EpochSettlement is IEpochSettlement, ReentrancyGuardTransient {
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    /// @param nextEpoch The first epoch that is not final.
    /// @param finalizableAt Non-zero exactly while epoch `nextEpoch` is pending. The fields below are stale otherwise.
    /// @param resolvableUntil Non-zero exactly if the pending epoch has been challenged.
    /// @param upheld Whether the arbiter has decided that challenge against the challenger.
    struct Progress {
        uint32 nextEpoch;
        uint32 splitClaimedUntil;
        uint40 finalizableAt;
        uint40 resolvableUntil;
        uint96 minted;
        bool upheld;
    }

    /// @dev The deployer of the implementation; every clone shares it.
    address private immutable REGISTRY = msg.sender;

    Progress private _progress;
    /// @dev Of the pending epoch; left as they are when it is decided, which makes the next ones cheaper.
    address private _proposer;
    address private _challenger;
    mapping(uint32 epoch => bytes32) private _commitments;
    mapping(address account => bytes32) private _claimedCommitments;
    mapping(address account => uint256) private _bonds;
    mapping(address coordinator => mapping(uint32 epoch => bytes32)) private _beacons;

    /// @inheritdoc IEpochSettlement
    function deployShares(
        address implementation,
        bytes calldata arguments,
        uint256 genesisDesigner,
        uint256 genesisData
    ) external returns (address token) {
        if (msg.sender != REGISTRY) revert EpochSettlementNotRegistry(msg.sender);
        token = Clones.cloneWithImmutableArgs(implementation, arguments);
        assert(token == shares());
        Terms memory t = terms();
        _mint(t.designer, genesisDesigner);
        _mint(t.dataRecipient, genesisData);
    }

    // ------------------------------------------------------------------ bonds

    /// @inheritdoc IEpochSettlement
    function depositBond(address account, uint256 amount) external nonReentrant returns (uint256 received) {
        if (account == address(0)) revert EpochSettlementInvalidPayee(account);
        received = _pull(IERC20(terms().bondToken), amount);
        if (received == 0) revert EpochSettlementNothingReceived();
        _bonds[account] += received;
        emit BondDeposited(account, msg.sender, received);
    }

    /// @inheritdoc IEpochSettlement
    function withdrawBond(address to, uint256 amount) external nonReentrant {
        if (to == address(0) || to == address(this)) revert EpochSettlementInvalidPayee(to);
        Progress memory progress = _progress;
        if (progress.finalizableAt != 0 && msg.sender == _proposer) {
            revert EpochSettlementBondLocked(progress.nextEpoch);
        }
        uint256 bond = _bonds[msg.sender];
        if (amount > bond) revert EpochSettlementBondTooSmall(bond, amount);
        _bonds[msg.sender] = bond - amount;
        emit BondWithdrawn(msg.sender, to, amount);
        IERC20(terms().bondToken).safeTransfer(to, amount);
    }

    /// @dev Takes `amount` from the caller and measures what came.
    function _pull(IERC20 token, uint256 amount) private returns (uint256) {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        return token.balanceOf(address(this)) - before;
    }

    // ------------------------------------------------------------------ an epoch's way

    /// @inheritdoc IEpochSettlement
    function commitBeacon(uint32 e, bytes32 tip) external {
        if (tip == bytes32(0)) revert EpochSettlementZeroBeacon();
        if (_beacons[msg.sender][e] != bytes32(0)) revert EpochSettlementBeaconCommitted(e);
        _beacons[msg.sender][e] = tip;
        emit BeaconCommitted(e, msg.sender, tip);
    }

    /// @inheritdoc IEpochSettlement
    function proposeEpoch(uint32 e, bytes32 root, uint256 minted, bytes32 statementHash, string calldata uri) external {
        Terms memory t = terms();
        if (msg.sender != IModelRegistry(REGISTRY).coordinatorOf(t.modelId)) {
            revert EpochSettlementNotCoordinator(msg.sender);
        }
        Progress memory progress = _progress;
        if (progress.finalizableAt != 0) revert EpochSettlementEpochPending(progress.nextEpoch);
        if (e != progress.nextEpoch) revert EpochSettlementWrongEpoch(progress.nextEpoch, e);
        uint256 limit = EmissionSchedule.emission(t.initialEmission, t.halvingEpochs, e);
        if (minted > limit) revert EpochSettlementEmissionExceeded(minted, limit);
        if (root == bytes32(0) && minted != 0) revert EpochSettlementZeroRoot();
        if (statementHash == bytes32(0)) revert EpochSettlementZeroStatement();
        uint256 bond = _bonds[msg.sender];
        if (bond < t.proposerBond) revert EpochSettlementBondTooSmall(bond, t.proposerBond);

        uint256 finalizableAt = block.timestamp + t.window;
        progress.finalizableAt = finalizableAt.toUint40();
        progress.minted = minted.toUint96();
        (progress.resolvableUntil, progress.upheld) = (0, false);
        _progress = progress;
        _proposer = msg.sender;
        _commitments[e] = root;
        emit EpochProposed(e, root, msg.sender, minted, statementHash, finalizableAt, uri);
    }

    /// @inheritdoc IEpochSettlement
    function challengeEpoch(uint32 e, bytes32 root, bytes32 evidenceHash, string calldata uri) external nonReentrant {
        Progress memory progress = _pendingAt(e);
        bytes32 pendingRoot = _commitments[e];
        if (root != pendingRoot) revert EpochSettlementWrongRoot(pendingRoot, root);
        if (progress.resolvableUntil != 0) revert EpochSettlementAlreadyChallenged(e, _challenger);
        // forge-lint: disable-next-line(block-timestamp)
        if (block.timestamp >= progress.finalizableAt) revert EpochSettlementWindowClosed(progress.finalizableAt);

        Terms memory t = terms();
        uint256 resolvableUntil = block.timestamp + t.arbitration;
        _progress.resolvableUntil = resolvableUntil.toUint40();
        _challenger = msg.sender;
        emit EpochChallenged(e, root, msg.sender, evidenceHash, resolvableUntil, uri);
        if (t.challengerBond == 0) return;
        uint256 received = _pull(IERC20(t.bondToken), t.challengerBond);
        if (received < t.challengerBond) revert EpochSettlementBondTooSmall(received, t.challengerBond);
    }

    /// @inheritdoc IEpochSettlement
    function resolveEpoch(uint32 e, bytes32 root, uint256 resolvableUntil, bool uphold) external {
        Terms memory t = terms();
        if (msg.sender != t.arbiter) revert EpochSettlementNotArbiter(msg.sender);
        Progress memory progress = _challengedAt(e);
        bytes32 pendingRoot = _commitments[e];
        if (root != pendingRoot) revert EpochSettlementWrongRoot(pendingRoot, root);
        // forge-lint: disable-next-line(block-timestamp)
        if (block.timestamp >= resolvableUntil || resolvableUntil != progress.resolvableUntil) {
            revert EpochSettlementArbitrationOver(progress.resolvableUntil);
        }
        if (uphold) {
            _progress.upheld = true;
            _bonds[_proposer] += t.challengerBond;
            emit EpochUpheld(e, root);
        } else {
            _bonds[_proposer] -= t.proposerBond;
            _bonds[_challenger] += uint256(t.proposerBond / 2) + t.challengerBond;
            _reject(e, true);
        }
    }

    /// @inheritdoc IEpochSettlement
    function expireChallenge(uint32 e) external {
        Progress memory progress = _challengedAt(e);
        // forge-lint: disable-next-line(block-timestamp)
        if (block.timestamp < progress.resolvableUntil) {
            revert EpochSettlementArbitrationOpen(progress.resolvableUntil);
        }
        _bonds[_challenger] += terms().challengerBond;
        _reject(e, false);
    }

    /// @inheritdoc IEpochSettlement
    function finalizeEpoch(uint32 e) external {
        Progress memory progress = _pendingAt(e);
        if (!progress.upheld) {
            if (progress.resolvableUntil != 0) revert EpochSettlementAlreadyChallenged(e, _challenger);
            // Validators can shift the time by seconds, against windows of minutes to days.
            // forge-lint: disable-next-line(block-timestamp)
            if (block.timestamp < progress.finalizableAt) revert EpochSettlementWindowOpen(progress.finalizableAt);
        }
        (progress.nextEpoch, progress.finalizableAt) = (e + 1, 0);
        _progress = progress;

        bytes32 root = _commitments[e];
        uint256 accAt = _mint(address(this), progress.minted);
        _commitments[e] = _epochCommitment(root, accAt, progress.minted);
        emit EpochFinalized(e, root, progress.minted, accAt);
    }

    /// @dev The epoch is open again.
    function _reject(uint32 e, bool byArbiter) private {
        emit EpochRejected(e, _commitments[e], byArbiter);
        _progress.finalizableAt = 0;
        delete _commitments[e];
    }

    function _pendingAt(uint32 e) private view returns (Progress memory progress) {
        progress = _progress;
        if (progress.finalizableAt == 0 || e != progress.nextEpoch) revert EpochSettlementNotPending(e);
    }

    /// @dev Challenged and not decided.
    function _challengedAt(uint32 e) private view returns (Progress memory progress) {
        progress = _pendingAt(e);
        if (progress.resolvableUntil == 0 || progress.upheld) revert EpochSettlementNotChallenged(e);
    }

    // ------------------------------------------------------------------ claims

    /// @inheritdoc IEpochSettlement
    function claim(Claim calldata claim_, FinalEpoch calldata epoch) external {
        _claim(claim_, epoch);
    }

    /// @inheritdoc IEpochSettlement
    function claimMany(Claim[] calldata claims, FinalEpoch calldata epoch) external {
        for (uint256 i = 0; i < claims.length; i++) {
            _claim(claims[i], epoch);
        }
    }

    function _claim(Claim calldata c, FinalEpoch calldata epoch) private {
        (uint256 amount, uint256 newDebt, uint256 debt) = _unclaimed(c, epoch);
        _claimedCommitments[c.account] = keccak256(abi.encode(c.cumulativeShares, debt));
        uint256 revenueScaled = _release(c.account, amount, newDebt);
        emit SharesClaimed(c.account, c.epoch, amount, revenueScaled, c.cumulativeShares, debt);
    }

    /// @inheritdoc IEpochSettlement
    function claimSplit(FinalEpoch[] calldata epochs) external {
        uint32 first = _progress.splitClaimedUntil;
        if (epochs.length == 0) revert EpochSettlementUnknownEpoch(first);
        Terms memory t = terms();
        uint32 e = first;
        (uint256 designer, uint256 designerDebt, uint256 data, uint256 dataDebt) = (0, 0, 0, 0);
        for (uint256 i = 0; i < epochs.length; i++) {
            _checkFinal(e, epochs[i]);
            (uint256 d, uint256 s,) = EmissionSchedule.split(epochs[i].minted, t.designerBps, t.dataBps);
            (designer, designerDebt) = (designer + d, designerDebt + d * epochs[i].accAt);
            (data, dataDebt) = (data + s, dataDebt + s * epochs[i].accAt);
            e++;
        }
        _progress.splitClaimedUntil = e;
        emit SplitClaimed(first, e, designer, data);
        if (designer != 0) _release(t.designer, designer, designerDebt);
        if (data != 0) _release(t.dataRecipient, data, dataDebt);
    }

    /// @inheritdoc IEpochSettlement
    function claimable(Claim calldata claim_, FinalEpoch calldata epoch)
        external
        view
        returns (uint256 amount, uint256 revenueScaled)
    {
        uint256 debt;
        (amount, debt,) = _unclaimed(claim_, epoch);
        uint256 gross = amount * IModelShares(shares()).accPerShare();
        if (debt > gross) revert IModelShares.ModelSharesDebtExceeded(debt, gross);
        revenueScaled = gross - debt;
    }

    /// @inheritdoc IEpochSettlement
    function checkLeaf(Claim calldata claim_, FinalEpoch calldata epoch) external view {
        _verify(claim_, epoch);
    }

    /// @return amount Shares not claimed yet.
    /// @return newDebt Their debt: the token pays amount · acc − newDebt, the same whenever it is claimed.
    /// @return debt Σ_{k<=e} shares_k · accAt[k]: what the account's cumulative shares must not earn.
    function _unclaimed(Claim calldata c, FinalEpoch calldata epoch)
        private
        view
        returns (uint256 amount, uint256 newDebt, uint256 debt)
    {
        _verify(c, epoch);
        bytes32 before = _claimedCommitments[c.account];
        bool known = before == bytes32(0)
            ? c.claimedShares == 0 && c.claimedDebt == 0
            : before == keccak256(abi.encode(c.claimedShares, c.claimedDebt));
        if (!known) revert EpochSettlementStaleClaim(c.account);
        if (c.cumulativeShares <= c.claimedShares) {
            revert EpochSettlementNothingToClaim(c.cumulativeShares, c.claimedShares);
        }
        debt = c.debtBefore + c.epochShares * epoch.accAt;
        if (debt < c.claimedDebt) revert EpochSettlementInconsistentDebt(debt, c.claimedDebt);
        return (c.cumulativeShares - c.claimedShares, debt - c.claimedDebt, debt);
    }

    function _verify(Claim calldata c, FinalEpoch calldata epoch) private view {
        _checkFinal(c.epoch, epoch);
        if (c.epoch + 1 != _progress.nextEpoch) revert EpochSettlementRootReplaced(c.epoch);
        bytes32 leaf_ = leaf(c.account, c.cumulativeShares, c.epochShares, c.debtBefore, c.operatorRevenue);
        if (!MerkleProof.verifyCalldata(c.proof, epoch.root, leaf_)) revert EpochSettlementInvalidProof(leaf_);
    }

    /// @dev A pending epoch's word is what its proposer chose, perhaps the commitment to numbers of its own; so the epoch
    /// must be a final one.
    function _checkFinal(uint32 e, FinalEpoch calldata epoch) private view {
        if (e >= _progress.nextEpoch || _commitments[e] != _epochCommitment(epoch.root, epoch.accAt, epoch.minted)) {
            revert EpochSettlementUnknownEpoch(e);
        }
    }

    function _epochCommitment(bytes32 root, uint256 accAt, uint256 minted) private pure returns (bytes32) {
        return keccak256(abi.encode(root, accAt, minted));
    }

    function _mint(address to, uint256 amount) private returns (uint256 accPerShare) {
        return IModelShares(shares()).mint(to, amount);
    }

    function _release(address to, uint256 amount, uint256 debt) private returns (uint256 revenueScaled) {
        return IModelShares(shares()).release(to, amount, debt);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IEpochSettlement
    function leaf(
        address account,
        uint256 cumulativeShares,
        uint256 epochShares,
        uint256 debtBefore,
        uint256 operatorRevenue
    ) public view returns (bytes32) {
        // Hashed twice, so that no inner node (64 bytes, hashed once) can pass for a leaf.
        return keccak256(
            bytes.concat(
                keccak256(
                    abi.encode(
                        block.chainid,
                        address(this),
                        account,
                        cumulativeShares,
                        epochShares,
                        debtBefore,
                        operatorRevenue
                    )
                )
            )
        );
    }

    /// @inheritdoc IEpochSettlement
    function nextEpoch() external view returns (uint32) {
        return _progress.nextEpoch;
    }

    /// @inheritdoc IEpochSettlement
    function pending() external view returns (Pending memory p) {
        Progress memory progress = _progress;
        p.epoch = progress.nextEpoch;
        if (progress.finalizableAt == 0) return p;
        p.exists = true;
        p.root = _commitments[p.epoch];
        p.minted = progress.minted;
        p.proposer = _proposer;
        p.finalizableAt = progress.finalizableAt;
        if (progress.resolvableUntil == 0) return p;
        p.challenger = _challenger;
        p.resolvableUntil = progress.resolvableUntil;
        p.upheld = progress.upheld;
    }

    /// @inheritdoc IEpochSettlement
    function beaconOf(uint32 e, address coordinator) external view returns (bytes32) {
        return _beacons[coordinator][e];
    }

    /// @inheritdoc IEpochSettlement
    function commitmentOf(uint32 e) external view returns (bytes32) {
        return _commitments[e];
    }

    /// @inheritdoc IEpochSettlement
    function claimedCommitmentOf(address account) external view returns (bytes32) {
        return _claimedCommitments[account];
    }

    /// @inheritdoc IEpochSettlement
    function splitClaimedUntil() external view returns (uint32) {
        return _progress.splitClaimedUntil;
    }

    /// @inheritdoc IEpochSettlement
    function bondOf(address account) external view returns (uint256) {
        return _bonds[account];
    }

    /// @inheritdoc IEpochSettlement
    function emissionOf(uint32 e) external view returns (uint256) {
        Terms memory t = terms();
        return EmissionSchedule.emission(t.initialEmission, t.halvingEpochs, e);
    }

    /// @inheritdoc IEpochSettlement
    function terms() public view returns (Terms memory) {
        return abi.decode(Clones.fetchCloneArgs(address(this)), (Terms));
    }

    /// @inheritdoc IEpochSettlement
    function shares() public view returns (address) {
        // The address of the first contract that this one created, keccak256(rlp([this, 1])): cheaper than a storage read,
        // and the token can name this contract in its own immutable arguments.
        return address(uint160(uint256(keccak256(abi.encodePacked(hex"d694", address(this), hex"01")))));
    }

    /// @inheritdoc IEpochSettlement
    function registry() external view returns (address) {
        return REGISTRY;
    }
}
