// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EpochSettlement} from "../src/EpochSettlement.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IRevenueRouter} from "../src/interfaces/IRevenueRouter.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {RevenueRouter} from "../src/RevenueRouter.sol";
import {Base} from "./Base.sol";

contract ModelRegistryTest is Base {
    address private constant SUCCESSOR = address(0xC1);
    bytes32 private constant UNKNOWN = bytes32(uint256(7));

    function id(address registrant, string memory spec) private view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(registry), registrant, keccak256(bytes(spec))));
    }

    function expectRejected(IModelRegistry.Params memory p, bytes memory reason) private {
        vm.expectRevert(reason);
        registry.registerModel(p);
    }

    // ------------------------------------------------------------------ deployment

    /// @dev Limits of EIP-170 and EIP-3860; forge doesn't enforce them in tests.
    function test_deployment_fitsAChain() public view {
        vm.assertLe(type(ModelRegistry).creationCode.length + 32 * 8, 49_152, "creation code with six tokens");
        vm.assertLe(address(registry).code.length, 24_576, "registry");
        vm.assertLe(registry.settlementImplementation().code.length, 24_576, "settlement");
        vm.assertLe(registry.sharesImplementation().code.length, 24_576, "shares");
        vm.assertLe(registry.routerImplementation().code.length, 24_576, "router");
    }

    function test_deployment_allowsTheTokensNamedOnly() public {
        vm.assertTrue(registry.isAllowedToken(address(usd)), "allowed");
        vm.assertTrue(!registry.isAllowedToken(address(shares)), "not allowed");
        vm.expectRevert(
            abi.encodeWithSelector(IModelRegistry.ModelRegistryNotAContract.selector, "allowedTokens", ANYBODY)
        );
        new ModelRegistry(tokens(ANYBODY));
    }

    function test_implementations_areInert() public {
        EpochSettlement settler = EpochSettlement(registry.settlementImplementation());
        address token = registry.sharesImplementation();
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotRegistry.selector, address(this)));
        settler.deployShares(token, "", 0, 0);
        (bool proposed,) = address(settler).call(abi.encodeCall(settler.proposeEpoch, (0, STATEMENT, 1, STATEMENT, "")));
        vm.assertTrue(!proposed, "proposed to the implementation");
        (bool minted,) = token.call(abi.encodeCall(ModelShares.mint, (ANYBODY, 1)));
        vm.assertTrue(!minted, "minted by the implementation");
        (bool swept,) = registry.routerImplementation().call(abi.encodeCall(RevenueRouter.sweep, ()));
        vm.assertTrue(!swept, "swept the implementation");
    }

    function test_deployShares_registryOnlyAndOnce() public {
        address implementation = registry.sharesImplementation();
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotRegistry.selector, COORDINATOR));
        vm.prank(COORDINATOR);
        settlement.deployShares(implementation, "", 1, 1);
        vm.expectRevert(abi.encodeWithSignature("Panic(uint256)", 1)); // the token's address is taken
        vm.prank(address(registry));
        settlement.deployShares(implementation, "", 1, 1);
    }

    // ------------------------------------------------------------------ registration

    function test_registerModel_keepsTheTerms() public view {
        IModelRegistry.Model memory m = registry.model(id(address(this), "spec"));
        vm.assertEq(m.registrant, address(this), "registrant");
        vm.assertEq(m.shares, address(shares), "shares");
        vm.assertEq(m.settlement, address(settlement), "settlement");
        vm.assertEq(m.router, address(router), "router");
        vm.assertEq(m.coordinator, COORDINATOR, "coordinator");
        vm.assertTrue(!m.retired, "retired");
        vm.assertEq(keccak256(abi.encode(m.params)), keccak256(abi.encode(params("spec"))), "params");
        vm.assertEq(registry.coordinatorOf(modelId), COORDINATOR, "coordinatorOf");

        IModelRegistry.SeatTerms memory s = registry.seatTermsOf(modelId);
        vm.assertEq(s.providers, address(vm), "providers");
        vm.assertEq(s.arbiter, ARBITER, "arbiter");
        vm.assertEq(s.settlement, address(settlement), "seat's settlement");
        vm.assertEq(s.seatStake, 1000e6, "seatStake");
        vm.assertEq(s.window, WINDOW, "window");
        vm.assertEq(s.arbitration, ARBITRATION, "arbitration");
        vm.assertEq(s.seatCooldown, 7 days, "seatCooldown");
        vm.assertEq(s.stages, 4, "stages");
        vm.assertEq(s.maxStagesPerOwner, 2, "maxStagesPerOwner");
        vm.assertTrue(!s.retired, "seats retired");
    }

    function test_registerModel_deploysTheContractsWithTheTerms() public view {
        vm.assertEq(shares.name(), "Commonweight Tiny", "name");
        vm.assertEq(shares.symbol(), "cwTINY", "symbol");
        vm.assertEq(shares.decimals(), 18, "decimals");
        vm.assertEq(shares.maxSupply(), 2 ** 96, "maxSupply");
        vm.assertEq(shares.revenueToken(), address(usd), "revenueToken");
        vm.assertEq(shares.settlement(), address(settlement), "token's settlement");
        vm.assertEq(shares.streamPeriod(), PERIOD, "streamPeriod");
        vm.assertEq(shares.transferPolicy(), address(0), "transferPolicy");
        vm.assertEq(settlement.shares(), address(shares), "settlement's token");
        vm.assertEq(settlement.registry(), address(registry), "settlement's registry");
        vm.assertEq(shares.totalSupply(), 0, "no genesis, nothing minted");

        IEpochSettlement.Terms memory t = settlement.terms();
        vm.assertEq(t.modelId, modelId, "modelId");
        vm.assertEq(t.designer, DESIGNER, "designer");
        vm.assertEq(t.dataRecipient, DATA, "dataRecipient");
        vm.assertEq(t.arbiter, ARBITER, "arbiter");
        vm.assertEq(t.bondToken, address(usd), "bondToken");
        vm.assertEq(t.initialEmission, INITIAL, "initialEmission");
        vm.assertEq(t.halvingEpochs, HALVING_EPOCHS, "halvingEpochs");
        vm.assertEq(t.window, WINDOW, "window");
        vm.assertEq(t.arbitration, ARBITRATION, "arbitration");
        vm.assertEq(t.designerBps, DESIGNER_BPS, "designerBps");
        vm.assertEq(t.dataBps, DATA_BPS, "dataBps");
        vm.assertEq(t.proposerBond, PROPOSER_BOND, "proposerBond");
        vm.assertEq(t.challengerBond, CHALLENGER_BOND, "challengerBond");

        IRevenueRouter.Terms memory r = router.terms();
        vm.assertEq(r.modelId, modelId, "router's modelId");
        vm.assertEq(r.registry, address(registry), "router's registry");
        vm.assertEq(r.settlement, address(settlement), "router's settlement");
        vm.assertEq(r.shares, address(shares), "router's shares");
        vm.assertEq(r.revenueToken, address(usd), "router's token");
        vm.assertEq(r.treasury, TREASURY, "treasury");
        vm.assertEq(r.operatorBps, OPERATOR_BPS, "operatorBps");
        vm.assertEq(r.treasuryBps, TREASURY_BPS, "treasuryBps");
    }

    function test_registerModel_mintsTheGenesisGrants() public {
        IModelRegistry.Params memory p = params("genesis");
        (p.genesisDesigner, p.genesisData) = (30e18, 2e18);
        open(p);
        vm.assertEq(shares.balanceOf(DESIGNER), 30e18, "designer");
        vm.assertEq(shares.balanceOf(DATA), 2e18, "data recipient");
        vm.assertEq(shares.totalSupply(), 32e18, "supply");
        vm.assertEq(registry.model(modelId).params.genesisDesigner, 30e18, "params");
        vm.assertEq(registry.model(modelId).params.genesisData, 2e18, "params");
    }

    function test_registerModel_emitsWhereTheContractsAre() public {
        // The addresses are fixed by the id and the terms, so an identical registry state gives identical addresses.
        bytes32 other = id(ANYBODY, "other");
        IModelRegistry.Params memory p = params("other");
        uint256 before = vm.snapshotState();
        vm.prank(ANYBODY);
        registry.registerModel(p);
        (address token, address settler, address till) = registry.contractsOf(other);
        vm.assertTrue(vm.revertToState(before), "snapshot");
        vm.expectEmit(address(registry));
        emit IModelRegistry.ModelRegistered(other, ANYBODY, DESIGNER, token, settler, till, p.specHash, p.specURI);
        vm.prank(ANYBODY);
        vm.assertEq(registry.registerModel(p), other, "modelId");
        vm.assertEq(registry.modelIdOf(ANYBODY, p.specHash), other, "modelIdOf");
    }

    function test_registerModel_onceOnly() public {
        IModelRegistry.Params memory p = params("spec");
        p.designer = ANYBODY; // other terms don't make another id
        expectRejected(
            p, abi.encodeWithSelector(IModelRegistry.ModelRegistryAlreadyRegistered.selector, id(address(this), "spec"))
        );
    }

    function test_registerModel_frontRunGetsAnotherId() public {
        IModelRegistry.Params memory p = params("wanted");
        p.designer = ANYBODY;
        vm.prank(ANYBODY);
        bytes32 stolen = registry.registerModel(p);
        p.designer = DESIGNER;
        bytes32 own = registry.registerModel(p);
        vm.assertEq(own, id(address(this), "wanted"), "the victim's id is not the one it computed");
        vm.assertTrue(own != stolen, "same id");
        vm.assertEq(registry.model(own).params.designer, DESIGNER, "the victim's terms");
    }

    function test_modelId_bindsChainAndRegistry() public {
        bytes32 here = registry.modelIdOf(ANYBODY, STATEMENT);
        vm.chainId(1);
        vm.assertTrue(registry.modelIdOf(ANYBODY, STATEMENT) != here, "another chain, same id");
        vm.assertTrue(
            new ModelRegistry(tokens(address(usd))).modelIdOf(ANYBODY, STATEMENT)
                != registry.modelIdOf(ANYBODY, STATEMENT),
            "another registry, same id"
        );
    }

    function test_unknownModels_areRefused() public {
        bytes memory reason = abi.encodeWithSelector(IModelRegistry.ModelRegistryUnknownModel.selector, UNKNOWN);
        bytes[7] memory calls = [
            abi.encodeCall(registry.model, (UNKNOWN)),
            abi.encodeCall(registry.contractsOf, (UNKNOWN)),
            abi.encodeCall(registry.seatTermsOf, (UNKNOWN)),
            abi.encodeCall(registry.proposeCoordinator, (UNKNOWN, SUCCESSOR)),
            abi.encodeCall(registry.acceptCoordinator, (UNKNOWN)),
            abi.encodeCall(registry.publishCheckpoint, (UNKNOWN, 1, STATEMENT, STATEMENT)),
            abi.encodeCall(registry.retire, (UNKNOWN))
        ];
        for (uint256 i = 0; i < calls.length; i++) {
            (bool done, bytes memory answer) = address(registry).call(calls[i]);
            vm.assertTrue(!done && keccak256(answer) == keccak256(reason), "not refused as unknown");
        }
        vm.assertEq(registry.coordinatorOf(UNKNOWN), address(0), "coordinatorOf");
    }

    // ------------------------------------------------------------------ what registration refuses

    function test_refuses_missingParties() public {
        IModelRegistry.Params memory p = params("new");
        p.designer = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "designer"));
        p = params("new");
        p.dataRecipient = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "dataRecipient"));
        p = params("new");
        p.coordinator = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "coordinator"));
        p = params("new");
        p.arbiter = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "arbiter"));
        p = params("new");
        p.treasury = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "treasury"));
        p = params("new");
        p.providers = ANYBODY;
        expectRejected(
            p, abi.encodeWithSelector(IModelRegistry.ModelRegistryNotAContract.selector, "providers", ANYBODY)
        );
        p = params("new");
        p.transferPolicy = ANYBODY;
        expectRejected(
            p, abi.encodeWithSelector(IModelRegistry.ModelRegistryNotAContract.selector, "transferPolicy", ANYBODY)
        );
        p = params("new");
        p.revenueToken = address(shares);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryTokenNotAllowed.selector, address(shares)));
    }

    function test_refuses_partialArbiter() public {
        IModelRegistry.Params memory p = params("new");
        p.arbiter = COORDINATOR;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryPartialArbiter.selector, COORDINATOR));
        p.arbiter = address(this);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryPartialArbiter.selector, address(this)));
    }

    function test_refuses_missingSpecAndBadNames() public {
        IModelRegistry.Params memory p = params("new");
        p.specHash = 0;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroSpecHash.selector));
        p = params("new");
        p.name = "";
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadName.selector, 0, 6));
        p.name = string(new bytes(65));
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadName.selector, 65, 6));
        p = params("new");
        p.symbol = "";
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadName.selector, 17, 0));
        p.symbol = "SEVENTEEN_LETTERS";
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadName.selector, 17, 17));
        (p.name, p.symbol) = (string(new bytes(64)), string(new bytes(16)));
        registry.registerModel(p);
    }

    function test_refuses_badSplits() public {
        IModelRegistry.Params memory p = params("new");
        (p.designerBps, p.dataBps) = (65_535, 65_535); // the sum must not wrap
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadSplit.selector, 131_070));
        (p.designerBps, p.dataBps) = (10_000, 1);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadSplit.selector, 10_001));
        (p.designerBps, p.dataBps) = (9_999, 1);
        (p.operatorBps, p.treasuryBps) = (65_535, 65_535);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadSplit.selector, 131_070));
        (p.operatorBps, p.treasuryBps) = (1, 10_000);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadSplit.selector, 10_001));
        (p.operatorBps, p.treasuryBps) = (0, 10_000);
        registry.registerModel(p);
    }

    function expectBadPeriod(
        IModelRegistry.Params memory p,
        string memory name,
        uint256 given,
        uint256 least,
        uint256 most
    ) private {
        expectRejected(
            p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadPeriod.selector, name, given, least, most)
        );
    }

    function test_refuses_badPeriods() public {
        IModelRegistry.Params memory p = params("new");
        p.streamPeriod = 30 days + 1;
        expectBadPeriod(p, "streamPeriod", 30 days + 1, 0, 30 days);
        p.streamPeriod = 30 days;
        p.window = 0;
        expectBadPeriod(p, "window", 0, 1, 30 days);
        p.window = 30 days + 1;
        expectBadPeriod(p, "window", 30 days + 1, 1, 30 days);
        p.window = 30 days;
        p.arbitration = 0;
        expectBadPeriod(p, "arbitration", 0, 1, 30 days);
        p.arbitration = 30 days + 1;
        expectBadPeriod(p, "arbitration", 30 days + 1, 1, 30 days);
        p.arbitration = 30 days;
        p.seatCooldown = 90 days - 1;
        expectBadPeriod(p, "seatCooldown", 90 days - 1, 90 days, 365 days);
        p.seatCooldown = 365 days + 1;
        expectBadPeriod(p, "seatCooldown", 365 days + 1, 90 days, 365 days);
        p.seatCooldown = 90 days;
        registry.registerModel(p);
        p = params("shortest");
        (p.streamPeriod, p.window, p.arbitration, p.seatCooldown) = (0, 1, 1, 3);
        registry.registerModel(p);
    }

    function test_refuses_badStages() public {
        IModelRegistry.Params memory p = params("new");
        p.stages = 0;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadStages.selector, 0, 2));
        (p.stages, p.maxStagesPerOwner) = (1, 0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadStages.selector, 1, 0));
        p.maxStagesPerOwner = 65;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadStages.selector, 1, 65));
        p.maxStagesPerOwner = 64;
        registry.registerModel(p);
    }

    function test_refuses_emissionAboveCap() public {
        IModelRegistry.Params memory p = params("new");
        p.maxSupply = 2 ** 96 + 1;
        expectRejected(
            p, abi.encodeWithSelector(IModelRegistry.ModelRegistryCapTooLarge.selector, p.maxSupply, 2 ** 96)
        );
        p.maxSupply = 2 * INITIAL * HALVING_EPOCHS - 1;
        expectRejected(
            p,
            abi.encodeWithSelector(
                IModelRegistry.ModelRegistryEmissionExceedsCap.selector, p.maxSupply + 1, p.maxSupply
            )
        );
        p.maxSupply += 1;
        p.emission.initial = type(uint256).max; // the bound must not wrap
        expectRejected(
            p,
            abi.encodeWithSelector(
                IModelRegistry.ModelRegistryEmissionExceedsCap.selector, type(uint256).max, p.maxSupply
            )
        );
        p.emission.initial = 0;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadEmission.selector, 0, HALVING_EPOCHS));
        (p.emission.initial, p.emission.halvingEpochs) = (1, 0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadEmission.selector, 1, 0));
        // Below one whole share the model could never pay, whatever its cap.
        (p.emission.halvingEpochs, p.emission.initial) = (4, 0.25e18 - 1);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryCapTooSmall.selector, 1e18 - 4, 1e18));
        (p.genesisDesigner, p.genesisData) = (1, 3);
        registry.registerModel(p);
        (p.genesisDesigner, p.genesisData) = (0, 0);
        p.specHash = keccak256("another");
        (p.maxSupply, p.emission.initial, p.emission.halvingEpochs) = (2 ** 96, 2 ** 63, 2 ** 32 - 1);
        registry.registerModel(p);
    }

    function test_refuses_genesisAboveCap() public {
        IModelRegistry.Params memory p = params("new");
        uint256 emitted = 2 * INITIAL * HALVING_EPOCHS;
        (p.genesisDesigner, p.genesisData, p.maxSupply) = (3e18, 2e18, emitted + 5e18 - 1);
        expectRejected(
            p,
            abi.encodeWithSelector(
                IModelRegistry.ModelRegistryEmissionExceedsCap.selector, emitted + 5e18, emitted + 5e18 - 1
            )
        );
        p.maxSupply += 1;
        (p.genesisDesigner, p.genesisData) = (type(uint256).max, type(uint256).max); // the sum must not wrap
        expectRejected(
            p,
            abi.encodeWithSelector(
                IModelRegistry.ModelRegistryEmissionExceedsCap.selector, type(uint256).max, p.maxSupply
            )
        );
        (p.genesisDesigner, p.genesisData) = (3e18, 2e18);
        registry.registerModel(p);
    }

    // ------------------------------------------------------------------ coordinator

    function expectPending(address coordinator, uint256 acceptableAt) private view {
        (address proposed, uint256 since) = registry.proposedCoordinator(modelId);
        vm.assertEq(proposed, coordinator, "proposed");
        vm.assertEq(since, acceptableAt, "acceptableAt");
    }

    function test_coordinator_changesInTwoStepsAfterTheDelay() public {
        expectPending(address(0), 0);
        uint256 acceptableAt = block.timestamp + 3 days;
        vm.assertEq(registry.COORDINATOR_DELAY(), 3 days, "delay");
        vm.expectEmit(address(registry));
        emit IModelRegistry.CoordinatorProposed(modelId, SUCCESSOR, acceptableAt);
        registry.proposeCoordinator(modelId, SUCCESSOR);
        expectPending(SUCCESSOR, acceptableAt);

        vm.warp(acceptableAt - 1);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryTimelockActive.selector, acceptableAt));
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
        vm.warp(acceptableAt);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotProposed.selector, ANYBODY));
        vm.prank(ANYBODY);
        registry.acceptCoordinator(modelId);
        vm.assertEq(registry.coordinatorOf(modelId), COORDINATOR, "changed before it was accepted");

        vm.expectEmit(address(registry));
        emit IModelRegistry.CoordinatorChanged(modelId, COORDINATOR, SUCCESSOR);
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
        vm.assertEq(registry.coordinatorOf(modelId), SUCCESSOR, "coordinatorOf");
        vm.assertEq(registry.model(modelId).coordinator, SUCCESSOR, "model");
        vm.assertEq(registry.model(modelId).params.coordinator, COORDINATOR, "the terms changed");
        expectPending(address(0), 0);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotProposed.selector, SUCCESSOR));
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
    }

    function test_coordinator_isNamedByTheRegistrantOnly() public {
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotRegistrant.selector, COORDINATOR));
        vm.prank(COORDINATOR);
        registry.proposeCoordinator(modelId, SUCCESSOR);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "coordinator"));
        registry.proposeCoordinator(modelId, address(0));
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryPartialArbiter.selector, ARBITER));
        registry.proposeCoordinator(modelId, ARBITER);
    }

    function test_coordinator_aNewProposalStartsAnew() public {
        registry.proposeCoordinator(modelId, SUCCESSOR);
        elapse(3 days);
        registry.proposeCoordinator(modelId, ANYBODY);
        expectPending(ANYBODY, block.timestamp + 3 days);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotProposed.selector, SUCCESSOR));
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
    }

    function test_coordinator_namingThePresentOneWithdraws() public {
        registry.proposeCoordinator(modelId, SUCCESSOR);
        vm.expectEmit(address(registry));
        emit IModelRegistry.CoordinatorProposed(modelId, COORDINATOR, 0);
        registry.proposeCoordinator(modelId, COORDINATOR);
        expectPending(address(0), 0);
        elapse(3 days);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotProposed.selector, SUCCESSOR));
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
    }

    // ------------------------------------------------------------------ checkpoints and the end

    function publish(uint64 version) private {
        vm.prank(COORDINATOR);
        registry.publishCheckpoint(modelId, version, keccak256("weights"), keccak256("manifest"));
    }

    function test_checkpoint_versionsIncrease() public {
        (uint64 version, bytes32 weightsRoot, bytes32 manifestHash) = registry.checkpointOf(modelId);
        vm.assertTrue(version == 0 && weightsRoot == 0 && manifestHash == 0, "a checkpoint before the first");
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryVersionNotIncreasing.selector, 0, 0));
        publish(0);
        vm.expectEmit(address(registry));
        emit IModelRegistry.CheckpointPublished(modelId, 3, keccak256("weights"), keccak256("manifest"));
        publish(3);
        (version, weightsRoot, manifestHash) = registry.checkpointOf(modelId);
        vm.assertEq(version, 3, "version");
        vm.assertEq(weightsRoot, keccak256("weights"), "weightsRoot");
        vm.assertEq(manifestHash, keccak256("manifest"), "manifestHash");
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryVersionNotIncreasing.selector, 3, 3));
        publish(3);
        publish(type(uint64).max);
    }

    function test_checkpoint_isThePresentCoordinators() public {
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotCoordinator.selector, address(this)));
        registry.publishCheckpoint(modelId, 1, STATEMENT, STATEMENT);
        registry.proposeCoordinator(modelId, SUCCESSOR);
        elapse(3 days);
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotCoordinator.selector, COORDINATOR));
        publish(1);
    }

    function test_retire_onceByTheRegistrantAndEpochsGoOn() public {
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryNotRegistrant.selector, COORDINATOR));
        vm.prank(COORDINATOR);
        registry.retire(modelId);
        vm.expectEmit(address(registry));
        emit IModelRegistry.ModelRetired(modelId);
        registry.retire(modelId);
        vm.assertTrue(registry.model(modelId).retired, "model");
        vm.assertTrue(registry.seatTermsOf(modelId).retired, "seats");
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryAlreadyRetired.selector, modelId));
        registry.retire(modelId);
        settle(0, STATEMENT, 2e18);
        earn(1_000_000);
        claimAllSplits();
        vm.assertTrue(shares.withdrawRevenueFor(DESIGNER) > 0, "no revenue after the end");
    }
}
