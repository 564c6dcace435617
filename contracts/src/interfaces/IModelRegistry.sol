// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Emission} from "../EmissionSchedule.sol";

/// @title IModelRegistry
/// @notice Registers models and deploys each one's share token and settlement. The terms of a registered model never
/// change: the registry has no owner, no upgrade and no setter.
interface IModelRegistry {
    /// @param specHash Keccak-256 of the model specification's canonical JSON.
    /// @param specURI Where the specification can be fetched; a hint, the hash decides.
    /// @param name Name of the share token, 1 to 64 bytes.
    /// @param symbol Symbol of the share token, 1 to 16 bytes.
    /// @param designer Receives `designerBps` of each epoch's minted shares.
    /// @param dataRecipient Receives `dataBps` of each epoch's minted shares.
    /// @param coordinator The only account that may propose epochs.
    /// @param revenueToken ERC-20 in which revenue is deposited and paid. Its code is trusted by this model's holders.
    /// @param maxSupply No more shares than this ever exist; at most 2^96.
    /// @param designerBps Designer's part in 1/10,000.
    /// @param dataBps Data recipient's part in 1/10,000; what is left of 10,000 is the compute part.
    /// @param emission Upper bound of each epoch's minting.
    /// @param window Seconds between an epoch's proposal and the first moment it can be finalised, 1 to 30 days.
    /// @param stages Number of stages the model is cut into, at least 1.
    struct Params {
        bytes32 specHash;
        string specURI;
        string name;
        string symbol;
        address designer;
        address dataRecipient;
        address coordinator;
        address revenueToken;
        uint256 maxSupply;
        uint16 designerBps;
        uint16 dataBps;
        Emission emission;
        uint32 window;
        uint16 stages;
    }

    /// @param registrant The account that registered the model; part of the model's id.
    struct Model {
        address registrant;
        address shares;
        address settlement;
        Params params;
    }

    event ModelRegistered(
        bytes32 indexed modelId,
        address indexed registrant,
        address indexed designer,
        address shares,
        address settlement,
        bytes32 specHash,
        string specURI
    );

    error ModelRegistryUnknownModel(bytes32 modelId);
    error ModelRegistryAlreadyRegistered(bytes32 modelId);
    error ModelRegistryZeroAddress(string param);
    error ModelRegistryZeroSpecHash();
    error ModelRegistryBadName(uint256 nameLength, uint256 symbolLength);
    error ModelRegistryNotAContract(address revenueToken);
    error ModelRegistryBadSplit(uint256 sumBps);
    error ModelRegistryCapTooLarge(uint256 maxSupply, uint256 limit);
    error ModelRegistryCapTooSmall(uint256 maxSupply, uint256 minimum);
    error ModelRegistryBadEmission(uint256 initial, uint32 halvingEpochs);
    error ModelRegistryEmissionExceedsCap(uint256 supplyBound, uint256 maxSupply);
    error ModelRegistryBadWindow(uint32 window);
    error ModelRegistryBadStages(uint16 stages);

    /// @notice Registers a model under the caller's name and deploys its contracts.
    /// @dev Registering the same specification from another account gives another id, so a registration can't be
    /// front-run or squatted.
    function registerModel(Params calldata params) external returns (bytes32 modelId);

    /// @notice The id under which `registrant` registers `specHash` here.
    function modelIdOf(address registrant, bytes32 specHash) external view returns (bytes32);

    /// @notice A model's registrant, contracts and terms. Reverts for an unknown id.
    function model(bytes32 modelId) external view returns (Model memory);

    /// @notice A model's contracts. Reverts for an unknown id.
    function contractsOf(bytes32 modelId) external view returns (address shares, address settlement);

    /// @notice Implementation that every model's share token is a clone of.
    function sharesImplementation() external view returns (address);

    /// @notice Implementation that every model's settlement is a clone of.
    function settlementImplementation() external view returns (address);
}
