"""Where there can be no network namespaces, it is said why."""

import sys

import pytest

from commonweight.errors import ConfigError
from commonweight.links import namespaces
from commonweight.links.namespaces import Namespaces, why_not


@pytest.mark.asyncio
async def test_a_machine_without_tun_or_without_the_right_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "TUN", "/dev/nowhere")
    reason = why_not()
    assert reason in (
        "network namespaces are Linux's",
        "/dev/nowhere: No such file or directory (it takes root)",
        "a network namespace: Operation not permitted (it takes root)",
    )
    with pytest.raises(ConfigError) as refused:
        await Namespaces(["a"]).__aenter__()
    assert reason in str(refused.value)


def test_another_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert why_not() == "network namespaces are Linux's"
