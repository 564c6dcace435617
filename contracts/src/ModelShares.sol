// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IModelShares, ITransferPolicy} from "./interfaces/IModelShares.sol";

/// @title ModelShares
/// @notice See {IModelShares}. Deployed by its {EpochSettlement} as an ERC-1167 clone whose immutable arguments are
/// `abi.encode(settlement, revenueToken, maxSupply, streamPeriod, transferPolicy, name, symbol)`; it has no initializer
/// and no owner.
///
/// @dev Revenue streams at a constant rate per share. Transfers, claims and withdrawals only read the stream; what changes
/// the supply or the stream itself (`mint`, `depositRevenue`) first settles what has been credited since it was last
/// written, and then spreads the rest anew. Rates round down, and what doesn't divide stays in `_undistributed` for the
/// next deposit, so no unit is ever lost or created.
///
/// Bounds, from which every width below follows: supply < 2^96; 10^18 <= supply at each deposit; and a deposit is refused
/// unless acc + undistributed / supply < 2^152. A checkpoint leaves that sum as it is and minting lowers it, so it bounds
/// the accumulator also after the end of the stream: acc and the rate fit in a uint160, and supply · acc, hence all scaled
/// revenue and every debt, in 2^248.
///
/// Balance and checkpoint of a holder share one slot, so a transfer writes little more than a plain ERC-20 does.
/// OpenZeppelin's own balance mapping stays unused: `balanceOf`, `totalSupply` and `_update`, through which all its paths
/// go, are overridden together.
contract ModelShares is IModelShares, ERC20Permit, ReentrancyGuardTransient {
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    /// @dev The leading, static part of the clone's arguments.
    struct Terms {
        address settlement;
        IERC20 revenueToken;
        uint256 maxSupply;
        uint32 streamPeriod;
        address transferPolicy;
    }

    /// @param accPaid The accumulator up to which `_owedScaled` of this holder is up to date.
    struct Holder {
        uint96 balance;
        uint160 accPaid;
    }

    /// @param acc The accumulator as of the stream's `last`.
    struct Totals {
        uint96 supply;
        uint160 acc;
    }

    /// @param rate Scaled revenue per second and share from `last` to `end`.
    /// @param last Up to when `Totals.acc` and `_undistributed` are settled; never after `end`.
    struct Stream {
        uint160 rate;
        uint40 last;
        uint40 end;
    }

    /// @inheritdoc IModelShares
    uint256 public constant PREC = 2 ** 96;
    /// @inheritdoc IModelShares
    uint256 public constant MIN_SUPPLY = 1e18;
    uint256 private constant ACC_LIMIT = 2 ** 152;

    Totals private _totals;
    Stream private _stream;
    uint256 private _undistributed;
    mapping(address holder => Holder) private _holders;
    mapping(address holder => uint256) private _owedScaled;

    constructor() ERC20("", "") ERC20Permit("Commonweight Shares") {}

    // ------------------------------------------------------------------ settlement

    /// @inheritdoc IModelShares
    function mint(address to, uint256 amount) external returns (uint256) {
        Terms memory t = _terms();
        if (msg.sender != t.settlement) revert ModelSharesNotSettlement(msg.sender);
        if (amount == 0) return accPerShare();
        Totals memory totals = _totals;
        uint256 supply = totals.supply + amount;
        if (supply > t.maxSupply) revert ModelSharesCapExceeded(supply, t.maxSupply);

        Stream memory stream = _stream;
        if (stream.end > stream.last) {
            uint256 undistributed = _checkpoint(totals, stream);
            if (stream.end > stream.last) {
                stream.rate = (undistributed / (supply * (stream.end - stream.last))).toUint160();
            }
            (_undistributed, _stream) = (undistributed, stream);
        }
        totals.supply = supply.toUint96();
        _totals = totals;
        _credit(to, amount, 0, totals.acc);
        emit Transfer(address(0), to, amount);
        return totals.acc;
    }

    /// @inheritdoc IModelShares
    function release(address to, uint256 amount, uint256 debt) external returns (uint256 revenueScaled) {
        address settlement_ = _terms().settlement;
        if (msg.sender != settlement_) revert ModelSharesNotSettlement(msg.sender);
        _checkReceiver(to, settlement_);
        uint160 acc = _acc();
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
        Terms memory t = _terms();
        uint256 before = t.revenueToken.balanceOf(address(this));
        t.revenueToken.safeTransferFrom(msg.sender, address(this), amount);
        received = t.revenueToken.balanceOf(address(this)) - before;
        if (received == 0) revert ModelSharesNothingReceived();
        // Above it the deposit alone would pass the limit below; under it nothing here overflows.
        if (received >= ACC_LIMIT) revert ModelSharesRevenueCapExceeded();

        // Read after the token's code has run: a finalisation that it triggered counts.
        Totals memory totals = _totals;
        if (totals.supply < MIN_SUPPLY) revert ModelSharesSupplyTooSmall(totals.supply, MIN_SUPPLY);
        Stream memory stream = _stream;
        uint256 left = _checkpoint(totals, stream);
        uint256 undistributed = left + received * PREC;
        if (totals.acc + undistributed / totals.supply >= ACC_LIMIT) revert ModelSharesRevenueCapExceeded();

        if (t.streamPeriod == 0) {
            totals.acc += (undistributed / totals.supply).toUint160();
            undistributed %= totals.supply;
            (stream.last, stream.end) = (block.timestamp.toUint40(), block.timestamp.toUint40());
        } else {
            uint256 duration = _mergedDuration(t.streamPeriod, stream.end - stream.last, left, received * PREC);
            stream.rate = (undistributed / (totals.supply * duration)).toUint160();
            (stream.last, stream.end) = (block.timestamp.toUint40(), (block.timestamp + duration).toUint40());
        }
        (_totals, _stream, _undistributed) = (totals, stream, undistributed);
        emit RevenueDeposited(msg.sender, received, stream.end);
    }

    /// @dev How long the merged stream runs from now: the mean of what is left of the running one and `period`, weighted
    /// by amount and rounded down. So it never ends before the running one nor after a fresh one would, a deposit that is
    /// dust beside the running stream doesn't move its end, and dust that an ended stream has left over doesn't count.
    function _mergedDuration(uint256 period, uint256 remaining, uint256 left, uint256 added)
        private
        pure
        returns (uint256)
    {
        if (remaining == 0) return period;
        return remaining + Math.mulDiv(added, period - remaining, left + added);
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
        Terms memory t = _terms();
        if (to == address(0) || to == address(this) || to == t.settlement) revert ModelSharesInvalidPayee(to);
        Holder memory h = _holders[holder];
        uint160 acc = _acc();
        uint256 scaled = _owedScaled[holder] + uint256(h.balance) * (acc - h.accPaid);
        amount = scaled / PREC;
        if (amount == 0) revert ModelSharesNothingOwed(holder);
        _holders[holder].accPaid = acc;
        _owedScaled[holder] = scaled % PREC;
        emit RevenueWithdrawn(holder, to, amount);
        t.revenueToken.safeTransfer(to, amount);
    }

    // ------------------------------------------------------------------ stream

    /// @dev Settles totals and stream, both in memory, up to now or the stream's end.
    /// @return undistributed `_undistributed` as of then. No rate was ever rounded up, so it can't fall below zero.
    function _checkpoint(Totals memory totals, Stream memory stream) private view returns (uint256 undistributed) {
        uint256 perShare = _streamed(stream);
        totals.acc += perShare.toUint160();
        stream.last = Math.min(block.timestamp, stream.end).toUint40();
        undistributed = _undistributed - perShare * totals.supply;
    }

    /// @dev Scaled revenue per share that the stream has credited since `last`.
    function _streamed(Stream memory stream) private view returns (uint256) {
        return uint256(stream.rate) * (Math.min(block.timestamp, stream.end) - stream.last);
    }

    function _acc() private view returns (uint160) {
        return _totals.acc + _streamed(_stream).toUint160();
    }

    // ------------------------------------------------------------------ balances

    /// @dev Transfers only: shares are minted by `mint` alone and never burnt.
    function _update(address from, address to, uint256 value) internal override {
        Terms memory t = _terms();
        _checkReceiver(to, t.settlement);
        if (t.transferPolicy != address(0) && !ITransferPolicy(t.transferPolicy).isAllowed(from, to, value)) {
            revert ModelSharesTransferRefused(from, to);
        }
        uint160 acc = _acc();
        _debit(from, value, 0, acc);
        _credit(to, value, 0, acc);
        emit Transfer(from, to, value);
    }

    /// @dev What the settlement holds is exactly what is unclaimed, and revenue of this contract's own shares could never
    /// be withdrawn.
    function _checkReceiver(address to, address settlement_) private view {
        if (to == address(0) || to == address(this) || to == settlement_) revert ERC20InvalidReceiver(to);
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
        _holders[from] = Holder({balance: SafeCast.toUint96(holder.balance - value), accPaid: acc});
    }

    /// @dev Books what `to` earned up to `acc`, then gives it shares and scaled revenue. Loads what `_debit` has stored, so
    /// a transfer to oneself changes nothing.
    function _credit(address to, uint256 value, uint256 revenueScaled, uint160 acc) private {
        Holder memory holder = _holders[to];
        uint256 earned = uint256(holder.balance) * (acc - holder.accPaid) + revenueScaled;
        if (earned != 0) _owedScaled[to] += earned;
        _holders[to] = Holder({balance: SafeCast.toUint96(holder.balance + value), accPaid: acc});
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IModelShares
    function owed(address holder) external view returns (uint256) {
        return owedScaled(holder) / PREC;
    }

    /// @inheritdoc IModelShares
    function owedScaled(address holder) public view returns (uint256) {
        Holder memory h = _holders[holder];
        return _owedScaled[holder] + uint256(h.balance) * (_acc() - h.accPaid);
    }

    /// @inheritdoc IModelShares
    function accPerShare() public view returns (uint256) {
        return _acc();
    }

    /// @inheritdoc IModelShares
    function undistributedScaled() external view returns (uint256) {
        return _undistributed - _streamed(_stream) * _totals.supply;
    }

    /// @inheritdoc IModelShares
    function streamEnd() external view returns (uint256) {
        return _stream.end;
    }

    /// @inheritdoc IModelShares
    function streamPeriod() external view returns (uint256) {
        return _terms().streamPeriod;
    }

    /// @inheritdoc IModelShares
    function maxSupply() external view returns (uint256) {
        return _terms().maxSupply;
    }

    /// @inheritdoc IModelShares
    function revenueToken() external view returns (address) {
        return address(_terms().revenueToken);
    }

    /// @inheritdoc IModelShares
    function settlement() external view returns (address) {
        return _terms().settlement;
    }

    /// @inheritdoc IModelShares
    function transferPolicy() external view returns (address) {
        return _terms().transferPolicy;
    }

    function balanceOf(address account) public view override(ERC20, IERC20) returns (uint256) {
        return _holders[account].balance;
    }

    function totalSupply() public view override(ERC20, IERC20) returns (uint256) {
        return _totals.supply;
    }

    function name() public view override returns (string memory name_) {
        (, name_,) = abi.decode(Clones.fetchCloneArgs(address(this)), (Terms, string, string));
    }

    function symbol() public view override returns (string memory symbol_) {
        (,, symbol_) = abi.decode(Clones.fetchCloneArgs(address(this)), (Terms, string, string));
    }

    function _terms() private view returns (Terms memory) {
        return abi.decode(Clones.fetchCloneArgs(address(this)), (Terms));
    }
}
