// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC3009, IERC3009Cancel} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {SmartAccount} from "./mocks/SmartAccount.sol";
import {Vm} from "./Vm.sol";

/// @notice The devnet's money takes payments as USDC does. Type hashes are given as EIP-3009 prints them.
contract TestUSDTest {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    bytes32 private constant TRANSFER = 0x7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267;
    bytes32 private constant RECEIVE = 0xd099cc98ef71107a616c4f0f941f04c322d8e254fe26b3c6668db87aae413de8;
    bytes32 private constant CANCEL = 0x158b0a9edf7a828aad02f63cd515c68ef2f50ba807396f6d12842833a1597429;

    uint256 private constant KEY = 0xB0B;
    address private constant PAYEE = address(0xBEE);
    address private constant ANYBODY = address(0xA1);
    bytes32 private constant NONCE = "nonce";
    uint256 private constant AMOUNT = 5_000_000;

    address private immutable PAYER = vm.addr(KEY);
    TestUSD private usd;
    uint256 private validAfter;
    uint256 private validBefore;

    function setUp() public {
        vm.warp(1_700_000_000);
        usd = new TestUSD();
        usd.mint(PAYER, AMOUNT);
        (validAfter, validBefore) = (block.timestamp - 1, block.timestamp + 60);
    }

    function digest(bytes32 structHash) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Commonweight devnet dollar"),
                keccak256("1"),
                block.chainid,
                address(usd)
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function authorization(bytes32 typeHash, address from) private view returns (bytes32) {
        return digest(keccak256(abi.encode(typeHash, from, PAYEE, AMOUNT, validAfter, validBefore, NONCE)));
    }

    function sign(uint256 key, bytes32 hash) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, hash);
        return abi.encodePacked(r, s, v);
    }

    function transferVrs(uint256 key) private {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, authorization(TRANSFER, PAYER));
        usd.transferWithAuthorization(PAYER, PAYEE, AMOUNT, validAfter, validBefore, NONCE, v, r, s);
    }

    function transferBytes(address from, uint256 key) private {
        bytes memory signature = sign(key, authorization(TRANSFER, from));
        usd.transferWithAuthorization(from, PAYEE, AMOUNT, validAfter, validBefore, NONCE, signature);
    }

    function receiveVrs(address caller) private {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(KEY, authorization(RECEIVE, PAYER));
        vm.prank(caller);
        usd.receiveWithAuthorization(PAYER, PAYEE, AMOUNT, validAfter, validBefore, NONCE, v, r, s);
    }

    function receiveBytes(address caller) private {
        bytes memory signature = sign(KEY, authorization(RECEIVE, PAYER));
        vm.prank(caller);
        usd.receiveWithAuthorization(PAYER, PAYEE, AMOUNT, validAfter, validBefore, NONCE, signature);
    }

    function expectUsed() private {
        vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, PAYER, NONCE));
    }

    function expectBadSignature() private {
        vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009InvalidSignature.selector));
    }

    function checkPaid() private view {
        vm.assertEq(usd.balanceOf(PAYEE), AMOUNT, "payee");
        vm.assertEq(usd.balanceOf(PAYER), 0, "payer");
        vm.assertTrue(usd.authorizationState(PAYER, NONCE), "used");
    }

    function test_metadata() public view {
        vm.assertEq(usd.name(), "Commonweight devnet dollar", "name");
        vm.assertEq(usd.symbol(), "tUSD", "symbol");
        vm.assertEq(usd.version(), "1", "version");
        vm.assertEq(usd.decimals(), 6, "decimals");
    }

    function test_mint_byAnybody() public {
        vm.prank(ANYBODY);
        usd.mint(PAYEE, 1);
        vm.assertEq(usd.balanceOf(PAYEE), 1, "balance");
        vm.assertEq(usd.totalSupply(), AMOUNT + 1, "supply");
    }

    function test_permit() public {
        bytes32 typeHash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(KEY, digest(keccak256(abi.encode(typeHash, PAYER, PAYEE, AMOUNT, 0, block.timestamp))));
        usd.permit(PAYER, PAYEE, AMOUNT, block.timestamp, v, r, s);
        vm.assertEq(usd.allowance(PAYER, PAYEE), AMOUNT, "allowance");
        vm.assertEq(usd.nonces(PAYER), 1, "nonces");
        vm.expectRevert(abi.encodeWithSelector(ERC20Permit.ERC2612ExpiredSignature.selector, block.timestamp - 1));
        usd.permit(PAYER, PAYEE, AMOUNT, block.timestamp - 1, v, r, s);
    }

    // ------------------------------------------------------------------ paying

    function test_transferWithAuthorization() public {
        vm.expectEmit(address(usd));
        emit IERC3009.AuthorizationUsed(PAYER, NONCE);
        vm.prank(ANYBODY);
        transferVrs(KEY);
        checkPaid();
        usd.mint(PAYER, AMOUNT);
        expectUsed();
        transferVrs(KEY);
        expectUsed();
        transferBytes(PAYER, KEY);
    }

    function test_transferWithAuthorization_bytes() public {
        vm.expectEmit(address(usd));
        emit IERC3009.AuthorizationUsed(PAYER, NONCE);
        transferBytes(PAYER, KEY);
        checkPaid();
        usd.mint(PAYER, AMOUNT);
        expectUsed();
        transferVrs(KEY);
    }

    function test_transferWithAuthorization_smartAccount() public {
        address account = address(new SmartAccount(PAYER));
        usd.mint(account, AMOUNT);
        expectBadSignature();
        transferBytes(account, 7);
        transferBytes(account, KEY);
        vm.assertEq(usd.balanceOf(PAYEE), AMOUNT, "payee");
        vm.assertEq(usd.balanceOf(account), 0, "account");
    }

    function test_receiveWithAuthorization() public {
        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, PAYEE));
        receiveVrs(ANYBODY);
        vm.expectEmit(address(usd));
        emit IERC3009.AuthorizationUsed(PAYER, NONCE);
        receiveVrs(PAYEE);
        checkPaid();
    }

    function test_receiveWithAuthorization_bytes() public {
        vm.expectRevert(abi.encodeWithSelector(TestUSD.TestUSDCallerMustBePayee.selector, ANYBODY, PAYEE));
        receiveBytes(ANYBODY);
        receiveBytes(PAYEE);
        checkPaid();
        expectUsed();
        receiveVrs(PAYEE);
    }

    function test_cancelAuthorization() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(KEY, digest(keccak256(abi.encode(CANCEL, PAYER, NONCE))));
        vm.expectEmit(address(usd));
        emit IERC3009Cancel.AuthorizationCanceled(PAYER, NONCE);
        usd.cancelAuthorization(PAYER, NONCE, v, r, s);
        expectUsed();
        transferVrs(KEY);
        expectUsed();
        usd.cancelAuthorization(PAYER, NONCE, abi.encodePacked(r, s, v));
    }

    function test_cancelAuthorization_bytes() public {
        bytes memory signature = sign(7, digest(keccak256(abi.encode(CANCEL, PAYER, NONCE))));
        expectBadSignature();
        usd.cancelAuthorization(PAYER, NONCE, signature);
        signature = sign(KEY, digest(keccak256(abi.encode(CANCEL, PAYER, NONCE))));
        usd.cancelAuthorization(PAYER, NONCE, signature);
        vm.assertTrue(usd.authorizationState(PAYER, NONCE), "used");
        expectUsed();
        transferBytes(PAYER, KEY);
    }

    // ------------------------------------------------------------------ what can't be paid

    function test_validity_boundaries() public {
        uint256 notYet = validAfter = block.timestamp;
        vm.expectRevert(abi.encodeWithSelector(TestUSD.TestUSDNotYetValid.selector, notYet));
        transferVrs(KEY);
        validAfter = 0;
        uint256 expired = validBefore = block.timestamp;
        vm.expectRevert(abi.encodeWithSelector(TestUSD.TestUSDExpired.selector, expired));
        transferBytes(PAYER, KEY);
        validAfter = block.timestamp - 1;
        validBefore = block.timestamp + 1;
        transferVrs(KEY);
        checkPaid();
    }

    /// @dev Times are seconds, whatever bits they have: in microseconds both have bit 47 and mean the far future.
    function test_validity_noBlockNumbers() public {
        uint256 notYet = validAfter = 1 << 47;
        validBefore = (1 << 47) + block.number + 10;
        vm.expectRevert(abi.encodeWithSelector(TestUSD.TestUSDNotYetValid.selector, notYet));
        transferVrs(KEY);
        (validAfter, validBefore) = (0, type(uint256).max);
        transferVrs(KEY);
        checkPaid();
    }

    function test_signature_rejected() public {
        expectBadSignature();
        transferVrs(7);
        expectBadSignature();
        transferBytes(PAYER, 7);
        // What was signed for the payee's own call is no leave for anybody's.
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(KEY, authorization(RECEIVE, PAYER));
        expectBadSignature();
        usd.transferWithAuthorization(PAYER, PAYEE, AMOUNT, validAfter, validBefore, NONCE, v, r, s);
        (v, r, s) = vm.sign(KEY, authorization(TRANSFER, PAYER));
        expectBadSignature();
        usd.transferWithAuthorization(PAYER, ANYBODY, AMOUNT, validAfter, validBefore, NONCE, v, r, s);
        expectBadSignature();
        usd.transferWithAuthorization(PAYER, PAYEE, AMOUNT - 1, validAfter, validBefore, NONCE, v, r, s);
        expectBadSignature();
        usd.transferWithAuthorization(PAYER, PAYEE, AMOUNT, validAfter, validBefore, "other", v, r, s);
        expectBadSignature();
        usd.transferWithAuthorization(PAYER, PAYEE, AMOUNT, validAfter, validBefore, NONCE, "");

        bytes32 mirrored = bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, mirrored));
        usd.transferWithAuthorization(
            PAYER, PAYEE, AMOUNT, validAfter, validBefore, NONCE, v == 27 ? 28 : 27, r, mirrored
        );
        vm.assertTrue(!usd.authorizationState(PAYER, NONCE), "still unused");
    }

    function test_transferWithAuthorization_withoutMoneyStaysUsable() public {
        vm.prank(PAYER);
        require(usd.transfer(ANYBODY, 1));
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientBalance.selector, PAYER, AMOUNT - 1, AMOUNT)
        );
        transferVrs(KEY);
        usd.mint(PAYER, 1);
        transferVrs(KEY);
        checkPaid();
    }
}
