// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Emission} from "../EmissionSchedule.sol";

/// @title IModelRegistry
/// @notice Registers models and deploys each one's shares, settlement and revenue router. The economic terms of a
/// registered model never change: the registry has no owner, no upgrade and no setter for them. What can change is who
/// coordinates (in two steps with a delay between them), the model's published checkpoint, and whether it is retired.
interface IModelRegistry {
    /// @param specHash Keccak-256 of the model specification's canonical JSON.
    /// @param specURI Where the specification can be fetched; a hint, the hash decides.
    /// @param name Name of the share token, 1 to 64 bytes.
    /// @param symbol Symbol of the share token, 1 to 16 bytes.
    /// @param designer Receives `designerBps` of each epoch's minted shares.
    /// @param dataRecipient Receives `dataBps` of each epoch's minted shares.
    /// @param coordinator The only account that may propose epochs, until it is replaced.
    /// @param arbiter Decides challenged epochs and contested slashes; never the coordinator, nor the registrant.
    /// @param treasury Receives `treasuryBps` of the revenue.
    /// @param providers The provider registry that keeps this model's seats.
    /// @param transferPolicy An `ITransferPolicy` that every transfer of shares must pass; zero: shares transfer freely.
    /// @param revenueToken ERC-20 in which buyers pay and bonds of this model's epochs are posted; one of the registry's
    /// allowed tokens.
    /// @param maxSupply No more shares than this ever exist; at most 2^96.
    /// @param genesisDesigner Shares minted to the designer at registration.
    /// @param genesisData Shares minted to the data recipient at registration.
    /// @param designerBps Designer's part of each epoch's shares in 1/10,000.
    /// @param dataBps Data recipient's part in 1/10,000; what is left of 10,000 is the compute part.
    /// @param emission Upper bound of each epoch's minting.
    /// @param operatorBps Serving operators' part of the revenue in 1/10,000.
    /// @param treasuryBps Treasury's part of the revenue in 1/10,000; what is left of 10,000 goes to the shares.
    /// @param streamPeriod Seconds over which a deposit of revenue is credited to the shares, at most 30 days; 0: at once.
    /// @param window Seconds between an epoch's proposal and the first moment it can be finalised, also those in which a
    /// slash can be contested; 1 second to 30 days.
    /// @param arbitration Seconds that the arbiter has to decide; its silence rejects. 1 second to 30 days.
    /// @param proposerBond What the coordinator must have standing with the settlement to propose.
    /// @param challengerBond What a challenger posts.
    /// @param stages Number of stages the model is cut into, at least 1.
    /// @param maxStagesPerOwner Distinct stages that one owner may hold or have held within the cool-down, 1 to 64.
    /// @param seatStake Stake that one seat locks, all of which is lost when it is slashed.
    /// @param seatCooldown Seconds from leaving a seat until its stake is free and its stage no longer counts against
    /// `maxStagesPerOwner`; at least window + 2 · arbitration, at most 365 days.
    struct Params {
        bytes32 specHash;
        string specURI;
        string name;
        string symbol;
        address designer;
        address dataRecipient;
        address coordinator;
        address arbiter;
        address treasury;
        address providers;
        address transferPolicy;
        address revenueToken;
        uint256 maxSupply;
        uint256 genesisDesigner;
        uint256 genesisData;
        uint16 designerBps;
        uint16 dataBps;
        Emission emission;
        uint16 operatorBps;
        uint16 treasuryBps;
        uint32 streamPeriod;
        uint32 window;
        uint32 arbitration;
        uint96 proposerBond;
        uint96 challengerBond;
        uint16 stages;
        uint16 maxStagesPerOwner;
        uint96 seatStake;
        uint32 seatCooldown;
    }

    /// @param registrant The account that registered the model; part of the model's id.
    /// @param coordinator The present one; `params.coordinator` is the first.
    struct Model {
        address registrant;
        address shares;
        address settlement;
        address router;
        address coordinator;
        bool retired;
        Params params;
    }

    /// @notice What the provider registry needs of a model, without its texts.
    struct SeatTerms {
        address providers;
        address arbiter;
        address settlement;
        uint96 seatStake;
        uint32 window;
        uint32 arbitration;
        uint32 seatCooldown;
        uint16 stages;
        uint16 maxStagesPerOwner;
        bool retired;
    }

    event ModelRegistered(
        bytes32 indexed modelId,
        address indexed registrant,
        address indexed designer,
        address shares,
        address settlement,
        address router,
        bytes32 specHash,
        string specURI
    );
    event CoordinatorProposed(bytes32 indexed modelId, address indexed coordinator, uint256 acceptableAt);
    event CoordinatorChanged(bytes32 indexed modelId, address indexed previous, address indexed coordinator);
    event CheckpointPublished(
        bytes32 indexed modelId, uint64 indexed version, bytes32 weightsRoot, bytes32 manifestHash
    );
    event ModelRetired(bytes32 indexed modelId);

