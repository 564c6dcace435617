// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// @title TestUSD
/// @notice Six-decimal play money for devnets and tests: ANYBODY can mint any amount. It must never be the revenue token
/// of a model that matters. It can be paid with as USDC can: EIP-2612 permits, EIP-3009 authorisations with v, r and s or
/// with one signature, which may be a smart account's (EIP-1271). EIP-712 domain: its name, version "1".
contract TestUSD is ERC20Permit, ERC3009 {
    error TestUSDNotYetValid(uint256 validAfter);
    error TestUSDExpired(uint256 validBefore);
    error TestUSDCallerMustBePayee(address caller, address payee);

    constructor() ERC20("Commonweight devnet dollar", "tUSD") ERC20Permit("Commonweight devnet dollar") {}

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @notice Moves what `from` has signed for; anybody may call.
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        _checkSignature(
            from,
            keccak256(
                abi.encode(TRANSFER_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce)
            ),
            signature
        );
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    /// @notice The same for the payee alone, so that nobody can pull a payment out of the call that it belongs to.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        if (to != msg.sender) revert TestUSDCallerMustBePayee(msg.sender, to);
        _checkSignature(
            from,
            keccak256(abi.encode(RECEIVE_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce)),
            signature
        );
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    /// @notice Makes an authorisation that wasn't used useless.
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes calldata signature) external {
        _checkSignature(authorizer, keccak256(abi.encode(CANCEL_AUTHORIZATION_TYPEHASH, authorizer, nonce)), signature);
        _cancelAuthorization(authorizer, nonce);
    }

    /// @notice The version in the EIP-712 domain.
    function version() external view returns (string memory) {
        return _EIP712Version();
    }

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function _checkSignature(address account, bytes32 structHash, bytes calldata signature) private view {
        bool valid = SignatureChecker.isValidSignatureNowCalldata(account, _hashTypedDataV4(structHash), signature);
        if (!valid) revert ERC3009InvalidSignature();
    }

    /// @dev OpenZeppelin reads some times as block numbers; EIP-3009 and USDC don't.
    function _checkValidity(uint256 validAfter, uint256 validBefore) internal view override {
        // Validators can shift the time by seconds; payments are signed for a minute or more.
        // forge-lint: disable-start(block-timestamp)
        if (block.timestamp <= validAfter) revert TestUSDNotYetValid(validAfter);
        if (block.timestamp >= validBefore) revert TestUSDExpired(validBefore);
        // forge-lint: disable-end(block-timestamp)
    }
}
