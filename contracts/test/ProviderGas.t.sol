// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IProviderRegistry} from "../src/interfaces/IProviderRegistry.sol";
import {StakeBase} from "./StakeBase.sol";

/// @notice Gas of whole transactions, as in Gas.t.sol. The models' terms come from a stub here, and the registry takes about
/// 10,000 more for them: ProviderIntegration.t.sol has those. The treasury has been paid before.
/// forge-config: default.isolate = true
contract ProviderGasTest is StakeBase {
    function setUp() public override {
        super.setUp();
        bond(TREASURY, 1);
        takeSeat(1);
    }

    /// @dev Holds the last call to `limit`. The lower bound shows that a whole transaction was measured.
    function check(uint256 limit) private view {
        uint256 used = vm.lastCallGas().gasTotalUsed;
        vm.assertLe(21_000, used, "less than a transaction: isolation is off");
        vm.assertLe(used, limit, "gas limit");
    }

    function test_bond_first() public {
        fund(ANYBODY, 1000);
        vm.prank(ANYBODY);
        providers.bond(ANYBODY, 1000);
        check(90_000);
    }

    function test_bond_more() public {
        fund(OWNER, 1000);
        vm.prank(OWNER);
        providers.bond(OWNER, 999);
        check(55_000);
    }

    function test_withdraw() public {
        usd.mint(OWNER, 1);
        vm.prank(OWNER);
        providers.withdraw(OWNER, 1000);
        check(50_000);
    }

    function test_takeSeat() public {
        takeSeat(0);
        check(80_000);
    }

    function test_leaveSeat() public {
        leaveSeat(1);
        check(50_000);
    }

    function test_releaseSeat() public {
        leaveSeat(1);
        pass(COOLDOWN);
        providers.releaseSeat(MODEL, OWNER, 1);
        check(40_000);
    }

    function test_bindSigner() public {
        bytes memory consent = sign(7, providers.bindingDigest(OWNER));
        vm.prank(OWNER);
        providers.bindSigner(vm.addr(7), consent);
        check(57_000);
    }

    function test_slashEquivocation() public {
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (a.stage, b.stage) = (1, 1);
        slashEquivocation(NODE_KEY, a, b);
        check(135_000);
    }

    function test_proposeSlash() public {
        takeSeat(0);
        propose(EVIDENCE);
        check(190_000);
    }

    function test_contestSlash() public {
        takeSeat(0);
        contest(propose(EVIDENCE));
        check(90_000);
    }

    function test_executeSlash() public {
        takeSeat(0);
        uint256 slashId = propose(EVIDENCE);
        pass(WINDOW);
        providers.executeSlash(slashId);
        check(135_000);
    }
}
