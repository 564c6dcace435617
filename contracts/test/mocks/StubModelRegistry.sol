// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IModelRegistry} from "../../src/interfaces/IModelRegistry.sol";

/// @notice The one function of a model registry that stakes depend on, with terms as a test wants them.
contract StubModelRegistry {
    mapping(bytes32 modelId => IModelRegistry.SeatTerms) private _terms;

    function setTerms(bytes32 modelId, IModelRegistry.SeatTerms memory terms) external {
        _terms[modelId] = terms;
    }

    function retire(bytes32 modelId) external {
        _terms[modelId].retired = true;
    }

    function seatTermsOf(bytes32 modelId) external view returns (IModelRegistry.SeatTerms memory terms) {
        terms = _terms[modelId];
        if (terms.settlement == address(0)) revert IModelRegistry.ModelRegistryUnknownModel(modelId);
    }
}
