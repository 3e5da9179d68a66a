"""Where settings come from, which wins, and that mistakes are named."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.errors import Invalid
from cluster.repair.settings import RepairSettings
from node.config import load

SECRET = "sixteen characters or more"
BASE = {"HOLDFAST_DATA": "/data", "HOLDFAST_SECRET": SECRET, "HOLDFAST_BOOTSTRAP_EXPECT": "3", "HOLDFAST_NAME": "n1"}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        'name = "from-file"\nzone = "from-file"\nbootstrap_expect = 5\njoin = ["a:1", "b:2"]\nauto_layout = true\n'
    )
    environment = {
        "HOLDFAST_DATA": "/data",
        "HOLDFAST_SECRET": SECRET,
        "HOLDFAST_ZONE": "from-env",
        "HOLDFAST_NAME": "env",
    }
    config = load(["--config", str(file), "--name", "from-flag"], environment)
    assert (config.name, config.zone, config.bootstrap_expect) == ("from-flag", "from-env", 5)
    assert config.join == (("a", 1), ("b", 2))
    assert config.auto_layout
    assert not load(["--config", str(file), "--no-auto-layout"], environment).auto_layout


def test_defaults_are_safe() -> None:
    config = load([], BASE)
    assert (config.api_host, config.api_port, config.peer_host, config.peer_port) == (
        "127.0.0.1",
        7480,
        "127.0.0.1",
        7482,
    )
    assert (config.zone, config.auto_layout, config.allow_anonymous, config.api_token) == ("n1", False, False, None)
    assert SECRET not in repr(config)


def test_the_names_of_an_open_api() -> None:
    hosts = load(
        ["--advertise", "n1.example.org", "--api", "store.example.org:7480", "--allow-anonymous"], BASE
    ).api_hosts
    assert hosts == (socket.gethostname(), "store.example.org", "n1.example.org")
    assert load(["--api-hosts", "*.example.org, *"], BASE).api_hosts == ("*.example.org", "*")


def test_a_secret_file_takes_the_place_of_a_secret_from_a_lower_layer(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("another secret of length\n")
    assert load(["--secret-file", str(file)], BASE).secret == "another secret of length"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--api", "0.0.0.0:7480"], "api_host"),
        (["--api", "7480"], "api"),
        (["--peer", "127.0.0.1:99999"], "peer"),
        (["--name", "Not A Name"], "name"),
        (["--api-hosts", "n1.example.org,http://n2"], "api_hosts"),
        (["--zone", "-"], "zone"),
        (["--join", "host"], "join"),
        (["--bootstrap-expect", "-1"], "bootstrap_expect"),
        (["--replication", "0"], "replication"),
        (["--capacity", "1GiB"], "capacity"),
        (["--secret-file", "/nonexistent"], "secret_file"),
        (["--config", "/nonexistent"], "config"),
        (["--log-level", "loud"], "log_level"),
        (["--bootstrap-expect", "0"], "join"),
        (["--require-mount", "srv/disk"], "require_mount"),
        (["--repair-interval-s", "0"], "repair_interval_s"),
        (["--repair-persist-s", "-1"], "repair_persist_s"),
        (["--repair-rate", "1MiB"], "repair_rate"),
        (["--down-out-s", "1e3"], "down_out_s"),
        (["--scrub-period-s", "99999999999"], "scrub_period_s"),
        (["--sweep-age-s", "inf"], "sweep_age_s"),
        (["--scrub-rate", "0"], "scrub_rate"),
    ],
)
def test_mistakes_are_named(arguments: list[str], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(arguments, BASE)
    assert caught.value.details["field"] == field


@pytest.mark.parametrize("missing", ["HOLDFAST_DATA", "HOLDFAST_SECRET"])
def test_what_is_required_is_asked_for(missing: str) -> None:
    with pytest.raises(Invalid):
        load([], {name: value for name, value in BASE.items() if name != missing})


def test_short_secrets_and_unknown_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="16"):
        load([], {**BASE, "HOLDFAST_SECRET": "short"})
    file = tmp_path / "node.toml"
    file.write_text('colour = "red"\n')
    with pytest.raises(Invalid, match="colour"):
        load(["--config", str(file)], BASE)


@pytest.mark.parametrize(
    ("advertise", "expected"),
    [("n1", ("n1", 7482)), ("n1:99", ("n1", 99)), ("[::1]:99", ("::1", 99)), ("[::1]", ("::1", 7482))],
)
def test_the_advertised_address(advertise: str, expected: tuple[str, int]) -> None:
    config = load(["--advertise", advertise], BASE)
    assert (config.advertise_host, config.advertise_port) == expected


def test_repair_has_the_defaults_that_it_documents() -> None:
    config = load([], BASE)
    assert config.repair == RepairSettings()
    assert (config.scrub_period_s, config.scrub_rate) == (14 * 86400, 20 << 20)
    assert (config.sweep_period_s, config.sweep_age_s, config.tombstone_grace_s) == (6 * 3600, 3600, 60)
    assert config.require_mount is False


def test_repair_is_set_from_all_three_places(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("repair_interval_s = 0.5\nrepair_rate = 1000\nscrub_rate = 7\ndown_out_s = 0\n")
    environment = {**BASE, "HOLDFAST_REPAIR_RATE": "2000", "HOLDFAST_SWEEP_AGE_S": "1.5"}
    config = load(
        ["--config", str(file), "--repair-persist-s", "0.25", "--repair-retry-s", "4", "--scrub-period-s", "60"],
        environment,
    )
    assert config.repair == RepairSettings(0.5, 0.25, 4.0, 2000, 0.0)
    assert (config.scrub_rate, config.scrub_period_s, config.sweep_age_s) == (7, 60.0, 1.5)
    assert load(["--sweep-period-s", "9", "--tombstone-grace-s", "0"], BASE).sweep_period_s == 9.0
    assert load(["--tombstone-grace-s", "0"], BASE).tombstone_grace_s == 0.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--require-mount"], True),
        (["--require-mount", "true"], True),
        (["--require-mount", "/srv/disk"], Path("/srv/disk")),
        (["--no-require-mount"], False),
    ],
)
def test_the_required_mount(arguments: list[str], expected: Path | bool) -> None:
    assert load(arguments, {**BASE, "HOLDFAST_REQUIRE_MOUNT": "/mnt"}).require_mount == expected
