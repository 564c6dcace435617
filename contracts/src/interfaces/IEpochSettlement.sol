// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title IEpochSettlement
/// @notice Turns verified work into shares, one Merkle root per epoch whatever the number of providers.
///
/// The coordinator proposes epoch e; after the window anybody finalises it, which mints its shares; from then on anybody
/// can claim on behalf of any account in the tree, and only that account is paid. Nobody, the coordinator included, can
/// set a root without the window, replace a finalised root, or mint more than the emission schedule allows.
///
/// A leaf commits to `(chain id, this contract, account, cumulativeShares, epochShares, debtBefore)`:
/// - `cumulativeShares`: compute shares of the account in epochs 0..e;
/// - `epochShares`: its compute shares in epoch e alone;
/// - `debtBefore`: Σ_{k<e} shares_k · accAt[k], what its earlier shares must not earn because they did not exist yet.
///
/// Unclaimed shares lie in this contract and accrue revenue from their epoch's finalisation. A claim moves the shares and
/// exactly that accrual, so it pays the same whether it is made at once or years later.
interface IEpochSettlement {
    /// @notice A model's settlement terms, fixed at registration.
    struct Terms {
        address coordinator;
        address designer;
        address dataRecipient;
        uint256 initialEmission;
        uint32 halvingEpochs;
        uint32 window;
        uint16 designerBps;
        uint16 dataBps;
    }

    /// @param root Merkle root of the epoch's leaves; may be zero for an epoch that mints nothing.
    /// @param minted Total minted in the epoch: designer's, data recipient's and compute part.
    /// @param statementHash Keccak-256 of the epoch's public statement, from which the root can be recomputed; zero
    /// exactly if the epoch was never proposed.
    /// @param accAt The share token's accumulator when the epoch was finalised; zero before.
    /// @param finalizableAt Unix time from which a pending epoch can be finalised; zero unless pending.
    struct Epoch {
        bytes32 root;
        uint256 minted;
        bytes32 statementHash;
        uint256 accAt;
        uint256 finalizableAt;
        bool finalized;
    }

    event EpochProposed(
        uint32 indexed epoch,
        bytes32 indexed root,
        uint256 minted,
        bytes32 statementHash,
        uint256 finalizableAt,
        string uri
    );
    event EpochFinalized(
        uint32 indexed epoch, uint256 designerShares, uint256 dataShares, uint256 computeShares, uint256 accAt
    );
    event SharesClaimed(address indexed account, uint32 indexed epoch, uint256 shares, uint256 revenueScaled);

    error EpochSettlementNotRegistry(address caller);
    error EpochSettlementNotCoordinator(address caller);
    error EpochSettlementWrongEpoch(uint32 expected, uint32 given);
    error EpochSettlementEpochPending(uint32 epoch);
    error EpochSettlementNotPending(uint32 epoch);
    error EpochSettlementWindowOpen(uint256 finalizableAt);
    error EpochSettlementEmissionExceeded(uint256 minted, uint256 emission);
    /// @dev An epoch that mints something needs a tree.
    error EpochSettlementZeroRoot();
    error EpochSettlementZeroStatement();
    error EpochSettlementNotFinalized(uint32 epoch);
    error EpochSettlementInvalidProof(bytes32 leaf);
    /// @dev `cumulativeShares` was claimed before, or belongs to an older epoch than the account's last claim.
    error EpochSettlementNothingToClaim(uint256 cumulativeShares, uint256 claimedShares);
    /// @dev The root carries a debt that can't belong to these shares: only a wrong root does.
    error EpochSettlementInconsistentDebt(uint256 debt, uint256 claimedDebt);

    /// @notice Deploys the share token; registry only, once, in the transaction that deploys this contract.
    function deployShares(
        address implementation,
        address revenueToken,
        uint256 maxSupply,
        string calldata name,
        string calldata symbol
    ) external returns (address);

    /// @notice Proposes the next epoch; coordinator only, one at a time.
    /// @param minted Total to mint, at most `emissionOf(epoch)`.
    /// @param uri Where the statement can be fetched; emitted, not stored.
    function proposeEpoch(uint32 epoch, bytes32 root, uint256 minted, bytes32 statementHash, string calldata uri)
        external;

    /// @notice Mints the pending epoch's shares once its window has passed. Anybody may call.
    function finalizeEpoch(uint32 epoch) external;

    /// @notice Pays `account` all its shares up to `epoch` that it has not claimed yet, with what they earned meanwhile.
    /// Anybody may call; a proof against any finalised epoch stays valid until a later one is claimed.
    function claim(
        uint32 epoch,
        address account,
        uint256 cumulativeShares,
        uint256 epochShares,
        uint256 debtBefore,
        bytes32[] calldata proof
    ) external;

    /// @notice What `claim` would pay now, or the error with which it would revert.
    /// @return shares Shares that would move to `account`.
    /// @return revenueScaled Accrued revenue that would move with them, times 2^96.
    function claimable(
        uint32 epoch,
        address account,
        uint256 cumulativeShares,
        uint256 epochShares,
        uint256 debtBefore,
        bytes32[] calldata proof
    ) external view returns (uint256 shares, uint256 revenueScaled);

    /// @notice The double-hashed leaf, as `StandardMerkleTree` of (uint256, address, address, uint256, uint256, uint256).
    function leaf(address account, uint256 cumulativeShares, uint256 epochShares, uint256 debtBefore)
        external
        view
        returns (bytes32);

    /// @notice The first epoch that is not finalised: the pending one, else the one to propose next.
    function nextEpoch() external view returns (uint32);

    /// @notice Whether an epoch is pending, and which.
    function pending() external view returns (bool exists, uint32 epoch);

    /// @notice All that is kept of an epoch; all zero if it was never proposed.
    function epoch(uint32 e) external view returns (Epoch memory);

    /// @notice What `account` has claimed so far: its shares and the debt those carry.
    function claimed(address account) external view returns (uint256 shares, uint256 debt);

    /// @notice Upper bound of what epoch `e` may mint.
    function emissionOf(uint32 e) external view returns (uint256);

    /// @notice The terms fixed at registration.
    function terms() external view returns (Terms memory);

    /// @notice The model's share token.
    function shares() external view returns (address);
}
