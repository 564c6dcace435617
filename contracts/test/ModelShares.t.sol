// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IModelShares} from "../src/interfaces/IModelShares.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {Ledger} from "./Ledger.sol";
import {AllowListPolicy} from "./mocks/AllowListPolicy.sol";

contract ModelSharesTest is Ledger {
    uint256 private constant MINTED = 1000e18;
    address private constant HOLDER = address(0xA0);

    /// @dev Epoch 0 gives DESIGNER 100e18, DATA 50e18; the settlement keeps 850e18.
    function mintEpoch() private {
        settle(0, keccak256("root"), MINTED);
        claimAllSplits();
    }

    function mint(address to, uint256 amount) private returns (uint256) {
        vm.prank(address(settlement));
        return shares.mint(to, amount);
    }

    function openWith(uint32 period) private {
        IModelRegistry.Params memory p = params("another period");
        p.streamPeriod = period;
        open(p);
        mintEpoch();
    }

    /// @dev All accounts of this file: Σ owedScaled + undistributedScaled.
    function accounted() private view returns (uint256) {
        return shares.owedScaled(DESIGNER) + shares.owedScaled(DATA) + shares.owedScaled(HOLDER)
            + shares.owedScaled(address(settlement)) + shares.undistributedScaled();
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
        uint256[2] memory tooMuch = [100e18 + 1, type(uint256).max];
        for (uint256 i = 0; i < 2; i++) {
            vm.expectRevert(
                abi.encodeWithSignature(
                    "ERC20InsufficientBalance(address,uint256,uint256)", DESIGNER, 100e18, tooMuch[i]
                )
            );
            vm.prank(DESIGNER);
            vm.assertTrue(!shares.transfer(HOLDER, tooMuch[i]), "moved");
        }
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
        elapse(PERIOD / 2);
        uint256 owed = shares.owedScaled(DESIGNER);
        vm.assertTrue(owed > 0, "nothing owed to double");
        vm.prank(DESIGNER);
        require(shares.transfer(DESIGNER, 60e18));
        vm.assertEq(shares.balanceOf(DESIGNER), 100e18, "balance");
        vm.assertEq(shares.owedScaled(DESIGNER), owed, "owed");
    }

    function test_transferFrom_spendsTheAllowance() public {
        mintEpoch();
        vm.prank(DESIGNER);
        shares.approve(ANYBODY, 5);
        vm.prank(ANYBODY);
        require(shares.transferFrom(DESIGNER, HOLDER, 5));
        vm.assertEq(shares.balanceOf(HOLDER), 5, "receiver");
        vm.expectRevert(abi.encodeWithSignature("ERC20InsufficientAllowance(address,uint256,uint256)", ANYBODY, 0, 1));
        vm.prank(ANYBODY);
        require(!shares.transferFrom(DESIGNER, HOLDER, 1));
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
        ModelShares first = shares;
        open(params("other"));
        ModelShares other = shares;
        shares = first;
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

    // ------------------------------------------------------------------ transfer policy

    function test_policy_isAskedForTransfersOnly() public {
        AllowListPolicy policy = new AllowListPolicy();
        IModelRegistry.Params memory p = params("policy");
        p.transferPolicy = address(policy);
        p.genesisDesigner = 5e18;
        open(p);
        vm.assertEq(shares.transferPolicy(), address(policy), "transferPolicy");
        vm.assertEq(shares.balanceOf(DESIGNER), 5e18, "genesis");
        addProviders(2);
        settleShares(0, MINTED, weights2(1, 1));
        claimFor(0, providers[0]); // what was earned is always paid
        claimAllSplits();
        earn(1_000_000);
        shares.withdrawRevenueFor(providers[0]);

        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesTransferRefused.selector, DESIGNER, HOLDER));
        vm.prank(DESIGNER);
        require(!shares.transfer(HOLDER, 1));
        policy.setAllowed(DESIGNER, true);
        policy.setAllowed(HOLDER, true);
        vm.prank(DESIGNER);
        require(shares.transfer(HOLDER, 1));
        vm.assertEq(shares.balanceOf(HOLDER), 1, "receiver");
    }

    // ------------------------------------------------------------------ settlement's functions

    function test_mintAndRelease_settlementOnly() public {
        bytes memory reason = abi.encodeWithSelector(IModelShares.ModelSharesNotSettlement.selector, COORDINATOR);
        vm.expectRevert(reason);
        vm.prank(COORDINATOR);
        shares.mint(COORDINATOR, 1);
        vm.expectRevert(reason);
        vm.prank(COORDINATOR);
        shares.release(COORDINATOR, 1, 0);
    }

    function test_mint_stopsAtTheCap() public {
        mint(DESIGNER, 2 ** 95);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesCapExceeded.selector, 2 ** 96 + 1, 2 ** 96));
        mint(DESIGNER, 2 ** 95 + 1);
        mint(DESIGNER, 2 ** 95 - 1);
        vm.expectRevert(abi.encodeWithSignature("Panic(uint256)", 0x11));
        mint(DESIGNER, type(uint256).max);
    }

    function test_mint_ofNothingOnlyTellsTheAccumulator() public {
        mintEpoch();
        deposit(1_000_003);
        elapse(1000);
        uint256 undistributed = shares.undistributedScaled();
        vm.assertEq(mint(DESIGNER, 0), shares.accPerShare(), "accumulator");
        vm.assertTrue(shares.accPerShare() > 0, "nothing told");
        vm.assertEq(shares.undistributedScaled(), undistributed, "undistributed");
    }

    function test_release_movesSharesAndWhatTheyEarned() public {
        mintEpoch();
        earn(1_000_003);
        uint256 acc = shares.accPerShare();
        uint256 before = shares.owedScaled(address(settlement));
        vm.expectEmit(address(shares));
        emit IERC20.Transfer(address(settlement), HOLDER, 10e18);
        vm.prank(address(settlement));
        vm.assertEq(shares.release(HOLDER, 10e18, 7), 10e18 * acc - 7, "revenueScaled");
        vm.assertEq(shares.owedScaled(HOLDER), 10e18 * acc - 7, "receiver");
        vm.assertEq(shares.owedScaled(address(settlement)), before - (10e18 * acc - 7), "settlement");
    }

    function test_release_refusesReceiversThatCouldNeverUseThem() public {
        mintEpoch();
        address[3] memory refused = [address(0), address(shares), address(settlement)];
        for (uint256 i = 0; i < refused.length; i++) {
            vm.expectRevert(abi.encodeWithSignature("ERC20InvalidReceiver(address)", refused[i]));
            vm.prank(address(settlement));
            shares.release(refused[i], 1, 0);
        }
    }

    // ------------------------------------------------------------------ the stream

    function test_stream_creditsEvenlyOverThePeriod() public {
        mintEpoch();
        fund(BUYER, address(shares), 2_000_000);
        uint256 start = block.timestamp;
        vm.expectEmit(address(shares));
        emit IModelShares.RevenueDeposited(BUYER, 2_000_000, start + PERIOD);
        vm.prank(BUYER);
        vm.assertEq(shares.depositRevenue(2_000_000), 2_000_000, "received");
        vm.assertEq(shares.streamEnd(), start + PERIOD, "streamEnd");
        vm.assertEq(shares.owed(DESIGNER), 0, "owed at once");
        vm.assertEq(shares.undistributedScaled(), 2_000_000 * PREC, "undistributed at once");

        uint256 rate = 2_000_000 * PREC / (MINTED * PERIOD);
        for (uint256 quarter = 1; quarter <= 4; quarter++) {
            vm.warp(start + quarter * PERIOD / 4);
            vm.assertEq(shares.accPerShare(), rate * quarter * PERIOD / 4, "accPerShare");
            vm.assertEq(shares.owedScaled(DESIGNER), 100e18 * rate * quarter * PERIOD / 4, "owedScaled");
            vm.assertEq(accounted(), 2_000_000 * PREC, "conservation");
        }
        elapse(365 days);
        vm.assertEq(shares.accPerShare(), rate * PERIOD, "credited after the end");
        vm.assertEq(shares.owed(DESIGNER), 199_999, "a tenth, but for the fraction");
        vm.assertTrue(shares.undistributedScaled() < MINTED * PERIOD, "more than rounding left over");
    }

    function test_stream_leftOverDustJoinsTheNextDeposit() public {
        mintEpoch();
        earn(1_000_003);
        uint256 dust = shares.undistributedScaled();
        vm.assertTrue(dust > 0, "no dust");
        elapse(5 days);
        deposit(1);
        vm.assertEq(shares.streamEnd(), block.timestamp + PERIOD, "dust shortened the new stream");
        vm.assertEq(shares.undistributedScaled(), dust + PREC, "undistributed");
        elapse(PERIOD);
        vm.assertTrue(shares.undistributedScaled() < MINTED * PERIOD, "dust grows");
    }

    /// @dev Half of the first is left, half of the period: 43,200 + 43,200 · 100 / (50 + 100), rounded down.
    function test_stream_mergesEndsByAmount() public {
        mintEpoch();
        deposit(100e6);
        elapse(PERIOD / 2);
        deposit(100e6);
        vm.assertEq(shares.streamEnd(), block.timestamp + 71_999, "streamEnd");
        elapse(71_999);
        vm.assertTrue(shares.undistributedScaled() < MINTED * PERIOD, "not all credited at the end");
    }

    function test_stream_dustDoesNotMoveItsEnd() public {
        mintEpoch();
        deposit(100e6);
        uint256 end = shares.streamEnd();
        elapse(PERIOD / 2);
        for (uint256 i = 0; i < 20; i++) {
            deposit(1);
        }
        vm.assertEq(shares.streamEnd(), end, "streamEnd");
    }

    function test_stream_lastSecond() public {
        mintEpoch();
        deposit(100e12);
        elapse(PERIOD - 1);
        deposit(1);
        vm.assertEq(shares.streamEnd(), block.timestamp + 1, "dust in the last second");
        elapse(1);
        vm.assertTrue(shares.undistributedScaled() < MINTED * PERIOD, "not all credited");
        deposit(1);
        vm.assertEq(shares.streamEnd(), block.timestamp + PERIOD, "a stream that has just ended is over");
    }

    /// @dev A merged stream never ends before the running one, nor after a fresh one would; nothing is lost or created.
    function testFuzz_stream_merging(uint256[4] memory amounts, uint256[4] memory waits, uint256 period) public {
        // forge-lint: disable-next-line(unsafe-typecast) -- at most 30 days
        openWith(uint32(bound(period, 1, 30 days)));
        period = shares.streamPeriod();
        uint256 deposited = 0;
        for (uint256 i = 0; i < 4; i++) {
            (uint256 end, uint256 acc) = (shares.streamEnd(), shares.accPerShare());
            amounts[i] = bound(amounts[i], 1, 1e30);
            deposit(amounts[i]);
            deposited += amounts[i];
            vm.assertEq(shares.accPerShare(), acc, "a deposit credited something at once");
            vm.assertLe(end, shares.streamEnd(), "ends before the running one");
            vm.assertLe(block.timestamp + 1, shares.streamEnd(), "ends at once");
            vm.assertLe(shares.streamEnd(), block.timestamp + period, "ends too late");
            elapse(bound(waits[i], 0, 2 * period));
            vm.assertEq(accounted(), deposited * PREC, "conservation");
        }
        vm.warp(shares.streamEnd());
        vm.assertTrue(shares.undistributedScaled() < MINTED * period, "not all credited at the end");
    }

    /// @dev Shares minted while a stream runs earn of its rest only, and all of it is credited by its end.
    function testFuzz_stream_minting(uint256 amount, uint256 first, uint256 minted, uint256 second) public {
        mintEpoch();
        amount = bound(amount, 1, 1e30);
        minted = bound(minted, 1, 2 ** 96 - 1 - MINTED);
        (first, second) = (bound(first, 0, PERIOD + 10), bound(second, 0, PERIOD));
        deposit(amount);
        uint256 end = shares.streamEnd();
        elapse(first);
        uint256 before = shares.owedScaled(DESIGNER);
        uint256 acc = shares.accPerShare();
        vm.assertEq(mint(HOLDER, minted), acc, "accumulator");
        vm.assertEq(shares.accPerShare(), acc, "minting credited something");
        vm.assertEq(shares.owedScaled(HOLDER), 0, "new shares earned of the past");
        vm.assertEq(shares.owedScaled(DESIGNER), before, "old shares lost of the past");
        vm.assertEq(shares.streamEnd(), end, "streamEnd");
        elapse(second);
        vm.assertEq(shares.owedScaled(HOLDER), minted * (shares.accPerShare() - acc), "new shares afterwards");
        vm.assertEq(accounted(), amount * PREC, "conservation");
        if (first < PERIOD) {
            vm.warp(end);
            vm.assertTrue(shares.undistributedScaled() < (MINTED + minted) * PERIOD, "not all credited at the end");
        }
    }

    /// @dev Transfers, claims and withdrawals leave the stream as it is.
    function test_stream_isOnlyRead() public {
        addProviders(2);
        settleShares(0, MINTED, weights2(1, 1));
        claimAllSplits();
        deposit(100e6);
        elapse(1000);
        uint256 before = vm.snapshotState();
        elapse(5000);
        (uint256 acc, uint256 undistributed) = (shares.accPerShare(), shares.undistributedScaled());
        vm.assertTrue(vm.revertToState(before), "snapshot");
        claimFor(0, providers[0]);
        vm.prank(DESIGNER);
        require(shares.transfer(HOLDER, 60e18));
        shares.withdrawRevenueFor(DATA);
        elapse(5000);
        vm.assertEq(shares.accPerShare(), acc, "accPerShare");
        vm.assertEq(shares.undistributedScaled(), undistributed, "undistributed");
    }

    function test_period0_creditsAtOnce() public {
        openWith(0);
        fund(BUYER, address(shares), 2_000_003);
        vm.expectEmit(address(shares));
        emit IModelShares.RevenueDeposited(BUYER, 2_000_003, block.timestamp);
        vm.prank(BUYER);
        shares.depositRevenue(2_000_003);
        uint256 acc = 2_000_003 * PREC / MINTED;
        vm.assertEq(shares.accPerShare(), acc, "accPerShare");
        vm.assertEq(shares.undistributedScaled(), 2_000_003 * PREC % MINTED, "what doesn't divide");
        vm.assertEq(shares.owed(DESIGNER), 200_000, "a tenth");
        uint256 left = shares.undistributedScaled();
        elapse(1);
        deposit(7);
        vm.assertEq(shares.accPerShare(), acc + (7 * PREC + left) / MINTED, "the remainder joins");
        vm.assertEq(shares.undistributedScaled(), (7 * PREC + left) % MINTED, "what doesn't divide then");
        settle(1, keccak256("root"), 5);
        vm.assertEq(accounted(), 2_000_010 * PREC, "conservation");
    }

    // ------------------------------------------------------------------ deposits

    function test_deposit_needsTheLeastSupply() public {
        mint(DESIGNER, 1e18 - 1);
        fund(BUYER, address(shares), 10);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesSupplyTooSmall.selector, 1e18 - 1, 1e18));
        vm.prank(BUYER);
        shares.depositRevenue(10);
        mint(DATA, 1);
        vm.prank(BUYER);
        shares.depositRevenue(10);
        vm.assertEq(shares.undistributedScaled(), 10 * PREC, "at the least supply");
        vm.assertEq(shares.MIN_SUPPLY(), 1e18, "MIN_SUPPLY");
        vm.assertEq(shares.PREC(), PREC, "PREC");
    }

    function test_deposit_ofNothingOrTooMuch() public {
        mintEpoch();
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesNothingReceived.selector));
        shares.depositRevenue(0);
        fund(BUYER, address(shares), type(uint256).max - PROPOSER_BOND);
        uint256[2] memory tooMuch = [2 ** 152, type(uint256).max - PROPOSER_BOND];
        for (uint256 i = 0; i < 2; i++) {
            vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesRevenueCapExceeded.selector));
            vm.prank(BUYER);
            shares.depositRevenue(tooMuch[i]);
        }
    }

    /// @dev The extreme of every bound at once: all revenue there can be at the least supply, then the largest supply.
    function test_deposit_largestNumbers() public {
        mint(DESIGNER, 1e18);
        uint256 all = 2 ** 56 * 1e18 - 1;
        fund(BUYER, address(shares), all + 1);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesRevenueCapExceeded.selector));
        vm.prank(BUYER);
        shares.depositRevenue(all + 1);
        vm.prank(BUYER);
        shares.depositRevenue(all - 1);
        elapse(PERIOD / 2);
        vm.prank(BUYER);
        shares.depositRevenue(1);
        elapse(PERIOD / 4);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesRevenueCapExceeded.selector));
        vm.prank(BUYER);
        shares.depositRevenue(1);
        uint256 acc = mint(address(settlement), 2 ** 96 - 1 - 1e18);
        vm.assertEq(accounted(), all * PREC, "conservation");
        elapse(PERIOD);
        vm.assertTrue(shares.accPerShare() < 2 ** 152, "accumulator bound");
        vm.assertEq(accounted(), all * PREC, "conservation at the end");
        uint256 rest = 2 ** 96 - 1 - 1e18;
        vm.prank(address(settlement));
        shares.release(HOLDER, rest, rest * acc);
        uint256 paid = shares.withdrawRevenueFor(HOLDER) + shares.withdrawRevenueFor(DESIGNER);
        vm.assertTrue(paid <= all && paid + 2 + PERIOD >= all, "paid");
    }

    // ------------------------------------------------------------------ withdrawals

    function test_withdraw_paysOnceAndKeepsTheFraction() public {
        mintEpoch();
        earn(1_000_003);
        uint256 scaled = shares.owedScaled(DESIGNER);
        uint256 payable_ = scaled / PREC;
        vm.assertEq(shares.owed(DESIGNER), payable_, "owed");
        vm.expectEmit(address(shares));
        emit IModelShares.RevenueWithdrawn(DESIGNER, HOLDER, payable_);
        vm.prank(DESIGNER);
        vm.assertEq(shares.withdrawRevenue(HOLDER), payable_, "amount");
        vm.assertEq(usd.balanceOf(HOLDER), payable_, "paid");
        vm.assertEq(shares.owedScaled(DESIGNER), scaled % PREC, "fraction");
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesNothingOwed.selector, DESIGNER));
        vm.prank(DESIGNER);
        shares.withdrawRevenue(HOLDER);
    }

    function test_withdrawFor_paysTheHolder() public {
        mintEpoch();
        earn(1_000_003);
        uint256 due = shares.owed(DATA);
        vm.prank(ANYBODY);
        vm.assertEq(shares.withdrawRevenueFor(DATA), due, "amount");
        vm.assertEq(usd.balanceOf(DATA), due, "holder");
        vm.assertEq(usd.balanceOf(ANYBODY), 0, "caller");
    }

    function test_withdraw_notToAddressesThatWouldStrandIt() public {
        mintEpoch();
        earn(1_000_003);
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
    function testFuzz_transfer_isNeutral(uint256 revenue, uint256 first, uint256 second, uint256 amount) public {
        mintEpoch();
        deposit(bound(revenue, 1, 2 ** 110));
        (first, second) = (bound(first, 0, PERIOD), bound(second, 0, PERIOD));
        amount = bound(amount, 0, 100e18);
        elapse(first);
        uint256 designer = shares.owedScaled(DESIGNER);
        uint256 data = shares.owedScaled(DATA);
        vm.prank(DESIGNER);
        require(shares.transfer(DATA, amount));
        vm.assertEq(shares.owedScaled(DESIGNER), designer, "sender's earnings moved");
        vm.assertEq(shares.owedScaled(DATA), data, "receiver got earnings of the past");
        uint256 acc = shares.accPerShare();
        elapse(second);
        uint256 perShare = shares.accPerShare() - acc;
        vm.assertEq(shares.owedScaled(DESIGNER), designer + (100e18 - amount) * perShare, "sender afterwards");
        vm.assertEq(shares.owedScaled(DATA), data + (50e18 + amount) * perShare, "receiver afterwards");
    }
}
