// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {ModelShares} from "../../src/ModelShares.sol";
import {TestUSD} from "../../src/devnet/TestUSD.sol";
import {Vm} from "../Vm.sol";

/// @notice Proofs about the accumulator, by symbolic execution of the real bytecode, clones and all: a `check_` holds for
/// every value of its arguments, or halmos shows one for which it doesn't. This contract stands where the settlement does.
/// @dev halmos passes over what reverts: that a claim which must succeed does is asserted where the solvers can, see
/// {releaseOrFail}. Where an argument isn't symbolic or is narrow, they can't divide: docs/contracts-audit.md says what is
/// assumed.
contract SharesProofs {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    address private constant ALICE = address(0xA11CE);
    address private constant BOB = address(0xB0B);
    address private constant CAROL = address(0xCA401);
    uint256 private constant START = 1_700_000_000;
    uint256 private constant PERIOD = 1 days;
    uint256 private constant PREC = 2 ** 96;
    /// @dev Shares of a claim; a power of two is what the solvers can multiply anything by.
    uint256 private constant CLAIMED = 2 ** 60;
    /// @dev No round number in any base.
    uint256 private constant AWKWARD_SUPPLY = 1_012_345_678_901_234_567;
    /// @dev Of `_totals` in {ModelShares}, see contracts/snapshots/ModelShares.json.
    bytes32 private constant TOTALS_SLOT = bytes32(uint256(8));

    TestUSD private usd;
    ModelShares private shares;
    ModelShares private twin;

    function setUp() public {
        usd = new TestUSD();
        address implementation = address(new ModelShares());
        (shares, twin) = (clone(implementation), clone(implementation));
        vm.warp(START);
    }

    function clone(address implementation) private returns (ModelShares token) {
        bytes memory terms = abi.encode(address(this), usd, 2 ** 96, PERIOD, address(0), "Proof", "PROOF");
        token = ModelShares(Clones.cloneWithImmutableArgs(implementation, terms));
        usd.approve(address(token), type(uint256).max);
    }

    function deposit(ModelShares token, uint256 amount) private {
        usd.mint(address(this), amount);
        token.depositRevenue(amount);
    }

    function releaseOrFail(ModelShares token, address to, uint256 amount, uint256 debt) private {
        try token.release(to, amount, debt) {}
        catch {
            assert(false);
        }
    }

    function transfer(address from, address to, uint256 amount) private {
        vm.prank(from);
        require(shares.transfer(to, amount));
    }

    /// @dev Any accumulator whatever, as if by deposits and time.
    function setAccumulator(ModelShares token, uint256 acc) private {
        vm.store(address(token), TOTALS_SLOT, bytes32(acc << 96 | token.totalSupply()));
    }

    // ------------------------------------------------------------------ transfers

    /// @dev What either side has earned stays its own, whatever both hold, however much is sent and whenever.
    function check_transfer_keepsWhatBothEarned(uint64 alice, uint64 bob, uint64 revenue, uint64 amount, uint32 time)
        public
    {
        vm.assume(revenue > 0 && amount <= 1e18 + uint256(alice));
        shares.mint(ALICE, 1e18 + uint256(alice));
        shares.mint(BOB, 1e18 + uint256(bob));
        deposit(shares, revenue);
        vm.warp(START + time);
        (uint256 ofAlice, uint256 ofBob) = (shares.owedScaled(ALICE), shares.owedScaled(BOB));
        transfer(ALICE, BOB, amount);
        assert(shares.owedScaled(ALICE) == ofAlice);
        assert(shares.owedScaled(BOB) == ofBob);
        assert(shares.balanceOf(ALICE) + shares.balanceOf(BOB) == 2e18 + uint256(alice) + bob);
    }

    /// @dev All that is owed and what isn't credited yet is what was deposited, to the last scaled unit.
    function check_transfer_conservesRevenue(uint64 revenue, uint64 amount, uint32 time) public {
        vm.assume(revenue > 0 && amount <= 2e18);
        shares.mint(ALICE, 2e18);
        shares.mint(BOB, 1e18);
        deposit(shares, revenue);
        vm.warp(START + time);
        transfer(ALICE, BOB, amount);
        uint256 owed = shares.owedScaled(ALICE) + shares.owedScaled(BOB);
        assert(owed + shares.undistributedScaled() == uint256(revenue) * PREC);
    }

    // ------------------------------------------------------------------ claims

    /// @dev Two accounts' claims, in either order.
    function check_claim_orderDoesNotMatter(uint64 ofBob, uint64 ofCarol, uint64 revenue, uint32 time) public {
        vm.assume(ofBob > 0 && ofCarol > 0 && revenue > 0);
        for (uint256 i = 0; i < 2; i++) {
            ModelShares token = i == 0 ? shares : twin;
            token.mint(ALICE, 1e18);
            token.mint(address(this), uint256(ofBob) + ofCarol);
            deposit(token, revenue);
        }
        vm.warp(START + time);
        shares.release(BOB, ofBob, 0);
        shares.release(CAROL, ofCarol, 0);
        twin.release(CAROL, ofCarol, 0);
        twin.release(BOB, ofBob, 0);
        assertEqual(BOB);
        assertEqual(CAROL);
        assertEqual(address(this));
    }

    /// @dev Claimed before the deposit, or at any later time: `shares` claims early, `twin` late.
    function check_claim_beforeOrAfterADeposit(uint64 revenue, uint32 time) public {
        vm.assume(revenue > 0);
        uint256 debt = 0;
        for (uint256 i = 0; i < 2; i++) {
            ModelShares token = i == 0 ? shares : twin;
            token.mint(ALICE, 1e18);
            debt = CLAIMED * token.mint(address(this), CLAIMED);
            if (i == 0) token.release(BOB, CLAIMED, debt);
            deposit(token, revenue);
        }
        vm.warp(START + time);
        twin.release(BOB, CLAIMED, debt);
        assertEqual(BOB);
        assertEqual(ALICE);
        assertEqual(address(this));
    }

    /// @dev At any two times while a deposit streams, or after.
    function check_claim_timeDoesNotMatter(uint64 revenue, uint32 early, uint32 later) public {
        vm.assume(revenue > 0);
        uint256 debt = 0;
        for (uint256 i = 0; i < 2; i++) {
            ModelShares token = i == 0 ? shares : twin;
            token.mint(ALICE, 1e18);
            debt = CLAIMED * token.mint(address(this), CLAIMED);
            deposit(token, revenue);
        }
        vm.warp(START + early);
        shares.release(BOB, CLAIMED, debt);
        vm.warp(START + uint256(early) + later);
        twin.release(BOB, CLAIMED, debt);
        assertEqual(BOB);
        assertEqual(ALICE);
        assertEqual(address(this));
    }

    /// @dev The same for shares that came late, and anything that deposits and time can do to the accumulator: it stands at
    /// `acc0` when the shares are minted, at `acc1` when the early claim is made, at `acc2` in the end.
    function check_claim_timeDoesNotMatter_anyAccumulator(uint256 acc0, uint256 acc1, uint256 acc2) public {
        vm.assume(acc0 <= acc1 && acc1 <= acc2 && acc2 < 2 ** 152);
        for (uint256 i = 0; i < 2; i++) {
            ModelShares token = i == 0 ? shares : twin;
            token.mint(ALICE, 1e18);
            setAccumulator(token, acc0);
            uint256 debt = CLAIMED * token.mint(address(this), CLAIMED);
            setAccumulator(token, acc1);
            if (i == 0) releaseOrFail(token, BOB, CLAIMED, debt);
            setAccumulator(token, acc2);
            if (i == 1) releaseOrFail(token, BOB, CLAIMED, debt);
        }
        assert(shares.owedScaled(BOB) == CLAIMED * (acc2 - acc0));
        assertEqual(BOB);
        assertEqual(address(this));
    }

    /// @dev Whatever a root says: a claim of any size with any debt takes nothing from who has claimed, and gives no more
    /// than what unclaimed shares have earned.
    function check_claim_neverTouchesHolders(uint256 acc0, uint256 acc1, uint96 amount, uint256 debt) public {
        vm.assume(acc0 <= acc1 && acc1 < 2 ** 152);
        shares.mint(ALICE, 1e18);
        setAccumulator(shares, acc0);
        shares.mint(address(this), 3e18);
        setAccumulator(shares, acc1);
        (uint256 ofAlice, uint256 unclaimed) = (shares.owedScaled(ALICE), shares.owedScaled(address(this)));
        shares.release(BOB, amount, debt);
        assert(shares.owedScaled(ALICE) == ofAlice);
        assert(shares.balanceOf(ALICE) == 1e18);
        assert(shares.owedScaled(address(this)) + shares.owedScaled(BOB) == unclaimed);
        assert(shares.balanceOf(address(this)) + shares.balanceOf(BOB) == 3e18);
    }

    function assertEqual(address account) private view {
        assert(shares.owedScaled(account) == twin.owedScaled(account));
        assert(shares.balanceOf(account) == twin.balanceOf(account));
    }

    // ------------------------------------------------------------------ the stream

    /// @dev What a stream has credited at its end, at most all of it.
    function check_stream_creditsNoMoreThanCame_anyRevenue(uint8 revenue) public {
        vm.assume(revenue > 0);
        checkStream(revenue, AWKWARD_SUPPLY, PERIOD);
    }

    function check_stream_creditsNoMoreThanCame_anySupply(uint8 more) public {
        checkStream(1_234_567_891, AWKWARD_SUPPLY + more, PERIOD);
    }

    /// @dev Around the end: the last seconds, and after.
    function check_stream_creditsNoMoreThanCame_anyTime(uint8 time) public {
        checkStream(1_234_567_891, AWKWARD_SUPPLY, PERIOD - 128 + time);
    }

    function checkStream(uint256 revenue, uint256 supply, uint256 time) private {
        shares.mint(ALICE, supply);
        deposit(shares, revenue);
        vm.warp(START + time);
        assert(shares.owedScaled(ALICE) <= revenue * PREC);
    }

    /// @dev Minting into a running stream spreads the rest anew.
    function check_mint_creditsNoMoreThanCame(uint8 minted) public {
        shares.mint(ALICE, AWKWARD_SUPPLY);
        deposit(shares, 1_234_567_891);
        vm.warp(START + 12_345);
        shares.mint(BOB, AWKWARD_SUPPLY / 3 + minted);
        vm.warp(START + PERIOD);
        assert(shares.owedScaled(ALICE) + shares.owedScaled(BOB) <= 1_234_567_891 * PREC);
    }
}
