// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITransferPolicy} from "../../src/interfaces/IModelShares.sol";

/// @notice Lets shares move between allowed accounts only.
contract AllowListPolicy is ITransferPolicy {
    mapping(address account => bool) public allowed;

    function setAllowed(address account, bool allowed_) external {
        allowed[account] = allowed_;
    }

    function isAllowed(address from, address to, uint256) external view returns (bool) {
        return allowed[from] && allowed[to];
    }
}
