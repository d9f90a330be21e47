"""A preset is ordinary settings by one word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import load_config
from pipeline.config.presets import PRESETS
from pipeline.config.root import Config
from stores.errors import ConfigError

BASE: dict[str, Any] = {"data": {"root": "."}, "store": "store"}


def blocks(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"preset"})


def test_a_preset_is_the_same_as_its_settings_given_one_by_one() -> None:
    given: dict[str, Any] = {**BASE, **PRESETS["paper"]}
    named = {
        **BASE,
        "preset": "paper",
        "finetune": {},
        "lora": {},
        "bitfit": {},
        "norm": {},
        "frozen": {},
    }
    assert blocks(Config.model_validate(named)) == blocks(Config.model_validate(given))
    assert blocks(Config.model_validate(named)) != blocks(Config.model_validate(BASE))


def test_what_is_given_beside_a_preset_wins_and_nothing_is_tuned_unasked() -> None:
    config = Config.model_validate(
        {**BASE, "preset": "paper", "knn": {"multilabel": "soft"}, "lora": {"rank": 8}}
    )
    settings = blocks(config)
    assert settings["knn"]["multilabel"] == "soft"
    assert settings["knn"]["features"] == PRESETS["paper"]["knn"]["features"]
    assert (settings["lora"]["rank"], settings["lora"]["optimizer"]) == (8, "sgd")
    assert settings["finetune"] is None


def test_a_protocol_takes_its_block_of_the_preset() -> None:
    by_protocol = Config.model_validate({**BASE, "lora": {"protocol": "paper"}})
    by_preset = Config.model_validate({**BASE, "preset": "paper", "lora": {}})
    ours, theirs = (blocks(each)["lora"] for each in (by_protocol, by_preset))
    assert {**ours, "protocol": None} == {**theirs, "protocol": None}


def test_a_preset_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {root: .}\nstore: store\npreset: papre\n")
    with pytest.raises(ConfigError, match=r"preset.*paper.*papre"):
        load_config(path)
