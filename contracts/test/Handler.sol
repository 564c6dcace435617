// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {EpochSettlement} from "../src/EpochSettlement.sol";
import {ModelShares} from "../src/ModelShares.sol";
import {RevenueRouter} from "../src/RevenueRouter.sol";
import {TestUSD} from "../src/devnet/TestUSD.sol";
import {IEpochSettlement} from "../src/interfaces/IEpochSettlement.sol";
import {IModelRegistry} from "../src/interfaces/IModelRegistry.sol";
import {IRevenueRouter} from "../src/interfaces/IRevenueRouter.sol";
import {Ledger} from "./Ledger.sol";

/// @notice The actions of an invariant run, and a reference ledger kept beside them in the plainest way: as if all shares
/// moved to their owners the moment their epoch is finalised, and the stream were paid out at each action.
/// @dev The reference reads nothing from the contracts that it is to be compared with.
contract Handler is Ledger {
    address private constant OTHER_CHALLENGER = address(0xC5);
    uint256 private constant GENESIS_DESIGNER = 30e18;
    uint256 private constant GENESIS_DATA = 7e18;

    address[] internal holders;
    address[] internal bonded;

    // ------------------------------------------------------------------ the reference: shares and revenue

    /// @dev Shares that are the account's, claimed or not, and of them those that it hasn't claimed.
    mapping(address account => uint256) public held;
    mapping(address account => uint256) public unclaimed;
    /// @dev Scaled revenue that those have earned, and what of it was withdrawn, in the token's smallest unit.
    mapping(address account => uint256) public earned;
    mapping(address account => uint256) public withdrawnBy;
    uint256 public supply = GENESIS_DESIGNER + GENESIS_DATA;
    uint256 public undistributed;
    uint256 public streamEnd;
    uint256 private rate;
    uint256 private paidUntil;
    uint256 private acc;
    uint256 public deposited;
    uint256 public withdrawn;
    uint256 public donated;

    // ------------------------------------------------------------------ the reference: epochs, bonds, router

    mapping(uint32 epoch => bytes32) public rootOf;
    mapping(uint32 epoch => uint256) public mintedIn;
    mapping(uint32 epoch => uint256) public accAtOf;
    uint32 public finalizedEpochs;
    mapping(address account => uint256) public bondOf;
    uint256 public openChallengerBonds;
    /// @dev Of bonds of proposers who lost.
    uint256 public burnt;
    uint256 public unswept;
    uint256 public operatorEarned;
    mapping(address account => uint256) private operatorPaid;
    uint256 public operatorPaidOut;
    uint256 public treasuryPool;
    uint256 private nonce;
    uint256 private turnOfClaims;
    uint256 private turnOfRouter;
    uint256 private proposals;

    // ------------------------------------------------------------------ what happened, for `afterInvariant`

    uint256 public actions;
    uint256 public claims;
    uint256 public splits;
    uint256 public disputes;
    uint256 public transfers;
    uint256 public withdrawals;
    uint256 public collections;
    uint256 public sweeps;
    uint256 private lastAcc;
    bool public accFell;

    /// @dev Pays the stream out up to now before each action, and looks at the accumulator after it.
    modifier counted() {
        actions++;
        pay();
        _;
        if (shares.accPerShare() < lastAcc) accFell = true;
        lastAcc = shares.accPerShare();
    }

    constructor() {
        setUp();
        IModelRegistry.Params memory p = params("invariants");
        (p.genesisDesigner, p.genesisData) = (GENESIS_DESIGNER, GENESIS_DATA);
        open(p);
        addProviders(4);
        for (uint256 i = 0; i < providers.length; i++) {
            holders.push(providers[i]);
        }
        holders.push(DESIGNER);
        holders.push(DATA);
        (held[DESIGNER], held[DATA]) = (GENESIS_DESIGNER, GENESIS_DATA);
        bonded.push(COORDINATOR);
        bonded.push(CHALLENGER);
        bonded.push(OTHER_CHALLENGER);
        bondOf[COORDINATOR] = PROPOSER_BOND;
        lastAcc = shares.accPerShare();
    }

    function fixture()
        external
        view
        returns (ModelShares, EpochSettlement, RevenueRouter, TestUSD, address[] memory, address[] memory)
    {
        return (shares, settlement, router, usd, holders, bonded);
    }

    // ------------------------------------------------------------------ the reference's rules

    /// @dev Pays each account its share of what has streamed since the last action.
    function pay() public {
        uint256 until = Math.min(block.timestamp, streamEnd);
        if (until <= paidUntil) return;
        uint256 perShare = rate * (until - paidUntil);
        for (uint256 i = 0; i < holders.length; i++) {
            earned[holders[i]] += held[holders[i]] * perShare;
        }
        undistributed -= supply * perShare;
        acc += perShare;
        paidUntil = until;
    }

    function give(address account, uint256 amount) private {
        held[account] += amount;
        unclaimed[account] += amount;
        supply += amount;
    }

    function setRate() private {
        uint256 remaining = timeLeft(streamEnd);
        if (remaining != 0) rate = undistributed / (supply * remaining);
    }

    function addRevenue(uint256 amount) private {
        uint256 added = amount * PREC;
        uint256 remaining = timeLeft(streamEnd);
        streamEnd = block.timestamp
            + (remaining == 0 ? PERIOD : remaining + added * (PERIOD - remaining) / (undistributed + added));
        undistributed += added;
        paidUntil = block.timestamp;
        deposited += amount;
        setRate();
    }

    /// @dev Revenue not yet withdrawn that the account could reach by claiming first.
    function reachable(address account) external view returns (uint256 revenueScaled) {
        revenueScaled = shares.owedScaled(account);
        if (unclaimed[account] == 0) return revenueScaled;
        if (account == DESIGNER) return revenueScaled + splitRevenue(DESIGNER_BPS);
        if (account == DATA) return revenueScaled + splitRevenue(DATA_BPS);
        (uint256 amount, uint256 more) =
            settlement.claimable(entry(finalizedEpochs - 1, account), finalOf(finalizedEpochs - 1));
        vm.assertEq(amount, unclaimed[account], "claimable shares");
        return revenueScaled + more;
    }

    /// @dev What a part of the epochs whose split isn't claimed has earned.
    function splitRevenue(uint256 bps) private view returns (uint256 revenueScaled) {
        for (uint32 e = settlement.splitClaimedUntil(); e < finalizedEpochs; e++) {
            revenueScaled += mintedIn[e] * bps / 10_000 * (acc - accAtOf[e]);
        }
    }

    // ------------------------------------------------------------------ actions: epochs

    /// @dev Takes the next epoch one step further: proposed, every other time challenged, decided (upheld, rejected, or left
    /// to silence, in turn), finalised.
    function advance(uint256 amount, uint256[4] memory seeds) external counted {
        IEpochSettlement.Pending memory p = settlement.pending();
        uint32 e = p.epoch;
        if (!p.exists) {
            proposeNext(e, amount, seeds);
        } else if (p.upheld) {
            finalizeNext(e);
        } else if (p.challenger != address(0)) {
            decide(e, p.challenger);
        } else if (proposals % 2 == 1 && timeLeft(p.finalizableAt) != 0) {
            dispute(e, seeds[0]);
        } else {
            passUntil(p.finalizableAt);
            finalizeNext(e);
        }
    }

    function proposeNext(uint32 e, uint256 amount, uint256[4] memory seeds) private {
        if (bondOf[COORDINATOR] < PROPOSER_BOND) addBond(COORDINATOR, PROPOSER_BOND);
        uint256[] memory weights = new uint256[](4);
        for (uint256 i = 0; i < 4; i++) {
            weights[i] = bound(seeds[i], i == 0 ? 1 : 0, 1e12);
        }
        mintedIn[e] = bound(amount, 0, settlement.emissionOf(e));
        proposeShares(e, mintedIn[e], weights);
        rootOf[e] = settlement.pending().root;
        proposals++;
    }

    function dispute(uint32 e, uint256 who) private {
        address challenger = bonded[1 + who % 2];
        fund(challenger, address(settlement), CHALLENGER_BOND);
        vm.prank(challenger);
        settlement.challengeEpoch(e, rootOf[e], EVIDENCE, URI);
        openChallengerBonds += CHALLENGER_BOND;
    }

    function decide(uint32 e, address challenger) private {
        uint256 until = settlement.pending().resolvableUntil;
        if (disputes++ % 3 == 2 || timeLeft(until) == 0) {
            passUntil(until);
            settlement.expireChallenge(e);
            bondOf[challenger] += CHALLENGER_BOND;
        } else if (disputes % 3 == 1) {
            resolve(e, true);
            bondOf[COORDINATOR] += CHALLENGER_BOND;
        } else {
            resolve(e, false);
            bondOf[COORDINATOR] -= PROPOSER_BOND;
            bondOf[challenger] += PROPOSER_BOND / 2 + CHALLENGER_BOND;
            burnt += PROPOSER_BOND - PROPOSER_BOND / 2;
        }
        openChallengerBonds -= CHALLENGER_BOND;
    }

    function finalizeNext(uint32 e) private {
        finalizeShares(e);
        finalizedEpochs = e + 1;
        accAtOf[e] = acc;
        (uint256 designer, uint256 data) = (mintedIn[e] * DESIGNER_BPS / 10_000, mintedIn[e] * DATA_BPS / 10_000);
        give(DESIGNER, designer);
        give(DATA, data);
        for (uint256 i = 0; i < leavesOf[e].length; i++) {
            give(leavesOf[e][i].account, leavesOf[e][i].epochShares);
        }
        if (mintedIn[e] != 0) setRate();
    }

    // ------------------------------------------------------------------ actions: claims

    /// @dev One claim, claims for all, and the split of some epochs, in turn.
    function claim(uint256 who, uint256 count) external counted {
        uint256 turn = turnOfClaims++ % 3;
        if (turn == 0) claimOne(who);
        else if (turn == 1) claimMany();
        else claimSplit(count);
    }

    function claimOne(uint256 who) private {
        address account = providers[who % providers.length];
        if (unclaimed[account] == 0) return;
        claimFor(finalizedEpochs - 1, account);
        unclaimed[account] = 0;
        claims++;
    }

    /// @dev Claims for all providers that have something to claim, in one call.
    function claimMany() private {
        uint256 count = 0;
        for (uint256 i = 0; i < providers.length; i++) {
            if (unclaimed[providers[i]] != 0) count++;
        }
        if (count == 0) return;
        IEpochSettlement.Claim[] memory list = new IEpochSettlement.Claim[](count);
        for (uint256 i = 0; i < providers.length; i++) {
            if (unclaimed[providers[i]] != 0) list[--count] = entry(finalizedEpochs - 1, providers[i]);
        }
        settlement.claimMany(list, finalOf(finalizedEpochs - 1));
        for (uint256 i = 0; i < list.length; i++) {
            book(list[i]);
            unclaimed[list[i].account] = 0;
        }
        claims += list.length;
    }

    function claimSplit(uint256 count) private {
        uint32 first = settlement.splitClaimedUntil();
        if (first == finalizedEpochs) return;
        // forge-lint: disable-next-line(unsafe-typecast) -- at most finalizedEpochs
        uint32 end = first + uint32(bound(count, 1, finalizedEpochs - first));
        settlement.claimSplit(finalsOf(first, end));
        for (uint32 e = first; e < end; e++) {
            unclaimed[DESIGNER] -= mintedIn[e] * DESIGNER_BPS / 10_000;
            unclaimed[DATA] -= mintedIn[e] * DATA_BPS / 10_000;
        }
        splits++;
    }

    // ------------------------------------------------------------------ actions: shares

    function transfer(uint256 from, uint256 to, uint256 amount) external counted {
        (address sender, address receiver) = (holders[from % holders.length], holders[to % holders.length]);
        amount = bound(amount, 0, held[sender] - unclaimed[sender]);
        vm.prank(sender);
        require(shares.transfer(receiver, amount), "transfer");
        held[sender] -= amount;
        held[receiver] += amount;
        transfers++;
    }

    function depositRevenue(uint256 amount) external counted {
        amount = bound(amount, 1, 1e24);
        deposit(amount);
        addRevenue(amount);
        usd.mint(address(shares), 5); // a donation, which counts nowhere
        donated += 5;
    }

    function withdrawRevenue(uint256 who) external counted {
        address holder = holders[who % holders.length];
        if (shares.owed(holder) == 0) return;
        uint256 amount = shares.withdrawRevenueFor(holder);
        withdrawnBy[holder] += amount;
        withdrawn += amount;
        withdrawals++;
    }

    // ------------------------------------------------------------------ actions: bonds

    function moveBond(uint256 who, uint256 amount) external counted {
        address account = bonded[who % bonded.length];
        if (amount % 2 == 0) addBond(account, bound(amount, 1, 1e12));
        else withdrawBond(account, amount);
    }

    function addBond(address account, uint256 amount) private {
        postBond(account, amount);
        bondOf[account] += amount;
    }

    function withdrawBond(address account, uint256 amount) private {
        if (account == COORDINATOR && settlement.pending().exists) return;
        amount = bound(amount, 0, bondOf[account]);
        vm.prank(account);
        settlement.withdrawBond(BUYER, amount);
        bondOf[account] -= amount;
    }

    // ------------------------------------------------------------------ actions: the router

    /// @dev Two kinds of payments in, a sweep, and two kinds out, in turn.
    function useRouter(uint256 a, uint256 b) external counted {
        uint256 turn = turnOfRouter++ % 5;
        if (turn == 0) collect(a, b);
        else if (turn == 1) payPlainly(a);
        else if (turn == 2) sweep();
        else if (turn == 3) payOperator(a);
        else payTreasury();
    }

    function collect(uint256 value, uint256 charged) private {
        value = bound(value, 0, 1e18);
        charged = bound(charged, 0, value);
        usd.mint(vm.addr(PAYER_KEY), value);
        IRevenueRouter.Authorization memory authorization = authorize(value, bytes32(++nonce));
        vm.prank(COORDINATOR);
        router.collect(authorization, charged);
        unswept += charged;
        collections++;
    }

    /// @dev A plain transfer.
    function payPlainly(uint256 amount) private {
        amount = bound(amount, 1, 1e18);
        usd.mint(address(router), amount);
        unswept += amount;
    }

    function sweep() private {
        if (unswept == 0) return;
        router.sweep();
        (uint256 operators, uint256 treasury) = (unswept * OPERATOR_BPS / 10_000, unswept * TREASURY_BPS / 10_000);
        operatorEarned += operators;
        treasuryPool += treasury;
        addRevenue(unswept - operators - treasury);
        unswept = 0;
        sweeps++;
    }

    /// @dev Pays the first operator, from `who` on, that has something to get.
    function payOperator(uint256 who) private {
        if (finalizedEpochs == 0) return;
        for (uint256 i = 0; i < providers.length; i++) {
            IEpochSettlement.Claim memory c = entry(finalizedEpochs - 1, providers[(who % 4 + i) % 4]);
            uint256 paid = operatorPaid[c.account];
            if (c.operatorRevenue == paid) continue;
            router.payOperator(c, finalOf(finalizedEpochs - 1));
            operatorPaid[c.account] = c.operatorRevenue;
            operatorPaidOut += c.operatorRevenue - paid;
            return;
        }
    }

    function payTreasury() private {
        if (treasuryPool == 0) return;
        vm.prank(TREASURY);
        router.payTreasury(TREASURY);
        treasuryPool = 0;
    }

    // ------------------------------------------------------------------ time

    function wait(uint256 time) external counted {
        passUntil(block.timestamp + bound(time, 1, 3 * uint256(PERIOD)));
    }

    function passUntil(uint256 time) private {
        elapse(timeLeft(time));
        pay();
    }

    function timeLeft(uint256 until) private view returns (uint256) {
        return Math.saturatingSub(until, block.timestamp);
    }
}
