// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IArbiter} from "./interfaces/IArbiter.sol";

/// @title Arbiter
/// @notice See {IArbiter}. It holds nothing and sends no value.
/// @dev Members and confirmations belong to a term, which `setMembers` ends: nothing of an earlier one counts.
contract Arbiter is IArbiter {
    using Address for address;
    using SafeCast for uint256;

    /// @inheritdoc IArbiter
    uint256 public constant GRACE = 7 days;
    uint256 private constant MAX_MEMBERS = 32;
    uint256 private constant MAX_DELAY = 30 days;

    uint256 private _term;
    address[] private _members;
    /// @inheritdoc IArbiter
    uint256 public threshold;
    /// @inheritdoc IArbiter
    uint256 public delay;

    mapping(uint256 term => mapping(address account => bool)) private _isMember;
    mapping(bytes32 callId => Call) private _calls;
    /// @dev Of the call's last confirmation or revocation.
    mapping(bytes32 callId => uint256 term) private _termOf;
    mapping(bytes32 callId => mapping(uint256 term => mapping(address member => bool))) private _confirmed;

    modifier onlyMember() {
        if (!isMember(msg.sender)) revert ArbiterNotMember(msg.sender);
        _;
    }

    modifier onlySelf() {
        if (msg.sender != address(this)) revert ArbiterNotSelf(msg.sender);
        _;
    }

    constructor(address[] memory members_, uint256 threshold_, uint256 delay_) {
        _setMembers(members_, threshold_);
        _setDelay(delay_);
    }

    /// @inheritdoc IArbiter
    function propose(address target, bytes calldata data, bytes32 salt) external onlyMember returns (bytes32 callId) {
        callId = callIdOf(target, data, salt);
        if (_calls[callId].target == address(0)) {
            (_calls[callId].target, _calls[callId].data) = (target, data);
            emit CallProposed(callId, target, data, salt);
        }
        _confirm(callId);
    }

    /// @inheritdoc IArbiter
    function confirm(bytes32 callId) external onlyMember {
        _confirm(callId);
    }

    /// @inheritdoc IArbiter
    function revoke(bytes32 callId) external onlyMember {
        Call storage call = _open(callId);
        if (!_confirmed[callId][_term][msg.sender]) revert ArbiterNotConfirmed(callId, msg.sender);
        _confirmed[callId][_term][msg.sender] = false;
        call.confirmations--;
        if (call.confirmations < threshold) call.executableAt = 0;
        emit ConfirmationRevoked(callId, msg.sender);
    }

    /// @inheritdoc IArbiter
    function execute(bytes32 callId) external {
        Call storage call = _open(callId);
        uint256 executableAt = call.executableAt;
        if (executableAt == 0) revert ArbiterNotQueued(callId);
        // forge-lint: disable-next-line(block-timestamp)
        if (block.timestamp < executableAt) revert ArbiterTooEarly(executableAt);
        call.executed = true;
        emit CallExecuted(callId);
        call.target.functionCall(call.data);
    }

    /// @inheritdoc IArbiter
    function setMembers(address[] calldata members_, uint256 threshold_) external onlySelf {
        _setMembers(members_, threshold_);
    }

    /// @inheritdoc IArbiter
    function setDelay(uint256 delay_) external onlySelf {
        _setDelay(delay_);
    }

    function _confirm(bytes32 callId) private {
        Call storage call = _open(callId);
        if (_confirmed[callId][_term][msg.sender]) revert ArbiterAlreadyConfirmed(callId, msg.sender);
        _confirmed[callId][_term][msg.sender] = true;
        call.confirmations++;
        emit CallConfirmed(callId, msg.sender);
        if (call.confirmations == threshold) {
            uint256 executableAt = block.timestamp + delay;
            call.executableAt = executableAt.toUint40();
            emit CallQueued(callId, executableAt);
        }
    }

    /// @dev A call that can still be executed, without what an earlier term confirmed.
    function _open(bytes32 callId) private returns (Call storage call) {
        call = _calls[callId];
        if (call.target == address(0)) revert ArbiterUnknownCall(callId);
        if (call.executed) revert ArbiterAlreadyExecuted(callId);
        if (_termOf[callId] != _term) {
            _termOf[callId] = _term;
            (call.confirmations, call.executableAt) = (0, 0);
        }
        uint256 lapsesAt = call.executableAt + GRACE;
        // Validators can shift the time by seconds, against delays of hours to days.
        // forge-lint: disable-next-line(block-timestamp)
        if (call.executableAt != 0 && block.timestamp >= lapsesAt) revert ArbiterLapsed(lapsesAt);
    }

    function _setMembers(address[] memory members_, uint256 threshold_) private {
        uint256 count = members_.length;
        if (count > MAX_MEMBERS || threshold_ == 0 || threshold_ > count) revert ArbiterBadMembers(count, threshold_);
        uint256 term = ++_term;
        for (uint256 i = 0; i < count; i++) {
            address member = members_[i];
            if (member == address(0) || _isMember[term][member]) revert ArbiterBadMembers(count, threshold_);
            _isMember[term][member] = true;
        }
        (_members, threshold) = (members_, threshold_);
        emit MembersChanged(members_, threshold_);
    }

    function _setDelay(uint256 delay_) private {
        if (delay_ > MAX_DELAY) revert ArbiterBadDelay(delay_, MAX_DELAY);
        delay = delay_;
        emit DelayChanged(delay_);
    }

    /// @inheritdoc IArbiter
    function callIdOf(address target, bytes calldata data, bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(target, data, salt));
    }

    /// @inheritdoc IArbiter
    function callOf(bytes32 callId) external view returns (Call memory call) {
        call = _calls[callId];
        if (!call.executed && _termOf[callId] != _term) (call.confirmations, call.executableAt) = (0, 0);
    }

    /// @inheritdoc IArbiter
    function isMember(address account) public view returns (bool) {
        return _isMember[_term][account];
    }

    /// @inheritdoc IArbiter
    function members() external view returns (address[] memory) {
        return _members;
    }
}
