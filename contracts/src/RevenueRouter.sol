// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EmissionSchedule} from "./EmissionSchedule.sol";
import {IEpochSettlement} from "./interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "./interfaces/IModelRegistry.sol";
import {IModelShares} from "./interfaces/IModelShares.sol";
import {IRevenueRouter} from "./interfaces/IRevenueRouter.sol";

/// @title RevenueRouter
/// @notice See {IRevenueRouter}. Deployed by the registry as an ERC-1167 clone whose immutable arguments are the `Terms`.
/// @dev The token's balance here is what is unswept plus the two pools; a transfer to this contract needs no bookkeeping.
contract RevenueRouter is IRevenueRouter, ReentrancyGuardTransient {
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    /// @param earned All that was ever set aside for serving operators.
    /// @param pool Of that, what has not been paid.
    struct Operators {
        uint128 earned;
        uint128 pool;
    }

    Operators private _operators;
    /// @inheritdoc IRevenueRouter
    uint256 public treasuryPool;
    /// @inheritdoc IRevenueRouter
    mapping(address account => uint256) public operatorPaid;
    /// @inheritdoc IRevenueRouter
    mapping(address account => bool) public isCashier;

    // ------------------------------------------------------------------ payments in

    /// @inheritdoc IRevenueRouter
    function collect(Authorization calldata a, uint256 charged) external nonReentrant {
        Terms memory t = terms();
        if (!isCashier[msg.sender] && msg.sender != _coordinator(t)) revert RevenueRouterNotCashier(msg.sender);
        if (charged > a.value) revert RevenueRouterChargedTooMuch(charged, a.value);
        IERC20 token = IERC20(t.revenueToken);
        uint256 before = token.balanceOf(address(this));
        IERC3009(address(token))
            .transferWithAuthorization(
                a.from, address(this), a.value, a.validAfter, a.validBefore, a.nonce, a.v, a.r, a.s
            );
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != a.value) revert RevenueRouterWrongAmount(received, a.value);
        emit PaymentCollected(a.from, a.nonce, a.value, charged);
        if (charged < a.value) token.safeTransfer(a.from, a.value - charged);
    }

    /// @inheritdoc IRevenueRouter
    function setCashier(address cashier, bool allowed) external {
        if (msg.sender != _coordinator(terms())) revert RevenueRouterNotCoordinator(msg.sender);
        isCashier[cashier] = allowed;
        emit CashierSet(cashier, allowed);
    }

    function _coordinator(Terms memory t) private view returns (address) {
        return IModelRegistry(t.registry).coordinatorOf(t.modelId);
    }

    // ------------------------------------------------------------------ division

    /// @inheritdoc IRevenueRouter
    function sweep() external nonReentrant returns (uint256 amount) {
        Terms memory t = terms();
        amount = _unswept(t);
        if (amount == 0) revert RevenueRouterNothingToSweep();
        uint256 toOperators = amount * t.operatorBps / EmissionSchedule.BPS;
        uint256 toTreasury = amount * t.treasuryBps / EmissionSchedule.BPS;
        uint256 toShares = amount - toOperators - toTreasury;

        Operators memory operators = _operators;
        _operators = Operators({
            earned: SafeCast.toUint128(operators.earned + toOperators),
            pool: SafeCast.toUint128(operators.pool + toOperators)
        });
        treasuryPool += toTreasury;
        emit Swept(amount, toShares, toOperators, toTreasury);
        if (toShares == 0) return amount;
        IERC20(t.revenueToken).forceApprove(t.shares, toShares);
        IModelShares(t.shares).depositRevenue(toShares);
    }

    // ------------------------------------------------------------------ payments out

    /// @inheritdoc IRevenueRouter
    function payOperator(IEpochSettlement.Claim calldata claim, IEpochSettlement.FinalEpoch calldata epoch)
        external
        nonReentrant
    {
        Terms memory t = terms();
        IEpochSettlement(t.settlement).checkLeaf(claim, epoch);
        uint256 paid = operatorPaid[claim.account];
        if (claim.operatorRevenue <= paid) {
            revert RevenueRouterNothingToPay(claim.account, claim.operatorRevenue, paid);
        }
        uint256 amount = claim.operatorRevenue - paid;
        uint256 pool = _operators.pool;
        if (amount > pool) revert RevenueRouterPoolTooSmall(pool, amount);
        operatorPaid[claim.account] = claim.operatorRevenue;
        _operators.pool = (pool - amount).toUint128();
        emit OperatorPaid(claim.account, claim.epoch, amount);
        IERC20(t.revenueToken).safeTransfer(claim.account, amount);
    }

    /// @inheritdoc IRevenueRouter
    function payTreasury(address to) external nonReentrant returns (uint256 amount) {
        Terms memory t = terms();
        if (msg.sender != t.treasury) revert RevenueRouterNotTreasury(msg.sender);
        // None of the contracts could pay it out again.
        if (to == address(0) || to == address(this) || to == t.shares || to == t.settlement) {
            revert RevenueRouterInvalidPayee(to);
        }
        amount = treasuryPool;
        if (amount == 0) revert RevenueRouterNothingToPay(msg.sender, 0, 0);
        treasuryPool = 0;
        emit TreasuryPaid(to, amount);
        IERC20(t.revenueToken).safeTransfer(to, amount);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IRevenueRouter
    function unswept() external view returns (uint256) {
        return _unswept(terms());
    }

    function _unswept(Terms memory t) private view returns (uint256) {
        return IERC20(t.revenueToken).balanceOf(address(this)) - _operators.pool - treasuryPool;
    }

    /// @inheritdoc IRevenueRouter
    function operatorEarned() external view returns (uint256) {
        return _operators.earned;
    }

    /// @inheritdoc IRevenueRouter
    function operatorPool() external view returns (uint256) {
        return _operators.pool;
    }

    /// @inheritdoc IRevenueRouter
    function terms() public view returns (Terms memory) {
        return abi.decode(Clones.fetchCloneArgs(address(this)), (Terms));
    }
}
