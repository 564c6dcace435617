// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IModelShares} from "../src/interfaces/IModelShares.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {Base} from "./Base.sol";

contract ModelSharesTest is Base {
    uint256 private constant MINTED = 1000e18;
    address private constant HOLDER = address(0xA0);

    /// @dev Epoch 0 mints: DESIGNER 100e18, DATA 50e18, the settlement 850e18.
    function mintEpoch() private {
        settle(0, keccak256("root"), MINTED);
    }

    // ------------------------------------------------------------------ ERC-20

    function test_transfer_movesBalances() public {
        mintEpoch();
        vm.expectEmit(address(shares));
        emit IERC20.Transfer(DESIGNER, HOLDER, 30e18);
        vm.prank(DESIGNER);
        vm.assertTrue(shares.transfer(HOLDER, 30e18), "transfer");
        vm.assertEq(shares.balanceOf(DESIGNER), 70e18, "sender");
        vm.assertEq(shares.balanceOf(HOLDER), 30e18, "receiver");
        vm.assertEq(shares.totalSupply(), MINTED, "supply");
    }

    function test_transfer_refusesMoreThanTheBalance() public {
        mintEpoch();
        vm.expectRevert(
            abi.encodeWithSignature("ERC20InsufficientBalance(address,uint256,uint256)", DESIGNER, 100e18, 100e18 + 1)
        );
        vm.prank(DESIGNER);
        vm.assertTrue(!shares.transfer(HOLDER, 100e18 + 1), "moved");
    }

    function test_transfer_refusesReceiversThatCouldNeverUseThem() public {
        mintEpoch();
        address[3] memory refused = [address(0), address(shares), address(settlement)];
        for (uint256 i = 0; i < refused.length; i++) {
            vm.expectRevert(abi.encodeWithSignature("ERC20InvalidReceiver(address)", refused[i]));
            vm.prank(DESIGNER);
            vm.assertTrue(!shares.transfer(refused[i], 1), "moved");
        }
    }

    function test_transfer_toOneselfChangesNothing() public {
        mintEpoch();
        deposit(1_000_003);
        uint256 owed = shares.owedScaled(DESIGNER);
        vm.assertTrue(owed > 0, "nothing owed to double");
        vm.prank(DESIGNER);
        require(shares.transfer(DESIGNER, 60e18));
        vm.assertEq(shares.balanceOf(DESIGNER), 100e18, "balance");
        vm.assertEq(shares.owedScaled(DESIGNER), owed, "owed");
    }

    function test_permit_bindsTokenAndNonce() public {
        uint256 key = 0xA11CE;
        address owner = vm.addr(key);
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 digest = keccak256(
            abi.encodePacked(
                hex"1901",
                domain(address(shares)),
                keccak256(abi.encode(typehash, owner, HOLDER, 5, 0, block.timestamp))
            )
        );
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        shares.permit(owner, HOLDER, 5, block.timestamp, v, r, s);
        vm.assertEq(shares.allowance(owner, HOLDER), 5, "allowance");
        vm.assertEq(shares.nonces(owner), 1, "nonce");

        (bool replayed,) =
            address(shares).call(abi.encodeCall(shares.permit, (owner, HOLDER, 5, block.timestamp, v, r, s)));
        vm.assertTrue(!replayed, "the same permit twice");
        (ModelShares other,) = register(params("other"));
        vm.assertTrue(other.DOMAIN_SEPARATOR() != shares.DOMAIN_SEPARATOR(), "two tokens, one domain");
        (bool elsewhere,) =
            address(other).call(abi.encodeCall(shares.permit, (owner, HOLDER, 5, block.timestamp, v, r, s)));
        vm.assertTrue(!elsewhere, "the permit of another token");
    }

    function domain(address token) private view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Commonweight Shares"),
                keccak256("1"),
                block.chainid,
                token
            )
        );
    }

    // ------------------------------------------------------------------ settlement's functions

    function test_mintAndRelease_settlementOnly() public {
        bytes memory reason = abi.encodeWithSelector(IModelShares.ModelSharesNotSettlement.selector, COORDINATOR);
        vm.expectRevert(reason);
        vm.prank(COORDINATOR);
        shares.mintEpoch(COORDINATOR, 1, COORDINATOR, 1, 1);
        vm.expectRevert(reason);
        vm.prank(COORDINATOR);
        shares.release(COORDINATOR, 1, 0);
    }

    function test_mint_stopsAtTheCap() public {
        vm.prank(address(settlement));
        shares.mintEpoch(DESIGNER, 1, DATA, 1, 2 ** 95);
        uint256 left = 2 ** 96 - shares.totalSupply();
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesCapExceeded.selector, 2 ** 96 + 1, 2 ** 96));
        vm.prank(address(settlement));
        shares.mintEpoch(DESIGNER, 1, DATA, 0, left);
    }

    function test_release_refusesReceiversThatCouldNeverUseThem() public {
        mintEpoch();
        vm.expectRevert(abi.encodeWithSignature("ERC20InvalidReceiver(address)", address(settlement)));
        vm.prank(address(settlement));
        shares.release(address(settlement), 1, 0);
    }

    // ------------------------------------------------------------------ revenue

    function test_deposit_isOwedProRata() public {
        mintEpoch();
        usd.mint(BUYER, 2_000_000);
        vm.prank(BUYER);
        usd.approve(address(shares), 2_000_000);
        uint256 perShare = 2_000_000 * shares.PREC() / MINTED;
        vm.expectEmit(address(shares));
        emit IModelShares.RevenueDeposited(BUYER, 2_000_000, perShare);
        vm.prank(BUYER);
        shares.depositRevenue(2_000_000);
        vm.assertEq(shares.deposited(), 2_000_000, "deposited");
        // A tenth and a twentieth, rounded down; the fraction stays with the holder.
        vm.assertEq(shares.owed(DESIGNER), 199_999, "designer");
        vm.assertEq(shares.owed(DATA), 99_999, "data recipient");
        deposit(2_000_001);
        vm.assertEq(shares.owed(DESIGNER), 400_000, "designer, after the fractions add up");
    }

    function test_deposit_oneUnitAtTheLargestSupplyCounts() public {
        vm.prank(address(settlement));
        shares.mintEpoch(DESIGNER, 2 ** 96 - 1, DATA, 0, 0);
        deposit(1);
        vm.assertEq(shares.accPerShare(), 1, "the smallest deposit at the largest supply");
        deposit(1);
        vm.assertEq(shares.owed(DESIGNER), 1, "owed");
        vm.assertEq(shares.owedScaled(DESIGNER) + shares.remainder(), 2 * shares.PREC(), "exact");
    }

    function test_deposit_needsSupply() public {
        uint256 minimum = shares.MIN_SUPPLY();
        usd.mint(BUYER, 10);
        vm.prank(BUYER);
        usd.approve(address(shares), 10);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesSupplyTooSmall.selector, 0, minimum));
        vm.prank(BUYER);
        shares.depositRevenue(10);
        vm.prank(address(settlement));
        shares.mintEpoch(DESIGNER, minimum - 1, DATA, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesSupplyTooSmall.selector, minimum - 1, minimum));
        vm.prank(BUYER);
        shares.depositRevenue(10);
        vm.prank(address(settlement));
        shares.mintEpoch(DESIGNER, 1, DATA, 0, 0);
        vm.prank(BUYER);
        shares.depositRevenue(10);
        vm.assertEq(shares.deposited(), 10, "at the minimum");
    }

    function test_deposit_ofNothing() public {
        mintEpoch();
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesNothingReceived.selector));
        shares.depositRevenue(0);
    }

    /// @dev The extreme of every bound at once: all revenue there can be at the least supply, then the largest supply.
    function test_deposit_largestNumbers() public {
        uint256 minimum = shares.MIN_SUPPLY();
        vm.prank(address(settlement));
        shares.mintEpoch(DESIGNER, minimum, DATA, 0, 0);
        uint256 all = type(uint112).max;
        deposit(all);
        vm.assertTrue(shares.accPerShare() <= 2 ** 149, "accumulator bound");
        vm.assertEq(shares.owedScaled(DESIGNER) + shares.remainder(), all * shares.PREC(), "exact");

        usd.mint(BUYER, 1);
        vm.prank(BUYER);
        usd.approve(address(shares), 1);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesRevenueCapExceeded.selector, 2 ** 112, all));
        vm.prank(BUYER);
        shares.depositRevenue(1);

        vm.prank(address(settlement));
        uint256 acc = shares.mintEpoch(DESIGNER, 1, DATA, 0, 2 ** 96 - 2 - minimum);
        vm.prank(address(settlement));
        uint256 revenueScaled = shares.release(HOLDER, 2 ** 96 - 2 - minimum, (2 ** 96 - 2 - minimum) * acc);
        vm.assertEq(revenueScaled, 0, "shares minted after the revenue");
        vm.prank(DESIGNER);
        vm.assertEq(shares.withdrawRevenue(DESIGNER), all - 1, "all but the fraction");
    }

    function test_withdraw_paysOnceAndKeepsTheFraction() public {
        mintEpoch();
        deposit(1_000_003);
        uint256 scaled = shares.owedScaled(DESIGNER);
        uint256 payable_ = scaled / shares.PREC();
        vm.expectEmit(address(shares));
        emit IModelShares.RevenueWithdrawn(DESIGNER, HOLDER, payable_);
        vm.prank(DESIGNER);
        vm.assertEq(shares.withdrawRevenue(HOLDER), payable_, "amount");
        vm.assertEq(usd.balanceOf(HOLDER), payable_, "paid");
        vm.assertEq(shares.owedScaled(DESIGNER), scaled % shares.PREC(), "fraction");
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesNothingOwed.selector, DESIGNER));
        vm.prank(DESIGNER);
        shares.withdrawRevenue(HOLDER);
    }

    function test_withdrawFor_paysTheHolder() public {
        mintEpoch();
        deposit(1_000_003);
        uint256 due = shares.owed(DATA);
        vm.prank(ANYBODY);
        vm.assertEq(shares.withdrawRevenueFor(DATA), due, "amount");
        vm.assertEq(usd.balanceOf(DATA), due, "holder");
        vm.assertEq(usd.balanceOf(ANYBODY), 0, "caller");
    }

    function test_withdraw_notToAddressesThatWouldStrandIt() public {
        mintEpoch();
        deposit(1_000_003);
        address[3] memory refused = [address(0), address(shares), address(settlement)];
        for (uint256 i = 0; i < refused.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesInvalidPayee.selector, refused[i]));
            vm.prank(DESIGNER);
            shares.withdrawRevenue(refused[i]);
        }
        vm.assertTrue(shares.owed(address(settlement)) > 0, "unclaimed shares earned nothing");
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesInvalidPayee.selector, address(settlement)));
        shares.withdrawRevenueFor(address(settlement));
    }

    /// @dev What was earned before a transfer stays with whoever held then; what comes after goes with the shares.
    function testFuzz_transfer_isNeutral(uint256 first, uint256 second, uint256 amount) public {
        mintEpoch();
        first = bound(first, 1, 2 ** 110);
        second = bound(second, 1, 2 ** 110);
        amount = bound(amount, 0, 100e18);
        deposit(first);
        uint256 designer = shares.owedScaled(DESIGNER);
        uint256 data = shares.owedScaled(DATA);
        vm.prank(DESIGNER);
        require(shares.transfer(DATA, amount));
        vm.assertEq(shares.owedScaled(DESIGNER), designer, "sender's earnings moved");
        vm.assertEq(shares.owedScaled(DATA), data, "receiver got earnings of the past");
        uint256 acc = shares.accPerShare();
        deposit(second);
        uint256 perShare = shares.accPerShare() - acc;
        vm.assertEq(shares.owedScaled(DESIGNER), designer + (100e18 - amount) * perShare, "sender afterwards");
        vm.assertEq(shares.owedScaled(DATA), data + (50e18 + amount) * perShare, "receiver afterwards");
    }
}
