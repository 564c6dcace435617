// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Emission} from "../src/EmissionSchedule.sol";
import {EpochSettlement} from "../src/EpochSettlement.sol";
import {ModelRegistry} from "../src/ModelRegistry.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {RevenueRouter} from "../src/RevenueRouter.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IRevenueRouter} from "../src/interfaces/IRevenueRouter.sol";
import {Vm} from "./Vm.sol";

/// @notice One registered model with its token, and the few steps that most tests take.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    address internal constant DESIGNER = address(0xD1);
    address internal constant DATA = address(0xD2);
    address internal constant COORDINATOR = address(0xC0);
    address internal constant ARBITER = address(0xAB);
    address internal constant CHALLENGER = address(0xC4);
    address internal constant TREASURY = address(0x7E);
    address internal constant BUYER = address(0xB1);
    address internal constant ANYBODY = address(0xA1);
    uint256 internal constant PAYER_KEY = 0xBA7E5;

    uint256 internal constant INITIAL = 1000e18;
    uint32 internal constant HALVING_EPOCHS = 4;
    uint32 internal constant WINDOW = 1 hours;
    uint32 internal constant ARBITRATION = 2 days;
    uint32 internal constant PERIOD = 1 days;
    uint96 internal constant PROPOSER_BOND = 500e6;
    uint96 internal constant CHALLENGER_BOND = 200e6;
    uint16 internal constant DESIGNER_BPS = 1000;
    uint16 internal constant DATA_BPS = 500;
    uint16 internal constant OPERATOR_BPS = 2000;
    uint16 internal constant TREASURY_BPS = 300;
    uint256 internal constant PREC = 2 ** 96;
    bytes32 internal constant STATEMENT = keccak256("statement");
    bytes32 internal constant EVIDENCE = keccak256("evidence");
    string internal constant URI = "ipfs://bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

    ModelRegistry internal registry;
    TestUSD internal usd;
    bytes32 internal modelId;
    ModelShares internal shares;
    EpochSettlement internal settlement;
    RevenueRouter internal router;
    /// @dev The numbers of the present model's final epochs.
    mapping(uint32 epoch => IEpochSettlement.FinalEpoch) private _finals;

    function setUp() public virtual {
        vm.warp(1_700_000_000);
        usd = new TestUSD();
        registry = new ModelRegistry(tokens(address(usd)));
        open(params("spec"));
    }

    /// @dev Maps a fuzzed value into [min, max]; values that lie there already stay.
    function bound(uint256 x, uint256 min, uint256 max) internal pure returns (uint256) {
        if (x >= min && x <= max) return x;
        return max - min == type(uint256).max ? x : min + x % (max - min + 1);
    }

    function tokens(address token) internal pure returns (address[] memory list) {
        list = new address[](1);
        list[0] = token;
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
            arbiter: ARBITER,
            treasury: TREASURY,
            providers: address(vm),
            transferPolicy: address(0),
            revenueToken: address(usd),
            maxSupply: 2 ** 96,
            genesisDesigner: 0,
            genesisData: 0,
            designerBps: DESIGNER_BPS,
            dataBps: DATA_BPS,
            emission: Emission({initial: INITIAL, halvingEpochs: HALVING_EPOCHS}),
            operatorBps: OPERATOR_BPS,
            treasuryBps: TREASURY_BPS,
            streamPeriod: PERIOD,
            window: WINDOW,
            arbitration: ARBITRATION,
            proposerBond: PROPOSER_BOND,
            challengerBond: CHALLENGER_BOND,
            stages: 4,
            maxStagesPerOwner: 2,
            seatStake: 1000e6,
            seatCooldown: 7 days
        });
    }

    /// @dev Registers a model, makes it the present one, and posts its coordinator's bond.
    function open(IModelRegistry.Params memory p) internal {
        modelId = registry.registerModel(p);
        (address token, address settler, address till) = registry.contractsOf(modelId);
        (shares, settlement, router) = (ModelShares(token), EpochSettlement(settler), RevenueRouter(till));
        if (p.proposerBond != 0) postBond(COORDINATOR, p.proposerBond);
    }

    function postBond(address account, uint256 amount) internal {
        fund(account, address(settlement), amount);
        vm.prank(account);
        settlement.depositBond(account, amount);
    }

    /// @dev Mints the present model's revenue token to `owner` and lets `spender` take it; the token may return nothing.
    function fund(address owner, address spender, uint256 amount) internal {
        TestUSD token = TestUSD(shares.revenueToken());
        token.mint(owner, amount);
        vm.prank(owner);
        (bool approved,) = address(token).call(abi.encodeCall(token.approve, (spender, amount)));
        require(approved, "approve");
    }

    // ------------------------------------------------------------------ epochs

    function propose(uint32 e, bytes32 root, uint256 minted) internal {
        vm.prank(COORDINATOR);
        settlement.proposeEpoch(e, root, minted, STATEMENT, URI);
    }

    function challenge(uint32 e) internal {
        bytes32 root = settlement.commitmentOf(e);
        fund(CHALLENGER, address(settlement), CHALLENGER_BOND);
        vm.prank(CHALLENGER);
        settlement.challengeEpoch(e, root, EVIDENCE, URI);
    }

    function resolve(uint32 e, bool uphold) internal {
        bytes32 root = settlement.commitmentOf(e);
        uint256 resolvableUntil = settlement.pending().resolvableUntil;
        vm.prank(ARBITER);
        settlement.resolveEpoch(e, root, resolvableUntil, uphold);
    }

    /// @dev Finalises epoch `e` now and keeps its numbers.
    function finalize(uint32 e) internal {
        IEpochSettlement.Pending memory p = settlement.pending();
        settlement.finalizeEpoch(e);
        _finals[e] = IEpochSettlement.FinalEpoch({root: p.root, accAt: shares.accPerShare(), minted: p.minted});
    }

    /// @dev Proposes epoch `e` and finalises it after the window.
    function settle(uint32 e, bytes32 root, uint256 minted) internal {
        propose(e, root, minted);
        elapse(WINDOW);
        finalize(e);
    }

    function finalOf(uint32 e) internal view returns (IEpochSettlement.FinalEpoch memory) {
        return _finals[e];
    }

    /// @dev The numbers of the epochs from `first` up to, not including, `end`.
    function finalsOf(uint32 first, uint32 end) internal view returns (IEpochSettlement.FinalEpoch[] memory epochs) {
        epochs = new IEpochSettlement.FinalEpoch[](end - first);
        for (uint32 e = first; e < end; e++) {
            epochs[e - first] = _finals[e];
        }
    }

    /// @dev Pays designer and data recipient all that is theirs.
    function claimAllSplits() internal {
        settlement.claimSplit(finalsOf(settlement.splitClaimedUntil(), settlement.nextEpoch()));
    }

    /// @dev The compute part of `minted` under this fixture's split.
    function computePart(uint256 minted) internal pure returns (uint256) {
        return minted - minted * DESIGNER_BPS / 10_000 - minted * DATA_BPS / 10_000;
    }

    // ------------------------------------------------------------------ money and time

    function deposit(uint256 amount) internal returns (uint256) {
        fund(BUYER, address(shares), amount);
        vm.prank(BUYER);
        return shares.depositRevenue(amount);
    }

    /// @dev Deposits and lets the whole stream run.
    function earn(uint256 amount) internal {
        deposit(amount);
        elapse(PERIOD);
    }

    function elapse(uint256 time) internal {
        vm.warp(block.timestamp + time);
    }

    /// @dev The payer's signed payment of `value` to the present model's router.
    function authorize(uint256 value, bytes32 nonce) internal view returns (IRevenueRouter.Authorization memory a) {
        a.from = vm.addr(PAYER_KEY);
        (a.value, a.nonce, a.validBefore) = (value, nonce, type(uint256).max);
        bytes32 typehash = keccak256(
            "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 message =
            keccak256(abi.encode(typehash, a.from, address(router), value, a.validAfter, a.validBefore, nonce));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", usd.DOMAIN_SEPARATOR(), message));
        (a.v, a.r, a.s) = vm.sign(PAYER_KEY, digest);
    }
}
