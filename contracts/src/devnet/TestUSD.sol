// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @title TestUSD
/// @notice Six-decimal play money for devnets and tests: ANYBODY can mint any amount. It must never be the revenue token
/// of a model that matters.
contract TestUSD is ERC20("Commonweight devnet dollar", "tUSD") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
