// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title IEpochSettlement
/// @notice One Merkle root of cumulative amounts per epoch of verified work, optimistic: the coordinator proposes it with
/// a bond, anybody can challenge it with one within the window, the arbiter decides, and silence rejects.
///
/// A leaf commits to `(chain id, this contract, account, cumulativeShares, epochShares, debtBefore, operatorRevenue)`:
/// - `cumulativeShares`: compute shares of the account in epochs 0..e;
/// - `epochShares`: its compute shares in epoch e alone;
/// - `debtBefore`: Σ_{k<e} shares_k · accAt[k], what its earlier shares must not earn because they did not exist yet;
/// - `operatorRevenue`: revenue that it earned by serving in epochs 0..e, paid by the {IRevenueRouter}.
///
/// Everything that a finalised epoch mints lies in this contract and accrues revenue from that moment. A claim moves the
/// shares and exactly that accrual, so it pays the same whether it is made at once or years later.
///
/// @dev Storage holds commitments, one word per epoch, one per beacon and one per account; the numbers behind them are in
/// the events and are handed in again by the caller. A pending epoch's word is its root, a final one's is
/// `keccak256(abi.encode(root, accAt, minted))`.
interface IEpochSettlement {
    /// @notice A model's settlement terms, fixed at registration.
    struct Terms {
        bytes32 modelId;
        address designer;
        address dataRecipient;
        address arbiter;
        address bondToken;
        uint256 initialEmission;
        uint32 halvingEpochs;
        uint32 window;
        uint32 arbitration;
        uint16 designerBps;
        uint16 dataBps;
        uint96 proposerBond;
        uint96 challengerBond;
    }

    /// @notice The numbers of a final epoch, as in its events.
    struct FinalEpoch {
        bytes32 root;
        uint256 accAt;
        uint256 minted;
    }

    /// @notice One account's leaf in a final epoch's tree, and what the account claimed before.
    /// @param claimedShares,claimedDebt As in the account's last `SharesClaimed`; zeros before its first.
    struct Claim {
        uint32 epoch;
        address account;
        uint256 cumulativeShares;
        uint256 epochShares;
        uint256 debtBefore;
        uint256 operatorRevenue;
        uint256 claimedShares;
        uint256 claimedDebt;
        bytes32[] proof;
    }

    /// @notice The pending epoch. All zero, but for `epoch`, while there is none.
    /// @param epoch The pending one, else the one to propose next.
    /// @param finalizableAt From when it can be finalised if nobody has challenged it.
    /// @param challenger Who has challenged it; zero if nobody.
    /// @param resolvableUntil Until when the arbiter can decide; zero if it isn't challenged.
    /// @param upheld Whether the arbiter has confirmed it against a challenge.
    struct Pending {
        bool exists;
        uint32 epoch;
        bytes32 root;
        uint256 minted;
        address proposer;
        uint256 finalizableAt;
        address challenger;
        uint256 resolvableUntil;
        bool upheld;
    }

    event BeaconCommitted(uint32 indexed epoch, address indexed coordinator, bytes32 tip);
    event EpochProposed(
        uint32 indexed epoch,
        bytes32 indexed root,
        address indexed proposer,
        uint256 minted,
        bytes32 statementHash,
        uint256 finalizableAt,
        string uri
    );
    event EpochChallenged(
        uint32 indexed epoch,
        bytes32 indexed root,
        address indexed challenger,
        bytes32 evidenceHash,
        uint256 resolvableUntil,
        string uri
    );
    event EpochUpheld(uint32 indexed epoch, bytes32 indexed root);
    /// @param byArbiter False where the arbiter was silent.
    event EpochRejected(uint32 indexed epoch, bytes32 indexed root, bool byArbiter);
    event EpochFinalized(uint32 indexed epoch, bytes32 indexed root, uint256 minted, uint256 accAt);
    /// @param claimedShares,claimedDebt What the account has now claimed in all: the next claim hands them in.
    event SharesClaimed(
        address indexed account,
        uint32 indexed epoch,
        uint256 shares,
        uint256 revenueScaled,
        uint256 claimedShares,
        uint256 claimedDebt
    );
    event SplitClaimed(uint32 indexed firstEpoch, uint32 endEpoch, uint256 designerShares, uint256 dataShares);
    event BondDeposited(address indexed account, address indexed from, uint256 amount);
    event BondWithdrawn(address indexed account, address indexed to, uint256 amount);

