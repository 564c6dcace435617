// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IProviderRegistry} from "../src/interfaces/IProviderRegistry.sol";
import {BlockingToken, FeeToken, MintableToken, ReentrantToken, SilentToken} from "./mocks/HostileTokens.sol";
import {StakeBase} from "./StakeBase.sol";

/// @notice Stake, keys and seats; slashing is in ProviderSlashing.t.sol.
contract ProviderRegistryTest is StakeBase {
    function test_constructor() public {
        vm.assertEq(providers.registry(), address(models), "registry");
        vm.assertEq(providers.bondToken(), address(usd), "bondToken");
        vm.assertEq(providers.treasury(), TREASURY, "treasury");
        vm.assertEq(providers.reporterBond(), REPORTER_BOND, "reporterBond");
        vm.assertEq(providers.REPORTER_BPS(), 5000, "REPORTER_BPS");

        IModelRegistry registry = IModelRegistry(address(models));
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryInvalidPayee.selector, address(0)));
        new ProviderRegistry(registry, usd, address(0), REPORTER_BOND);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryZeroAmount.selector));
        new ProviderRegistry(registry, usd, TREASURY, 0);
        vm.expectRevert(abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 96, 2 ** 96));
        new ProviderRegistry(registry, usd, TREASURY, 2 ** 96);
    }

    // ------------------------------------------------------------------ stake

    function test_bond(uint96 amount, uint96 more) public {
        amount = uint96(bound(amount, 1, type(uint96).max / 2));
        more = uint96(bound(more, 1, type(uint96).max / 2));
        fund(ANYBODY, uint256(amount) + more);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.Bonded(REPORTER, ANYBODY, amount);
        vm.prank(ANYBODY);
        vm.assertEq(providers.bond(REPORTER, amount), amount, "received");
        vm.assertEq(providers.freeStakeOf(REPORTER), amount, "free stake is the named owner's");
        vm.assertEq(providers.freeStakeOf(ANYBODY), 0, "not the payer's");

        vm.prank(ANYBODY);
        providers.bond(REPORTER, more);
        vm.assertEq(providers.freeStakeOf(REPORTER), uint256(amount) + more, "topped up");
        vm.assertEq(providers.lockedStakeOf(REPORTER), 0, "nothing is locked");
    }

    function test_bond_rejects() public {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryInvalidPayee.selector, address(0)));
        providers.bond(address(0), 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNothingReceived.selector));
        providers.bond(OWNER, 0);
    }

    function test_withdraw(uint256 amount) public {
        uint256 free = 3 * uint256(SEAT_STAKE);
        amount = bound(amount, 1, free);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.Withdrawn(OWNER, ANYBODY, amount);
        vm.prank(OWNER);
        providers.withdraw(ANYBODY, amount);
        vm.assertEq(usd.balanceOf(ANYBODY), amount, "paid");
        vm.assertEq(providers.freeStakeOf(OWNER), free - amount, "the rest");

        vm.expectRevert(
            abi.encodeWithSelector(
                IProviderRegistry.ProviderRegistryInsufficientStake.selector, free - amount, free - amount + 1
            )
        );
        vm.prank(OWNER);
        providers.withdraw(ANYBODY, free - amount + 1);
    }

    function test_withdraw_rejects() public {
        address[2] memory payees = [address(0), address(providers)];
        for (uint256 i = 0; i < 2; i++) {
            vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryInvalidPayee.selector, payees[i]));
            vm.prank(OWNER);
            providers.withdraw(payees[i], 1);
        }
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryZeroAmount.selector));
        vm.prank(OWNER);
        providers.withdraw(OWNER, 0);
    }

    function test_withdraw_lockedStakeStays() public {
        takeSeat(0);
        uint256 free = 2 * uint256(SEAT_STAKE);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistryInsufficientStake.selector, free, free + 1)
        );
        vm.prank(OWNER);
        providers.withdraw(OWNER, free + 1);
    }

    // ------------------------------------------------------------------ hostile bond tokens

    function mintAndBond(MintableToken token, uint256 amount) private {
        providers = deploy(token);
        models.setTerms(MODEL, terms());
        token.mint(OWNER, amount);
        vm.prank(OWNER);
        token.approve(address(providers), type(uint256).max);
        vm.prank(OWNER);
        providers.bond(OWNER, amount);
    }

    function test_feeToken_whatCameIsCredited() public {
        FeeToken token = new FeeToken();
        mintAndBond(token, 1000);
        vm.assertEq(providers.freeStakeOf(OWNER), 990, "what came");
        vm.assertEq(token.balanceOf(address(providers)), 990, "balance");

        token.mint(REPORTER, REPORTER_BOND);
        vm.prank(REPORTER);
        token.approve(address(providers), REPORTER_BOND);
        vm.expectRevert(
            abi.encodeWithSelector(
                IProviderRegistry.ProviderRegistryBondTooSmall.selector,
                REPORTER_BOND - REPORTER_BOND / 100,
                REPORTER_BOND
            )
        );
        vm.prank(REPORTER);
        providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);
    }

    function test_silentToken_works_andLyingOneIsCaught() public {
        SilentToken token = new SilentToken();
        providers = deploy(IERC20(address(token)));
        token.mint(OWNER, 1000);
        vm.prank(OWNER);
        vm.assertEq(providers.bond(OWNER, 1000), 1000, "received");
        vm.prank(OWNER);
        providers.withdraw(OWNER, 400);
        vm.assertEq(token.balanceOf(OWNER), 400, "paid");

        token.lie();
        vm.expectRevert(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(token)));
        vm.prank(OWNER);
        providers.withdraw(OWNER, 600);
        vm.assertEq(providers.freeStakeOf(OWNER), 600, "still owed");
    }

    function test_blockingToken_stopsNobodyElse() public {
        BlockingToken token = new BlockingToken();
        mintAndBond(token, SEAT_STAKE);
        takeSeat(0);
        bindNode();
        (IProviderRegistry.Receipt memory a, IProviderRegistry.Receipt memory b) =
            (receipt(UNIT, "x"), receipt(UNIT, "y"));
        token.setBlocked(REPORTER);
        token.setBlocked(TREASURY);
        slashEquivocation(NODE_KEY, a, b); // pays nobody, so nobody can stop it
        vm.expectRevert(abi.encodeWithSelector(BlockingToken.Blocked.selector, REPORTER));
        vm.prank(REPORTER);
        providers.withdraw(REPORTER, half(SEAT_STAKE));
        vm.prank(REPORTER);
        providers.withdraw(ANYBODY, half(SEAT_STAKE));
        vm.assertEq(token.balanceOf(ANYBODY), half(SEAT_STAKE), "paid elsewhere");
    }

    /// @dev The token itself has stake, and calls back while it is moved.
    function test_reentrantToken_isLockedOut() public {
        ReentrantToken token = new ReentrantToken();
        mintAndBond(token, SEAT_STAKE);
        takeSeat(0);
        token.mint(OWNER, 1000 + 2 * REPORTER_BOND);
        vm.prank(OWNER);
        providers.bond(address(token), 1000);

        bytes[4] memory calls = [
            abi.encodeCall(providers.withdraw, (ANYBODY, 1)),
            abi.encodeCall(providers.bond, (ANYBODY, 0)),
            abi.encodeCall(providers.proposeSlash, (MODEL, OWNER, 0, EVIDENCE, URI)),
            abi.encodeCall(providers.contestSlash, (1, URI))
        ];
        for (uint256 i = 0; i < calls.length; i++) {
            token.arm(address(providers), calls[i]);
            vm.prank(OWNER);
            if (i == 0) providers.bond(OWNER, 1);
            else if (i == 1) providers.withdraw(OWNER, 1);
            else if (i == 2) providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);
            else providers.contestSlash(1, URI);
            vm.assertEq(token.attempts(), i + 1, "the token called back");
            vm.assertTrue(!token.succeeded(), "re-entered");
            vm.assertEq(
                keccak256(token.answer()),
                keccak256(abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector)),
                "by the guard"
            );
        }
        vm.assertEq(providers.freeStakeOf(address(token)), 1000, "the token's stake");
    }

    // ------------------------------------------------------------------ keys

    function test_bindSigner() public {
        vm.assertEq(providers.ownerOf(NODE), OWNER, "bound by the fixture");
        vm.assertEq(providers.ownerOf(OWNER), OWNER, "an unbound key's own account");

        (address node, bytes memory consent) = (vm.addr(7), sign(7, providers.bindingDigest(OWNER)));
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SignerBound(OWNER, node);
        vm.prank(OWNER);
        providers.bindSigner(node, consent);
        vm.assertEq(providers.ownerOf(node), OWNER, "two keys, one owner");
    }

    function test_bindingDigest_isTypedData() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Commonweight Providers"),
                keccak256("1"),
                block.chainid,
                address(providers)
            )
        );
        bytes32 binding = keccak256(abi.encode(keccak256("Binding(address owner)"), OWNER));
        vm.assertEq(
            providers.bindingDigest(OWNER), keccak256(abi.encodePacked(hex"1901", domain, binding)), "bindingDigest"
        );
    }

    function expectBadBinding(address signer, bytes memory signature, address recovered) private {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryBadSignature.selector, recovered));
        vm.prank(OWNER);
        providers.bindSigner(signer, signature);
    }

    /// @dev A signature of another digest is one of an unknown key's for this digest.
    function expectForeignBinding(address signer, bytes memory signature) private {
        expectBadBinding(signer, signature, ECDSA.recover(providers.bindingDigest(OWNER), signature));
    }

    function test_bindSigner_needsTheKeysConsent() public {
        address node = vm.addr(7);
        expectBadBinding(node, sign(OWNER_KEY, providers.bindingDigest(OWNER)), OWNER);
        expectBadBinding(node, "", address(0));
        expectBadBinding(address(0), "", address(0));

        // What the key has signed for another owner, registry or chain is no consent here.
        expectForeignBinding(node, sign(7, providers.bindingDigest(ANYBODY)));
        expectForeignBinding(node, sign(7, deploy(usd).bindingDigest(OWNER)));
        bytes memory consent = sign(7, providers.bindingDigest(OWNER));
        vm.chainId(2);
        expectForeignBinding(node, consent);
        vm.assertEq(providers.ownerOf(node), node, "nobody else's");
    }

    function test_bindSigner_refusesMalleableSignatures() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(7, providers.bindingDigest(OWNER));
        expectBadBinding(vm.addr(7), abi.encodePacked(r, mirror(s), v == 27 ? 28 : 27), address(0));
        expectBadBinding(vm.addr(7), abi.encodePacked(r, s, v - 27), address(0));
        expectBadBinding(vm.addr(7), abi.encodePacked(r, s, v, uint8(0)), address(0));
    }

    function test_bindSigner_isForGood() public {
        bytes memory own = sign(NODE_KEY, providers.bindingDigest(OWNER));
        bytes memory others = sign(NODE_KEY, providers.bindingDigest(ANYBODY));
        bytes memory taken = abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySignerTaken.selector, NODE, OWNER);
        vm.expectRevert(taken);
        vm.prank(OWNER);
        providers.bindSigner(NODE, own);
        vm.expectRevert(taken);
        vm.prank(ANYBODY);
        providers.bindSigner(NODE, others);
    }

    /// @dev Else it could sign two receipts and lead the evidence away from its seat before it is slashed.
    function test_bindSigner_notAnOwnerWithSeats() public {
        takeSeat(0);
        bytes memory consent = sign(OWNER_KEY, providers.bindingDigest(ANYBODY));
        bytes memory taken =
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySignerTaken.selector, OWNER, OWNER);
        vm.expectRevert(taken);
        vm.prank(ANYBODY);
        providers.bindSigner(OWNER, consent);

        leaveSeat(0);
        pass(COOLDOWN);
        vm.expectRevert(taken);
        vm.prank(ANYBODY);
        providers.bindSigner(OWNER, consent);
        providers.releaseSeat(MODEL, OWNER, 0);
        vm.prank(ANYBODY);
        providers.bindSigner(OWNER, consent);
        vm.assertEq(providers.ownerOf(OWNER), ANYBODY, "with nothing left to lose");
        vm.assertEq(providers.freeStakeOf(OWNER), 3 * uint256(SEAT_STAKE), "its stake stays its own");
        bond(OWNER, SEAT_STAKE);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySignerTaken.selector, OWNER, ANYBODY));
        vm.prank(OWNER);
        providers.takeSeat(MODEL, 0); // evidence against it would miss that
    }

    function test_setPayout() public {
        vm.assertEq(providers.payoutOf(OWNER), OWNER, "itself");
        vm.expectEmit(address(providers));
        emit IProviderRegistry.PayoutSet(OWNER, ANYBODY);
        vm.prank(OWNER);
        providers.setPayout(ANYBODY);
        vm.assertEq(providers.payoutOf(OWNER), ANYBODY, "named");
        vm.prank(OWNER);
        providers.setPayout(address(0));
        vm.assertEq(providers.payoutOf(OWNER), OWNER, "itself again");
    }

    // ------------------------------------------------------------------ seats

    function test_takeSeat() public {
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SeatTaken(MODEL, OWNER, 5, SEAT_STAKE);
        takeSeat(5);
        vm.assertEq(providers.freeStakeOf(OWNER), 2 * uint256(SEAT_STAKE), "free");
        vm.assertEq(providers.lockedStakeOf(OWNER), SEAT_STAKE, "locked");
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 5), "seated");
        vm.assertTrue(!providers.isSeated(MODEL, OWNER, 4), "another stage");
        vm.assertTrue(!providers.isSeated(OTHER_MODEL, OWNER, 5), "another model");
        vm.assertTrue(!providers.isSeated(MODEL, NODE, 5), "seats are the owner's, not its key's");
        IProviderRegistry.Seat[] memory seats = providers.seatsOf(MODEL, OWNER);
        vm.assertEq(seats.length, 1, "seats");
        vm.assertEq(
            keccak256(abi.encode(seats[0])),
            keccak256(abi.encode(IProviderRegistry.Seat(5, SEAT_STAKE, 0, 0, false))),
            "seat"
        );
    }

    function test_takeSeat_rejects() public {
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryUnknownModel.selector, UNKNOWN_MODEL));
        providers.takeSeat(UNKNOWN_MODEL, 0);

        IModelRegistry.SeatTerms memory foreign = terms();
        foreign.providers = ANYBODY;
        models.setTerms(FOREIGN_MODEL, foreign);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistryForeignModel.selector, FOREIGN_MODEL, ANYBODY)
        );
        providers.takeSeat(FOREIGN_MODEL, 0);

        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryUnknownStage.selector, STAGES, STAGES));
        takeSeat(STAGES);
        takeSeat(STAGES - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistryAlreadySeated.selector, MODEL, STAGES - 1)
        );
        takeSeat(STAGES - 1);

        vm.prank(OWNER);
        providers.withdraw(OWNER, SEAT_STAKE + 1);
        vm.expectRevert(
            abi.encodeWithSelector(
                IProviderRegistry.ProviderRegistryInsufficientStake.selector, SEAT_STAKE - 1, SEAT_STAKE
            )
        );
        takeSeat(0);

        models.retire(MODEL);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryModelRetired.selector, MODEL));
        takeSeat(0);
    }

    function test_takeSeat_custodyCapHoldsThroughTheCooldown() public {
        bond(OWNER, 3 * uint256(SEAT_STAKE));
        for (uint16 stage = 0; stage < CAP; stage++) {
            takeSeat(stage);
        }
        bytes memory capped = abi.encodeWithSelector(IProviderRegistry.ProviderRegistryCustodyCap.selector, CAP, CAP);
        vm.expectRevert(capped);
        takeSeat(3);
        vm.prank(OWNER);
        providers.takeSeat(OTHER_MODEL, 3); // each model has a cap of its own

        // Leaving one stage for another would let an owner see them all, one after the other.
        leaveSeat(1);
        vm.expectRevert(capped);
        takeSeat(3);
        pass(COOLDOWN);
        vm.expectRevert(capped);
        takeSeat(3); // until somebody has released the seat
        providers.releaseSeat(MODEL, OWNER, 1);
        takeSeat(3);
        vm.assertTrue(
            providers.isSeated(MODEL, OWNER, 0) && providers.isSeated(MODEL, OWNER, 2)
                && providers.isSeated(MODEL, OWNER, 3) && !providers.isSeated(MODEL, OWNER, 1),
            "0, 2 and 3"
        );
    }

    function test_takeSeat_asManyAsAModelCanAllow() public {
        IModelRegistry.SeatTerms memory wide = terms();
        (wide.stages, wide.maxStagesPerOwner) = (65_535, 64);
        models.setTerms(MODEL, wide);
        bond(OWNER, 64 * uint256(SEAT_STAKE));
        for (uint16 i = 0; i < 64; i++) {
            takeSeat(65_534 - i);
        }
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryCustodyCap.selector, 64, 64));
        takeSeat(0);
        leaveSeat(65_534 - 63);
        pass(COOLDOWN);
        providers.releaseSeat(MODEL, OWNER, 65_534 - 63);
        vm.assertEq(providers.seatsOf(MODEL, OWNER).length, 63, "seats");
    }

    function test_leaveSeat() public {
        takeSeat(5);
        uint256 releasableAt = block.timestamp + COOLDOWN;
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SeatLeft(MODEL, OWNER, 5, releasableAt);
        leaveSeat(5);
        vm.assertEq(seat(5).releasableAt, releasableAt, "releasableAt");
        vm.assertTrue(!providers.isSeated(MODEL, OWNER, 5), "not seated");
        vm.assertEq(providers.lockedStakeOf(OWNER), SEAT_STAKE, "still locked");

        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySeatLeft.selector, releasableAt));
        leaveSeat(5);
        vm.expectRevert(noSeat(4));
        leaveSeat(4);
    }

    function test_releaseSeat() public {
        takeSeat(5);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryAlreadySeated.selector, MODEL, 5));
        providers.releaseSeat(MODEL, OWNER, 5);
        vm.expectRevert(noSeat(4));
        providers.releaseSeat(MODEL, OWNER, 4);
        leaveSeat(5);
        uint256 releasableAt = block.timestamp + COOLDOWN;
        vm.warp(releasableAt - 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooEarly.selector, releasableAt));
        providers.releaseSeat(MODEL, OWNER, 5);

        vm.warp(releasableAt);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SeatReleased(MODEL, OWNER, 5, SEAT_STAKE);
        vm.prank(ANYBODY);
        providers.releaseSeat(MODEL, OWNER, 5);
        vm.assertEq(providers.freeStakeOf(OWNER), 3 * uint256(SEAT_STAKE), "free");
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "locked");
        vm.assertEq(providers.seatsOf(MODEL, OWNER).length, 0, "seats");
        vm.expectRevert(noSeat(5));
        providers.releaseSeat(MODEL, OWNER, 5);
    }

    /// @dev Seats that are released in any order leave the others as they are.
    function test_releaseSeat_keepsTheOthers(uint256 first, uint256 second) public {
        (first, second) = (first % 3, second % 2);
        uint16[] memory order = new uint16[](3);
        (order[0], order[1], order[2]) = (0, 1, 2);
        (order[0], order[first]) = (order[first], order[0]);
        (order[1], order[1 + second]) = (order[1 + second], order[1]);
        for (uint16 stage = 0; stage < 3; stage++) {
            takeSeat(stage);
            leaveSeat(stage);
        }
        pass(COOLDOWN);
        for (uint256 i = 0; i < 3; i++) {
            providers.releaseSeat(MODEL, OWNER, order[i]);
            vm.assertEq(providers.seatsOf(MODEL, OWNER).length, 2 - i, "seats");
            for (uint256 k = i + 1; k < 3; k++) {
                vm.assertEq(seat(order[k]).stake, SEAT_STAKE, "another seat");
            }
        }
    }

    function test_takeSeat_again() public {
        takeSeat(5);
        leaveSeat(5);
        uint256 free = providers.freeStakeOf(OWNER);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SeatTaken(MODEL, OWNER, 5, SEAT_STAKE);
        takeSeat(5);
        vm.assertEq(providers.freeStakeOf(OWNER), free, "no more stake");
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 5), "seated");
        vm.assertEq(providers.seatsOf(MODEL, OWNER).length, 1, "one entry");

        leaveSeat(5);
        pass(2 * COOLDOWN);
        takeSeat(5); // also when it could have been released
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 5), "seated");

        leaveSeat(5);
        models.retire(MODEL);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryModelRetired.selector, MODEL));
        takeSeat(5);
    }

    /// @dev Leaving, taking and leaving again can make the cool-down longer, never shorter.
    function test_leaveSeat_againStartsTheCooldownAnew(uint256 away, uint256 back) public {
        (away, back) = (bound(away, 0, 2 * COOLDOWN), bound(back, 0, 2 * COOLDOWN));
        takeSeat(0);
        leaveSeat(0);
        pass(away);
        takeSeat(0);
        pass(back);
        leaveSeat(0);
        pass(COOLDOWN - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooEarly.selector, block.timestamp + 1)
        );
        providers.releaseSeat(MODEL, OWNER, 0);
        slashEquivocation(UNIT);
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "slashable to the last second");
    }

    function test_retiredModel_seatsCanBeLeftAndReleased() public {
        takeSeat(0);
        models.retire(MODEL);
        leaveSeat(0);
        pass(COOLDOWN);
        providers.releaseSeat(MODEL, OWNER, 0);
        vm.assertEq(providers.freeStakeOf(OWNER), 3 * uint256(SEAT_STAKE), "free");
    }

    function mirror(bytes32 s) private pure returns (bytes32) {
        return bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
    }
}
