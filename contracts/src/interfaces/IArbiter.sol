// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title IArbiter
/// @notice A multisig behind a timelock. A call that enough members have confirmed can be executed by anybody once `delay`
/// has passed, and lapses `GRACE` later; until it is executed, a member can take its confirmation back. Members, threshold
/// and delay change by such a call to this contract itself. The delay must leave room in the models' arbitration time.
interface IArbiter {
    /// @param executableAt When it can be executed; zero below the threshold.
    struct Call {
        address target;
        bytes data;
        uint32 confirmations;
        uint40 executableAt;
        bool executed;
    }

    event CallProposed(bytes32 indexed callId, address indexed target, bytes data, bytes32 salt);
    event CallConfirmed(bytes32 indexed callId, address indexed member);
    event ConfirmationRevoked(bytes32 indexed callId, address indexed member);
    event CallQueued(bytes32 indexed callId, uint256 executableAt);
    event CallExecuted(bytes32 indexed callId);
    event MembersChanged(address[] members, uint256 threshold);
    event DelayChanged(uint256 delay);

    error ArbiterNotMember(address caller);
    error ArbiterNotSelf(address caller);
    error ArbiterBadMembers(uint256 members, uint256 threshold);
    error ArbiterBadDelay(uint256 delay, uint256 limit);
    error ArbiterUnknownCall(bytes32 callId);
    error ArbiterAlreadyConfirmed(bytes32 callId, address member);
    error ArbiterNotConfirmed(bytes32 callId, address member);
    error ArbiterAlreadyExecuted(bytes32 callId);
    error ArbiterNotQueued(bytes32 callId);
    error ArbiterTooEarly(uint256 executableAt);
    /// @dev For good: propose it with another salt.
    error ArbiterLapsed(uint256 lapsedAt);

    /// @notice Proposes a call and confirms it; members only. The same call can be proposed again with another `salt`.
    function propose(address target, bytes calldata data, bytes32 salt) external returns (bytes32 callId);

    /// @notice Confirms a proposed call; members only. The confirmation that reaches the threshold starts the delay.
    function confirm(bytes32 callId) external;

    /// @notice Takes a confirmation back before execution; below the threshold the delay starts over.
    function revoke(bytes32 callId) external;

    /// @notice Makes the call; anybody, in time. Reverts with what the target reverts with.
    function execute(bytes32 callId) external;

    /// @notice Replaces the members; this contract only. Calls that are not executed lose their confirmations.
    function setMembers(address[] calldata members, uint256 threshold) external;

    /// @notice Changes the delay of calls confirmed from now on; this contract only.
    function setDelay(uint256 delay) external;

    function callIdOf(address target, bytes calldata data, bytes32 salt) external view returns (bytes32);
    function callOf(bytes32 callId) external view returns (Call memory);
    function isMember(address account) external view returns (bool);
    function members() external view returns (address[] memory);
    function threshold() external view returns (uint256);
    function delay() external view returns (uint256);

    /// @notice Seconds after which an unexecuted call lapses, 7 days.
    function GRACE() external view returns (uint256);
}
