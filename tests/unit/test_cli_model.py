"""`commonweight model show` and `commonweight data build`: numbers that agree with the model itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commonweight.cli import data, model
from commonweight.cli.model_facts import cheats_of, eras_of
from commonweight.cli.output import format_amount, format_engineering, format_percent, format_rounded
from commonweight.devnet.spec import devnet_spec
from commonweight.errors import CommonweightError, DataError, SpecError
from commonweight.rules.canonical import canonical_json
from commonweight.rules.economics import Cheat, waving_rate
from commonweight.rules.emission import emission
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.stages import boundary_bytes_per_token, stage_layers, stage_parameters


def spec_with(stages: int = 4, **architecture: Any) -> ModelSpec:
    fields = devnet_spec(stages, 1, "0x" + "ab" * 32, 10**6, rounds_per_epoch=30).model_dump()
    fields["architecture"] |= architecture
    return build_spec(fields)


def show(*arguments: object) -> str:
    result = CliRunner().invoke(model.app, ["show", *map(str, arguments)])
    if isinstance(result.exception, CommonweightError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_bytes(canonical_json(spec_with().model_dump()))
    return path


@pytest.mark.parametrize("boundary_dim", [32, 128], ids=["subspace", "dense"])
@pytest.mark.parametrize("stages", [1, 3, 8])
def test_stage_parameters_are_those_of_the_module(stages: int, boundary_dim: int) -> None:
    import torch

    from commonweight.model.decoder import Decoder

    spec = spec_with(stages, boundary_dim=boundary_dim)
    for stage, layers in enumerate(stage_layers(spec)):
        with torch.device("meta"):
            decoder = Decoder(spec.architecture, layers, 8, first=stage == 0, last=stage == stages - 1)
        assert stage_parameters(spec, stage) == sum(p.numel() for p in decoder.parameters())


@pytest.mark.parametrize(("vocab_size", "id_bytes"), [(256, 1), (257, 2), (2**16, 2), (2**16 + 1, 4)])
def test_boundary_bytes(vocab_size: int, id_bytes: int) -> None:
    boundary = boundary_bytes_per_token(spec_with(vocab_size=vocab_size))
    assert boundary.sent == 2 * 32 * 4 + id_bytes
    assert boundary.uncompressed == 2 * 128 * 4


def test_a_model_is_told_in_words(spec_file: Path) -> None:
    lines = show(spec_file).splitlines()
    assert lines[0].split() == ["model", "devnet"]
    assert "0x" + spec_with().spec_hash.hex() in lines[1]
    assert any("257 bytes both ways" in line and "1,024, 4.0 times" in line for line in lines)
    assert any(line.startswith("round") and "8,192 tokens" in line for line in lines)
    stages = lines[lines.index("Stages") + 2 :][:4]
    assert [line.split()[:2] for line in stages] == [["0", "0–1"], ["1", "2–3"], ["2", "4–5"], ["3", "6–7"]]
    assert "0–3                   1,000,000       4,000,000" in lines
    assert "10.00 % designer, 10.00 % data, 80.00 % compute" in lines[-1]


def rates(**changed: str) -> ModelSpec:
    fields = spec_with().model_dump()
    fields["verification"] |= {f"{kind}_rate": rate for kind, rate in changed.items()}
    return build_spec(fields)


def test_verification_is_told_in_words(spec_file: Path) -> None:
    spec_file.write_bytes(canonical_json(rates(round="0.02", microbatch="0.05", data="0.05").model_dump()))
    lines = [" ".join(line.split()) for line in show(spec_file).splitlines()]
    assert "a whole round 2.00 % 0.6 2.00 %" in lines
    assert "one microbatch and the step 5.00 % 1.47 0.31 %" in lines
    assert "text, on stage 0 5.00 % 24 0.00 %" in lines
    assert "together 2.31 %" in lines
    # Of a round that is drawn at 0.02 + 0.98 * 0.05 = 0.069: 1 - 0.931^15, 1 - 0.931^30; and with a third of the
    # auditors colluding 1 / (1 - (1 - 0.069 * 2/3)^30) - 1. Of one microbatch of 16 at 0.02 + 0.049 / 16.
    assert "whole rounds 65.78 % 88.29 % 0.322" in lines
    assert "gradients or steps of rounds 65.78 % 88.29 % 0.000" in lines
    assert "gradients of rounds, in one microbatch 29.53 % 50.34 % 0.000" in lines
    assert "text, on stage 0 > 99.99 % > 99.99 % 0.000" in lines
    assert any("to who leaves for good at most 13.5 rounds' pay" in line for line in lines)  # 1 / 0.069 - 1


@pytest.mark.parametrize(("rate", "count"), [("0.1", 44), ("0.01", 459), ("1", 1)])
def test_how_soon_false_answers_are_found_is_told(spec_file: Path, rate: str, count: int) -> None:
    spec_file.write_bytes(canonical_json(rates(answer=rate).model_dump()))
    assert f"falsifies every one is caught within {count} with a probability of 99%." in show(spec_file)
    verification = json.loads(show(spec_file, "--json"))["verification"]
    assert (verification["answer_rate"], verification["answers_until_caught"]) == (rate, count)
    found = 1 - (1 - float(rate)) ** count
    assert found >= 0.99 > 1 - (1 - float(rate)) ** (count - 1)


def test_that_answers_aren_t_audited_is_told(spec_file: Path) -> None:
    spec_file.write_bytes(canonical_json(rates(answer="0").model_dump()))
    assert "Answers aren't audited" in show(spec_file)
    assert json.loads(show(spec_file, "--json"))["verification"]["answers_until_caught"] is None


def test_auditors_are_told_in_words(spec_file: Path) -> None:
    spec = rates(round="0.02", microbatch="0.08", known_bad="0.1")
    spec_file.write_bytes(canonical_json(spec.model_dump()))
    text = " ".join(show(spec_file).split())
    # 1/3 (1 - 0.1/2); 0.1 / 1.05; a round in 30: (1/30) / 0.0952 - 1/30; 0.0249 (2/3 · 1.05) of it
    assert "2 31.67 % 9.52 % 0.317 1.71 %" in text
    assert "1 45.00 % 10.00 % 0.300 1.23 %" in text
    verification = json.loads(show(spec_file, "--json"))["verification"]
    assert verification["known_bad_rate"] == "0.1"
    assert [each["seats"] for each in verification["auditors"]] == [1, 2, 4, 8]
    least = verification["least_known_bad_rate"]
    assert f"a known-bad rate of {100 * least:.2f} % is enough" in text
    assert least == waving_rate(spec, 8, 1)


def test_without_known_bad_reports_no_stake_is_enough_for_auditors(spec_file: Path) -> None:
    spec_file.write_bytes(canonical_json(rates(round="0.02", known_bad="0").model_dump()))
    verification = json.loads(show(spec_file, "--json"))["verification"]
    assert [each["stake"] for each in verification["auditors"]] == [None] * 4
    assert [each["known_bad"] for each in verification["auditors"]] == [0] * 4


def test_the_numbers_of_cheats_agree_with_each_other() -> None:
    scattered, whole, one, step, text = cheats_of(rates(round="0.02", microbatch="0.05", data="0.05"))
    assert [each.cheat for each in (scattered, whole, one, step)] == [Cheat.WORK] * 3 + [Cheat.STEP]
    assert 1 > scattered.caught > whole.caught == step.caught > one.caught > 0
    assert whole.round_risk == step.round_risk > one.round_risk > whole.round_risk / 16
    assert scattered.stake == whole.stake > step.stake == one.stake == text.stake == 0
    assert whole.leaving == scattered.leaving > step.leaving > one.leaving > text.leaving == 0


def test_without_audits_no_stake_is_enough(spec_file: Path) -> None:
    spec_file.write_bytes(canonical_json(rates(round="0", microbatch="0", data="0").model_dump()))
    assert "whole rounds 0.00 % 0.00 % none is enough" in [
        " ".join(line.split()) for line in show(spec_file).splitlines()
    ]
    verification = json.loads(show(spec_file, "--json"))["verification"]
    assert [each["stake"] for each in verification["cheats"]] == [None, None, None, None, 0]
    assert [each["leaving"] for each in verification["cheats"]] == [None, None, None, None, 0]
    assert all(each["per_stage_and_epoch"] == each["of_stage_work"] == 0 for each in verification["audits"])
    assert verification["auditors"] == []


def test_json_has_the_exact_numbers(spec_file: Path) -> None:
    shown = json.loads(show(spec_file, "--json"))
    assert sum(stage["parameters"] for stage in shown["stages"]) == shown["parameters"]
    assert [layer for stage in shown["stages"] for layer in stage["layers"]] == list(range(8))
    assert shown["tokens_per_round"] == 8192
    assert shown["splits_bps"] == {"designer": 1000, "data": 1000, "compute": 8000}
    assert "registered" not in shown


def test_the_eras_are_the_emission() -> None:
    economics = spec_with().economics
    eras = list(eras_of(economics))
    epochs = [epoch for era in eras for epoch in range(era.first, era.last + 1)]
    assert epochs == list(range(len(epochs)))
    assert all(emission(economics, epoch) == era.shares for era in eras for epoch in (era.first, era.last))
    assert emission(economics, len(epochs)) == 0
    assert eras[-1].total == sum(emission(economics, epoch) for epoch in epochs) <= int(economics.max_supply)


@pytest.mark.parametrize(
    ("text", "named"),
    [(b"{", "not canonical JSON"), (b"{}", "format: Field required"), (None, "can't be read: No such file")],
)
def test_a_spec_that_can_t_be_used_is_explained(tmp_path: Path, text: bytes | None, named: str) -> None:
    path = tmp_path / "spec.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SpecError, match=named):
        show(path)


def test_data_build_says_what_to_put_into_the_spec(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    (tmp_path / "b.txt").write_text("world!")
    arguments = ["build", str(tmp_path / "text"), str(tmp_path / "b.txt"), "--out", str(tmp_path / "data")]
    shown = json.loads(CliRunner().invoke(data.app, [*arguments, "--json"]).stdout)
    assert (shown["documents"], shown["tokens"], shown["vocab_size"]) == (2, 5 + 1 + 6 + 1, 256)
    assert (tmp_path / "data" / "manifest.json").is_file()
    fields = devnet_spec(4, 1, "0x" + "ab" * 32, 10**6).model_dump() | shown["spec"]
    with pytest.raises(SpecError, match="the data has 13 tokens"):  # all but the size fits
        build_spec(fields)
    text = CliRunner().invoke(data.app, arguments).stdout
    assert shown["hash"] in text
    assert f'"data": {json.dumps(shown["spec"]["data"])}' in text


def test_data_build_of_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(data.app, ["build", str(tmp_path / "none"), "--out", str(tmp_path / "data")])
    assert isinstance(result.exception, DataError)


@pytest.mark.parametrize(
    ("units", "decimals", "exact", "rounded"),
    [
        (0, 18, "0", "0"),
        (1, 18, "0.000000000000000001", "<0.0001"),
        (10**14, 18, "0.0001", "0.0001"),
        (1234567 * 10**18 + 5 * 10**17, 18, "1,234,567.5", "1,234,567.5"),
        (1999999, 6, "1.999999", "1.9999"),
        (7, 0, "7", "7"),
    ],
)
def test_amounts_are_exact_or_rounded_down(units: int, decimals: int, exact: str, rounded: str) -> None:
    assert format_amount(units, decimals) == exact
    assert format_rounded(units, decimals) == rounded


def test_numbers_for_people() -> None:
    assert [format_engineering(n) for n in (7, 1000, 1_234_567, 999_999, 5 * 10**18)] == [
        "7", "1 k", "1.23 M", "1000 k", "5 E"
    ]  # fmt: skip
    assert (format_percent(1, 3), format_percent(0, 0)) == ("33.33 %", "–")
