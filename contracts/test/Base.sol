// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Emission} from "../src/EmissionSchedule.sol";
import {EpochSettlement} from "../src/EpochSettlement.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";

/// @dev The cheatcodes used here; forge-std is not to be had from npm (see docs of forge for their meaning).
interface Vm {
    struct Gas {
        uint64 gasLimit;
        uint64 gasTotalUsed;
        uint64 gasMemoryUsed;
        int64 gasRefunded;
        uint64 gasRemaining;
    }

    function addr(uint256 privateKey) external pure returns (address);
    function assertEq(uint256 left, uint256 right, string calldata message) external pure;
    function assertEq(address left, address right, string calldata message) external pure;
    function assertEq(bytes32 left, bytes32 right, string calldata message) external pure;
    function assertEq(string calldata left, string calldata right, string calldata message) external pure;
    function assertLe(uint256 left, uint256 right, string calldata message) external pure;
    function assertTrue(bool condition, string calldata message) external pure;
    function assume(bool condition) external pure;
    function chainId(uint256 id) external;
    function etch(address target, bytes calldata code) external;
    function expectEmit(address emitter) external;
    function expectRevert(bytes calldata data) external;
    function lastCallGas() external view returns (Gas memory);
    function parseJsonAddress(string calldata json, string calldata key) external pure returns (address);
    function parseJsonBytes32(string calldata json, string calldata key) external pure returns (bytes32);
    function parseJsonBytes32Array(string calldata json, string calldata key) external pure returns (bytes32[] memory);
    function parseJsonUint(string calldata json, string calldata key) external pure returns (uint256);
    function parseJsonUintArray(string calldata json, string calldata key) external pure returns (uint256[] memory);
    function keyExistsJson(string calldata json, string calldata key) external view returns (bool);
    function prank(address sender) external;
    function readFile(string calldata path) external view returns (string memory);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function revertToState(uint256 snapshot) external returns (bool);
    function snapshotState() external returns (uint256);
    function toString(uint256 value) external pure returns (string memory);
    function warp(uint256 timestamp) external;
}

/// @notice One registered model with its token, and the few steps that most tests take.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    address internal constant DESIGNER = address(0xD1);
    address internal constant DATA = address(0xD2);
    address internal constant COORDINATOR = address(0xC0);
    address internal constant BUYER = address(0xB1);
    address internal constant ANYBODY = address(0xA1);

    uint256 internal constant INITIAL = 1000e18;
    uint32 internal constant HALVING_EPOCHS = 4;
    uint32 internal constant WINDOW = 1 hours;
    uint16 internal constant DESIGNER_BPS = 1000;
    uint16 internal constant DATA_BPS = 500;
    bytes32 internal constant STATEMENT = keccak256("statement");

    ModelRegistry internal registry;
    ModelShares internal shares;
    EpochSettlement internal settlement;
    TestUSD internal usd;

    function setUp() public virtual {
        usd = new TestUSD();
        registry = new ModelRegistry();
        (shares, settlement) = register(params("spec"));
    }

    /// @dev Maps a fuzzed value into [min, max]; values that lie there already stay.
    function bound(uint256 x, uint256 min, uint256 max) internal pure returns (uint256) {
        if (x >= min && x <= max) return x;
        return max - min == type(uint256).max ? x : min + x % (max - min + 1);
    }

    function params(string memory spec) internal view returns (IModelRegistry.Params memory) {
        return IModelRegistry.Params({
            specHash: keccak256(bytes(spec)),
            specURI: "ipfs://spec",
            name: "Commonweight Tiny",
            symbol: "cwTINY",
            designer: DESIGNER,
            dataRecipient: DATA,
            coordinator: COORDINATOR,
            revenueToken: address(usd),
            maxSupply: 2 ** 96,
            designerBps: DESIGNER_BPS,
            dataBps: DATA_BPS,
            emission: Emission({initial: INITIAL, halvingEpochs: HALVING_EPOCHS}),
            window: WINDOW,
            stages: 4
        });
    }

    function register(IModelRegistry.Params memory p) internal returns (ModelShares, EpochSettlement) {
        (address token, address settler) = registry.contractsOf(registry.registerModel(p));
        return (ModelShares(token), EpochSettlement(settler));
    }

    function propose(uint32 e, bytes32 root, uint256 minted) internal {
        vm.prank(COORDINATOR);
        settlement.proposeEpoch(e, root, minted, STATEMENT, "ipfs://statement");
    }

    /// @dev Proposes epoch `e` and finalises it after the window.
    function settle(uint32 e, bytes32 root, uint256 minted) internal {
        propose(e, root, minted);
        vm.warp(block.timestamp + WINDOW);
        settlement.finalizeEpoch(e);
    }

    function deposit(uint256 amount) internal {
        usd.mint(BUYER, amount);
        vm.prank(BUYER);
        usd.approve(address(shares), amount);
        vm.prank(BUYER);
        shares.depositRevenue(amount);
    }

    /// @dev The compute part of `minted` under this fixture's split.
    function computePart(uint256 minted) internal pure returns (uint256) {
        return minted - minted * DESIGNER_BPS / 10_000 - minted * DATA_BPS / 10_000;
    }
}
