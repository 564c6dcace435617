// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IModelRegistry} from "./interfaces/IModelRegistry.sol";
import {IProviderRegistry} from "./interfaces/IProviderRegistry.sol";

/// @title ProviderRegistry
/// @notice See {IProviderRegistry}. It has no owner and no setters; a model's part in it follows from the model's terms.
/// @dev Tokens come in by `bond` and with the bonds of reports and contests; all other amounts move between the accounts
/// below, and tokens leave by `withdraw` alone. So the balance is at least Σ free + Σ locked + open bonds.
contract ProviderRegistry is IProviderRegistry, EIP712, ReentrancyGuardTransient {
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    /// @param seats Entries in `_seats` under this owner, in all models.
    struct Account {
        uint96 free;
        uint96 locked;
        uint32 seats;
    }

    /// @inheritdoc IProviderRegistry
    uint256 public constant REPORTER_BPS = 5000;
    uint256 private constant BPS = 10_000;

    bytes32 private constant RECEIPT_TYPEHASH =
        keccak256("Receipt(bytes32 modelId,uint32 stage,bytes32 unit,bytes32 output)");
    bytes32 private constant BINDING_TYPEHASH = keccak256("Binding(address owner)");
    bytes32 private constant RECEIPT_DOMAIN_NAME = keccak256("Commonweight");
    bytes32 private constant RECEIPT_DOMAIN_VERSION = keccak256("1");

    IModelRegistry private immutable REGISTRY;
    IERC20 private immutable BOND_TOKEN;
    /// @inheritdoc IProviderRegistry
    address public immutable treasury;
    /// @inheritdoc IProviderRegistry
    uint256 public immutable reporterBond;

    mapping(address owner => Account) private _accounts;
    mapping(bytes32 modelId => mapping(address owner => Seat[])) private _seats;
    mapping(address signer => address owner) private _ownerOf;
    mapping(address owner => address payout) private _payoutOf;
    /// @dev What a seat was slashed for, so that the same can't take the stake of a later seat.
    mapping(bytes32 key => bool used) private _evidence;
    mapping(uint256 slashId => Slash) private _slashes;
    uint256 private _lastSlashId;

    /// @param bondToken_ One that neither rebases nor has 2^96 units or more in all.
    constructor(IModelRegistry registry_, IERC20 bondToken_, address treasury_, uint256 reporterBond_)
        EIP712("Commonweight Providers", "1")
    {
        if (treasury_ == address(0)) revert ProviderRegistryInvalidPayee(treasury_);
        if (reporterBond_ == 0) revert ProviderRegistryZeroAmount();
        REGISTRY = registry_;
        BOND_TOKEN = bondToken_;
        treasury = treasury_;
        reporterBond = reporterBond_.toUint96();
    }

    // ---------------------------------------------------------------- stake

    /// @inheritdoc IProviderRegistry
    function bond(address owner, uint256 amount) external nonReentrant returns (uint256 received) {
        if (owner == address(0)) revert ProviderRegistryInvalidPayee(owner);
        received = _pull(amount);
        if (received == 0) revert ProviderRegistryNothingReceived();
        _credit(owner, msg.sender, received);
    }

    /// @inheritdoc IProviderRegistry
    function withdraw(address to, uint256 amount) external nonReentrant {
        if (to == address(0) || to == address(this)) revert ProviderRegistryInvalidPayee(to);
        if (amount == 0) revert ProviderRegistryZeroAmount();
        uint96 free = _accounts[msg.sender].free;
        if (amount > free) revert ProviderRegistryInsufficientStake(free, amount);
        _accounts[msg.sender].free = SafeCast.toUint96(free - amount);
        emit Withdrawn(msg.sender, to, amount);
        BOND_TOKEN.safeTransfer(to, amount);
    }

    /// @inheritdoc IProviderRegistry
    function bindSigner(address signer, bytes calldata signature) external {
        if (_ownerOf[signer] != address(0) || _accounts[signer].seats != 0) {
            revert ProviderRegistrySignerTaken(signer, ownerOf(signer));
        }
        address recovered = _recover(bindingDigest(msg.sender), signature);
        if (recovered == address(0) || recovered != signer) revert ProviderRegistryBadSignature(recovered);
        _ownerOf[signer] = msg.sender;
        emit SignerBound(msg.sender, signer);
    }

    /// @inheritdoc IProviderRegistry
    function setPayout(address payout) external {
        _payoutOf[msg.sender] = payout;
        emit PayoutSet(msg.sender, payout);
    }

    /// @dev Takes `amount` from the caller's allowance; returns what came.
    function _pull(uint256 amount) private returns (uint256) {
        uint256 before = BOND_TOKEN.balanceOf(address(this));
        BOND_TOKEN.safeTransferFrom(msg.sender, address(this), amount);
        return BOND_TOKEN.balanceOf(address(this)) - before;
    }

    function _pullReporterBond() private {
        uint256 received = _pull(reporterBond);
        if (received < reporterBond) revert ProviderRegistryBondTooSmall(received, reporterBond);
    }

    function _credit(address owner, address from, uint256 amount) private {
        _accounts[owner].free = SafeCast.toUint96(_accounts[owner].free + amount);
        emit Bonded(owner, from, amount);
    }

    // ---------------------------------------------------------------- seats

    /// @inheritdoc IProviderRegistry
    function takeSeat(bytes32 modelId, uint16 stage) external {
        IModelRegistry.SeatTerms memory terms = REGISTRY.seatTermsOf(modelId);
        if (terms.providers != address(this)) revert ProviderRegistryForeignModel(modelId, terms.providers);
        if (terms.retired) revert ProviderRegistryModelRetired(modelId);
        if (stage >= terms.stages) revert ProviderRegistryUnknownStage(stage, terms.stages);
        address boundTo = ownerOf(msg.sender);
        if (boundTo != msg.sender) revert ProviderRegistrySignerTaken(msg.sender, boundTo);

        Seat[] storage seats = _seats[modelId][msg.sender];
        uint256 index = _indexOf(seats, stage);
        if (index < seats.length) {
            Seat storage seat = seats[index];
            if (seat.releasableAt == 0) revert ProviderRegistryAlreadySeated(modelId, stage);
            if (seat.slashed) revert ProviderRegistrySeatLeft(seat.releasableAt);
            seat.releasableAt = 0;
        } else {
            if (index >= terms.maxStagesPerOwner) revert ProviderRegistryCustodyCap(index, terms.maxStagesPerOwner);
            Account storage account = _accounts[msg.sender];
            uint96 free = account.free;
            if (free < terms.seatStake) revert ProviderRegistryInsufficientStake(free, terms.seatStake);
            account.free = free - terms.seatStake;
            account.locked += terms.seatStake;
            account.seats++;
            seats.push(Seat(stage, terms.seatStake, 0, 0, false));
        }
        emit SeatTaken(modelId, msg.sender, stage, terms.seatStake);
    }

    /// @inheritdoc IProviderRegistry
    function leaveSeat(bytes32 modelId, uint16 stage) external {
        Seat storage seat = _seatOf(modelId, msg.sender, stage);
        if (seat.releasableAt != 0) revert ProviderRegistrySeatLeft(seat.releasableAt);
        _leave(seat, modelId, msg.sender, REGISTRY.seatTermsOf(modelId).seatCooldown);
    }

    /// @inheritdoc IProviderRegistry
    function releaseSeat(bytes32 modelId, address owner, uint16 stage) external {
        Seat[] storage seats = _seats[modelId][owner];
        uint256 index = _indexOf(seats, stage);
        if (index == seats.length) revert ProviderRegistryNoSeat(modelId, owner, stage);
        Seat memory seat = seats[index];
        if (seat.releasableAt == 0) revert ProviderRegistryAlreadySeated(modelId, stage);
        if (!_passed(seat.releasableAt)) revert ProviderRegistryTooEarly(seat.releasableAt);
        if (seat.openSlashes != 0) revert ProviderRegistrySlashesOpen(seat.openSlashes);

        seats[index] = seats[seats.length - 1];
        seats.pop();
        Account storage account = _accounts[owner];
        account.free += seat.stake;
        account.locked -= seat.stake;
        account.seats--;
        emit SeatReleased(modelId, owner, stage, seat.stake);
    }

    function _leave(Seat storage seat, bytes32 modelId, address owner, uint32 cooldown) private {
        uint256 releasableAt = block.timestamp + cooldown;
        seat.releasableAt = releasableAt.toUint40();
        emit SeatLeft(modelId, owner, seat.stage, releasableAt);
    }

    /// @dev `seats.length` if there is none. At most 64 entries: `maxStagesPerOwner` is bounded by it.
    function _indexOf(Seat[] storage seats, uint16 stage) private view returns (uint256 index) {
        uint256 length = seats.length;
        while (index < length && seats[index].stage != stage) index++;
    }

    function _seatOf(bytes32 modelId, address owner, uint16 stage) private view returns (Seat storage) {
        Seat[] storage seats = _seats[modelId][owner];
        uint256 index = _indexOf(seats, stage);
        if (index == seats.length) revert ProviderRegistryNoSeat(modelId, owner, stage);
        return seats[index];
    }

    // ---------------------------------------------------------------- slashing

    /// @inheritdoc IProviderRegistry
    function slashEquivocation(
        Receipt calldata a,
        bytes calldata signatureA,
        Receipt calldata b,
        bytes calldata signatureB
    ) external {
        if (a.modelId != b.modelId || a.stage != b.stage || a.unit != b.unit || a.output == b.output) {
            revert ProviderRegistryNotEquivocation();
        }
        IModelRegistry.SeatTerms memory terms = REGISTRY.seatTermsOf(a.modelId);
        address owner = ownerOf(_signerOfBoth(a, signatureA, b, signatureB, terms.settlement));
        uint16 stage = uint256(a.stage).toUint16();
        // The unit, not the receipts: neither their order nor a third one makes new evidence. One word more than the
        // evidence of a proposal, so that nobody can use it up by one.
        bytes32 key = keccak256(abi.encode(a.modelId, owner, stage, a.unit, RECEIPT_TYPEHASH));
        if (_evidence[key]) revert ProviderRegistryEvidenceUsed(a.unit);
        _evidence[key] = true;
        _slash(_slashableSeat(a.modelId, owner, stage), a.modelId, owner, terms.seatCooldown, a.unit, msg.sender);
    }

    function _signerOfBoth(
        Receipt calldata a,
        bytes calldata signatureA,
        Receipt calldata b,
        bytes calldata signatureB,
        address settlement
    ) private view returns (address signer) {
        signer = _recover(_receiptDigest(a, settlement), signatureA);
        if (signer == address(0)) revert ProviderRegistryBadSignature(signer);
        address other = _recover(_receiptDigest(b, settlement), signatureB);
        if (other != signer) revert ProviderRegistryBadSignature(other);
    }

    /// @inheritdoc IProviderRegistry
    function proposeSlash(bytes32 modelId, address owner, uint16 stage, bytes32 evidenceHash, string calldata uri)
        external
        nonReentrant
        returns (uint256 slashId)
    {
        _pullReporterBond();
        if (_evidence[_evidenceKey(modelId, owner, stage, evidenceHash)]) {
            revert ProviderRegistryEvidenceUsed(evidenceHash);
        }
        _slashableSeat(modelId, owner, stage).openSlashes++;
        uint256 deadline = block.timestamp + REGISTRY.seatTermsOf(modelId).window;
        slashId = ++_lastSlashId;
        _slashes[slashId] = Slash({
            modelId: modelId,
            owner: owner,
            stage: stage,
            status: SlashStatus.Proposed,
            deadline: deadline.toUint40(),
            reporter: msg.sender,
            contester: address(0),
            evidenceHash: evidenceHash
        });
        emit SlashProposed(slashId, modelId, owner, stage, msg.sender, evidenceHash, deadline, uri);
    }

    /// @inheritdoc IProviderRegistry
    function contestSlash(uint256 slashId, string calldata uri) external nonReentrant {
        _pullReporterBond();
        Slash storage proposal = _slashIn(slashId, SlashStatus.Proposed);
        if (_passed(proposal.deadline)) revert ProviderRegistryTooLate(proposal.deadline);
        uint256 deadline = block.timestamp + REGISTRY.seatTermsOf(proposal.modelId).arbitration;
        proposal.status = SlashStatus.Contested;
        proposal.deadline = deadline.toUint40();
        proposal.contester = msg.sender;
        emit SlashContested(slashId, msg.sender, deadline, uri);
    }

    /// @inheritdoc IProviderRegistry
    function resolveSlash(uint256 slashId, bool uphold) external {
        Slash storage proposal = _slashIn(slashId, SlashStatus.Contested);
        IModelRegistry.SeatTerms memory terms = REGISTRY.seatTermsOf(proposal.modelId);
        if (msg.sender != terms.arbiter) revert ProviderRegistryNotArbiter(msg.sender);
        if (_passed(proposal.deadline)) revert ProviderRegistryTooLate(proposal.deadline);
        if (uphold) {
            _execute(slashId, proposal, terms.seatCooldown);
        } else {
            _drop(slashId, proposal, true);
            _credit(proposal.contester, address(this), reporterBond);
            _divide(proposal.contester, reporterBond);
        }
    }

    /// @inheritdoc IProviderRegistry
    function executeSlash(uint256 slashId) external {
        Slash storage proposal = _slashIn(slashId, SlashStatus.Proposed);
        if (!_passed(proposal.deadline)) revert ProviderRegistryTooEarly(proposal.deadline);
        _execute(slashId, proposal, REGISTRY.seatTermsOf(proposal.modelId).seatCooldown);
    }

    /// @inheritdoc IProviderRegistry
    function dropSlash(uint256 slashId) external {
        Slash storage proposal = _slashIn(slashId, SlashStatus.Contested);
        if (!_passed(proposal.deadline)) revert ProviderRegistryTooEarly(proposal.deadline);
        _drop(slashId, proposal, false);
        _returnBonds(proposal);
    }

    function _slashIn(uint256 slashId, SlashStatus status) private view returns (Slash storage proposal) {
        proposal = _slashes[slashId];
        if (proposal.status != status) revert ProviderRegistryWrongStatus(slashId, proposal.status);
    }

    /// @dev Slashes, or drops if another proposal was faster; who contested it was wrong either way.
    function _execute(uint256 slashId, Slash storage proposal, uint32 cooldown) private {
        (bytes32 modelId, address owner, uint16 stage) = (proposal.modelId, proposal.owner, proposal.stage);
        Seat storage seat = _seatOf(modelId, owner, stage);
        (bytes32 evidenceHash, address reporter) = (proposal.evidenceHash, proposal.reporter);
        if (seat.slashed) {
            _drop(slashId, proposal, false);
        } else {
            proposal.status = SlashStatus.Executed;
            seat.openSlashes--;
            _evidence[_evidenceKey(modelId, owner, stage, evidenceHash)] = true;
            _slash(seat, modelId, owner, cooldown, evidenceHash, reporter);
        }
        _credit(reporter, address(this), reporterBond);
        if (proposal.contester != address(0)) _divide(reporter, reporterBond);
    }

    function _drop(uint256 slashId, Slash storage proposal, bool byArbiter) private {
        proposal.status = SlashStatus.Dropped;
        _seatOf(proposal.modelId, proposal.owner, proposal.stage).openSlashes--;
        emit SlashDropped(slashId, byArbiter);
    }

    function _returnBonds(Slash storage proposal) private {
        _credit(proposal.reporter, address(this), reporterBond);
        if (proposal.contester != address(0)) _credit(proposal.contester, address(this), reporterBond);
    }

    /// @dev The seat keeps its entry, and with it its place under the custody cap, for the cool-down.
    function _slash(
        Seat storage seat,
        bytes32 modelId,
        address owner,
        uint32 cooldown,
        bytes32 evidenceHash,
        address reporter
    ) private {
        uint96 amount = seat.stake;
        seat.stake = 0;
        seat.slashed = true;
        _accounts[owner].locked -= amount;
        emit Slashed(modelId, owner, seat.stage, amount, evidenceHash, reporter);
        if (seat.releasableAt == 0) _leave(seat, modelId, owner, cooldown);
        _divide(reporter, amount);
    }

    /// @dev `REPORTER_BPS` of what another has lost to `winner`, the rest to the treasury.
    function _divide(address winner, uint256 amount) private {
        uint256 part = amount * REPORTER_BPS / BPS;
        _credit(winner, address(this), part);
        _credit(treasury, address(this), amount - part);
    }

    /// @dev Held, or left within the cool-down, and not slashed.
    function _slashableSeat(bytes32 modelId, address owner, uint16 stage) private view returns (Seat storage seat) {
        seat = _seatOf(modelId, owner, stage);
        if (seat.slashed || (seat.releasableAt != 0 && _passed(seat.releasableAt))) {
            revert ProviderRegistryNoSeat(modelId, owner, stage);
        }
    }

    function _evidenceKey(bytes32 modelId, address owner, uint16 stage, bytes32 evidenceHash)
        private
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(modelId, owner, stage, evidenceHash));
    }

    // ---------------------------------------------------------------- views

    /// @inheritdoc IProviderRegistry
    function freeStakeOf(address owner) external view returns (uint256) {
        return _accounts[owner].free;
    }

    /// @inheritdoc IProviderRegistry
    function lockedStakeOf(address owner) external view returns (uint256) {
        return _accounts[owner].locked;
    }

    /// @inheritdoc IProviderRegistry
    function ownerOf(address signer) public view returns (address) {
        address owner = _ownerOf[signer];
        return owner == address(0) ? signer : owner;
    }

    /// @inheritdoc IProviderRegistry
    function payoutOf(address owner) external view returns (address) {
        address payout = _payoutOf[owner];
        return payout == address(0) ? owner : payout;
    }

    /// @inheritdoc IProviderRegistry
    function seatsOf(bytes32 modelId, address owner) external view returns (Seat[] memory) {
        return _seats[modelId][owner];
    }

    /// @inheritdoc IProviderRegistry
    function isSeated(bytes32 modelId, address owner, uint16 stage) external view returns (bool) {
        Seat[] storage seats = _seats[modelId][owner];
        uint256 index = _indexOf(seats, stage);
        return index < seats.length && seats[index].releasableAt == 0;
    }

    /// @inheritdoc IProviderRegistry
    function slash(uint256 slashId) external view returns (Slash memory) {
        return _slashes[slashId];
    }

    /// @inheritdoc IProviderRegistry
    function receiptDigest(Receipt calldata receipt) external view returns (bytes32) {
        return _receiptDigest(receipt, REGISTRY.seatTermsOf(receipt.modelId).settlement);
    }

    /// @inheritdoc IProviderRegistry
    function bindingDigest(address owner) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(BINDING_TYPEHASH, owner)));
    }

    /// @inheritdoc IProviderRegistry
    function bondToken() external view returns (address) {
        return address(BOND_TOKEN);
    }

    /// @inheritdoc IProviderRegistry
    function registry() external view returns (address) {
        return address(REGISTRY);
    }

    function _receiptDigest(Receipt calldata receipt, address settlement) private view returns (bytes32) {
        bytes32 domain = MessageHashUtils.toDomainSeparator(
            bytes1(0x0f), RECEIPT_DOMAIN_NAME, RECEIPT_DOMAIN_VERSION, block.chainid, settlement, bytes32(0)
        );
        return MessageHashUtils.toTypedDataHash(domain, keccak256(abi.encode(RECEIPT_TYPEHASH, receipt)));
    }

    /// @dev Zero for what is no signature; 65 bytes r ‖ s ‖ v, s in the lower half, v 27 or 28.
    function _recover(bytes32 digest, bytes calldata signature) private pure returns (address recovered) {
        (recovered,,) = ECDSA.tryRecoverCalldata(digest, signature);
    }

    function _passed(uint256 deadline) private view returns (bool) {
        // Validators can shift the time by seconds, against periods of hours to days.
        // forge-lint: disable-next-line(block-timestamp)
        return block.timestamp >= deadline;
    }
}
