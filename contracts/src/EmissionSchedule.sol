// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/// @notice How many shares an epoch may mint at most: `initial` halves every `halvingEpochs` epochs.
/// @param initial Shares of each of the first `halvingEpochs` epochs.
/// @param halvingEpochs Length of one halving period in epochs, at least 1.
struct Emission {
    uint256 initial;
    uint32 halvingEpochs;
}

/// @title EmissionSchedule
/// @notice The emission and split rules as pure functions; `commonweight/rules` holds the same rules in Python and
/// `tests/vectors/` the values that both must reproduce.
/// @dev What an epoch doesn't mint is lost: no function here looks at what earlier epochs minted.
library EmissionSchedule {
    uint256 internal constant BPS = 10_000;

    /// @notice Upper bound of what epoch `epoch` may mint in total; never increases with `epoch`.
    /// @dev Shifting a uint256 by 256 or more gives 0, so every epoch up to 2^32 - 1 has an answer.
    function emission(uint256 initial, uint32 halvingEpochs, uint32 epoch) internal pure returns (uint256) {
        return initial >> (epoch / halvingEpochs);
    }

    /// @notice A bound on the emission of all epochs together; saturates instead of overflowing.
    /// @dev Σ_k floor(initial / 2^k) < 2·initial, so the supply stays strictly below the bound (for initial > 0).
    function supplyBound(uint256 initial, uint32 halvingEpochs) internal pure returns (uint256) {
        return Math.saturatingMul(Math.saturatingMul(2, initial), halvingEpochs);
    }

    /// @notice Divides an epoch's minted shares: floor for designer and data, the rest for compute.
    /// @dev Expects minted ≤ 2^96 and designerBps + dataBps ≤ 10,000; the three parts always add up to `minted`.
    function split(uint256 minted, uint16 designerBps, uint16 dataBps)
        internal
        pure
        returns (uint256 designer, uint256 data, uint256 compute)
    {
        designer = minted * designerBps / BPS;
        data = minted * dataBps / BPS;
        compute = minted - designer - data;
    }
}
