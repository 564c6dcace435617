// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

abstract contract MintableToken is ERC20("Hostile", "BAD") {
    function mint(address to, uint256 value) external {
        _mint(to, value);
    }
}

/// @notice Calls back during every transfer while armed, and remembers how the call ended.
contract ReentrantToken is MintableToken {
    address private target;
    bytes private data;
    uint256 public attempts;
    bool public succeeded;
    bytes public answer;

    function arm(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (target == address(0)) return;
        address callee = target;
        target = address(0);
        attempts++;
        (succeeded, answer) = callee.call(data);
    }
}

/// @notice Keeps one percent of every transfer.
contract FeeToken is MintableToken {
    function _update(address from, address to, uint256 value) internal override {
        uint256 fee = from == address(0) || to == address(0) ? 0 : value / 100;
        super._update(from, to, value - fee);
        if (fee > 0) super._update(from, address(this), fee);
    }
}

/// @notice Refuses transfers to and from blocked accounts, as stablecoins do.
contract BlockingToken is MintableToken {
    error Blocked(address account);

    mapping(address => bool) public blocked;

    function setBlocked(address account) external {
        blocked[account] = true;
    }

    function _update(address from, address to, uint256 value) internal override {
        if (blocked[from]) revert Blocked(from);
        if (blocked[to]) revert Blocked(to);
        super._update(from, to, value);
    }
}

/// @notice An old token whose transfer functions return nothing; or false instead of reverting when told to lie.
contract SilentToken {
    mapping(address => uint256) public balanceOf;
    bool public lying;

    function mint(address to, uint256 value) external {
        balanceOf[to] += value;
    }

    function lie() external {
        lying = true;
    }

    function transfer(address to, uint256 value) external {
        _move(msg.sender, to, value);
    }

    function transferFrom(address from, address to, uint256 value) external {
        _move(from, to, value);
    }

    function _move(address from, address to, uint256 value) private {
        if (lying) {
            assembly ("memory-safe") {
                mstore(0, 0)
                return(0, 32)
            }
        }
        balanceOf[from] -= value;
        balanceOf[to] += value;
    }
}
