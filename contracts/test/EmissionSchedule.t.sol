// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EmissionSchedule} from "../src/EmissionSchedule.sol";
import {Base} from "./Base.sol";

contract EmissionScheduleTest is Base {
    function setUp() public override {}

    function testFuzz_emission_neverIncreases(uint256 initial, uint32 halvingEpochs, uint32 e, uint32 later)
        public
        pure
    {
        vm.assume(halvingEpochs > 0 && e <= later);
        vm.assertLe(
            EmissionSchedule.emission(initial, halvingEpochs, later),
            EmissionSchedule.emission(initial, halvingEpochs, e),
            "a later epoch may mint more"
        );
    }

    /// @dev Period k has `halvingEpochs` epochs of emission `initial >> k`; after 256 periods nothing is left.
    function testFuzz_supplyBound_holds(uint256 initial, uint32 halvingEpochs) public pure {
        initial = bound(initial, 1, 2 ** 96);
        halvingEpochs = uint32(bound(halvingEpochs, 1, type(uint32).max / 256));
        uint256 sum = 0;
        for (uint32 k = 0; k < 256; k++) {
            sum += EmissionSchedule.emission(initial, halvingEpochs, k * halvingEpochs) * halvingEpochs;
        }
        vm.assertTrue(sum < EmissionSchedule.supplyBound(initial, halvingEpochs), "emission reaches its bound");
    }

    function test_emission_endsAtZero() public pure {
        vm.assertEq(EmissionSchedule.emission(type(uint256).max, 1, 255), 1, "last share");
        vm.assertEq(EmissionSchedule.emission(type(uint256).max, 1, 256), 0, "after the last share");
        vm.assertEq(EmissionSchedule.emission(type(uint256).max, 1, type(uint32).max), 0, "last epoch of all");
    }

    function test_supplyBound_saturates() public pure {
        vm.assertEq(EmissionSchedule.supplyBound(2 ** 255, 1), type(uint256).max, "overflow of the doubling");
        vm.assertEq(EmissionSchedule.supplyBound(2 ** 230, 2 ** 31), type(uint256).max, "overflow of the product");
    }

    function testFuzz_split_isExact(uint256 minted, uint16 designerBps, uint16 dataBps) public pure {
        minted = bound(minted, 0, 2 ** 96);
        designerBps = uint16(bound(designerBps, 0, 10_000));
        dataBps = uint16(bound(dataBps, 0, 10_000 - designerBps));
        (uint256 designer, uint256 data, uint256 compute) = EmissionSchedule.split(minted, designerBps, dataBps);
        vm.assertEq(designer + data + compute, minted, "parts don't add up");
        vm.assertEq(designer, minted * designerBps / 10_000, "designer's part");
        vm.assertEq(data, minted * dataBps / 10_000, "data recipient's part");
    }
}
