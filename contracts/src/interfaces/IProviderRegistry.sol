// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title IProviderRegistry
/// @notice Owners' stakes, their seats in models, and the loss of a seat's stake for proven fraud.
///
/// A seat is the right of an owner to hold one stage of one model. Taking it locks the model's `seatStake` out of the
/// owner's free stake; leaving it starts the model's `seatCooldown`, after which the stake is free again. Until then the
/// seat can be slashed, and its stage counts against the model's `maxStagesPerOwner`.
/// @dev Stake is at risk through its seat and in no other way. So free stake can be withdrawn at once; a hostile model,
/// whose arbiter serves its registrant, can take no more than the stake of seats in itself; and stake that is about to be
/// slashed in one model can't be laundered through another.
interface IProviderRegistry {
    /// @notice What a provider's key signs about a unit of work, as EIP-712 typed data. Domain: name "Commonweight",
    /// version "1", chain id, and as verifying contract the model's settlement.
    /// @param unit What was worked on; two receipts of one signer for one unit must be equal.
    /// @param output What came of it.
    struct Receipt {
        bytes32 modelId;
        uint32 stage;
        bytes32 unit;
        bytes32 output;
    }

    /// @param stake Locked; zero once slashed.
    /// @param releasableAt Zero while held, else when the stake is free.
    /// @param openSlashes Proposals to slash it that are not decided; while there are any it can't be released.
    /// @param slashed Lost: it can be released after its cool-down, and neither be taken again nor slashed before.
    struct Seat {
        uint16 stage;
        uint96 stake;
        uint40 releasableAt;
        uint32 openSlashes;
        bool slashed;
    }

    enum SlashStatus {
        None,
        Proposed,
        Contested,
        Executed,
        Dropped
    }

    /// @param deadline End of the contest window while proposed, of the arbiter's time while contested.
    struct Slash {
        bytes32 modelId;
        address owner;
        uint16 stage;
        SlashStatus status;
        uint40 deadline;
        address reporter;
        address contester;
        bytes32 evidenceHash;
    }

    /// @param from Who paid; this contract, where a slash or a bond of its own keeping was credited.
    event Bonded(address indexed owner, address indexed from, uint256 amount);
    event Withdrawn(address indexed owner, address indexed to, uint256 amount);
    event SignerBound(address indexed owner, address indexed signer);
    event PayoutSet(address indexed owner, address indexed payout);
    event SeatTaken(bytes32 indexed modelId, address indexed owner, uint16 indexed stage, uint256 stake);
    event SeatLeft(bytes32 indexed modelId, address indexed owner, uint16 indexed stage, uint256 releasableAt);
    event SeatReleased(bytes32 indexed modelId, address indexed owner, uint16 indexed stage, uint256 stake);
    event Slashed(
        bytes32 indexed modelId,
        address indexed owner,
        uint16 indexed stage,
        uint256 amount,
        bytes32 evidenceHash,
        address reporter
    );
    event SlashProposed(
        uint256 indexed slashId,
        bytes32 indexed modelId,
        address indexed owner,
        uint16 stage,
        address reporter,
        bytes32 evidenceHash,
        uint256 deadline,
        string uri
    );
    event SlashContested(uint256 indexed slashId, address indexed contester, uint256 deadline, string uri);
    event SlashDropped(uint256 indexed slashId, bool byArbiter);

    error ProviderRegistryNothingReceived();
    /// @dev The bond token moved less than was asked: it takes a fee.
    error ProviderRegistryBondTooSmall(uint256 bond, uint256 needed);
    error ProviderRegistryZeroAmount();
    error ProviderRegistryInsufficientStake(uint256 free, uint256 needed);
    error ProviderRegistryInvalidPayee(address payee);
    error ProviderRegistrySignerTaken(address signer, address owner);
    error ProviderRegistryBadSignature(address recovered);
    error ProviderRegistryForeignModel(bytes32 modelId, address providers);
    error ProviderRegistryModelRetired(bytes32 modelId);
    error ProviderRegistryUnknownStage(uint16 stage, uint16 stages);
    error ProviderRegistryCustodyCap(uint256 held, uint256 cap);
    error ProviderRegistryAlreadySeated(bytes32 modelId, uint16 stage);
    error ProviderRegistryNoSeat(bytes32 modelId, address owner, uint16 stage);
    error ProviderRegistrySeatLeft(uint256 releasableAt);
    error ProviderRegistryTooEarly(uint256 until);
    error ProviderRegistrySlashesOpen(uint256 count);
    error ProviderRegistryNotEquivocation();
    error ProviderRegistryEvidenceUsed(bytes32 evidenceHash);
    error ProviderRegistryWrongStatus(uint256 slashId, SlashStatus status);
    error ProviderRegistryTooLate(uint256 deadline);
    error ProviderRegistryNotArbiter(address caller);

