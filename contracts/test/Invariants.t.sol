// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EpochSettlement} from "../src/EpochSettlement.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {RevenueRouter} from "../src/RevenueRouter.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {Handler} from "./Handler.sol";
import {Vm} from "./Vm.sol";

/// @notice What holds after any sequence of proposals, challenges, decisions, claims, transfers, payments and withdrawals.
contract InvariantsTest {
    /// @dev The shape in which forge reads `targetSelectors`.
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    uint256 private constant PREC = 2 ** 96;

    Handler private handler;
    ModelShares private shares;
    EpochSettlement private settlement;
    RevenueRouter private router;
    TestUSD private usd;
    address[] private holders;
    address[] private bonded;

    function setUp() public {
        handler = new Handler();
        (shares, settlement, router, usd, holders, bonded) = handler.fixture();
    }

    /// @dev What takes several calls to get anywhere is listed several times.
    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[15] memory list = [
            Handler.advance.selector,
            Handler.advance.selector,
            Handler.advance.selector,
            Handler.advance.selector,
            Handler.claim.selector,
            Handler.claim.selector,
            Handler.transfer.selector,
            Handler.depositRevenue.selector,
            Handler.withdrawRevenue.selector,
            Handler.withdrawRevenue.selector,
            Handler.moveBond.selector,
            Handler.useRouter.selector,
            Handler.useRouter.selector,
            Handler.useRouter.selector,
            Handler.wait.selector
        ];
        bytes4[] memory selectors = new bytes4[](list.length);
        for (uint256 i = 0; i < list.length; i++) {
            selectors[i] = list[i];
        }
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(handler), selectors);
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev A full run in which nothing happened would prove nothing. Shorter sequences are failures that forge shrinks,
    /// or replays from its cache: asking this of them would report the wrong reason.
    function afterInvariant() external view {
        epochsAreAsFinalised(0);
        if (handler.actions() < 100) return;
        vm.assertTrue(handler.finalizedEpochs() > 1, "fewer than two epochs");
        vm.assertTrue(handler.disputes() > 0, "no dispute");
        vm.assertTrue(handler.claims() > 0, "no claim");
        vm.assertTrue(handler.splits() > 0, "no split");
        vm.assertTrue(handler.transfers() > 0, "no transfer");
        vm.assertTrue(handler.deposited() > 0, "no deposit");
        vm.assertTrue(handler.withdrawals() > 0, "no withdrawal");
        vm.assertTrue(handler.collections() > 0, "no collection");
        vm.assertTrue(handler.sweeps() > 0, "no sweep");
    }

    /// @dev One function, because forge repeats the whole campaign for each.
    function invariant_booksAgreeWithTheReference() external {
        handler.pay();
        revenueIsConservedExactly();
        streamIsTheReferences();
        supplyIsWhatFinalEpochsMinted();
        settlementHoldsExactlyTheUnclaimed();
        claimTimeDoesNotMatter();
        // All of them at the end of the run.
        epochsAreAsFinalised(handler.finalizedEpochs() > 2 ? handler.finalizedEpochs() - 2 : 0);
        bondsAreHeldExactly();
        routerHoldsExactlyItsParts();
        vm.assertTrue(!handler.accFell(), "accPerShare fell");
    }

    /// @dev Σ owedScaled + undistributedScaled + withdrawn·PREC == deposited·PREC, to the last scaled unit.
    function revenueIsConservedExactly() private view {
        uint256 sum = shares.undistributedScaled() + shares.owedScaled(address(settlement));
        for (uint256 i = 0; i < holders.length; i++) {
            sum += shares.owedScaled(holders[i]);
        }
        vm.assertEq(sum + handler.withdrawn() * PREC, handler.deposited() * PREC, "scaled revenue");
        vm.assertEq(
            usd.balanceOf(address(shares)),
            handler.deposited() + handler.donated() - handler.withdrawn(),
            "token balance"
        );
    }

    function streamIsTheReferences() private view {
        vm.assertEq(shares.undistributedScaled(), handler.undistributed(), "undistributed");
        vm.assertEq(shares.streamEnd(), handler.streamEnd(), "streamEnd");
    }

    function supplyIsWhatFinalEpochsMinted() private view {
        uint256 sum = shares.balanceOf(address(settlement));
        for (uint256 i = 0; i < holders.length; i++) {
            sum += shares.balanceOf(holders[i]);
        }
        vm.assertEq(shares.totalSupply(), handler.supply(), "minted");
        vm.assertEq(sum, handler.supply(), "balances");
    }

    function settlementHoldsExactlyTheUnclaimed() private view {
        uint256 unclaimed = 0;
        for (uint256 i = 0; i < holders.length; i++) {
            unclaimed += handler.unclaimed(holders[i]);
            vm.assertEq(
                shares.balanceOf(holders[i]) + handler.unclaimed(holders[i]), handler.held(holders[i]), "shares"
            );
        }
        vm.assertEq(shares.balanceOf(address(settlement)), unclaimed, "unclaimed shares");
    }

    /// @dev Early == late, in any mixture: each account can reach exactly what its shares have earned, claimed or not.
    function claimTimeDoesNotMatter() private view {
        for (uint256 i = 0; i < holders.length; i++) {
            address account = holders[i];
            vm.assertEq(
                handler.reachable(account) + handler.withdrawnBy(account) * PREC,
                handler.earned(account),
                "reachable revenue"
            );
        }
    }

    function epochsAreAsFinalised(uint32 first) private view {
        uint32 next = settlement.nextEpoch();
        vm.assertEq(next, handler.finalizedEpochs(), "nextEpoch");
        for (uint32 e = first; e < next; e++) {
            vm.assertEq(
                settlement.commitmentOf(e),
                keccak256(abi.encode(handler.rootOf(e), handler.accAtOf(e), handler.mintedIn(e))),
                "commitment"
            );
            vm.assertLe(handler.mintedIn(e), settlement.emissionOf(e), "above the emission");
        }
        bytes32 pendingRoot = settlement.pending().exists ? handler.rootOf(next) : bytes32(0);
        vm.assertEq(settlement.commitmentOf(next), pendingRoot, "a rejected epoch left something");
    }

    /// @dev Standing bonds, the bond of an undecided challenge, what was burnt, and nothing else.
    function bondsAreHeldExactly() private view {
        uint256 sum = handler.openChallengerBonds() + handler.burnt();
        for (uint256 i = 0; i < bonded.length; i++) {
            vm.assertEq(settlement.bondOf(bonded[i]), handler.bondOf(bonded[i]), "bond");
            sum += handler.bondOf(bonded[i]);
        }
        vm.assertEq(usd.balanceOf(address(settlement)), sum, "bonds held");
    }

    function routerHoldsExactlyItsParts() private view {
        vm.assertEq(router.unswept(), handler.unswept(), "unswept");
        vm.assertEq(router.operatorEarned(), handler.operatorEarned(), "operators, in all");
        vm.assertEq(router.operatorPool(), handler.operatorEarned() - handler.operatorPaidOut(), "operators");
        vm.assertEq(router.treasuryPool(), handler.treasuryPool(), "treasury");
        vm.assertEq(
            usd.balanceOf(address(router)),
            handler.unswept() + router.operatorPool() + handler.treasuryPool(),
            "router's balance"
        );
    }
}
