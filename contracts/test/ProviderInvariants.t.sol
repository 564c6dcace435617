// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IProviderRegistry} from "../src/interfaces/IProviderRegistry.sol";
import {StakeBase} from "./StakeBase.sol";

/// @notice The actions of an invariant run. One that isn't possible now reverts, and that is caught and not counted; that
/// the possible ones do what they should is the other tests' matter.
contract StakeHandler is StakeBase {
    uint256 private constant OWNERS = 3;

    uint256 public actions;
    /// @dev Last slash id; they start at 1.
    uint256 public slashes;
    uint256 public donated;
    mapping(bytes4 selector => uint256) public done;

    bytes32[2] public modelIds = [MODEL, OTHER_MODEL];
    uint256 private units;

    modifier counted() {
        actions++;
        _;
    }

    constructor() {
        setUp();
        for (uint256 i = 1; i < OWNERS; i++) {
            bond(account(i), 3 * uint256(SEAT_STAKE));
        }
    }

    function fixture() external view returns (IProviderRegistry, IERC20) {
        return (providers, usd);
    }

    /// @dev Owners, then those who report and contest, and the treasury.
    function accounts() external pure returns (address[] memory all) {
        all = new address[](OWNERS + 3);
        for (uint256 i = 0; i < OWNERS; i++) {
            all[i] = account(i);
        }
        (all[OWNERS], all[OWNERS + 1], all[OWNERS + 2]) = (REPORTER, CONTESTER, TREASURY);
    }

    function key(uint256 seed) private pure returns (uint256) {
        return OWNER_KEY + seed % OWNERS;
    }

    function account(uint256 seed) private pure returns (address) {
        return vm.addr(key(seed));
    }

    /// @dev The stage of one of the owner's seats; any stage if it has none.
    function stageOf(uint256 seed, bytes32 modelId, uint16 pick) private view returns (uint16) {
        IProviderRegistry.Seat[] memory seats = providers.seatsOf(modelId, account(seed));
        return seats.length == 0 ? pick % (CAP + 1) : seats[pick % seats.length].stage;
    }

    function attempt(address sender, bytes memory data) private returns (bool ok) {
        vm.prank(sender);
        (ok,) = address(providers).call(data);
        // A call begins with its selector.
        // forge-lint: disable-next-line(unsafe-typecast)
        if (ok) done[bytes4(data)]++;
    }

    // ------------------------------------------------------------------ actions

    function bondMore(uint256 seed, uint96 amount) external counted {
        amount = uint96(bound(amount, 1, 2 * uint256(SEAT_STAKE)));
        fund(ANYBODY, amount);
        attempt(ANYBODY, abi.encodeCall(providers.bond, (account(seed), amount)));
    }

    function withdraw(uint256 seed, uint96 amount) external counted {
        amount = uint96(bound(amount, 1, SEAT_STAKE));
        attempt(account(seed), abi.encodeCall(providers.withdraw, (ANYBODY, amount)));
    }

    function donate(uint96 amount) external counted {
        amount = uint96(bound(amount, 1, SEAT_STAKE));
        usd.mint(address(providers), amount);
        donated += amount;
    }

    function take(uint256 seed, uint256 model, uint16 stage) external counted {
        attempt(account(seed), abi.encodeCall(providers.takeSeat, (modelIds[model % 2], stage % (CAP + 1))));
    }

    function quit(uint256 seed, uint256 model, uint16 pick) external counted {
        bytes32 modelId = modelIds[model % 2];
        attempt(account(seed), abi.encodeCall(providers.leaveSeat, (modelId, stageOf(seed, modelId, pick))));
    }

    function release(uint256 seed, uint256 model, uint16 pick) external counted {
        bytes32 modelId = modelIds[model % 2];
        uint16 stage = stageOf(seed, modelId, pick);
        attempt(ANYBODY, abi.encodeCall(providers.releaseSeat, (modelId, account(seed), stage)));
    }

    /// @dev Now and then for the unit of the last time.
    function equivocate(uint256 seed, uint256 model, uint16 pick, uint256 unit) external counted {
        bytes32 name = bytes32(unit % 4 == 0 ? units : ++units);
        IProviderRegistry.Receipt memory a = receipt(name, "x");
        IProviderRegistry.Receipt memory b = receipt(name, "y");
        a.modelId = b.modelId = modelIds[model % 2];
        a.stage = b.stage = stageOf(seed, a.modelId, pick);
        (bytes memory signatureA, bytes memory signatureB) = (signed(key(seed), a), signed(key(seed), b));
        attempt(REPORTER, abi.encodeCall(providers.slashEquivocation, (a, signatureA, b, signatureB)));
    }

    /// @dev Of an owner that has a seat, or takes one for it.
    function report(uint256 seed, uint256 model, uint16 pick, bytes32 evidence) external counted {
        fund(REPORTER, REPORTER_BOND);
        bytes32 modelId = modelIds[model % 2];
        if (providers.seatsOf(modelId, account(seed)).length == 0) {
            bond(account(seed), SEAT_STAKE);
            attempt(account(seed), abi.encodeCall(providers.takeSeat, (modelId, pick % CAP)));
        }
        uint16 stage = stageOf(seed, modelId, pick);
        bytes memory data = abi.encodeCall(providers.proposeSlash, (modelId, account(seed), stage, evidence, URI));
        if (attempt(REPORTER, data)) slashes++;
    }

    function dispute(uint256 slashId) external counted {
        fund(CONTESTER, REPORTER_BOND);
        attempt(CONTESTER, abi.encodeCall(providers.contestSlash, (1 + slashId % (slashes + 1), URI)));
    }

    function judge(uint256 slashId, bool uphold) external counted {
        attempt(ARBITER, abi.encodeCall(providers.resolveSlash, (1 + slashId % (slashes + 1), uphold)));
    }

    /// @dev Ends what time has decided.
    function end(uint256 slashId) external counted {
        slashId = 1 + slashId % (slashes + 1);
        attempt(ANYBODY, abi.encodeCall(providers.executeSlash, (slashId)));
        attempt(ANYBODY, abi.encodeCall(providers.dropSlash, (slashId)));
    }

    function wait(uint32 time) external counted {
        pass(bound(time, 1, time % 4 == 0 ? COOLDOWN : WINDOW));
    }
}

