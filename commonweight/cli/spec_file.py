"""Reading a model's spec: from a file, or from where the registry says that it is."""

from collections.abc import Callable
from pathlib import Path

from commonweight.cli.place import Place, local_path, read_regular
from commonweight.errors import MalformedMessage, SpecError
from commonweight.rules.spec import MAX_SPEC_BYTES, ModelSpec, parse_spec


def read_spec(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> ModelSpec:
    """The spec in a JSON file. Raises SpecError."""
    try:
        return parse_spec(read(path))
    except OSError as error:
        raise SpecError(f"The spec {path} can't be read: {error.strerror}.") from error
    except MalformedMessage as error:
        raise SpecError(f"{path} is no model spec: {Exception.__str__(error)}") from error


def registered_spec(place: Place, given: ModelSpec | None = None) -> ModelSpec:
    """The spec of a registered model: `given`, or that at the address in the registry.

    Raises SpecError where it isn't the one that was registered, ConfigError where it isn't on this machine.
    """
    terms = place.model.terms
    spec = given or read_spec(local_path(terms.spec_uri), lambda path: read_regular(path, MAX_SPEC_BYTES))
    if spec.spec_hash != terms.spec_hash:
        raise SpecError(
            f"The spec's hash is 0x{spec.spec_hash.hex()}; the one registered as {place.model_id} has "
            f"0x{terms.spec_hash.hex()}. Get that one from the model's designer, {terms.designer}."
        )
    return spec
