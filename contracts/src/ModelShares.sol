// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IModelShares} from "./interfaces/IModelShares.sol";

/// @title ModelShares
/// @notice See {IModelShares}. Deployed by its {EpochSettlement} as an ERC-1167 clone whose immutable arguments are
/// `abi.encode(settlement, revenueToken, maxSupply, name, symbol)`; it has no initializer and no owner.
///
/// @dev Bounds, from which every width below follows:
///   supply < 2^96 (so a balance is a uint96), Σ deposits < 2^112, supply >= 10^18 > 2^59 at each deposit;
///   accPerShare <= 2^112 · 2^96 / 2^59 = 2^149 (uint160), owedScaled <= 2^112 · 2^96 = 2^208 (uint256).
/// Balance and checkpoint of a holder share one slot, so a transfer between two deposits writes no more than a plain
/// ERC-20 does. OpenZeppelin's own balance mapping stays unused: `balanceOf`, `totalSupply` and `_update`, through which
/// all its paths go, are overridden together.
contract ModelShares is IModelShares, ERC20Permit, ReentrancyGuardTransient {
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    /// @param accPaid The accumulator up to which `_owedScaled` of this holder is up to date.
    struct Holder {
        uint96 balance;
        uint160 accPaid;
    }

    struct Totals {
        uint96 supply;
        uint160 accPerShare;
    }

    /// @param remainder Always below the supply at the last deposit.
    struct Revenue {
        uint112 deposited;
        uint96 remainder;
    }

    /// @inheritdoc IModelShares
    uint256 public constant PREC = 2 ** 96;
    /// @inheritdoc IModelShares
    uint256 public constant MIN_SUPPLY = 1e18;

    Totals private _totals;
    Revenue private _revenue;
    mapping(address holder => Holder) private _holders;
    mapping(address holder => uint256) private _owedScaled;

    constructor() ERC20("", "") ERC20Permit("Commonweight Shares") {}

    // ------------------------------------------------------------------ settlement

    /// @inheritdoc IModelShares
    function mintEpoch(
        address designer,
        uint256 designerShares,
        address dataRecipient,
        uint256 dataShares,
        uint256 computeShares
    ) external returns (uint256) {
        (address settlement_,, uint256 cap) = _args();
        if (msg.sender != settlement_) revert ModelSharesNotSettlement(msg.sender);
        Totals memory totals = _totals;
        uint256 supply = totals.supply + designerShares + dataShares + computeShares;
        if (supply > cap) revert ModelSharesCapExceeded(supply, cap);
        _totals.supply = supply.toUint96();
        _mintTo(designer, designerShares, totals.accPerShare);
        _mintTo(dataRecipient, dataShares, totals.accPerShare);
        _mintTo(settlement_, computeShares, totals.accPerShare);
        return totals.accPerShare;
    }

    /// @inheritdoc IModelShares
    function release(address to, uint256 amount, uint256 debt) external returns (uint256 revenueScaled) {
        (address settlement_,,) = _args();
        if (msg.sender != settlement_) revert ModelSharesNotSettlement(msg.sender);
        _checkReceiver(to, settlement_);
        uint160 acc = _totals.accPerShare;
        uint256 gross = amount * acc;
        if (debt > gross) revert ModelSharesDebtExceeded(debt, gross);
        revenueScaled = gross - debt;
        _debit(settlement_, amount, revenueScaled, acc);
        _credit(to, amount, revenueScaled, acc);
        emit Transfer(settlement_, to, amount);
    }

    // ------------------------------------------------------------------ revenue

    /// @inheritdoc IModelShares
    function depositRevenue(uint256 amount) external nonReentrant returns (uint256 received) {
        (, IERC20 token,) = _args();
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        received = token.balanceOf(address(this)) - before;
        if (received == 0) revert ModelSharesNothingReceived();

        // Read after the token's code has run: a finalisation that it triggered counts.
        Totals memory totals = _totals;
        Revenue memory revenue = _revenue;
        if (totals.supply < MIN_SUPPLY) revert ModelSharesSupplyTooSmall(totals.supply, MIN_SUPPLY);
        uint256 sum = revenue.deposited + received;
        if (sum > type(uint112).max) revert ModelSharesRevenueCapExceeded(sum, type(uint112).max);

        uint256 scaled = received * PREC + revenue.remainder;
        uint256 acc = totals.accPerShare + scaled / totals.supply;
        _totals.accPerShare = acc.toUint160();
        _revenue = Revenue({deposited: sum.toUint112(), remainder: (scaled % totals.supply).toUint96()});
        emit RevenueDeposited(msg.sender, received, acc);
    }

    /// @inheritdoc IModelShares
    function withdrawRevenue(address to) external returns (uint256) {
        return _withdraw(msg.sender, to);
    }

    /// @inheritdoc IModelShares
    function withdrawRevenueFor(address holder) external returns (uint256) {
        return _withdraw(holder, holder);
    }

    /// @dev Neither the settlement nor this contract can pay money out again, so neither can be paid: without this check
    /// anybody could send what unclaimed shares earned to the settlement and strand it there.
    function _withdraw(address holder, address to) private nonReentrant returns (uint256 amount) {
        (address settlement_, IERC20 token,) = _args();
        if (to == address(0) || to == address(this) || to == settlement_) revert ModelSharesInvalidPayee(to);
        uint256 scaled = owedScaled(holder);
        amount = scaled / PREC;
        if (amount == 0) revert ModelSharesNothingOwed(holder);
        _holders[holder].accPaid = _totals.accPerShare;
        _owedScaled[holder] = scaled % PREC;
        emit RevenueWithdrawn(holder, to, amount);
        token.safeTransfer(to, amount);
    }

    // ------------------------------------------------------------------ balances

    /// @dev Transfers only: shares are minted by `mintEpoch` alone and never burnt.
    function _update(address from, address to, uint256 value) internal override {
        (address settlement_,,) = _args();
        _checkReceiver(to, settlement_);
        uint160 acc = _totals.accPerShare;
        _debit(from, value, 0, acc);
        _credit(to, value, 0, acc);
        emit Transfer(from, to, value);
    }

    /// @dev What the settlement holds is exactly what is unclaimed, and revenue of this contract's own shares could never
    /// be withdrawn.
    function _checkReceiver(address to, address settlement_) private view {
        if (to == address(0) || to == address(this) || to == settlement_) revert ERC20InvalidReceiver(to);
    }

    function _mintTo(address to, uint256 value, uint160 acc) private {
        if (value == 0) return;
        _credit(to, value, 0, acc);
        emit Transfer(address(0), to, value);
    }

    /// @dev Books what `from` earned up to `acc`, then takes shares and scaled revenue from it. What a wrong root can take
    /// is so bounded by what unclaimed shares earned; holders' accruals are out of its reach.
    function _debit(address from, uint256 value, uint256 revenueScaled, uint160 acc) private {
        Holder memory holder = _holders[from];
        if (holder.balance < value) revert ERC20InsufficientBalance(from, holder.balance, value);
        uint256 earned = uint256(holder.balance) * (acc - holder.accPaid);
        if (earned != revenueScaled) {
            uint256 accrued = _owedScaled[from] + earned;
            if (accrued < revenueScaled) revert ModelSharesAccrualExceeded(revenueScaled, accrued);
            _owedScaled[from] = accrued - revenueScaled;
        }
        _holders[from] = Holder({balance: (holder.balance - value).toUint96(), accPaid: acc});
    }

    /// @dev Books what `to` earned up to `acc`, then gives it shares and scaled revenue. Loads what `_debit` has stored, so
    /// a transfer to oneself changes nothing.
    function _credit(address to, uint256 value, uint256 revenueScaled, uint160 acc) private {
        Holder memory holder = _holders[to];
        uint256 earned = uint256(holder.balance) * (acc - holder.accPaid) + revenueScaled;
        if (earned != 0) _owedScaled[to] += earned;
        _holders[to] = Holder({balance: (holder.balance + value).toUint96(), accPaid: acc});
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IModelShares
    function owed(address holder) external view returns (uint256) {
        return owedScaled(holder) / PREC;
    }

    /// @inheritdoc IModelShares
    function owedScaled(address holder) public view returns (uint256) {
        Holder memory h = _holders[holder];
        return _owedScaled[holder] + uint256(h.balance) * (_totals.accPerShare - h.accPaid);
    }

    /// @inheritdoc IModelShares
    function accPerShare() external view returns (uint256) {
        return _totals.accPerShare;
    }

    /// @inheritdoc IModelShares
    function remainder() external view returns (uint256) {
        return _revenue.remainder;
    }

    /// @inheritdoc IModelShares
    function deposited() external view returns (uint256) {
        return _revenue.deposited;
    }

    /// @inheritdoc IModelShares
    function settlement() external view returns (address settlement_) {
        (settlement_,,) = _args();
    }

    /// @inheritdoc IModelShares
    function revenueToken() external view returns (address) {
        (, IERC20 token,) = _args();
        return address(token);
    }

    /// @inheritdoc IModelShares
    function maxSupply() external view returns (uint256 cap) {
        (,, cap) = _args();
    }

    function balanceOf(address account) public view override(ERC20, IERC20) returns (uint256) {
        return _holders[account].balance;
    }

    function totalSupply() public view override(ERC20, IERC20) returns (uint256) {
        return _totals.supply;
    }

    function name() public view override returns (string memory name_) {
        (,,, name_,) = abi.decode(Clones.fetchCloneArgs(address(this)), (address, address, uint256, string, string));
    }

    function symbol() public view override returns (string memory symbol_) {
        (,,,, symbol_) = abi.decode(Clones.fetchCloneArgs(address(this)), (address, address, uint256, string, string));
    }

    /// @dev The leading, static part of the clone's arguments.
    function _args() private view returns (address settlement_, IERC20 token, uint256 cap) {
        return abi.decode(Clones.fetchCloneArgs(address(this)), (address, IERC20, uint256));
    }
}