/// @notice What holds after any sequence of bonds, seats, reports, judgements and withdrawals.
contract ProviderInvariantsTest {
    /// @dev The shape in which forge reads `targetSelectors`.
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    StakeHandler private handler;
    IProviderRegistry private providers;
    IERC20 private usd;
    address[] private accounts;

    function setUp() public {
        handler = new StakeHandler();
        (providers, usd) = handler.fixture();
        accounts = handler.accounts();
    }

    /// @dev What comes of a report takes several actions, so these are listed more than once.
    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[17] memory selectors = [
            StakeHandler.take.selector,
            StakeHandler.take.selector,
            StakeHandler.take.selector,
            StakeHandler.quit.selector,
            StakeHandler.release.selector,
            StakeHandler.equivocate.selector,
            StakeHandler.report.selector,
            StakeHandler.report.selector,
            StakeHandler.dispute.selector,
            StakeHandler.dispute.selector,
            StakeHandler.judge.selector,
            StakeHandler.end.selector,
            StakeHandler.wait.selector,
            StakeHandler.wait.selector,
            StakeHandler.bondMore.selector,
            StakeHandler.withdraw.selector,
            StakeHandler.donate.selector
        ];
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(handler), new bytes4[](selectors.length));
        for (uint256 i = 0; i < selectors.length; i++) {
            targets[0].selectors[i] = selectors[i];
        }
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function check(bool condition, string memory what) private pure {
        require(condition, what);
    }

    function invariant_stakes() external view {
        checkBooks();
        checkSeats();
    }

    /// @dev A full run in which nothing happened would prove nothing; shorter sequences are failures that forge shrinks.
    function afterInvariant() external view {
        if (handler.actions() < 100) return;
        check(handler.done(IProviderRegistry.takeSeat.selector) > 0, "no seat was taken");
        check(handler.slashes() > 0, "no report");
    }

    function openBonds() private view returns (uint256 sum) {
        for (uint256 id = 1; id <= handler.slashes(); id++) {
            IProviderRegistry.SlashStatus status = providers.slash(id).status;
            if (status == IProviderRegistry.SlashStatus.Proposed) sum += 1;
            if (status == IProviderRegistry.SlashStatus.Contested) sum += 2;
        }
    }

    /// @dev Every token is somebody's, but for gifts.
    function checkBooks() private view {
        uint256 sum = openBonds() * providers.reporterBond() + handler.donated();
        for (uint256 i = 0; i < accounts.length; i++) {
            sum += providers.freeStakeOf(accounts[i]) + providers.lockedStakeOf(accounts[i]);
        }
        check(usd.balanceOf(address(providers)) == sum, "books");
    }

    /// @dev Locked is what lies in seats; a slashed seat holds nothing and no one; the cap holds; open proposals are counted.
    function checkSeats() private view {
        uint256 open;
        for (uint256 i = 0; i < accounts.length; i++) {
            uint256 locked;
            for (uint256 m = 0; m < 2; m++) {
                bytes32 modelId = handler.modelIds(m);
                IProviderRegistry.Seat[] memory seats = providers.seatsOf(modelId, accounts[i]);
                check(seats.length <= 3, "custody cap");
                for (uint256 k = 0; k < seats.length; k++) {
                    locked += seats[k].stake;
                    open += seats[k].openSlashes;
                    check(seats[k].slashed == (seats[k].stake == 0), "slashed is without stake");
                    check(!seats[k].slashed || seats[k].releasableAt != 0, "slashed and held");
                    check(
                        providers.isSeated(modelId, accounts[i], seats[k].stage) == (seats[k].releasableAt == 0),
                        "isSeated"
                    );
                    for (uint256 l = 0; l < k; l++) {
                        check(seats[l].stage != seats[k].stage, "one stage twice");
                    }
                }
            }
            check(providers.lockedStakeOf(accounts[i]) == locked, "locked");
        }
        for (uint256 id = 1; id <= handler.slashes(); id++) {
            IProviderRegistry.SlashStatus status = providers.slash(id).status;
            if (status == IProviderRegistry.SlashStatus.Proposed || status == IProviderRegistry.SlashStatus.Contested) {
                open--;
            }
        }
        check(open == 0, "open proposals");
    }
}