    error EpochSettlementNotRegistry(address caller);
    error EpochSettlementNotCoordinator(address caller);
    error EpochSettlementNotArbiter(address caller);
    error EpochSettlementWrongEpoch(uint32 expected, uint32 given);
    error EpochSettlementEpochPending(uint32 epoch);
    error EpochSettlementNotPending(uint32 epoch);
    error EpochSettlementWindowOpen(uint256 finalizableAt);
    error EpochSettlementWindowClosed(uint256 finalizableAt);
    error EpochSettlementEmissionExceeded(uint256 minted, uint256 emission);
    error EpochSettlementZeroBeacon();
    error EpochSettlementBeaconCommitted(uint32 epoch);
    error EpochSettlementZeroRoot();
    error EpochSettlementZeroStatement();
    /// @dev The pending root is another one than the caller means: it was rejected and proposed anew meanwhile.
    error EpochSettlementWrongRoot(bytes32 pending, bytes32 given);
    error EpochSettlementBondTooSmall(uint256 bond, uint256 needed);
    error EpochSettlementBondLocked(uint32 epoch);
    error EpochSettlementNothingReceived();
    error EpochSettlementInvalidPayee(address payee);
    error EpochSettlementAlreadyChallenged(uint32 epoch, address challenger);
    error EpochSettlementNotChallenged(uint32 epoch);
    error EpochSettlementArbitrationOpen(uint256 resolvableUntil);
    /// @dev It is past, or another challenge's than the caller means.
    error EpochSettlementArbitrationOver(uint256 resolvableUntil);
    /// @dev The epoch isn't final, or its numbers are others.
    error EpochSettlementUnknownEpoch(uint32 epoch);
    /// @dev A later epoch is final, and only the last final root pays: claim with a proof against that.
    error EpochSettlementRootReplaced(uint32 epoch);
    error EpochSettlementInvalidProof(bytes32 leaf);
    /// @dev The account has claimed since: hand in what its last `SharesClaimed` says.
    error EpochSettlementStaleClaim(address account);
    /// @dev `cumulativeShares` was claimed before, or belongs to an older epoch than the account's last claim.
    error EpochSettlementNothingToClaim(uint256 cumulativeShares, uint256 claimedShares);
    /// @dev The root carries a debt that can't belong to these shares: only a wrong root does.
    error EpochSettlementInconsistentDebt(uint256 debt, uint256 claimedDebt);

    /// @notice Deploys the share token and mints the genesis grants; registry only, once, in the transaction that deploys
    /// this contract. `arguments` are the clone's immutable ones, see {ModelShares}.
    function deployShares(
        address implementation,
        bytes calldata arguments,
        uint256 genesisDesigner,
        uint256 genesisData
    ) external returns (address);

    // ---------------------------------------------------------------- bonds

    /// @notice Adds to `account`'s bond, from the caller. Bonds of losing sides are paid into it, too.
    function depositBond(address account, uint256 amount) external returns (uint256 received);

    /// @notice Pays `amount` of the caller's bond to `to`; not while an epoch that the caller proposed is pending.
    function withdrawBond(address to, uint256 amount) external;

    // ---------------------------------------------------------------- an epoch's way

    /// @notice Commits to the caller's beacon for an epoch, the hash chain whose values choose which work is audited: once
    /// for each epoch, for good. A value is revealed after the work that it chooses from. Nobody else knows it before; and as
    /// the chain is fixed before, its coordinator can't pick one that spares some of the work.
    ///
    /// Anybody may commit; the beacon of an epoch is that of the coordinator who proposes it. So one that is being replaced
    /// can't fix its successor's. A successor that is handed the seed commits to the same tip and goes on within the epoch.
    ///
    /// When work begins isn't known here. Who works signs the tip with each report: one that comes later fits none of them.
    /// `proposeEpoch` needs no beacon: whoever recomputes a statement compares its tip with `beaconOf`, and challenges.
    /// @param tip The end of the chain, which chooses nothing: the Keccak-256 of the value that is revealed first.
    function commitBeacon(uint32 epoch, bytes32 tip) external;

    /// @notice Proposes the next epoch; coordinator only, one at a time, with `proposerBond` standing.
    /// @param minted Total to mint, at most `emissionOf(epoch)`.
    /// @param statementHash Keccak-256 of the epoch's public statement, from which the root can be recomputed.
    /// @param uri Where the statement can be fetched.
    function proposeEpoch(uint32 epoch, bytes32 root, uint256 minted, bytes32 statementHash, string calldata uri)
        external;

