// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {EmissionSchedule} from "./EmissionSchedule.sol";
import {EpochSettlement} from "./EpochSettlement.sol";
import {IEpochSettlement} from "./interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "./interfaces/IModelRegistry.sol";
import {ModelShares} from "./ModelShares.sol";

/// @title ModelRegistry
/// @notice See {IModelRegistry}. Deploys both implementations itself, so that one transaction without arguments sets a
/// chain up and nobody can point models at other code.
contract ModelRegistry is IModelRegistry {
    /// @dev The widths in {ModelShares} rest on it.
    uint256 private constant MAX_SUPPLY = 2 ** 96;
    uint256 private constant MAX_WINDOW = 30 days;

    /// @inheritdoc IModelRegistry
    address public immutable sharesImplementation = address(new ModelShares());
    /// @inheritdoc IModelRegistry
    address public immutable settlementImplementation = address(new EpochSettlement());

    mapping(bytes32 modelId => Model) private _models;

    /// @inheritdoc IModelRegistry
    function registerModel(Params calldata params) external returns (bytes32 modelId) {
        _validate(params);
        modelId = modelIdOf(msg.sender, params.specHash);
        Model storage m = _models[modelId];
        if (m.registrant != address(0)) revert ModelRegistryAlreadyRegistered(modelId);
        (address shares, address settlement) = _deploy(modelId, params);
        m.registrant = msg.sender;
        m.shares = shares;
        m.settlement = settlement;
        m.params = params;
        emit ModelRegistered(modelId, msg.sender, params.designer, shares, settlement, params.specHash, params.specURI);
    }

    function _deploy(bytes32 modelId, Params calldata p) private returns (address shares, address settlement) {
        IEpochSettlement.Terms memory terms = IEpochSettlement.Terms({
            coordinator: p.coordinator,
            designer: p.designer,
            dataRecipient: p.dataRecipient,
            initialEmission: p.emission.initial,
            halvingEpochs: p.emission.halvingEpochs,
            window: p.window,
            designerBps: p.designerBps,
            dataBps: p.dataBps
        });
        settlement = Clones.cloneDeterministicWithImmutableArgs(settlementImplementation, abi.encode(terms), modelId);
        shares = EpochSettlement(settlement)
            .deployShares(sharesImplementation, p.revenueToken, p.maxSupply, p.name, p.symbol);
    }

    function _validate(Params calldata p) private view {
        if (p.specHash == bytes32(0)) revert ModelRegistryZeroSpecHash();
        if (p.designer == address(0)) revert ModelRegistryZeroAddress("designer");
        if (p.dataRecipient == address(0)) revert ModelRegistryZeroAddress("dataRecipient");
        if (p.coordinator == address(0)) revert ModelRegistryZeroAddress("coordinator");
        if (p.revenueToken.code.length == 0) revert ModelRegistryNotAContract(p.revenueToken);
        (uint256 nameLength, uint256 symbolLength) = (bytes(p.name).length, bytes(p.symbol).length);
        if (nameLength == 0 || nameLength > 64 || symbolLength == 0 || symbolLength > 16) {
            revert ModelRegistryBadName(nameLength, symbolLength);
        }
        uint256 sumBps = uint256(p.designerBps) + p.dataBps;
        if (sumBps > EmissionSchedule.BPS) revert ModelRegistryBadSplit(sumBps);
        if (p.window == 0 || p.window > MAX_WINDOW) revert ModelRegistryBadWindow(p.window);
        if (p.stages == 0) revert ModelRegistryBadStages(p.stages);
        _validateEmission(p);
    }

    function _validateEmission(Params calldata p) private view {
        if (p.maxSupply > MAX_SUPPLY) revert ModelRegistryCapTooLarge(p.maxSupply, MAX_SUPPLY);
        (uint256 initial, uint32 halvingEpochs) = (p.emission.initial, p.emission.halvingEpochs);
        if (initial == 0 || halvingEpochs == 0) revert ModelRegistryBadEmission(initial, halvingEpochs);
        uint256 bound = EmissionSchedule.supplyBound(initial, halvingEpochs);
        if (bound > p.maxSupply) revert ModelRegistryEmissionExceedsCap(bound, p.maxSupply);
        // A supply that can't reach the least one that revenue needs would be a model that can never pay.
        uint256 minimum = ModelShares(sharesImplementation).MIN_SUPPLY();
        if (p.maxSupply < minimum) revert ModelRegistryCapTooSmall(p.maxSupply, minimum);
    }

    /// @inheritdoc IModelRegistry
    function modelIdOf(address registrant, bytes32 specHash) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), registrant, specHash));
    }

    /// @inheritdoc IModelRegistry
    function model(bytes32 modelId) external view returns (Model memory) {
        return _registered(modelId);
    }

    /// @inheritdoc IModelRegistry
    function contractsOf(bytes32 modelId) external view returns (address shares, address settlement) {
        Model storage m = _registered(modelId);
        return (m.shares, m.settlement);
    }

    function _registered(bytes32 modelId) private view returns (Model storage m) {
        m = _models[modelId];
        if (m.registrant == address(0)) revert ModelRegistryUnknownModel(modelId);
    }
}
