// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IModelShares} from "../src/interfaces/IModelShares.sol";
import {IRevenueRouter} from "../src/interfaces/IRevenueRouter.sol";
import {Ledger} from "./Ledger.sol";

contract RevenueRouterTest is Ledger {
    uint256 private constant MINTED = 1000e18;
    address private constant CASHIER = address(0xCA);
    address private constant SUCCESSOR = address(0xC1);

    address private payer;

    /// @dev Epoch 0 is settled without revenue, so the shares can take some.
    function setUp() public override {
        super.setUp();
        addProviders(2);
        payer = vm.addr(PAYER_KEY);
        settleShares(0, MINTED, weights2(1, 1));
        setCashier(CASHIER, true);
    }

    function setCashier(address cashier, bool allowed) private {
        vm.prank(COORDINATOR);
        router.setCashier(cashier, allowed);
    }

    function collect(IRevenueRouter.Authorization memory a, uint256 charged) private {
        vm.prank(CASHIER);
        router.collect(a, charged);
    }

    function sweepUp(uint256 amount) private {
        usd.mint(address(router), amount);
        router.sweep();
    }

    // ------------------------------------------------------------------ cashiers

    function test_setCashier_coordinatorOnly() public {
        vm.assertTrue(router.isCashier(CASHIER) && !router.isCashier(ANYBODY), "cashiers");
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterNotCoordinator.selector, CASHIER));
        vm.prank(CASHIER);
        router.setCashier(ANYBODY, true);
        vm.expectEmit(address(router));
        emit IRevenueRouter.CashierSet(CASHIER, false);
        setCashier(CASHIER, false);
        vm.assertTrue(!router.isCashier(CASHIER), "still a cashier");
    }

    function test_setCashier_byThePresentCoordinator() public {
        registry.proposeCoordinator(modelId, SUCCESSOR);
        elapse(3 days);
        vm.prank(SUCCESSOR);
        registry.acceptCoordinator(modelId);
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterNotCoordinator.selector, COORDINATOR));
        vm.prank(COORDINATOR);
        router.setCashier(ANYBODY, true);
        vm.prank(SUCCESSOR);
        router.setCashier(ANYBODY, true);
    }

    // ------------------------------------------------------------------ collect

    function test_collect_keepsWhatIsChargedAndReturnsTheRest() public {
        usd.mint(payer, 10e6);
        vm.expectEmit(address(router));
        emit IRevenueRouter.PaymentCollected(payer, "order", 4e6, 3e6);
        collect(authorize(4e6, "order"), 3e6);
        vm.assertEq(usd.balanceOf(payer), 7e6, "payer");
        vm.assertEq(router.unswept(), 3e6, "unswept");
        vm.assertEq(usd.balanceOf(CASHIER), 0, "cashier");
    }

    function test_collect_allOrNothingOfIt() public {
        usd.mint(payer, 10e6);
        collect(authorize(4e6, "one"), 4e6);
        vm.assertEq(usd.balanceOf(payer), 6e6, "all is kept");
        collect(authorize(4e6, "two"), 0);
        vm.assertEq(usd.balanceOf(payer), 6e6, "all is returned");
        collect(authorize(0, "three"), 0);
        vm.assertEq(router.unswept(), 4e6, "unswept");
    }

    function test_collect_cashiersAndCoordinatorOnly() public {
        usd.mint(payer, 10e6);
        IRevenueRouter.Authorization memory a = authorize(4e6, "order");
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterNotCashier.selector, ANYBODY));
        vm.prank(ANYBODY);
        router.collect(a, 4e6);
        vm.prank(COORDINATOR);
        router.collect(a, 4e6);
        setCashier(CASHIER, false);
        a = authorize(4e6, "another");
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterNotCashier.selector, CASHIER));
        vm.prank(CASHIER);
        router.collect(a, 4e6);
    }

    function test_collect_notMoreThanWasSigned() public {
        usd.mint(payer, 10e6);
        IRevenueRouter.Authorization memory a = authorize(4e6, "order");
        uint256[2] memory tooMuch = [uint256(4e6 + 1), type(uint256).max];
        for (uint256 i = 0; i < 2; i++) {
            vm.expectRevert(
                abi.encodeWithSelector(IRevenueRouter.RevenueRouterChargedTooMuch.selector, tooMuch[i], 4e6)
            );
            vm.prank(CASHIER);
            router.collect(a, tooMuch[i]);
        }
    }

    /// @dev A payment that was collected can be sent again after a crash: it takes nothing a second time.
    function test_collect_onceOnly() public {
        usd.mint(payer, 10e6);
        IRevenueRouter.Authorization memory a = authorize(4e6, "order");
        collect(a, 3e6);
        vm.prank(CASHIER);
        (bool again,) = address(router).call(abi.encodeCall(router.collect, (a, 3e6)));
        vm.assertTrue(!again, "collected twice");
        vm.assertEq(usd.balanceOf(payer), 7e6, "payer");
    }

    /// @dev Whatever isn't as the payer signed it, or is for another model's router, takes nothing.
    function test_collect_asSignedOnly() public {
        usd.mint(payer, 10e6);
        IRevenueRouter.Authorization memory signed = authorize(4e6, "order");
        for (uint256 field = 0; field < 6; field++) {
            IRevenueRouter.Authorization memory a = authorize(4e6, "order");
            if (field == 0) a.from = BUYER;
            if (field == 1) a.value += 1;
            if (field == 2) a.validAfter += 1;
            if (field == 3) a.validBefore -= 1;
            if (field == 4) a.nonce = "another";
            if (field == 5) a.s = bytes32(uint256(a.s) ^ 1);
            vm.prank(CASHIER);
            (bool taken,) = address(router).call(abi.encodeCall(router.collect, (a, 4e6)));
            vm.assertTrue(!taken, "not as signed");
        }
        open(params("twin"));
        setCashier(CASHIER, true);
        vm.prank(CASHIER);
        (bool elsewhere,) = address(router).call(abi.encodeCall(router.collect, (signed, 4e6)));
        vm.assertTrue(!elsewhere, "another router's payment");
        vm.assertEq(usd.balanceOf(payer), 10e6, "payer");
    }

    function test_collect_thePayerMustHaveIt() public {
        usd.mint(payer, 3e6);
        IRevenueRouter.Authorization memory a = authorize(4e6, "order");
        vm.expectRevert(abi.encodeWithSignature("ERC20InsufficientBalance(address,uint256,uint256)", payer, 3e6, 4e6));
        vm.prank(CASHIER);
        router.collect(a, 1e6);
    }

    // ------------------------------------------------------------------ sweep

    function test_sweep_splitsWhatHasCome() public {
        usd.mint(address(router), 1_000_001);
        vm.expectEmit(address(router));
        emit IRevenueRouter.Swept(1_000_001, 770_001, 200_000, 30_000);
        vm.prank(ANYBODY);
        vm.assertEq(router.sweep(), 1_000_001, "amount");
        vm.assertEq(router.operatorPool(), 200_000, "operators");
        vm.assertEq(router.operatorEarned(), 200_000, "operators, in all");
        vm.assertEq(router.treasuryPool(), 30_000, "treasury");
        vm.assertEq(usd.balanceOf(address(shares)), 770_001, "shares");
        vm.assertEq(shares.undistributedScaled(), 770_001 * PREC, "revenue");
        vm.assertEq(router.unswept(), 0, "unswept");
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterNothingToSweep.selector));
        router.sweep();
        sweepUp(10);
        vm.assertEq(router.operatorEarned(), 200_002, "the second sweep");
        vm.assertEq(usd.allowance(address(router), address(shares)), 0, "allowance left over");
    }

    function testFuzz_sweep_partsAddUp(uint256[3] memory amounts, uint16 operatorBps, uint16 treasuryBps) public {
        IModelRegistry.Params memory p = params("another split");
        // forge-lint: disable-next-line(unsafe-typecast) -- at most 10,000
        p.operatorBps = uint16(bound(operatorBps, 0, 10_000));
        // forge-lint: disable-next-line(unsafe-typecast) -- at most 10,000
        p.treasuryBps = uint16(bound(treasuryBps, 0, 10_000 - p.operatorBps));
        p.genesisDesigner = 1e18;
        open(p);
        (uint256 operators, uint256 treasury, uint256 all) = (0, 0, 0);
        for (uint256 i = 0; i < 3; i++) {
            amounts[i] = bound(amounts[i], 1, 1e30);
            sweepUp(amounts[i]);
            operators += amounts[i] * p.operatorBps / 10_000;
            treasury += amounts[i] * p.treasuryBps / 10_000;
            all += amounts[i];
            vm.assertEq(router.operatorPool(), operators, "operators");
            vm.assertEq(router.treasuryPool(), treasury, "treasury");
            vm.assertEq(usd.balanceOf(address(shares)), all - operators - treasury, "shares");
            vm.assertEq(router.unswept(), 0, "unswept");
        }
    }

    /// @dev These shares couldn't take any revenue yet; they aren't asked to.
    function test_sweep_withoutAPartForTheShares() public {
        IModelRegistry.Params memory p = params("all for operators and treasury");
        (p.operatorBps, p.treasuryBps) = (9_000, 1_000);
        open(p);
        sweepUp(1_000_000);
        vm.assertEq(router.operatorPool(), 900_000, "operators");
        vm.assertEq(router.treasuryPool(), 100_000, "treasury");
    }

    function test_sweep_waitsWhileTheSharesCanTakeNone() public {
        open(params("no shares yet"));
        usd.mint(address(router), 1_000_000);
        vm.expectRevert(abi.encodeWithSelector(IModelShares.ModelSharesSupplyTooSmall.selector, 0, 1e18));
        router.sweep();
        vm.assertEq(router.unswept(), 1_000_000, "waiting");
        settle(0, keccak256("root"), MINTED);
        vm.assertEq(router.sweep(), 1_000_000, "later");
    }

    // ------------------------------------------------------------------ operators

    function test_payOperator_paysWhatTheLeafSaysLessWhatWasPaid() public {
        sweepUp(1_000_000);
        settleShares(1, MINTED, weights2(1, 3));
        IEpochSettlement.Claim memory c = entry(1, providers[1]);
        vm.assertEq(c.operatorRevenue, 150_000, "three quarters of a fifth");
        vm.expectEmit(address(router));
        emit IRevenueRouter.OperatorPaid(providers[1], 1, 150_000);
        vm.prank(ANYBODY);
        router.payOperator(c, finalOf(1));
        vm.assertEq(usd.balanceOf(providers[1]), 150_000, "account");
        vm.assertEq(router.operatorPaid(providers[1]), 150_000, "operatorPaid");
        vm.assertEq(router.operatorPool(), 50_000, "pool");
        vm.assertEq(router.operatorEarned(), 200_000, "earned");

        expectNothingToPay(c, 150_000);
        sweepUp(1_000_000);
        settleShares(2, MINTED, weights2(1, 1));
        router.payOperator(entry(2, providers[1]), finalOf(2));
        vm.assertEq(usd.balanceOf(providers[1]), 250_000, "both epochs");
        IEpochSettlement.FinalEpoch memory older = finalOf(1);
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementRootReplaced.selector, 1));
        router.payOperator(c, older);
        claimFor(2, providers[1]); // shares and payment don't depend on each other
        router.payOperator(entry(2, providers[0]), finalOf(2));
        vm.assertEq(router.operatorPool(), 0, "pool at the end");
    }

    function expectNothingToPay(IEpochSettlement.Claim memory c, uint256 paid) private {
        IEpochSettlement.FinalEpoch memory f = finalOf(c.epoch);
        vm.expectRevert(
            abi.encodeWithSelector(
                IRevenueRouter.RevenueRouterNothingToPay.selector, c.account, c.operatorRevenue, paid
            )
        );
        router.payOperator(c, f);
    }

    function test_payOperator_nothingEarned() public {
        expectNothingToPay(entry(0, providers[0]), 0);
    }

    function test_payOperator_needsTheLeaf() public {
        sweepUp(1_000_000);
        settleShares(1, MINTED, weights2(1, 1));
        (IEpochSettlement.Claim memory c, IEpochSettlement.FinalEpoch memory f) = (entry(1, providers[0]), finalOf(1));
        c.operatorRevenue += 1;
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementInvalidProof.selector, hashOf(c)));
        router.payOperator(c, f);
        c.operatorRevenue -= 1;
        f.minted += 1;
        vm.expectRevert(abi.encodeWithSelector(IEpochSettlement.EpochSettlementUnknownEpoch.selector, 1));
        router.payOperator(c, f);
    }

    /// @dev A wrong root can take what waits for operators, and nothing else.
    function test_payOperator_boundedByThePool() public {
        sweepUp(1_000_000);
        usd.mint(address(router), 5_000_000);
        uint256[2] memory lies = [uint256(200_001), type(uint256).max];
        for (uint32 i = 0; i < 2; i++) {
            Leaf memory leaf = Leaf(ANYBODY, 0, 0, 0, lies[i]);
            settle(1 + i, hashOf(leaf), 0);
            IEpochSettlement.Claim memory c = claimOf(1 + i, leaf, new bytes32[](0));
            IEpochSettlement.FinalEpoch memory f = finalOf(1 + i);
            vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterPoolTooSmall.selector, 200_000, lies[i]));
            router.payOperator(c, f);
        }
    }

    // ------------------------------------------------------------------ treasury

    function test_payTreasury_byTheTreasuryToWhomItNames() public {
        sweepUp(1_000_000);
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterNotTreasury.selector, COORDINATOR));
        vm.prank(COORDINATOR);
        router.payTreasury(COORDINATOR);
        address[4] memory refused = [address(0), address(router), address(shares), address(settlement)];
        for (uint256 i = 0; i < refused.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterInvalidPayee.selector, refused[i]));
            vm.prank(TREASURY);
            router.payTreasury(refused[i]);
        }
        vm.expectEmit(address(router));
        emit IRevenueRouter.TreasuryPaid(ANYBODY, 30_000);
        vm.prank(TREASURY);
        vm.assertEq(router.payTreasury(ANYBODY), 30_000, "amount");
        vm.assertEq(usd.balanceOf(ANYBODY), 30_000, "paid");
        vm.assertEq(router.treasuryPool(), 0, "left");
        vm.assertEq(router.operatorPool(), 200_000, "operators");
        vm.expectRevert(abi.encodeWithSelector(IRevenueRouter.RevenueRouterNothingToPay.selector, TREASURY, 0, 0));
        vm.prank(TREASURY);
        router.payTreasury(ANYBODY);
    }
}
