// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EmissionSchedule} from "./EmissionSchedule.sol";
import {EpochSettlement} from "./EpochSettlement.sol";
import {IEpochSettlement} from "./interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "./interfaces/IModelRegistry.sol";
import {IRevenueRouter} from "./interfaces/IRevenueRouter.sol";
import {ModelShares} from "./ModelShares.sol";
import {RevenueRouter} from "./RevenueRouter.sol";

/// @title ModelRegistry
/// @notice See {IModelRegistry}. Deploys the implementations itself, so that one transaction sets a chain up and nobody
/// can point models at other code.
contract ModelRegistry is IModelRegistry {
    using SafeCast for uint256;

    /// @dev What the clones' immutable arguments don't say.
    struct Record {
        address registrant;
        address shares;
        address settlement;
        address router;
        address coordinator;
        bool retired;
    }

    struct ProposedCoordinator {
        address account;
        uint40 acceptableAt;
    }

    struct Checkpoint {
        uint64 version;
        bytes32 weightsRoot;
        bytes32 manifestHash;
    }

    /// @inheritdoc IModelRegistry
    uint256 public constant COORDINATOR_DELAY = 3 days;
    /// @dev The widths in {ModelShares} rest on it.
    uint256 private constant MAX_SUPPLY = 2 ** 96;
    uint256 private constant MAX_PERIOD = 30 days;
    uint256 private constant MAX_COOLDOWN = 365 days;
    uint256 private constant MAX_STAGES_PER_OWNER = 64;

    /// @inheritdoc IModelRegistry
    address public immutable sharesImplementation = address(new ModelShares());
    /// @inheritdoc IModelRegistry
    address public immutable settlementImplementation = address(new EpochSettlement());
    /// @inheritdoc IModelRegistry
    address public immutable routerImplementation = address(new RevenueRouter());

    /// @inheritdoc IModelRegistry
    mapping(address token => bool) public isAllowedToken;
    mapping(bytes32 modelId => Record) private _records;
    mapping(bytes32 modelId => ProposedCoordinator) private _proposed;
    mapping(bytes32 modelId => Checkpoint) private _checkpoints;

    /// @param allowedTokens The tokens in which models may take revenue: plain ERC-20s that move what they are told to.
    constructor(address[] memory allowedTokens) {
        for (uint256 i = 0; i < allowedTokens.length; i++) {
            _requireContract("allowedTokens", allowedTokens[i]);
            isAllowedToken[allowedTokens[i]] = true;
        }
    }

    // ------------------------------------------------------------------ registration

    /// @inheritdoc IModelRegistry
    function registerModel(Params memory params) external returns (bytes32 modelId) {
        _validateParties(params);
        _validateTerms(params);
        _validateEmission(params);
        modelId = modelIdOf(msg.sender, params.specHash);
        Record storage m = _records[modelId];
        if (m.registrant != address(0)) revert ModelRegistryAlreadyRegistered(modelId);
        (address shares, address settlement, address router) = _deploy(modelId, params);
        (m.registrant, m.coordinator) = (msg.sender, params.coordinator);
        (m.shares, m.settlement, m.router) = (shares, settlement, router);
        emit ModelRegistered(
            modelId, msg.sender, params.designer, shares, settlement, router, params.specHash, params.specURI
        );
    }

    function _deploy(bytes32 modelId, Params memory p)
        private
        returns (address shares, address settlement, address router)
    {
        settlement = Clones.cloneDeterministicWithImmutableArgs(
            settlementImplementation, abi.encode(_settlementTerms(modelId, p)), modelId
        );
        bytes memory arguments =
            abi.encode(settlement, p.revenueToken, p.maxSupply, p.streamPeriod, p.transferPolicy, p.name, p.symbol);
        shares = IEpochSettlement(settlement)
            .deployShares(sharesImplementation, arguments, p.genesisDesigner, p.genesisData);
        IRevenueRouter.Terms memory terms = IRevenueRouter.Terms({
            modelId: modelId,
            registry: address(this),
            settlement: settlement,
            shares: shares,
            revenueToken: p.revenueToken,
            treasury: p.treasury,
            operatorBps: p.operatorBps,
            treasuryBps: p.treasuryBps
        });
        router = Clones.cloneDeterministicWithImmutableArgs(routerImplementation, abi.encode(terms, p), modelId);
    }

    function _settlementTerms(bytes32 modelId, Params memory p) private pure returns (IEpochSettlement.Terms memory) {
        return IEpochSettlement.Terms({
            modelId: modelId,
            designer: p.designer,
            dataRecipient: p.dataRecipient,
            arbiter: p.arbiter,
            bondToken: p.revenueToken,
            initialEmission: p.emission.initial,
            halvingEpochs: p.emission.halvingEpochs,
            window: p.window,
            arbitration: p.arbitration,
            designerBps: p.designerBps,
            dataBps: p.dataBps,
            proposerBond: p.proposerBond,
            challengerBond: p.challengerBond
        });
    }

    function _validateParties(Params memory p) private view {
        _requireAccount("designer", p.designer);
        _requireAccount("dataRecipient", p.dataRecipient);
        _requireAccount("coordinator", p.coordinator);
        _requireAccount("arbiter", p.arbiter);
        _requireAccount("treasury", p.treasury);
        if (p.arbiter == p.coordinator || p.arbiter == msg.sender) revert ModelRegistryPartialArbiter(p.arbiter);
        _requireContract("providers", p.providers);
        if (p.transferPolicy != address(0)) _requireContract("transferPolicy", p.transferPolicy);
        if (!isAllowedToken[p.revenueToken]) revert ModelRegistryTokenNotAllowed(p.revenueToken);
    }

    function _validateTerms(Params memory p) private pure {
        if (p.specHash == bytes32(0)) revert ModelRegistryZeroSpecHash();
        (uint256 nameLength, uint256 symbolLength) = (bytes(p.name).length, bytes(p.symbol).length);
        if (nameLength == 0 || nameLength > 64 || symbolLength == 0 || symbolLength > 16) {
            revert ModelRegistryBadName(nameLength, symbolLength);
        }
        _requireSplit(uint256(p.designerBps) + p.dataBps);
        _requireSplit(uint256(p.operatorBps) + p.treasuryBps);
        _requirePeriod("streamPeriod", p.streamPeriod, 0, MAX_PERIOD);
        _requirePeriod("window", p.window, 1, MAX_PERIOD);
        _requirePeriod("arbitration", p.arbitration, 1, MAX_PERIOD);
        // A slash that is proposed on the last day of a seat can be contested, and decided, before its stake is free.
        _requirePeriod("seatCooldown", p.seatCooldown, p.window + 2 * uint256(p.arbitration), MAX_COOLDOWN);
        if (p.stages == 0 || p.maxStagesPerOwner == 0 || p.maxStagesPerOwner > MAX_STAGES_PER_OWNER) {
            revert ModelRegistryBadStages(p.stages, p.maxStagesPerOwner);
        }
    }

    function _validateEmission(Params memory p) private view {
        if (p.maxSupply > MAX_SUPPLY) revert ModelRegistryCapTooLarge(p.maxSupply, MAX_SUPPLY);
        // A supply that can't reach the least one that revenue needs would be a model that can never pay.
        uint256 minimum = ModelShares(sharesImplementation).MIN_SUPPLY();
        (uint256 initial, uint32 halvingEpochs) = (p.emission.initial, p.emission.halvingEpochs);
        if (initial == 0 || halvingEpochs == 0) revert ModelRegistryBadEmission(initial, halvingEpochs);
        uint256 bound = Math.saturatingAdd(
            EmissionSchedule.supplyBound(initial, halvingEpochs), Math.saturatingAdd(p.genesisDesigner, p.genesisData)
        );
        if (bound > p.maxSupply) revert ModelRegistryEmissionExceedsCap(bound, p.maxSupply);
        // At most `bound`.
        uint256 least = p.genesisDesigner + p.genesisData + initial * halvingEpochs;
        if (least < minimum) revert ModelRegistryCapTooSmall(least, minimum);
    }

    function _requireAccount(string memory param, address account) private pure {
        if (account == address(0)) revert ModelRegistryZeroAddress(param);
    }

    function _requireContract(string memory param, address account) private view {
        if (account.code.length == 0) revert ModelRegistryNotAContract(param, account);
    }

    function _requireSplit(uint256 sumBps) private pure {
        if (sumBps > EmissionSchedule.BPS) revert ModelRegistryBadSplit(sumBps);
    }

    function _requirePeriod(string memory param, uint256 given, uint256 least, uint256 most) private pure {
        if (given < least || given > most) revert ModelRegistryBadPeriod(param, given, least, most);
    }

    // ------------------------------------------------------------------ what can change

    /// @inheritdoc IModelRegistry
    function proposeCoordinator(bytes32 modelId, address coordinator) external {
        Record storage m = _ownModel(modelId);
        _requireAccount("coordinator", coordinator);
        if (coordinator == _params(m).arbiter) revert ModelRegistryPartialArbiter(coordinator);
        if (coordinator == m.coordinator) {
            delete _proposed[modelId];
            emit CoordinatorProposed(modelId, coordinator, 0);
            return;
        }
        uint256 acceptableAt = block.timestamp + COORDINATOR_DELAY;
        _proposed[modelId] = ProposedCoordinator({account: coordinator, acceptableAt: acceptableAt.toUint40()});
        emit CoordinatorProposed(modelId, coordinator, acceptableAt);
    }

    /// @inheritdoc IModelRegistry
    function acceptCoordinator(bytes32 modelId) external {
        Record storage m = _registered(modelId);
        ProposedCoordinator memory proposed = _proposed[modelId];
        if (msg.sender != proposed.account) revert ModelRegistryNotProposed(msg.sender);
        // Validators can shift the time by seconds, against days.
        // forge-lint: disable-next-line(block-timestamp)
        if (block.timestamp < proposed.acceptableAt) revert ModelRegistryTimelockActive(proposed.acceptableAt);
        delete _proposed[modelId];
        emit CoordinatorChanged(modelId, m.coordinator, msg.sender);
        m.coordinator = msg.sender;
    }

    /// @inheritdoc IModelRegistry
    function publishCheckpoint(bytes32 modelId, uint64 version, bytes32 weightsRoot, bytes32 manifestHash) external {
        if (msg.sender != _registered(modelId).coordinator) revert ModelRegistryNotCoordinator(msg.sender);
        uint64 last = _checkpoints[modelId].version;
        if (version <= last) revert ModelRegistryVersionNotIncreasing(version, last);
        _checkpoints[modelId] = Checkpoint({version: version, weightsRoot: weightsRoot, manifestHash: manifestHash});
        emit CheckpointPublished(modelId, version, weightsRoot, manifestHash);
    }

    /// @inheritdoc IModelRegistry
    function retire(bytes32 modelId) external {
        Record storage m = _ownModel(modelId);
        if (m.retired) revert ModelRegistryAlreadyRetired(modelId);
        m.retired = true;
        emit ModelRetired(modelId);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IModelRegistry
    function modelIdOf(address registrant, bytes32 specHash) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), registrant, specHash));
    }

    /// @inheritdoc IModelRegistry
    function model(bytes32 modelId) external view returns (Model memory) {
        Record storage m = _registered(modelId);
        return Model({
            registrant: m.registrant,
            shares: m.shares,
            settlement: m.settlement,
            router: m.router,
            coordinator: m.coordinator,
            retired: m.retired,
            params: _params(m)
        });
    }

    /// @inheritdoc IModelRegistry
    function contractsOf(bytes32 modelId) external view returns (address, address, address) {
        Record storage m = _registered(modelId);
        return (m.shares, m.settlement, m.router);
    }

    /// @inheritdoc IModelRegistry
    function coordinatorOf(bytes32 modelId) external view returns (address) {
        return _records[modelId].coordinator;
    }

    /// @inheritdoc IModelRegistry
    function proposedCoordinator(bytes32 modelId) external view returns (address, uint256) {
        ProposedCoordinator memory proposed = _proposed[modelId];
        return (proposed.account, proposed.acceptableAt);
    }

    /// @inheritdoc IModelRegistry
    function checkpointOf(bytes32 modelId) external view returns (uint64, bytes32, bytes32) {
        Checkpoint memory c = _checkpoints[modelId];
        return (c.version, c.weightsRoot, c.manifestHash);
    }

    /// @inheritdoc IModelRegistry
    function seatTermsOf(bytes32 modelId) external view returns (SeatTerms memory) {
        Record storage m = _registered(modelId);
        Params memory p = _params(m);
        return SeatTerms({
            providers: p.providers,
            arbiter: p.arbiter,
            settlement: m.settlement,
            seatStake: p.seatStake,
            window: p.window,
            arbitration: p.arbitration,
            seatCooldown: p.seatCooldown,
            stages: p.stages,
            maxStagesPerOwner: p.maxStagesPerOwner,
            retired: m.retired
        });
    }

    /// @dev They lie in the code of the model's router, behind its own terms, and can't change there.
    function _params(Record storage m) private view returns (Params memory params) {
        (, params) = abi.decode(Clones.fetchCloneArgs(m.router), (IRevenueRouter.Terms, Params));
    }

    function _registered(bytes32 modelId) private view returns (Record storage m) {
        m = _records[modelId];
        if (m.registrant == address(0)) revert ModelRegistryUnknownModel(modelId);
    }

    /// @dev The caller's own model.
    function _ownModel(bytes32 modelId) private view returns (Record storage m) {
        m = _registered(modelId);
        if (msg.sender != m.registrant) revert ModelRegistryNotRegistrant(msg.sender);
    }
}
