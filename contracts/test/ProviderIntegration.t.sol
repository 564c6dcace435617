// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Arbiter} from "../src/Arbiter.sol";
import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IProviderRegistry} from "../src/interfaces/IProviderRegistry.sol";
import {Base} from "./Base.sol";

/// @notice Stakes under a registered model, judged by the multisig. Gas limits are those of whole transactions.
/// forge-config: default.isolate = true
contract ProviderIntegrationTest is Base {
    uint256 private constant OWNER_KEY = 0xA11CE;
    uint96 private constant SEAT_STAKE = 1000e6;
    uint256 private constant REPORTER_BOND = 50e6;
    uint256 private constant DELAY = 6 hours;
    address private constant MEMBER = address(0x3E1);
    address private constant SECOND_MEMBER = address(0x3E2);
    address private constant REPORTER = address(0x2E9);

    address private immutable OWNER = vm.addr(OWNER_KEY);
    Arbiter private arbiter;
    ProviderRegistry private providers;

    function setUp() public override {
        super.setUp();
        address[] memory members = new address[](2);
        (members[0], members[1]) = (MEMBER, SECOND_MEMBER);
        arbiter = new Arbiter(members, 2, DELAY);
        providers = new ProviderRegistry(registry, usd, TREASURY, REPORTER_BOND);
        IModelRegistry.Params memory p = params("staked");
        (p.providers, p.arbiter, p.seatStake) = (address(providers), address(arbiter), SEAT_STAKE);
        open(p);
        fund(OWNER, address(providers), 2 * SEAT_STAKE);
        vm.prank(OWNER);
        providers.bond(OWNER, 2 * SEAT_STAKE);
        takeSeat(0);
    }

    function takeSeat(uint16 stage) private {
        vm.prank(OWNER);
        providers.takeSeat(modelId, stage);
    }

    function signed(IProviderRegistry.Receipt memory receipt) private view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(OWNER_KEY, providers.receiptDigest(receipt));
        return abi.encodePacked(r, s, v);
    }

    function report() private returns (uint256) {
        fund(REPORTER, address(providers), REPORTER_BOND);
        vm.prank(REPORTER);
        return providers.proposeSlash(modelId, OWNER, 0, EVIDENCE, URI);
    }

    function contest(uint256 slashId) private {
        fund(OWNER, address(providers), REPORTER_BOND);
        vm.prank(OWNER);
        providers.contestSlash(slashId, URI);
    }

    function checkGas(uint256 limit) private view {
        uint256 used = vm.lastCallGas().gasTotalUsed;
        vm.assertLe(21_000, used, "less than a transaction: isolation is off");
        vm.assertLe(used, limit, "gas limit");
    }

    function test_seat() public {
        takeSeat(1);
        checkGas(90_000);
        vm.assertTrue(providers.isSeated(modelId, OWNER, 1), "seated");
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryUnknownStage.selector, 4, 4));
        takeSeat(4);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryCustodyCap.selector, 2, 2));
        takeSeat(2);

        vm.prank(OWNER);
        providers.leaveSeat(modelId, 1);
        checkGas(62_000);
        elapse(7 days);
        providers.releaseSeat(modelId, OWNER, 1);
        registry.retire(modelId);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryModelRetired.selector, modelId));
        takeSeat(2);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryUnknownModel.selector, EVIDENCE));
        providers.takeSeat(EVIDENCE, 0);
    }

    function test_equivocation() public {
        IProviderRegistry.Receipt memory a = IProviderRegistry.Receipt(modelId, 0, "unit", "x");
        IProviderRegistry.Receipt memory b = IProviderRegistry.Receipt(modelId, 0, "unit", "y");
        (bytes memory signatureA, bytes memory signatureB) = (signed(a), signed(b));
        vm.prank(REPORTER);
        providers.slashEquivocation(a, signatureA, b, signatureB);
        checkGas(160_000);
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "lost");
        vm.prank(REPORTER);
        providers.withdraw(REPORTER, SEAT_STAKE / 2);
        vm.assertEq(usd.balanceOf(REPORTER), SEAT_STAKE / 2, "reporter");
        vm.prank(TREASURY);
        providers.withdraw(TREASURY, SEAT_STAKE / 2);
        vm.assertEq(usd.balanceOf(TREASURY), SEAT_STAKE / 2, "treasury");
    }

    /// @dev The arbiter's delay fits into the model's arbitration time.
    function test_contestedSlash_decidedByTheMultisig() public {
        uint256 slashId = report();
        contest(slashId);
        bytes memory decision = abi.encodeCall(providers.resolveSlash, (slashId, true));
        vm.prank(MEMBER);
        bytes32 callId = arbiter.propose(address(providers), decision, "");
        vm.prank(SECOND_MEMBER);
        arbiter.confirm(callId);
        elapse(DELAY);
        arbiter.execute(callId);
        vm.assertEq(uint256(providers.slash(slashId).status), uint256(IProviderRegistry.SlashStatus.Executed), "status");
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "lost");
        vm.assertEq(providers.freeStakeOf(OWNER), SEAT_STAKE, "the rest");
        vm.assertEq(providers.freeStakeOf(REPORTER), SEAT_STAKE / 2 + REPORTER_BOND * 3 / 2, "reporter");
    }

    /// @dev A decision that comes too late fails as the registry says, and the bonds go back.
    function test_contestedSlash_multisigTooLate() public {
        uint256 slashId = report();
        contest(slashId);
        uint256 deadline = providers.slash(slashId).deadline;
        elapse(ARBITRATION - DELAY);
        bytes memory decision = abi.encodeCall(providers.resolveSlash, (slashId, true));
        vm.prank(MEMBER);
        bytes32 callId = arbiter.propose(address(providers), decision, "");
        vm.prank(SECOND_MEMBER);
        arbiter.confirm(callId);
        elapse(DELAY);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooLate.selector, deadline));
        arbiter.execute(callId);
        providers.dropSlash(slashId);
        vm.assertTrue(providers.isSeated(modelId, OWNER, 0), "seated");
        vm.assertEq(providers.freeStakeOf(REPORTER), REPORTER_BOND, "reporter");
        vm.assertEq(providers.freeStakeOf(OWNER), SEAT_STAKE + REPORTER_BOND, "owner");
    }
}
