// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EpochSettlement} from "../src/EpochSettlement.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {Vm} from "./Base.sol";
import {Handler} from "./Handler.sol";

/// @notice What holds after any sequence of proposals, finalisations, claims, transfers, deposits and withdrawals.
contract InvariantsTest {
    /// @dev The shape in which forge reads `targetSelectors`.
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    Handler private handler;
    ModelShares private shares;
    EpochSettlement private settlement;
    TestUSD private usd;
    address[] private holders;

    function setUp() public {
        handler = new Handler();
        (shares, settlement, usd, holders) = handler.fixture();
    }

    /// @dev Advancing is listed three times: an epoch takes two of them.
    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        bytes4[] memory selectors = new bytes4[](10);
        selectors[0] = Handler.advance.selector;
        selectors[1] = Handler.advance.selector;
        selectors[2] = Handler.advance.selector;
        selectors[3] = Handler.claim.selector;
        selectors[4] = Handler.claim.selector;
        selectors[5] = Handler.transfer.selector;
        selectors[6] = Handler.depositRevenue.selector;
        selectors[7] = Handler.withdrawRevenue.selector;
        selectors[8] = Handler.donate.selector;
        selectors[9] = Handler.wait.selector;
        targets[0] = FuzzSelector(address(handler), selectors);
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev A full run in which nothing happened would prove nothing. Shorter sequences are failures that forge shrinks,
    /// or replays from its cache: asking this of them would report the wrong reason.
    function afterInvariant() external view {
        if (handler.actions() < 100) return;
        vm.assertTrue(handler.finalizedEpochs() > 1, "fewer than two epochs");
        vm.assertTrue(handler.claims() > 0, "no claim");
        vm.assertTrue(handler.transfers() > 0, "no transfer");
        vm.assertTrue(handler.deposited() > 0, "no deposit");
        vm.assertTrue(handler.withdrawals() > 0, "no withdrawal");
    }

    /// @dev One function, because forge repeats the whole campaign for each.
    function invariant_booksAgreeWithTheReference() external view {
        revenueIsConservedExactly();
        supplyIsWhatFinalisedEpochsMinted();
        settlementHoldsExactlyTheUnclaimed();
        claimTimeDoesNotMatter();
        finalisedEpochsNeverChange();
        accumulatorNeverFalls();
    }

    /// @dev Σ owedScaled + remainder + withdrawn·PREC == deposited·PREC, to the last scaled unit.
    function revenueIsConservedExactly() private view {
        uint256 sum = shares.remainder() + shares.owedScaled(address(settlement));
        for (uint256 i = 0; i < holders.length; i++) {
            sum += shares.owedScaled(holders[i]);
        }
        uint256 prec = shares.PREC();
        vm.assertEq(sum + handler.withdrawn() * prec, handler.deposited() * prec, "scaled revenue");
        vm.assertEq(shares.deposited(), handler.deposited(), "deposited");
        vm.assertEq(
            usd.balanceOf(address(shares)),
            handler.deposited() + handler.donated() - handler.withdrawn(),
            "token balance"
        );
    }

    function supplyIsWhatFinalisedEpochsMinted() private view {
        uint256 sum = shares.balanceOf(address(settlement));
        for (uint256 i = 0; i < holders.length; i++) {
            sum += shares.balanceOf(holders[i]);
        }
        vm.assertEq(shares.totalSupply(), handler.minted(), "minted");
        vm.assertEq(sum, handler.minted(), "balances");
    }

    function settlementHoldsExactlyTheUnclaimed() private view {
        uint256 unclaimed = 0;
        for (uint256 i = 0; i < holders.length; i++) {
            unclaimed += handler.unclaimed(holders[i]);
        }
        vm.assertEq(shares.balanceOf(address(settlement)), unclaimed, "unclaimed shares");
    }

    /// @dev Early == late, in any mixture: each account can reach exactly what its shares have earned, claimed or not.
    function claimTimeDoesNotMatter() private view {
        uint256 prec = shares.PREC();
        for (uint256 i = 0; i < holders.length; i++) {
            address account = holders[i];
            vm.assertEq(
                handler.reachable(account) + handler.withdrawnBy(account) * prec,
                handler.earned(account),
                "reachable revenue"
            );
        }
    }

    function finalisedEpochsNeverChange() private view {
        vm.assertEq(settlement.nextEpoch(), handler.finalizedEpochs(), "nextEpoch");
        for (uint32 e = 0; e < handler.finalizedEpochs(); e++) {
            IEpochSettlement.Epoch memory epoch = settlement.epoch(e);
            vm.assertTrue(epoch.finalized, "not finalised");
            vm.assertEq(epoch.root, handler.rootOf(e), "root");
            vm.assertEq(epoch.minted, handler.mintedIn(e), "minted");
            vm.assertLe(epoch.minted, settlement.emissionOf(e), "above the emission");
        }
    }

    function accumulatorNeverFalls() private view {
        vm.assertTrue(!handler.accFell(), "accPerShare fell");
    }
}
