// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IProviderRegistry} from "../src/interfaces/IProviderRegistry.sol";
import {StubModelRegistry} from "./mocks/StubModelRegistry.sol";
import {Vm} from "./Vm.sol";

/// @notice Two models' seats, an owner with stake for three of them and a node whose key is bound to it.
abstract contract StakeBase {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    uint256 internal constant OWNER_KEY = 0xA11CE;
    uint256 internal constant NODE_KEY = 0x20DE;
    address internal constant ARBITER = address(0xA2B17E2);
    address internal constant TREASURY = address(0x72EA);
    address internal constant REPORTER = address(0x2E9);
    address internal constant CONTESTER = address(0xC02);
    address internal constant ANYBODY = address(0xA1);
    address internal constant SETTLEMENT = address(0x5E771E);
    address internal constant OTHER_SETTLEMENT = address(0x5E772E);

    bytes32 internal constant MODEL = keccak256("model");
    bytes32 internal constant OTHER_MODEL = keccak256("other model");
    bytes32 internal constant UNKNOWN_MODEL = keccak256("unknown");
    bytes32 internal constant FOREIGN_MODEL = keccak256("foreign");
    bytes32 internal constant UNIT = keccak256("unit");
    bytes32 internal constant EVIDENCE = keccak256("evidence");
    string internal constant URI = "ipfs://bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

    uint96 internal constant SEAT_STAKE = 1_000_000_001;
    uint256 internal constant REPORTER_BOND = 50_000_001;
    uint32 internal constant WINDOW = 1 hours;
    uint32 internal constant ARBITRATION = 1 days;
    uint32 internal constant COOLDOWN = 3 days;
    uint16 internal constant STAGES = 8;
    uint16 internal constant CAP = 3;

    address internal immutable OWNER = vm.addr(OWNER_KEY);
    address internal immutable NODE = vm.addr(NODE_KEY);

    StubModelRegistry internal models;
    ProviderRegistry internal providers;
    TestUSD internal usd;

    function setUp() public virtual {
        vm.warp(1_700_000_000);
        models = new StubModelRegistry();
        usd = new TestUSD();
        providers = deploy(IERC20(usd));
        models.setTerms(MODEL, terms());
        IModelRegistry.SeatTerms memory other = terms();
        other.settlement = OTHER_SETTLEMENT;
        models.setTerms(OTHER_MODEL, other);
        bond(OWNER, 3 * uint256(SEAT_STAKE));
        bindNode();
    }

    function deploy(IERC20 token) internal returns (ProviderRegistry) {
        return new ProviderRegistry(IModelRegistry(address(models)), token, TREASURY, REPORTER_BOND);
    }

    function terms() internal view returns (IModelRegistry.SeatTerms memory) {
        return IModelRegistry.SeatTerms({
            providers: address(providers),
            arbiter: ARBITER,
            settlement: SETTLEMENT,
            seatStake: SEAT_STAKE,
            window: WINDOW,
            arbitration: ARBITRATION,
            seatCooldown: COOLDOWN,
            stages: STAGES,
            maxStagesPerOwner: CAP,
            retired: false
        });
    }

    /// @dev Maps a fuzzed value into [min, max]; values that lie there already stay.
    function bound(uint256 x, uint256 min, uint256 max) internal pure returns (uint256) {
        if (x >= min && x <= max) return x;
        return min + x % (max - min + 1);
    }

    /// @dev Gives `account` tokens, and the provider registry leave to take them.
    function fund(address account, uint256 amount) internal {
        usd.mint(account, amount);
        vm.prank(account);
        usd.approve(address(providers), amount);
    }

    function bond(address account, uint256 amount) internal {
        fund(account, amount);
        vm.prank(account);
        providers.bond(account, amount);
    }

    function bindNode() internal {
        bytes memory consent = sign(NODE_KEY, providers.bindingDigest(OWNER));
        vm.prank(OWNER);
        providers.bindSigner(NODE, consent);
    }

    function takeSeat(uint16 stage) internal {
        vm.prank(OWNER);
        providers.takeSeat(MODEL, stage);
    }

    function leaveSeat(uint16 stage) internal {
        vm.prank(OWNER);
        providers.leaveSeat(MODEL, stage);
    }

    function sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function receipt(bytes32 unit, string memory output) internal pure returns (IProviderRegistry.Receipt memory) {
        return IProviderRegistry.Receipt({modelId: MODEL, stage: 0, unit: unit, output: keccak256(bytes(output))});
    }

    function signed(uint256 key, IProviderRegistry.Receipt memory r) internal view returns (bytes memory) {
        return sign(key, providers.receiptDigest(r));
    }

    /// @dev Two receipts for `unit` with different outputs, by the same key.
    function slashEquivocation(uint256 key, IProviderRegistry.Receipt memory a, IProviderRegistry.Receipt memory b)
        internal
    {
        (bytes memory signatureA, bytes memory signatureB) = (signed(key, a), signed(key, b));
        vm.prank(REPORTER);
        providers.slashEquivocation(a, signatureA, b, signatureB);
    }

    function slashEquivocation(bytes32 unit) internal {
        slashEquivocation(NODE_KEY, receipt(unit, "x"), receipt(unit, "y"));
    }

    /// @dev Proposes to slash the owner's seat of stage 0.
    function propose(bytes32 evidence) internal returns (uint256) {
        fund(REPORTER, REPORTER_BOND);
        vm.prank(REPORTER);
        return providers.proposeSlash(MODEL, OWNER, 0, evidence, URI);
    }

    function contest(uint256 slashId) internal {
        fund(CONTESTER, REPORTER_BOND);
        vm.prank(CONTESTER);
        providers.contestSlash(slashId, URI);
    }

    function resolve(uint256 slashId, bool uphold) internal {
        vm.prank(ARBITER);
        providers.resolveSlash(slashId, uphold);
    }

    function pass(uint256 time) internal {
        vm.warp(block.timestamp + time);
    }

    function seat(uint16 stage) internal view returns (IProviderRegistry.Seat memory found) {
        IProviderRegistry.Seat[] memory seats = providers.seatsOf(MODEL, OWNER);
        for (uint256 i = 0; i < seats.length; i++) {
            if (seats[i].stage == stage) return seats[i];
        }
        vm.assertTrue(false, "no such seat");
    }

    function status(uint256 slashId) internal view returns (uint256) {
        return uint256(providers.slash(slashId).status);
    }

    /// @dev Winner's part of `amount`, rounded down.
    function half(uint256 amount) internal pure returns (uint256) {
        return amount / 2;
    }

    function noSeat(uint16 stage) internal view returns (bytes memory) {
        return abi.encodeWithSelector(IProviderRegistry.ProviderRegistryNoSeat.selector, MODEL, OWNER, stage);
    }
}