    error ModelRegistryUnknownModel(bytes32 modelId);
    error ModelRegistryAlreadyRegistered(bytes32 modelId);
    error ModelRegistryZeroAddress(string param);
    error ModelRegistryZeroSpecHash();
    error ModelRegistryBadName(uint256 nameLength, uint256 symbolLength);
    error ModelRegistryNotAContract(string param, address account);
    error ModelRegistryTokenNotAllowed(address token);
    error ModelRegistryBadSplit(uint256 sumBps);
    error ModelRegistryCapTooLarge(uint256 maxSupply, uint256 limit);
    error ModelRegistryCapTooSmall(uint256 maxSupply, uint256 minimum);
    error ModelRegistryBadEmission(uint256 initial, uint32 halvingEpochs);
    /// @dev `supplyBound` counts the genesis grants, too.
    error ModelRegistryEmissionExceedsCap(uint256 supplyBound, uint256 maxSupply);
    error ModelRegistryBadPeriod(string param, uint256 given, uint256 least, uint256 most);
    error ModelRegistryBadStages(uint16 stages, uint16 maxStagesPerOwner);
    error ModelRegistryPartialArbiter(address arbiter);
    error ModelRegistryNotRegistrant(address caller);
    error ModelRegistryNotCoordinator(address caller);
    error ModelRegistryNotProposed(address caller);
    error ModelRegistryTimelockActive(uint256 acceptableAt);
    error ModelRegistryVersionNotIncreasing(uint64 version, uint64 last);
    error ModelRegistryAlreadyRetired(bytes32 modelId);

    /// @notice Registers a model under the caller's name and deploys its contracts.
    /// @dev Registering the same specification from another account gives another id, so a registration can't be
    /// front-run or squatted.
    function registerModel(Params calldata params) external returns (bytes32 modelId);

    /// @notice Names another coordinator, who can accept after `COORDINATOR_DELAY`; registrant only. Naming again replaces
    /// the proposal and starts the delay anew; naming the present coordinator withdraws it.
    /// @dev The registrant, not the coordinator, so that a lost coordinator key doesn't end the model. Everybody can see
    /// the change coming for as long as the delay.
    function proposeCoordinator(bytes32 modelId, address coordinator) external;

    /// @notice Takes over as coordinator; the proposed account only, after the delay.
    function acceptCoordinator(bytes32 modelId) external;

    /// @notice Records a published version of the weights; coordinator only, versions strictly increase.
    function publishCheckpoint(bytes32 modelId, uint64 version, bytes32 weightsRoot, bytes32 manifestHash) external;

    /// @notice Ends the taking of seats, for good; registrant only. Epochs, claims and revenue go on.
    function retire(bytes32 modelId) external;

    /// @notice The id under which `registrant` registers `specHash` here.
    function modelIdOf(address registrant, bytes32 specHash) external view returns (bytes32);

    /// @notice A model's registrant, contracts and terms. Reverts for an unknown id.
    function model(bytes32 modelId) external view returns (Model memory);

    /// @notice A model's contracts. Reverts for an unknown id.
    function contractsOf(bytes32 modelId) external view returns (address shares, address settlement, address router);

    /// @notice The present coordinator; zero for an unknown id.
    function coordinatorOf(bytes32 modelId) external view returns (address);

    /// @notice The proposed coordinator and when it can accept; zeros if there is none.
    function proposedCoordinator(bytes32 modelId) external view returns (address coordinator, uint256 acceptableAt);

    /// @notice The last published version of the weights; zeros if there is none.
    function checkpointOf(bytes32 modelId)
        external
        view
        returns (uint64 version, bytes32 weightsRoot, bytes32 manifestHash);

    /// @notice The terms of a model's seats. Reverts for an unknown id.
    function seatTermsOf(bytes32 modelId) external view returns (SeatTerms memory);

    /// @notice Whether models may take revenue in `token`; decided when this registry was deployed, for good.
    function isAllowedToken(address token) external view returns (bool);

    /// @notice Seconds between the proposal of a coordinator and its acceptance, 3 days.
    function COORDINATOR_DELAY() external view returns (uint256);

    /// @notice Implementation that every model's share token is a clone of.
    function sharesImplementation() external view returns (address);

    /// @notice Implementation that every model's settlement is a clone of.
    function settlementImplementation() external view returns (address);

    /// @notice Implementation that every model's revenue router is a clone of.
    function routerImplementation() external view returns (address);
}