    // ---------------------------------------------------------------- stake

    /// @notice Adds to `owner`'s free stake, from the caller.
    function bond(address owner, uint256 amount) external returns (uint256 received);

    /// @notice Pays `amount` of the caller's free stake to `to`.
    function withdraw(address to, uint256 amount) external;

    /// @notice Binds a node's key to the caller, for good: evidence against it is evidence against the caller. The key
    /// must agree: `signature` is its EIP-712 signature of `Binding(address owner)` in this contract's own domain
    /// (name "Commonweight Providers", version "1"). An owner's own key need not be bound, and one that is bound
    /// to another and one that has seats exclude each other: evidence against it would be led away from them.
    function bindSigner(address signer, bytes calldata signature) external;

    /// @notice Names the account that is paid for the caller's work; zero: the caller itself.
    function setPayout(address payout) external;

    // ---------------------------------------------------------------- seats

    /// @notice Locks the model's seat stake and holds the stage. A seat that was left and isn't released is taken again
    /// without more stake, unless it was slashed.
    function takeSeat(bytes32 modelId, uint16 stage) external;

    /// @notice Gives the stage up and starts the cool-down.
    function leaveSeat(bytes32 modelId, uint16 stage) external;

    /// @notice Frees the stake of a seat that was left, after its cool-down. Anybody may call. From the end of the cool-down
    /// on nothing can be proposed against it any more.
    function releaseSeat(bytes32 modelId, address owner, uint16 stage) external;

    // ---------------------------------------------------------------- slashing

    /// @notice Slashes the seat of who signed two receipts for one unit with different outputs. Anybody may call, at
    /// once: the signatures are the proof. {Slashed} names the unit as evidence, and a unit slashes a seat once.
    function slashEquivocation(
        Receipt calldata a,
        bytes calldata signatureA,
        Receipt calldata b,
        bytes calldata signatureB
    ) external;

    /// @notice Proposes to slash a seat for evidence that needs a judge; the caller posts `reporterBond()`.
    function proposeSlash(bytes32 modelId, address owner, uint16 stage, bytes32 evidenceHash, string calldata uri)
        external
        returns (uint256 slashId);

    /// @notice Disputes a proposal within the model's window; anybody, with the same bond. Then the arbiter decides.
    function contestSlash(uint256 slashId, string calldata uri) external;

    /// @notice Decides a contested proposal; the model's arbiter only, in time. Of the loser's bond the winner gets
    /// `REPORTER_BPS`, and the treasury the rest: who contests its own false report must not get away with it for nothing.
    function resolveSlash(uint256 slashId, bool uphold) external;

    /// @notice Slashes after a window without a contest; anybody. The proposal is dropped, and its bond goes back, if the
    /// seat was slashed meanwhile; so it is where the arbiter upholds one, but who contested that still loses its bond.
    function executeSlash(uint256 slashId) external;

    /// @notice Drops a contested proposal on which the arbiter was silent; anybody. Both bonds go back.
    function dropSlash(uint256 slashId) external;

    // ---------------------------------------------------------------- views

    function freeStakeOf(address owner) external view returns (uint256);

    /// @notice Locked in seats, held or left.
    function lockedStakeOf(address owner) external view returns (uint256);

    /// @notice Who answers for a node's key: who bound it, else the key's own account.
    function ownerOf(address signer) external view returns (address);

    /// @notice Who is paid for an owner's work.
    function payoutOf(address owner) external view returns (address);

    /// @notice The owner's seats in a model, also those left and not released; at most `maxStagesPerOwner`.
    function seatsOf(bytes32 modelId, address owner) external view returns (Seat[] memory);

    /// @notice Whether the owner holds the stage with its stake intact.
    function isSeated(bytes32 modelId, address owner, uint16 stage) external view returns (bool);

    function slash(uint256 slashId) external view returns (Slash memory);

    /// @notice The EIP-712 digest that is signed for a receipt.
    function receiptDigest(Receipt calldata receipt) external view returns (bytes32);

    /// @notice The EIP-712 digest that a node's key signs to be bound to `owner`.
    function bindingDigest(address owner) external view returns (bytes32);

    function bondToken() external view returns (address);
    function registry() external view returns (address);
    function reporterBond() external view returns (uint256);

    /// @notice Receives what is slashed and isn't the reporter's: an account that no provider chooses.
    function treasury() external view returns (address);

    /// @notice The reporter's part of a slash, and the winner's of the loser's bond, in 1/10,000, 5,000: slashing oneself
    /// loses half.
    function REPORTER_BPS() external view returns (uint256);
}
