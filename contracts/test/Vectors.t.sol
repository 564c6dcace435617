// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {EmissionSchedule} from "../src/EmissionSchedule.sol";
import {EpochSettlement} from "../src/EpochSettlement.sol";
import {Base} from "./Base.sol";

/// @notice The values that the Python rules must reproduce too: tests/vectors/{merkle,emission,accounting}.json.
/// @dev Each test counts its cases, so that an empty or renamed file fails instead of passing unread.
contract VectorsTest is Base {
    string private json;

    function caseAt(uint256 i) private pure returns (string memory) {
        return string.concat(".cases[", vm.toString(i), "]");
    }

    function test_merkle() public {
        json = vm.readFile("../tests/vectors/merkle.json");
        bytes memory code = registry.settlementImplementation().code;
        uint256 leaves = 0;
        uint256 cases = 0;
        for (; vm.keyExistsJson(json, caseAt(cases)); cases++) {
            string memory path = caseAt(cases);
            // A leaf binds the settlement's address and the chain: put the code there.
            address where = vm.parseJsonAddress(json, string.concat(path, ".settlement"));
            vm.etch(where, code);
            vm.chainId(vm.parseJsonUint(json, string.concat(path, ".chain_id")));
            bytes32 root = vm.parseJsonBytes32(json, string.concat(path, ".root"));
            uint256 i = 0;
            for (;; i++) {
                string memory leaf = string.concat(path, ".leaves[", vm.toString(i), "]");
                if (!vm.keyExistsJson(json, leaf)) break;
                checkLeaf(EpochSettlement(where), leaf, root);
            }
            vm.assertTrue(i > 0, "a case without leaves");
            leaves += i;
        }
        vm.assertTrue(cases >= 5, "too few cases");
        vm.assertTrue(leaves > cases, "no case with more than one leaf");
    }

    function checkLeaf(EpochSettlement where, string memory path, bytes32 root) private view {
        bytes32 leaf = where.leaf(
            vm.parseJsonAddress(json, string.concat(path, ".account")),
            vm.parseJsonUint(json, string.concat(path, ".cumulative_shares")),
            vm.parseJsonUint(json, string.concat(path, ".epoch_shares")),
            vm.parseJsonUint(json, string.concat(path, ".debt_before")),
            vm.parseJsonUint(json, string.concat(path, ".operator_revenue"))
        );
        vm.assertEq(leaf, vm.parseJsonBytes32(json, string.concat(path, ".leaf")), path);
        bytes32[] memory proof = vm.parseJsonBytes32Array(json, string.concat(path, ".proof"));
        vm.assertTrue(MerkleProof.verify(proof, root, leaf), string.concat(path, ".proof"));
    }

    function test_emission() public {
        json = vm.readFile("../tests/vectors/emission.json");
        uint256 cases = 0;
        for (; vm.keyExistsJson(json, caseAt(cases)); cases++) {
            string memory path = caseAt(cases);
            uint256 initial = vm.parseJsonUint(json, string.concat(path, ".initial"));
            uint256 halvingEpochs = vm.parseJsonUint(json, string.concat(path, ".halving_epochs"));
            uint256[] memory epochs = vm.parseJsonUintArray(json, string.concat(path, ".emission.epochs"));
            uint256[] memory amounts = vm.parseJsonUintArray(json, string.concat(path, ".emission.amounts"));
            vm.assertTrue(epochs.length > 0, "a case without epochs");
            vm.assertEq(epochs.length, amounts.length, path);
            for (uint256 i = 0; i < epochs.length; i++) {
                vm.assertEq(
                    // forge-lint: disable-next-line(unsafe-typecast)
                    EmissionSchedule.emission(initial, uint32(halvingEpochs), uint32(epochs[i])),
                    amounts[i],
                    string.concat(path, " epoch ", vm.toString(epochs[i]))
                );
            }
        }
        vm.assertTrue(cases >= 5, "too few cases");
    }

    function test_accounting() public {
        json = vm.readFile("../tests/vectors/accounting.json");
        uint256 cases = 0;
        for (; vm.keyExistsJson(json, caseAt(cases)); cases++) {
            string memory path = caseAt(cases);
            (uint256 designer, uint256 data, uint256 compute) = EmissionSchedule.split(
                vm.parseJsonUint(json, string.concat(path, ".minted")),
                // forge-lint: disable-next-line(unsafe-typecast)
                uint16(vm.parseJsonUint(json, string.concat(path, ".designer_bps"))),
                // forge-lint: disable-next-line(unsafe-typecast)
                uint16(vm.parseJsonUint(json, string.concat(path, ".data_bps")))
            );
            vm.assertEq(designer, vm.parseJsonUint(json, string.concat(path, ".designer")), path);
            vm.assertEq(data, vm.parseJsonUint(json, string.concat(path, ".data")), path);
            vm.assertEq(compute, vm.parseJsonUint(json, string.concat(path, ".compute")), path);
        }
        vm.assertTrue(cases >= 5, "too few cases");
    }
}
