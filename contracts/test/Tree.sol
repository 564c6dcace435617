// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";

/// @notice The Merkle tree of OpenZeppelin's JavaScript library over given leaf hashes: 2n - 1 nodes, the root first, leaf
/// i at the end minus i, siblings hashed in sorted order. (Leaves aren't sorted here: no test depends on their order.)
library Tree {
    function build(bytes32[] memory leaves) internal pure returns (bytes32[] memory nodes) {
        nodes = new bytes32[](2 * leaves.length - 1);
        for (uint256 i = 0; i < leaves.length; i++) {
            nodes[nodes.length - 1 - i] = leaves[i];
        }
        for (uint256 i = leaves.length - 1; i > 0; i--) {
            nodes[i - 1] = Hashes.commutativeKeccak256(nodes[2 * i - 1], nodes[2 * i]);
        }
    }

    function proof(bytes32[] memory nodes, uint256 leaf) internal pure returns (bytes32[] memory path) {
        uint256 depth = 0;
        for (uint256 i = nodes.length - 1 - leaf; i > 0; i = (i - 1) / 2) {
            depth++;
        }
        path = new bytes32[](depth);
        uint256 node = nodes.length - 1 - leaf;
        for (uint256 level = 0; level < depth; level++) {
            path[level] = nodes[node % 2 == 1 ? node + 1 : node - 1];
            node = (node - 1) / 2;
        }
    }
}
