// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @title IModelShares
/// @notice A model's shares (ERC-20 with permit) and the revenue they earn. What a share earned before a transfer stays
/// with whoever held it then.
///
/// A deposit is credited evenly over the model's `streamPeriod`, so buying shares just before one earns next to nothing
/// of it. A deposit into a running stream merges with what is left of it; the new end is the mean of both ends, weighted
/// by amount, so that dust can't push the end of anybody's stream away.
/// @dev Exact at all times, in units of 2^-96 of the revenue token's smallest unit:
/// `Σ owedScaled + undistributedScaled + withdrawn·PREC == deposited·PREC`.
/// The permit domain's name is the constant "Commonweight Shares" (see ERC-5267 `eip712Domain`), not the token's name.
interface IModelShares is IERC20 {
    /// @param streamEnd When the last of all that was deposited so far will have been credited.
    event RevenueDeposited(address indexed from, uint256 amount, uint256 streamEnd);
    event RevenueWithdrawn(address indexed holder, address indexed to, uint256 amount);

    error ModelSharesNotSettlement(address caller);
    error ModelSharesCapExceeded(uint256 supply, uint256 maxSupply);
    error ModelSharesSupplyTooSmall(uint256 supply, uint256 minimum);
    error ModelSharesRevenueCapExceeded();
    error ModelSharesNothingReceived();
    error ModelSharesNothingOwed(address holder);
    error ModelSharesInvalidPayee(address payee);
    error ModelSharesTransferRefused(address from, address to);
    /// @dev A claim's debt is above all that its shares could have earned: only a wrong root does that.
    error ModelSharesDebtExceeded(uint256 debt, uint256 grossScaled);
    /// @dev A claim takes more than unclaimed shares earned: only a wrong root does that.
    error ModelSharesAccrualExceeded(uint256 requestedScaled, uint256 accruedScaled);

    /// @notice Mints `amount` to `to`. Settlement only.
    /// @return accPerShare The accumulator from which these shares earn.
    function mint(address to, uint256 amount) external returns (uint256 accPerShare);

    /// @notice Moves claimed shares, and what they earned, from the settlement to `to`. Settlement only.
    /// @param debt Scaled revenue that was credited before these shares existed.
    /// @return revenueScaled `amount · accPerShare − debt`, which moved with them.
    function release(address to, uint256 amount, uint256 debt) external returns (uint256 revenueScaled);

    /// @notice Takes `amount` of the revenue token from the caller and begins to credit what arrived to all shares.
    /// @return received The measured difference of this contract's token balance.
    function depositRevenue(uint256 amount) external returns (uint256 received);

    /// @notice Pays all that the caller is owed to `to`.
    function withdrawRevenue(address to) external returns (uint256 amount);

    /// @notice Pays `holder` all that it is owed. Anybody may call.
    function withdrawRevenueFor(address holder) external returns (uint256 amount);

    /// @notice Revenue that `holder` can withdraw now, in the revenue token's smallest unit.
    function owed(address holder) external view returns (uint256);

    /// @notice The same times `PREC`, with the fraction that is not payable yet.
    function owedScaled(address holder) external view returns (uint256);

    /// @notice Σ of all credited revenue per share up to this second, times `PREC`. Never falls.
    function accPerShare() external view returns (uint256);

    /// @notice Scaled revenue that is deposited and not credited to any share yet: the rest of the stream and what did
    /// not divide.
    function undistributedScaled() external view returns (uint256);

    /// @notice When the running stream ends; in the past if none runs.
    function streamEnd() external view returns (uint256);

    function streamPeriod() external view returns (uint256);
    function maxSupply() external view returns (uint256);
    function revenueToken() external view returns (address);
    function settlement() external view returns (address);
    function transferPolicy() external view returns (address);

    /// @notice Fixed-point scale of accruals, 2^96.
    function PREC() external view returns (uint256);

    /// @notice Least supply at which revenue can be deposited, 10^18.
    function MIN_SUPPLY() external view returns (uint256);
}

/// @title ITransferPolicy
/// @notice Decides which transfers of a model's shares are allowed, where the law or the founders want that. It is not
/// asked for minting and claiming: what was earned is always paid.
interface ITransferPolicy {
    function isAllowed(address from, address to, uint256 amount) external view returns (bool);
}
