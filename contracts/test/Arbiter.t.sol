// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {Arbiter} from "../src/Arbiter.sol";
import {IArbiter} from "../src/interfaces/IArbiter.sol";
import {Vm} from "./Vm.sol";

/// @dev Something to decide about.
contract Target {
    error Refused(uint256 reason);

    uint256 public value;
    bytes32 private _callId;

    function set(uint256 value_) external {
        value = value_;
    }

    function refuse(uint256 reason) external pure {
        revert Refused(reason);
    }

    function arm(bytes32 callId) external {
        _callId = callId;
    }

    /// @dev The call, in the midst of being executed, executes itself.
    function executeAgain() external {
        value++;
        IArbiter(msg.sender).execute(_callId);
    }
}

contract ArbiterTest {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    address private constant A = address(0xA);
    address private constant B = address(0xB);
    address private constant C = address(0xC);
    address private constant ANYBODY = address(0xA1);
    uint256 private constant DELAY = 1 days;
    bytes32 private constant SALT = "salt";

    Arbiter private arbiter;
    Target private target;
    bytes private data = abi.encodeCall(Target.set, (7));

    function setUp() public {
        vm.warp(1_700_000_000);
        arbiter = new Arbiter(list(A, B, C), 2, DELAY);
        target = new Target();
    }

    function list(address a, address b, address c) private pure returns (address[] memory members) {
        members = new address[](3);
        (members[0], members[1], members[2]) = (a, b, c);
    }

    function propose(address member, address to, bytes memory data_) private returns (bytes32) {
        vm.prank(member);
        return arbiter.propose(to, data_, SALT);
    }

    function confirm(address member, bytes32 callId) private {
        vm.prank(member);
        arbiter.confirm(callId);
    }

    function revoke(address member, bytes32 callId) private {
        vm.prank(member);
        arbiter.revoke(callId);
    }

    /// @dev Proposed by A, confirmed by B, executed after the delay.
    function decide(address to, bytes memory data_) private {
        bytes32 callId = propose(A, to, data_);
        confirm(B, callId);
        vm.warp(block.timestamp + arbiter.delay());
        arbiter.execute(callId);
    }

    function expect(bytes4 error_, bytes32 callId) private {
        vm.expectRevert(abi.encodeWithSelector(error_, callId));
    }

    // ------------------------------------------------------------------ construction

    function test_constructor() public {
        vm.expectEmit();
        emit IArbiter.MembersChanged(list(A, B, C), 3);
        vm.expectEmit();
        emit IArbiter.DelayChanged(30 days);
        Arbiter made = new Arbiter(list(A, B, C), 3, 30 days);
        vm.assertEq(keccak256(abi.encode(made.members())), keccak256(abi.encode(list(A, B, C))), "members");
        vm.assertEq(made.threshold(), 3, "threshold");
        vm.assertEq(made.delay(), 30 days, "delay");
        vm.assertEq(made.GRACE(), 7 days, "GRACE");
        vm.assertTrue(made.isMember(A) && made.isMember(B) && made.isMember(C) && !made.isMember(ANYBODY), "isMember");
    }

    function expectBadMembers(address[] memory members, uint256 threshold) private {
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterBadMembers.selector, members.length, threshold));
        new Arbiter(members, threshold, DELAY);
    }

    function test_constructor_rejects() public {
        expectBadMembers(list(A, B, C), 0);
        expectBadMembers(list(A, B, C), 4);
        expectBadMembers(list(A, B, A), 2);
        expectBadMembers(list(A, address(0), C), 2);
        expectBadMembers(new address[](0), 0);
        address[] memory many = new address[](33);
        for (uint160 i = 0; i < 33; i++) {
            many[i] = address(i + 1);
        }
        expectBadMembers(many, 2);
        assembly ("memory-safe") {
            mstore(many, 32)
        }
        new Arbiter(many, 32, 0);
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterBadDelay.selector, 30 days + 1, 30 days));
        new Arbiter(list(A, B, C), 2, 30 days + 1);
    }

    // ------------------------------------------------------------------ a call's way

    function test_propose() public {
        bytes32 callId = arbiter.callIdOf(address(target), data, SALT);
        vm.expectEmit(address(arbiter));
        emit IArbiter.CallProposed(callId, address(target), data, SALT);
        vm.expectEmit(address(arbiter));
        emit IArbiter.CallConfirmed(callId, A);
        vm.assertEq(propose(A, address(target), data), callId, "callId");
        IArbiter.Call memory call = arbiter.callOf(callId);
        vm.assertEq(call.target, address(target), "target");
        vm.assertEq(keccak256(call.data), keccak256(data), "data");
        vm.assertEq(call.confirmations, 1, "confirmations");
        vm.assertEq(call.executableAt, 0, "executableAt");
        vm.assertTrue(!call.executed, "executed");
        expect(IArbiter.ArbiterNotQueued.selector, callId);
        arbiter.execute(callId);
    }

    function test_propose_ofAProposedCallConfirmsIt() public {
        bytes32 callId = propose(A, address(target), data);
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterAlreadyConfirmed.selector, callId, A));
        propose(A, address(target), data);
        vm.assertEq(propose(B, address(target), data), callId, "callId");
        vm.assertEq(arbiter.callOf(callId).executableAt, block.timestamp + DELAY, "executableAt");
    }

    function test_propose_again() public {
        decide(address(target), data);
        expect(IArbiter.ArbiterAlreadyExecuted.selector, arbiter.callIdOf(address(target), data, SALT));
        propose(A, address(target), data);
        vm.prank(A);
        bytes32 callId = arbiter.propose(address(target), data, "other salt");
        vm.assertEq(arbiter.callOf(callId).confirmations, 1, "another call");
    }

    function test_propose_needsATarget() public {
        expect(IArbiter.ArbiterUnknownCall.selector, arbiter.callIdOf(address(0), data, SALT));
        propose(A, address(0), data);
    }

    function test_membersOnly() public {
        bytes32 callId = propose(A, address(target), data);
        bytes memory notMember = abi.encodeWithSelector(IArbiter.ArbiterNotMember.selector, ANYBODY);
        vm.expectRevert(notMember);
        propose(ANYBODY, address(target), data);
        vm.expectRevert(notMember);
        confirm(ANYBODY, callId);
        vm.expectRevert(notMember);
        revoke(ANYBODY, callId);
    }

    function test_unknownCall() public {
        expect(IArbiter.ArbiterUnknownCall.selector, "unknown");
        confirm(A, "unknown");
        expect(IArbiter.ArbiterUnknownCall.selector, "unknown");
        revoke(A, "unknown");
        expect(IArbiter.ArbiterUnknownCall.selector, "unknown");
        arbiter.execute("unknown");
    }

    function test_execute() public {
        bytes32 callId = propose(A, address(target), data);
        uint256 executableAt = block.timestamp + DELAY;
        vm.expectEmit(address(arbiter));
        emit IArbiter.CallConfirmed(callId, B);
        vm.expectEmit(address(arbiter));
        emit IArbiter.CallQueued(callId, executableAt);
        confirm(B, callId);
        vm.warp(executableAt - 1);
        confirm(C, callId); // more than enough doesn't start the delay anew
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterTooEarly.selector, executableAt));
        arbiter.execute(callId);

        vm.warp(executableAt);
        vm.expectEmit(address(arbiter));
        emit IArbiter.CallExecuted(callId);
        vm.prank(ANYBODY);
        arbiter.execute(callId);
        vm.assertEq(target.value(), 7, "done");
        vm.assertTrue(arbiter.callOf(callId).executed, "executed");

        bytes4 already = IArbiter.ArbiterAlreadyExecuted.selector;
        expect(already, callId);
        arbiter.execute(callId);
        expect(already, callId);
        confirm(C, callId);
        expect(already, callId);
        revoke(A, callId);
    }

    function test_execute_lapses() public {
        bytes32 callId = propose(A, address(target), data);
        confirm(B, callId);
        uint256 lapsesAt = block.timestamp + DELAY + 7 days;
        vm.warp(lapsesAt);
        bytes memory lapsed = abi.encodeWithSelector(IArbiter.ArbiterLapsed.selector, lapsesAt);
        vm.expectRevert(lapsed);
        arbiter.execute(callId);
        vm.expectRevert(lapsed); // for good: else one member could revive it on old confirmations of others
        revoke(A, callId);
        vm.expectRevert(lapsed);
        confirm(C, callId);
        vm.warp(lapsesAt - 1);
        arbiter.execute(callId);
        vm.assertEq(target.value(), 7, "done");
    }

    function test_execute_revertsAsTheTarget() public {
        bytes32 callId = propose(A, address(target), abi.encodeCall(Target.refuse, (9)));
        confirm(B, callId);
        vm.warp(block.timestamp + DELAY);
        vm.expectRevert(abi.encodeWithSelector(Target.Refused.selector, 9));
        arbiter.execute(callId);
        vm.assertTrue(!arbiter.callOf(callId).executed, "can be tried again");

        callId = propose(A, ANYBODY, data);
        confirm(B, callId);
        vm.warp(block.timestamp + DELAY);
        vm.expectRevert(abi.encodeWithSelector(Address.AddressEmptyCode.selector, ANYBODY));
        arbiter.execute(callId);
    }

    function test_execute_onceEvenFromWithin() public {
        bytes32 callId = propose(A, address(target), abi.encodeCall(Target.executeAgain, ()));
        confirm(B, callId);
        target.arm(callId);
        vm.warp(block.timestamp + DELAY);
        expect(IArbiter.ArbiterAlreadyExecuted.selector, callId);
        arbiter.execute(callId);
        vm.assertEq(target.value(), 0, "never twice");
    }

    function test_revoke() public {
        bytes32 callId = propose(A, address(target), data);
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterNotConfirmed.selector, callId, B));
        revoke(B, callId);
        confirm(B, callId);
        vm.warp(block.timestamp + DELAY);
        vm.expectEmit(address(arbiter));
        emit IArbiter.ConfirmationRevoked(callId, A);
        revoke(A, callId);
        expect(IArbiter.ArbiterNotQueued.selector, callId);
        arbiter.execute(callId);

        confirm(C, callId);
        uint256 executableAt = block.timestamp + DELAY;
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterTooEarly.selector, executableAt));
        arbiter.execute(callId); // the delay starts over

        confirm(A, callId);
        revoke(B, callId);
        vm.warp(executableAt);
        arbiter.execute(callId); // two were always left
        vm.assertEq(target.value(), 7, "done");
    }

    // ------------------------------------------------------------------ members and delay

    function test_setters_selfOnly() public {
        bytes memory notSelf = abi.encodeWithSelector(IArbiter.ArbiterNotSelf.selector, A);
        address[] memory members = list(A, B, ANYBODY);
        vm.expectRevert(notSelf);
        vm.prank(A);
        arbiter.setMembers(members, 1);
        vm.expectRevert(notSelf);
        vm.prank(A);
        arbiter.setDelay(0);
    }

    function test_setDelay() public {
        bytes32 before = propose(C, address(target), data);
        confirm(A, before);
        uint256 executableAt = block.timestamp + DELAY;
        decide(address(arbiter), abi.encodeCall(arbiter.setDelay, (2 days)));
        vm.assertEq(arbiter.delay(), 2 days, "delay");
        vm.assertEq(arbiter.callOf(before).executableAt, executableAt, "confirmed before");
        arbiter.execute(before);

        bytes32 callId = propose(A, address(arbiter), abi.encodeCall(arbiter.setDelay, (30 days + 1)));
        confirm(B, callId);
        vm.assertEq(arbiter.callOf(callId).executableAt, block.timestamp + 2 days, "confirmed after");
        vm.warp(block.timestamp + 2 days);
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterBadDelay.selector, 30 days + 1, 30 days));
        arbiter.execute(callId);
    }

    function test_setMembers() public {
        address[] memory members = list(A, B, ANYBODY);
        bytes32 callId = propose(A, address(arbiter), abi.encodeCall(arbiter.setMembers, (members, 3)));
        confirm(B, callId);
        vm.warp(block.timestamp + DELAY);
        vm.expectEmit(address(arbiter));
        emit IArbiter.MembersChanged(members, 3);
        arbiter.execute(callId);
        vm.assertEq(keccak256(abi.encode(arbiter.members())), keccak256(abi.encode(members)), "members");
        vm.assertEq(arbiter.threshold(), 3, "threshold");
        vm.assertTrue(arbiter.isMember(ANYBODY) && !arbiter.isMember(C), "isMember");
        vm.assertTrue(arbiter.callOf(callId).executed, "executed");
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterNotMember.selector, C));
        propose(C, address(target), data);
    }

    function test_setMembers_rejectsBadOnes() public {
        bytes32 callId = propose(A, address(arbiter), abi.encodeCall(arbiter.setMembers, (list(A, A, B), 2)));
        confirm(B, callId);
        vm.warp(block.timestamp + DELAY);
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterBadMembers.selector, 3, 2));
        arbiter.execute(callId);
        vm.assertTrue(arbiter.isMember(C), "as before");
    }

    /// @dev Nothing that an earlier set of members has confirmed counts, even for who is a member again.
    function test_setMembers_confirmationsLapse() public {
        bytes32 queued = propose(A, address(target), data);
        confirm(C, queued);
        decide(address(arbiter), abi.encodeCall(arbiter.setMembers, (list(A, B, ANYBODY), 2)));
        vm.assertEq(arbiter.callOf(queued).confirmations, 0, "confirmations");
        vm.assertEq(arbiter.callOf(queued).executableAt, 0, "executableAt");
        expect(IArbiter.ArbiterNotQueued.selector, queued);
        arbiter.execute(queued);
        vm.expectRevert(abi.encodeWithSelector(IArbiter.ArbiterNotConfirmed.selector, queued, A));
        revoke(A, queued);

        confirm(A, queued);
        vm.assertEq(arbiter.callOf(queued).confirmations, 1, "counted anew");
        confirm(B, queued);
        vm.assertEq(arbiter.callOf(queued).executableAt, block.timestamp + DELAY, "queued anew");
        vm.warp(block.timestamp + DELAY);
        arbiter.execute(queued);
        vm.assertEq(target.value(), 7, "done");
    }
}
