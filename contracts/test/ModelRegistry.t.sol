// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EpochSettlement} from "../src/EpochSettlement.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {Base} from "./Base.sol";

contract ModelRegistryTest is Base {
    function id(address registrant, string memory spec) private view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(registry), registrant, keccak256(bytes(spec))));
    }

    function expectRejected(IModelRegistry.Params memory p, bytes memory reason) private {
        vm.expectRevert(reason);
        registry.registerModel(p);
    }

    function test_registerModel_deploysBothContractsWithTheTerms() public view {
        IModelRegistry.Model memory m = registry.model(id(address(this), "spec"));
        vm.assertEq(m.registrant, address(this), "registrant");
        vm.assertEq(m.shares, address(shares), "shares");
        vm.assertEq(m.settlement, address(settlement), "settlement");
        vm.assertEq(keccak256(abi.encode(m.params)), keccak256(abi.encode(params("spec"))), "params");

        vm.assertEq(shares.name(), "Commonweight Tiny", "name");
        vm.assertEq(shares.symbol(), "cwTINY", "symbol");
        vm.assertEq(shares.decimals(), 18, "decimals");
        vm.assertEq(shares.maxSupply(), 2 ** 96, "maxSupply");
        vm.assertEq(shares.revenueToken(), address(usd), "revenueToken");
        vm.assertEq(shares.settlement(), address(settlement), "token's settlement");
        vm.assertEq(settlement.shares(), address(shares), "settlement's token");
        vm.assertEq(shares.totalSupply(), 0, "nothing is minted at registration");

        IEpochSettlement.Terms memory t = settlement.terms();
        vm.assertEq(t.coordinator, COORDINATOR, "coordinator");
        vm.assertEq(t.designer, DESIGNER, "designer");
        vm.assertEq(t.dataRecipient, DATA, "dataRecipient");
        vm.assertEq(t.initialEmission, INITIAL, "initialEmission");
        vm.assertEq(t.halvingEpochs, HALVING_EPOCHS, "halvingEpochs");
        vm.assertEq(t.window, WINDOW, "window");
        vm.assertEq(t.designerBps, DESIGNER_BPS, "designerBps");
        vm.assertEq(t.dataBps, DATA_BPS, "dataBps");
    }

    function test_registerModel_emitsWhereTheContractsAre() public {
        // Both addresses are fixed by the id and the terms, so an identical registry state gives identical addresses.
        bytes32 modelId = id(ANYBODY, "other");
        IModelRegistry.Params memory p = params("other");
        uint256 before = vm.snapshotState();
        vm.prank(ANYBODY);
        registry.registerModel(p);
        (address token, address settler) = registry.contractsOf(modelId);
        vm.assertTrue(vm.revertToState(before), "snapshot");
        vm.expectEmit(address(registry));
        emit IModelRegistry.ModelRegistered(modelId, ANYBODY, DESIGNER, token, settler, p.specHash, p.specURI);
        vm.prank(ANYBODY);
        vm.assertEq(registry.registerModel(p), modelId, "modelId");
        vm.assertEq(registry.modelIdOf(ANYBODY, p.specHash), modelId, "modelIdOf");
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
    }

    function test_views_refuseUnknownModels() public {
        bytes memory reason =
            abi.encodeWithSelector(IModelRegistry.ModelRegistryUnknownModel.selector, bytes32(uint256(7)));
        vm.expectRevert(reason);
        registry.model(bytes32(uint256(7)));
        vm.expectRevert(reason);
        registry.contractsOf(bytes32(uint256(7)));
    }

    function test_registerModel_refusesMissingParams() public {
        IModelRegistry.Params memory p = params("new");
        p.specHash = 0;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroSpecHash.selector));
        p = params("new");
        p.designer = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "designer"));
        p = params("new");
        p.dataRecipient = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "dataRecipient"));
        p = params("new");
        p.coordinator = address(0);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryZeroAddress.selector, "coordinator"));
        p = params("new");
        p.revenueToken = ANYBODY;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryNotAContract.selector, ANYBODY));
        p = params("new");
        p.name = "";
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadName.selector, 0, 6));
        p = params("new");
        p.symbol = "SEVENTEEN_LETTERS";
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadName.selector, 17, 17));
        p = params("new");
        p.stages = 0;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadStages.selector, 0));
    }

    function test_registerModel_refusesBadSplit() public {
        IModelRegistry.Params memory p = params("new");
        (p.designerBps, p.dataBps) = (65_535, 65_535); // the sum must not wrap
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadSplit.selector, 131_070));
        (p.designerBps, p.dataBps) = (10_000, 1);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadSplit.selector, 10_001));
        (p.designerBps, p.dataBps) = (9_999, 1);
        registry.registerModel(p);
    }

    function test_registerModel_refusesBadWindow() public {
        IModelRegistry.Params memory p = params("new");
        p.window = 0;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadWindow.selector, 0));
        p.window = 30 days + 1;
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryBadWindow.selector, 30 days + 1));
        p.window = 30 days;
        registry.registerModel(p);
    }

    function test_registerModel_refusesEmissionAboveCap() public {
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
        (p.maxSupply, p.emission.halvingEpochs) = (1e18 - 1, 1);
        expectRejected(p, abi.encodeWithSelector(IModelRegistry.ModelRegistryCapTooSmall.selector, 1e18 - 1, 1e18));
        (p.maxSupply, p.emission.initial, p.emission.halvingEpochs) = (2 ** 96, 2 ** 63, 2 ** 32 - 1);
        registry.registerModel(p);
    }

    function test_implementations_areInert() public {
        EpochSettlement settler = EpochSettlement(registry.settlementImplementation());
        address token = registry.sharesImplementation();
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotRegistry.selector, address(this)));
        settler.deployShares(token, address(usd), 1, "n", "s");
        vm.assertEq(ModelShares(token).totalSupply(), 0, "supply");
    }

    function test_deployShares_registryOnlyAndOnce() public {
        address implementation = registry.sharesImplementation();
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementNotRegistry.selector, COORDINATOR));
        vm.prank(COORDINATOR);
        settlement.deployShares(implementation, address(usd), 1, "n", "s");
        vm.expectRevert(abi.encodeWithSignature("Panic(uint256)", 1)); // the token's address is taken
        vm.prank(address(registry));
        settlement.deployShares(implementation, address(usd), 1, "n", "s");
    }
}
