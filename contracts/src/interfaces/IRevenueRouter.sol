// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEpochSettlement} from "./IEpochSettlement.sol";

/// @title IRevenueRouter
/// @notice The `payTo` of every payment for a model's answers. Plain transfers and EIP-3009 authorisations both land here;
/// `sweep` splits what has come to the shares, the serving operators and the treasury. Nobody can take money out of it in
/// any other way.
interface IRevenueRouter {
    /// @notice A model's payment terms, fixed at registration.
    struct Terms {
        bytes32 modelId;
        address registry;
        address settlement;
        address shares;
        address revenueToken;
        address treasury;
        uint16 operatorBps;
        uint16 treasuryBps;
    }

    /// @notice What the payer signed: EIP-3009 `TransferWithAuthorization` to this contract.
    struct Authorization {
        address from;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// @param charged What stays here; the rest of `value` went back to the payer in the same transaction.
    event PaymentCollected(address indexed from, bytes32 indexed nonce, uint256 value, uint256 charged);
    event Swept(uint256 amount, uint256 toShares, uint256 toOperators, uint256 toTreasury);
    event OperatorPaid(address indexed account, uint32 indexed epoch, uint256 amount);
    event TreasuryPaid(address indexed to, uint256 amount);
    event CashierSet(address indexed cashier, bool allowed);

    error RevenueRouterNotCoordinator(address caller);
    error RevenueRouterNotCashier(address caller);
    error RevenueRouterNotTreasury(address caller);
    error RevenueRouterChargedTooMuch(uint256 charged, uint256 value);
    /// @dev The token moved less than was signed: it takes a fee, and can't be collected exactly.
    error RevenueRouterWrongAmount(uint256 received, uint256 value);
    error RevenueRouterNothingToSweep();
    error RevenueRouterNothingToPay(address account, uint256 earned, uint256 paid);
    error RevenueRouterPoolTooSmall(uint256 pool, uint256 asked);
    error RevenueRouterInvalidPayee(address payee);

    /// @notice Takes `authorization.value` from the payer, keeps `charged` and returns the rest to the payer. Cashiers and
    /// the coordinator only: they know what was delivered. They can neither take more than was signed nor send any of it
    /// elsewhere. Reverts if the authorisation has been used, so it can be sent again after a crash.
    function collect(Authorization calldata authorization, uint256 charged) external;

    /// @notice Lets `cashier` collect payments, or no longer; coordinator only.
    function setCashier(address cashier, bool allowed) external;

    /// @notice Splits all that has come since the last sweep. Anybody may call. Operators' and treasury's parts are
    /// rounded down, the rest goes to the shares. Where the shares can't take revenue yet, it reverts and money waits.
    function sweep() external returns (uint256 amount);

    /// @notice Pays `claim.account` what it has earned by serving up to `claim.epoch` and has not been paid; anybody may
    /// call, only the account is paid. The leaf is the settlement's own.
    function payOperator(IEpochSettlement.Claim calldata claim, IEpochSettlement.FinalEpoch calldata epoch) external;

    /// @notice Pays the treasury's part to `to`; treasury only.
    function payTreasury(address to) external returns (uint256 amount);

    /// @notice What has come and is not swept yet.
    function unswept() external view returns (uint256);

    /// @notice All that was ever set aside for serving operators: what statements divide among them.
    function operatorEarned() external view returns (uint256);

    /// @notice Of that, what has not been paid.
    function operatorPool() external view returns (uint256);

    /// @notice What an account has been paid for serving so far.
    function operatorPaid(address account) external view returns (uint256);

    /// @notice What the treasury can take now.
    function treasuryPool() external view returns (uint256);

    function isCashier(address account) external view returns (bool);
    function terms() external view returns (Terms memory);
}
