// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IProviderRegistry} from "../src/interfaces/IProviderRegistry.sol";
import {StakeBase} from "./StakeBase.sol";

/// @notice How a seat's stake is lost, and how it can't be.
contract ProviderSlashingTest is StakeBase {
    using SafeCast for uint256;

    function setUp() public override {
        super.setUp();
        takeSeat(0);
    }

    function expectRejected(IProviderRegistry.SlashStatus now_, uint256 slashId) private {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryWrongStatus.selector, slashId, now_));
    }

    /// @dev The books, with `open` bonds of reporters and contesters: every token here is somebody's.
    function checkBooks(uint256 open) private view {
        address[6] memory accounts = [OWNER, NODE, REPORTER, CONTESTER, TREASURY, ANYBODY];
        uint256 sum = open * REPORTER_BOND;
        for (uint256 i = 0; i < accounts.length; i++) {
            sum += providers.freeStakeOf(accounts[i]) + providers.lockedStakeOf(accounts[i]);
        }
        vm.assertEq(usd.balanceOf(address(providers)), sum, "books");
    }

    function checkFree(address account, uint256 amount, string memory what) private view {
        vm.assertEq(providers.freeStakeOf(account), amount, what);
    }

    // ------------------------------------------------------------------ equivocation

    function test_slashEquivocation() public {
        uint256 releasableAt = block.timestamp + COOLDOWN;
        vm.expectEmit(address(providers));
        emit IProviderRegistry.Slashed(MODEL, OWNER, 0, SEAT_STAKE, UNIT, REPORTER);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SeatLeft(MODEL, OWNER, 0, releasableAt);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.Bonded(REPORTER, address(providers), half(SEAT_STAKE));
        vm.expectEmit(address(providers));
        emit IProviderRegistry.Bonded(TREASURY, address(providers), SEAT_STAKE - half(SEAT_STAKE));
        slashEquivocation(UNIT);

        vm.assertEq(
            keccak256(abi.encode(seat(0))),
            keccak256(abi.encode(IProviderRegistry.Seat(0, 0, releasableAt.toUint40(), 0, true))),
            "seat"
        );
        vm.assertTrue(!providers.isSeated(MODEL, OWNER, 0), "not seated");
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "locked");
        checkFree(OWNER, 2 * uint256(SEAT_STAKE), "stake that isn't in the seat is untouched");
        checkFree(REPORTER, half(SEAT_STAKE), "reporter");
        checkFree(TREASURY, SEAT_STAKE - half(SEAT_STAKE), "treasury has the odd unit");
        checkBooks(0);
    }

    function test_slashEquivocation_ownersOwnKey() public {
        slashEquivocation(OWNER_KEY, receipt(UNIT, "x"), receipt(UNIT, "y"));
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "slashed");
    }

    function test_receiptDigest_isTypedData() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Commonweight"),
                keccak256("1"),
                block.chainid,
                SETTLEMENT
            )
        );
        bytes32 hash = keccak256(
            abi.encode(
                keccak256("Receipt(bytes32 modelId,uint32 stage,bytes32 unit,bytes32 output)"),
                MODEL,
                uint32(0),
                UNIT,
                keccak256("x")
            )
        );
        vm.assertEq(
            providers.receiptDigest(receipt(UNIT, "x")),
            keccak256(abi.encodePacked(hex"1901", domain, hash)),
            "receiptDigest"
        );
    }

    function expectNoEquivocation(IProviderRegistry.Receipt memory b) private {
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        (bytes memory signatureA, bytes memory signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNotEquivocation.selector));
        providers.slashEquivocation(a, signatureA, b, signatureB);
    }

    function test_slashEquivocation_notOne() public {
        expectNoEquivocation(receipt(UNIT, "x"));
        expectNoEquivocation(receipt("another unit", "y"));
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        b.stage = 1;
        expectNoEquivocation(b);
        b = receipt(UNIT, "y");
        b.modelId = OTHER_MODEL;
        expectNoEquivocation(b);
    }

    function expectBadSignature(bytes memory signatureA, bytes memory signatureB, address recovered) private {
        (IProviderRegistry.Receipt memory a, IProviderRegistry.Receipt memory b) =
            (receipt(UNIT, "x"), receipt(UNIT, "y"));
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryBadSignature.selector, recovered));
        providers.slashEquivocation(a, signatureA, b, signatureB);
    }

    /// @dev Nobody is framed by receipts that it has not signed, both of them.
    function test_slashEquivocation_framing() public {
        bytes memory signatureA = signed(NODE_KEY, receipt(UNIT, "x"));
        bytes memory signatureB = signed(NODE_KEY, receipt(UNIT, "y"));
        expectBadSignature("", signatureB, address(0));
        expectBadSignature(signatureA, "", address(0));
        expectBadSignature(signatureA, signed(7, receipt(UNIT, "y")), vm.addr(7));
        expectBadSignature(signed(7, receipt(UNIT, "x")), signatureB, NODE);
        // Two keys of one owner may differ.
        expectBadSignature(signatureA, signed(OWNER_KEY, receipt(UNIT, "y")), OWNER);

        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (signatureA, signatureB) = (signed(7, a), signed(7, b));
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNoSeat.selector, MODEL, vm.addr(7), 0));
        providers.slashEquivocation(a, signatureA, b, signatureB);
    }

    /// @dev One signature made into another of the same key is still one receipt; it is refused all the same.
    function test_slashEquivocation_malleableSignature() public {
        bytes memory signatureA = signed(NODE_KEY, receipt(UNIT, "x"));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(NODE_KEY, providers.receiptDigest(receipt(UNIT, "y")));
        bytes32 mirrored = bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
        expectBadSignature(signatureA, abi.encodePacked(r, mirrored, v == 27 ? 28 : 27), address(0));
    }

    /// @dev Signatures of another chain or model are some unknown key's here.
    function test_slashEquivocation_receiptsOfAnotherWorld() public {
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (bytes memory signatureA, bytes memory signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));

        vm.prank(OWNER);
        providers.takeSeat(OTHER_MODEL, 0);
        (a.modelId, b.modelId) = (OTHER_MODEL, OTHER_MODEL);
        (bool done,) =
            address(providers).call(abi.encodeCall(providers.slashEquivocation, (a, signatureA, b, signatureB)));
        vm.assertTrue(!done, "another model");

        (a.modelId, b.modelId) = (MODEL, MODEL);
        uint256 here = block.chainid;
        vm.chainId(2);
        (done,) = address(providers).call(abi.encodeCall(providers.slashEquivocation, (a, signatureA, b, signatureB)));
        vm.assertTrue(!done, "another chain");
        vm.chainId(here);
        providers.slashEquivocation(a, signatureA, b, signatureB); // here they do count
        vm.assertTrue(providers.isSeated(OTHER_MODEL, OWNER, 0), "the other seat");
    }

    function test_slashEquivocation_noSeat() public {
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (a.stage, b.stage) = (1, 1);
        (bytes memory signatureA, bytes memory signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));
        vm.expectRevert(noSeat(1));
        providers.slashEquivocation(a, signatureA, b, signatureB);

        (a.stage, b.stage) = (65_536, 65_536); // not stage 0
        (signatureA, signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));
        vm.expectRevert(abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 16, 65_536));
        providers.slashEquivocation(a, signatureA, b, signatureB);

        (a.modelId, b.modelId) = (UNKNOWN_MODEL, UNKNOWN_MODEL);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistry.ModelRegistryUnknownModel.selector, UNKNOWN_MODEL));
        providers.slashEquivocation(a, signatureA, b, signatureB);
    }

    function test_slashEquivocation_untilTheCooldownEnds() public {
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (bytes memory signatureA, bytes memory signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));
        leaveSeat(0);
        pass(COOLDOWN);
        vm.expectRevert(noSeat(0)); // the stake is free, though nobody has released it
        providers.slashEquivocation(a, signatureA, b, signatureB);
        vm.warp(block.timestamp - 1);
        uint256 releasableAt = seat(0).releasableAt;
        providers.slashEquivocation(a, signatureA, b, signatureB);
        vm.assertEq(seat(0).releasableAt, releasableAt, "being slashed doesn't move the cool-down");
        vm.assertTrue(seat(0).slashed, "slashed");
    }

    function test_slashEquivocation_onceForASeat() public {
        slashEquivocation(UNIT);
        IProviderRegistry.Receipt memory a = receipt("another unit", "x");
        IProviderRegistry.Receipt memory b = receipt("another unit", "y");
        (bytes memory signatureA, bytes memory signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));
        vm.expectRevert(noSeat(0));
        providers.slashEquivocation(a, signatureA, b, signatureB);
    }

    /// @dev Neither the order, nor a third output, nor a report of the unit makes new evidence of old fraud.
    function test_slashEquivocation_onceForAUnit() public {
        slashEquivocation(UNIT);
        pass(COOLDOWN);
        providers.releaseSeat(MODEL, OWNER, 0);
        takeSeat(0);
        IProviderRegistry.Receipt[3] memory receipts = [receipt(UNIT, "x"), receipt(UNIT, "y"), receipt(UNIT, "z")];
        for (uint256 i = 0; i < 3; i++) {
            for (uint256 k = 0; k < 3; k++) {
                if (i == k) continue;
                bytes memory signatureA = signed(NODE_KEY, receipts[i]);
                bytes memory signatureB = signed(NODE_KEY, receipts[k]);
                vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryEvidenceUsed.selector, UNIT));
                providers.slashEquivocation(receipts[i], signatureA, receipts[k], signatureB);
            }
        }
        slashEquivocation("another unit");
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "new fraud costs the new stake");
        checkFree(OWNER, uint256(SEAT_STAKE), "two seats' stake is gone");
    }

    /// @dev A proposal that names the unit must not use the unit up.
    function test_slashEquivocation_evidenceCantBeUsedUpByAReport() public {
        uint256 slashId = propose(UNIT);
        pass(WINDOW);
        providers.executeSlash(slashId);
        pass(COOLDOWN);
        providers.releaseSeat(MODEL, OWNER, 0);
        takeSeat(0);
        slashEquivocation(UNIT);
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "slashed");
    }

    // ------------------------------------------------------------------ a slashed seat

    function test_slashedSeat_keepsItsPlaceUnderTheCap() public {
        takeSeat(1);
        takeSeat(2);
        slashEquivocation(UNIT);
        bond(OWNER, SEAT_STAKE);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryCustodyCap.selector, CAP, CAP));
        takeSeat(3);
        uint256 releasableAt = seat(0).releasableAt;
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySeatLeft.selector, releasableAt));
        takeSeat(0);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySeatLeft.selector, releasableAt));
        leaveSeat(0);
        vm.warp(releasableAt - 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooEarly.selector, releasableAt));
        providers.releaseSeat(MODEL, OWNER, 0);
        vm.warp(releasableAt);
        uint256 free = providers.freeStakeOf(OWNER);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SeatReleased(MODEL, OWNER, 0, 0);
        providers.releaseSeat(MODEL, OWNER, 0);
        checkFree(OWNER, free, "nothing comes back");
        takeSeat(3);
    }

    /// @dev Where seats cost nothing, being slashed still costs the seat for the cool-down.
    function test_slashedSeat_ofAModelWithoutStake() public {
        IModelRegistry.SeatTerms memory free = terms();
        free.seatStake = 0;
        models.setTerms(MODEL, free);
        takeSeat(1);
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 1), "seated");
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (a.stage, b.stage) = (1, 1);
        slashEquivocation(NODE_KEY, a, b);
        vm.assertTrue(seat(1).slashed && !providers.isSeated(MODEL, OWNER, 1), "lost");
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySeatLeft.selector, seat(1).releasableAt)
        );
        takeSeat(1);
        pass(COOLDOWN);
        providers.releaseSeat(MODEL, OWNER, 1);
        takeSeat(1);
        checkBooks(0);
    }

    // ------------------------------------------------------------------ proposals

    function test_proposeSlash() public {
        fund(REPORTER, REPORTER_BOND);
        uint256 deadline = block.timestamp + WINDOW;
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SlashProposed(1, MODEL, OWNER, 0, REPORTER, EVIDENCE, deadline, URI);
        vm.prank(REPORTER);
        uint256 slashId = providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);
        vm.assertEq(
            keccak256(abi.encode(providers.slash(slashId))),
            keccak256(
                abi.encode(
                    IProviderRegistry.Slash({
                        modelId: MODEL,
                        owner: OWNER,
                        stage: 0,
                        status: IProviderRegistry.SlashStatus.Proposed,
                        deadline: deadline.toUint40(),
                        reporter: REPORTER,
                        contester: address(0),
                        evidenceHash: EVIDENCE
                    })
                )
            ),
            "slash"
        );
        vm.assertEq(seat(0).openSlashes, 1, "openSlashes");
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 0), "a report alone takes nothing");
        vm.assertEq(usd.balanceOf(REPORTER), 0, "the bond is posted");
        checkBooks(1);
    }

    function test_proposeSlash_rejects() public {
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientAllowance(address,uint256,uint256)", address(providers), 0, REPORTER_BOND
            )
        );
        vm.prank(REPORTER);
        providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);

        fund(REPORTER, REPORTER_BOND);
        bytes32[2] memory modelIds = [MODEL, UNKNOWN_MODEL];
        for (uint256 i = 0; i < 2; i++) {
            vm.expectRevert(
                abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNoSeat.selector, modelIds[i], OWNER, 1)
            );
            vm.prank(REPORTER);
            providers.proposeSlash(modelIds[i], OWNER, 1, EVIDENCE, URI);
        }
        leaveSeat(0);
        pass(COOLDOWN);
        vm.expectRevert(noSeat(0)); // the stake is free
        vm.prank(REPORTER);
        providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);
        vm.assertEq(usd.balanceOf(REPORTER), REPORTER_BOND, "kept");
        vm.warp(block.timestamp - 1);
        vm.prank(REPORTER);
        providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);
    }

    function test_executeSlash_afterTheWindow() public {
        uint256 slashId = propose(EVIDENCE);
        uint256 deadline = block.timestamp + WINDOW;
        vm.warp(deadline - 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooEarly.selector, deadline));
        providers.executeSlash(slashId);

        vm.warp(deadline);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.Slashed(MODEL, OWNER, 0, SEAT_STAKE, EVIDENCE, REPORTER);
        vm.prank(ANYBODY);
        providers.executeSlash(slashId);
        vm.assertEq(status(slashId), uint256(IProviderRegistry.SlashStatus.Executed), "status");
        vm.assertTrue(seat(0).slashed, "slashed");
        vm.assertEq(seat(0).openSlashes, 0, "openSlashes");
        vm.assertEq(seat(0).releasableAt, block.timestamp + COOLDOWN, "the cool-down starts now");
        checkFree(REPORTER, REPORTER_BOND + half(SEAT_STAKE), "reporter");
        checkFree(TREASURY, SEAT_STAKE - half(SEAT_STAKE), "treasury");
        checkBooks(0);
    }

    function test_contestSlash_withinTheWindow() public {
        uint256 slashId = propose(EVIDENCE);
        uint256 deadline = block.timestamp + WINDOW;
        fund(CONTESTER, REPORTER_BOND);
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooLate.selector, deadline));
        vm.prank(CONTESTER);
        providers.contestSlash(slashId, URI);

        vm.warp(deadline - 1);
        vm.expectRevert(
            abi.encodeWithSignature(
                "ERC20InsufficientAllowance(address,uint256,uint256)", address(providers), 0, REPORTER_BOND
            )
        );
        vm.prank(ANYBODY);
        providers.contestSlash(slashId, URI);

        deadline = block.timestamp + ARBITRATION;
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SlashContested(slashId, CONTESTER, deadline, URI);
        vm.prank(CONTESTER);
        providers.contestSlash(slashId, URI);
        IProviderRegistry.Slash memory contested = providers.slash(slashId);
        vm.assertEq(uint256(contested.status), uint256(IProviderRegistry.SlashStatus.Contested), "status");
        vm.assertEq(contested.deadline, deadline, "deadline");
        vm.assertEq(contested.contester, CONTESTER, "contester");
        checkBooks(2);
    }

    function test_resolveSlash_uphold() public {
        uint256 slashId = propose(EVIDENCE);
        contest(slashId);
        pass(ARBITRATION - 1);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.Slashed(MODEL, OWNER, 0, SEAT_STAKE, EVIDENCE, REPORTER);
        resolve(slashId, true);
        vm.assertEq(status(slashId), uint256(IProviderRegistry.SlashStatus.Executed), "status");
        checkFree(REPORTER, half(SEAT_STAKE) + REPORTER_BOND + half(REPORTER_BOND), "reporter");
        checkFree(CONTESTER, 0, "contester's bond is lost");
        checkFree(TREASURY, SEAT_STAKE - half(SEAT_STAKE) + REPORTER_BOND - half(REPORTER_BOND), "treasury");
        checkBooks(0);
    }

    function test_resolveSlash_drop() public {
        uint256 slashId = propose(EVIDENCE);
        contest(slashId);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SlashDropped(slashId, true);
        resolve(slashId, false);
        vm.assertEq(status(slashId), uint256(IProviderRegistry.SlashStatus.Dropped), "status");
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 0), "still seated");
        vm.assertEq(seat(0).openSlashes, 0, "openSlashes");
        checkFree(REPORTER, 0, "a false report costs the bond");
        checkFree(CONTESTER, REPORTER_BOND + half(REPORTER_BOND), "contester");
        checkFree(TREASURY, REPORTER_BOND - half(REPORTER_BOND), "treasury");
        checkBooks(0);
    }

    function test_resolveSlash_arbiterInTimeOnly() public {
        uint256 slashId = propose(EVIDENCE);
        contest(slashId);
        uint256 deadline = block.timestamp + ARBITRATION;
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNotArbiter.selector, CONTESTER));
        vm.prank(CONTESTER);
        providers.resolveSlash(slashId, false);
        vm.warp(deadline);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooLate.selector, deadline));
        resolve(slashId, true);
    }

    function test_dropSlash_whereTheArbiterIsSilent() public {
        uint256 slashId = propose(EVIDENCE);
        contest(slashId);
        uint256 deadline = block.timestamp + ARBITRATION;
        vm.warp(deadline - 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryTooEarly.selector, deadline));
        providers.dropSlash(slashId);
        vm.warp(deadline);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SlashDropped(slashId, false);
        vm.prank(ANYBODY);
        providers.dropSlash(slashId);
        vm.assertEq(status(slashId), uint256(IProviderRegistry.SlashStatus.Dropped), "status");
        checkFree(REPORTER, REPORTER_BOND, "reporter");
        checkFree(CONTESTER, REPORTER_BOND, "contester");
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 0), "still seated");
        checkBooks(0);
    }

    /// @dev Every step from every status that it doesn't belong to.
    function test_slash_wrongStatus() public {
        uint256 unknown = 99;
        uint256 proposed = propose("proposed");
        uint256 contested = propose("contested");
        contest(contested);
        uint256 dropped = propose("dropped");
        contest(dropped);
        resolve(dropped, false);
        uint256 executed = propose("executed");
        contest(executed);
        resolve(executed, true);
        fund(CONTESTER, REPORTER_BOND);

        uint256[5] memory ids = [unknown, proposed, contested, executed, dropped];
        for (uint256 i = 0; i < 5; i++) {
            IProviderRegistry.SlashStatus is_ = IProviderRegistry.SlashStatus(i);
            vm.assertEq(status(ids[i]), i, "status");
            if (i != 1) {
                expectRejected(is_, ids[i]);
                vm.prank(CONTESTER);
                providers.contestSlash(ids[i], URI);
                expectRejected(is_, ids[i]);
                providers.executeSlash(ids[i]);
            }
            if (i != 2) {
                expectRejected(is_, ids[i]);
                resolve(ids[i], true);
                expectRejected(is_, ids[i]);
                providers.dropSlash(ids[i]);
            }
        }
    }

    // ------------------------------------------------------------------ several proposals

    function test_severalProposals_oneSlashes_theOthersAreDropped() public {
        uint256 first = propose("first");
        uint256 second = propose("second");
        uint256 third = propose("third");
        vm.assertEq(seat(0).openSlashes, 3, "openSlashes");
        contest(third);
        pass(WINDOW);
        providers.executeSlash(second);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SlashDropped(first, false);
        providers.executeSlash(first);
        vm.expectEmit(address(providers));
        emit IProviderRegistry.SlashDropped(third, false);
        resolve(third, true);
        vm.assertEq(status(first), uint256(IProviderRegistry.SlashStatus.Dropped), "first");
        vm.assertEq(status(third), uint256(IProviderRegistry.SlashStatus.Dropped), "third");
        // Who contested the third was wrong, though another report was faster.
        checkFree(REPORTER, half(SEAT_STAKE) + 3 * REPORTER_BOND + half(REPORTER_BOND), "reporter's bonds");
        checkFree(CONTESTER, 0, "contester's bond");
        vm.assertEq(seat(0).openSlashes, 0, "openSlashes");
        checkBooks(0);
    }

    function test_sameEvidenceTwice_slashesOnce() public {
        uint256 first = propose(EVIDENCE);
        uint256 second = propose(EVIDENCE); // nobody can keep a report out by making it first
        pass(WINDOW);
        providers.executeSlash(first);
        pass(COOLDOWN);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySlashesOpen.selector, 1));
        providers.releaseSeat(MODEL, OWNER, 0); // so the second can't meet the next seat's stake
        providers.executeSlash(second);
        providers.releaseSeat(MODEL, OWNER, 0);
        takeSeat(0);
        fund(REPORTER, REPORTER_BOND);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryEvidenceUsed.selector, EVIDENCE));
        vm.prank(REPORTER);
        providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);
        vm.assertEq(providers.lockedStakeOf(OWNER), SEAT_STAKE, "the new stake");
        checkBooks(0);
    }

    function test_slashedSeat_takesNoMoreReports() public {
        slashEquivocation(UNIT);
        fund(REPORTER, REPORTER_BOND);
        vm.expectRevert(noSeat(0));
        vm.prank(REPORTER);
        providers.proposeSlash(MODEL, OWNER, 0, EVIDENCE, URI);
    }

    // ------------------------------------------------------------------ attacks

    /// @dev A seat that was reported in its last second waits for the judgement.
    function test_attack_unbondBeforeSlash() public {
        leaveSeat(0);
        vm.expectRevert(
            abi.encodeWithSelector(
                IProviderRegistry.ProviderRegistryInsufficientStake.selector,
                2 * uint256(SEAT_STAKE),
                3 * uint256(SEAT_STAKE)
            )
        );
        vm.prank(OWNER);
        providers.withdraw(OWNER, 3 * uint256(SEAT_STAKE));

        pass(COOLDOWN - 1);
        uint256 slashId = propose(EVIDENCE);
        pass(1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistrySlashesOpen.selector, 1));
        providers.releaseSeat(MODEL, OWNER, 0);
        contest(slashId);
        pass(ARBITRATION - 1);
        resolve(slashId, true);
        vm.assertEq(providers.lockedStakeOf(OWNER), 0, "lost");
        providers.releaseSeat(MODEL, OWNER, 0);
        checkFree(OWNER, 2 * uint256(SEAT_STAKE), "without it");
    }

    /// @dev Reporting oneself saves no more than half, by either way.
    function test_attack_selfSlash() public {
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (bytes memory signatureA, bytes memory signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));
        vm.prank(OWNER);
        providers.slashEquivocation(a, signatureA, b, signatureB);
        checkFree(OWNER, 2 * uint256(SEAT_STAKE) + half(SEAT_STAKE), "half is gone");

        vm.prank(OWNER);
        providers.takeSeat(OTHER_MODEL, 0);
        fund(OWNER, 2 * REPORTER_BOND);
        vm.prank(OWNER);
        uint256 slashId = providers.proposeSlash(OTHER_MODEL, OWNER, 0, EVIDENCE, URI);
        vm.prank(OWNER);
        providers.contestSlash(slashId, URI);
        resolve(slashId, true);
        checkFree(
            OWNER, uint256(SEAT_STAKE) + 2 * half(SEAT_STAKE) + REPORTER_BOND + half(REPORTER_BOND), "more than half"
        );
        checkBooks(0);
    }

    /// @dev A report costs its bond if it is false; contesting it oneself, to keep others from doing so, costs half.
    function test_attack_spamReports() public {
        for (uint256 i = 0; i < 10; i++) {
            uint256 slashId = propose(bytes32(i));
            contest(slashId);
            resolve(slashId, false);
        }
        checkFree(REPORTER, 0, "ten bonds are lost");
        vm.assertTrue(providers.isSeated(MODEL, OWNER, 0), "nothing came of it");

        uint256 own = propose(EVIDENCE);
        fund(REPORTER, REPORTER_BOND);
        vm.prank(REPORTER);
        providers.contestSlash(own, URI);
        resolve(own, false);
        checkFree(REPORTER, REPORTER_BOND + half(REPORTER_BOND), "half a bond is lost");
        checkBooks(0);
    }

    /// @dev A model whose arbiter serves its registrant takes what sits in it, and nothing else of the same owner.
    function test_attack_hostileModel() public {
        IModelRegistry.SeatTerms memory hostile = terms();
        (hostile.arbiter, hostile.seatStake) = (ANYBODY, 1000);
        models.setTerms("hostile", hostile);
        vm.prank(OWNER);
        providers.takeSeat("hostile", 0);
        fund(ANYBODY, 2 * REPORTER_BOND);
        vm.prank(ANYBODY);
        uint256 slashId = providers.proposeSlash("hostile", OWNER, 0, EVIDENCE, URI);
        vm.prank(ANYBODY);
        providers.contestSlash(slashId, URI);
        vm.prank(ANYBODY);
        providers.resolveSlash(slashId, true);
        vm.assertEq(providers.lockedStakeOf(OWNER), SEAT_STAKE, "the other model's seat");
        checkFree(OWNER, 2 * uint256(SEAT_STAKE) - 1000, "free stake");

        slashId = propose(EVIDENCE);
        contest(slashId);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNotArbiter.selector, ANYBODY));
        vm.prank(ANYBODY);
        providers.resolveSlash(slashId, true);
    }

    /// @dev Locked stake can't be given away to a seat of an own model first: it isn't free.
    function test_attack_laundering() public {
        vm.prank(OWNER);
        providers.withdraw(OWNER, 2 * uint256(SEAT_STAKE));
        leaveSeat(0);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistryInsufficientStake.selector, 0, SEAT_STAKE)
        );
        vm.prank(OWNER);
        providers.takeSeat(OTHER_MODEL, 0);
        slashEquivocation(UNIT);
        checkFree(REPORTER, half(SEAT_STAKE), "taken where it was");
    }

    /// @dev A model that keeps its seats elsewhere has none here to slash.
    function test_attack_foreignModel() public {
        IModelRegistry.SeatTerms memory foreign = terms();
        foreign.providers = ANYBODY;
        models.setTerms(FOREIGN_MODEL, foreign);
        IProviderRegistry.Receipt memory a = receipt(UNIT, "x");
        IProviderRegistry.Receipt memory b = receipt(UNIT, "y");
        (a.modelId, b.modelId) = (FOREIGN_MODEL, FOREIGN_MODEL);
        (bytes memory signatureA, bytes memory signatureB) = (signed(NODE_KEY, a), signed(NODE_KEY, b));
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNoSeat.selector, FOREIGN_MODEL, OWNER, 0)
        );
        providers.slashEquivocation(a, signatureA, b, signatureB);
    }
}