    /// @notice Disputes the pending epoch within its window, with `challengerBond` from the caller's allowance.
    /// @param root The root that is disputed.
    /// @param evidenceHash Keccak-256 of what the challenger has to say, at `uri`.
    function challengeEpoch(uint32 epoch, bytes32 root, bytes32 evidenceHash, string calldata uri) external;

    /// @notice Decides a challenge; arbiter only, in time. Upheld: the epoch can be finalised at once, and the
    /// challenger's bond goes to the proposer. Rejected: the epoch is open again, half of `proposerBond` goes to the
    /// challenger, and the other half stays here for ever: who challenges its own lie must not get away with it for nothing.
    /// @param resolvableUntil The challenge's, which names it: the same root may be challenged again, with other numbers.
    function resolveEpoch(uint32 epoch, bytes32 root, uint256 resolvableUntil, bool uphold) external;

    /// @notice Rejects an epoch on whose challenge the arbiter was silent; anybody. Both bonds go back.
    function expireChallenge(uint32 epoch) external;

    /// @notice Mints the pending epoch's shares to this contract once its window has passed unchallenged, or the arbiter
    /// has upheld it. Anybody may call.
    function finalizeEpoch(uint32 epoch) external;

    // ---------------------------------------------------------------- claims

    /// @notice Pays `claim.account` all its shares up to `claim.epoch` that it has not claimed yet, with what they earned
    /// meanwhile. Anybody may call. Only the last final epoch's root pays, and it covers all epochs before: so what a wrong
    /// root promises ends with the next one.
    function claim(Claim calldata claim_, FinalEpoch calldata epoch) external;

    /// @notice The same for many; reverts as a whole if one reverts.
    function claimMany(Claim[] calldata claims, FinalEpoch calldata epoch) external;

    /// @notice Pays designer and data recipient their parts of the epochs from `splitClaimedUntil()` on, with what those
    /// earned meanwhile. Anybody may call.
    /// @param epochs The numbers of those epochs, in order, at least one.
    function claimSplit(FinalEpoch[] calldata epochs) external;

    /// @notice What `claim` would pay now, or the error with which it would revert. What the share token refuses (its
    /// receiver, more than lies unclaimed) only `claim` tells.
    /// @return shares Shares that would move to the account.
    /// @return revenueScaled Accrued revenue that would move with them, times 2^96.
    function claimable(Claim calldata claim_, FinalEpoch calldata epoch)
        external
        view
        returns (uint256 shares, uint256 revenueScaled);

    /// @notice Reverts unless the claim's leaf is in the tree of the last final epoch. What was claimed before isn't looked at.
    function checkLeaf(Claim calldata claim_, FinalEpoch calldata epoch) external view;

    // ---------------------------------------------------------------- views

    /// @notice The double-hashed leaf, as `StandardMerkleTree` of
    /// (uint256, address, address, uint256, uint256, uint256, uint256).
    function leaf(
        address account,
        uint256 cumulativeShares,
        uint256 epochShares,
        uint256 debtBefore,
        uint256 operatorRevenue
    ) external view returns (bytes32);

    /// @notice The first epoch that is not final: the pending one, else the one to propose next.
    function nextEpoch() external view returns (uint32);

    /// @notice The pending epoch, if there is one.
    function pending() external view returns (Pending memory);

    /// @notice The tip of a coordinator's beacon for an epoch; zero if it has committed to none.
    function beaconOf(uint32 epoch, address coordinator) external view returns (bytes32);

    /// @notice The word kept of an epoch: the root while pending, the commitment once final, zero otherwise.
    function commitmentOf(uint32 epoch) external view returns (bytes32);

    /// @notice `keccak256(abi.encode(claimedShares, claimedDebt))` of the account's last claim; zero before its first.
    function claimedCommitmentOf(address account) external view returns (bytes32);

    /// @notice The first epoch whose designer's and data recipient's parts have not been paid.
    function splitClaimedUntil() external view returns (uint32);

    function bondOf(address account) external view returns (uint256);

    /// @notice Upper bound of what `epoch` may mint.
    function emissionOf(uint32 epoch) external view returns (uint256);

    /// @notice The terms fixed at registration.
    function terms() external view returns (Terms memory);

    /// @notice The model's share token.
    function shares() external view returns (address);

    /// @notice The registry that deployed this contract and knows its coordinator.
    function registry() external view returns (address);
}
