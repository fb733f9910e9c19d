"""What launchers say in environment variables: read, or refused before anything is made."""

import socket
import threading

import pytest

from distill.runtime.exits import RUN_FAILED
from distill.runtime.launcher import Launch, check_address, read_launch
from distill.runtime.world import stop_watching
from teachers.errors import UserError
from tests.forks import Command, fewstep, free_port

WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def without(name):
    return {key: value for key, value in WHOLE.items() if key != name}


def test_a_launcher_is_read():
    assert read_launch(WHOLE) == Launch(1, 4, 1, "node1", 29500)
    assert read_launch(without("LOCAL_RANK")) == Launch(1, 4, None, "node1", 29500)


@pytest.mark.parametrize(
    "others", [{}, {"WORLD_SIZE": "1"}, {"LOCAL_RANK": "0"}, {"MASTER_ADDR": "a", "MASTER_PORT": "x"}]
)
def test_without_one_a_process_is_alone(others):
    assert read_launch(others) is None


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        (without("WORLD_SIZE"), ("RANK is set but WORLD_SIZE",)),
        (without("MASTER_ADDR"), ("RANK is set but MASTER_ADDR", "the host of process 0")),
        (without("MASTER_PORT"), ("RANK is set but MASTER_PORT",)),
        (WHOLE | {"MASTER_ADDR": " "}, ("RANK is set but MASTER_ADDR",)),
        (WHOLE | {"MASTER_PORT": "0"}, ("MASTER_PORT is '0'", "from 1 to 65535")),
        (WHOLE | {"MASTER_PORT": "65536"}, ("MASTER_PORT is '65536'",)),
        (WHOLE | {"MASTER_PORT": "29500.0"}, ("MASTER_PORT is '29500.0'", "whole number")),
        (WHOLE | {"RANK": "4"}, ("RANK is '4'", "from 0 to WORLD_SIZE - 1, which is 3")),
        (WHOLE | {"RANK": "-1"}, ("RANK is '-1'",)),
        (WHOLE | {"RANK": ""}, ("RANK",)),
        (WHOLE | {"RANK": "one"}, ("RANK is 'one'",)),
        (WHOLE | {"WORLD_SIZE": "0"}, ("WORLD_SIZE is '0'", "from 1")),
        (WHOLE | {"WORLD_SIZE": "four"}, ("WORLD_SIZE is 'four'",)),
        (WHOLE | {"LOCAL_RANK": "4"}, ("LOCAL_RANK is '4'",)),
        (WHOLE | {"LOCAL_RANK": "x"}, ("LOCAL_RANK is 'x'",)),
        (without("RANK"), ("WORLD_SIZE is '4' but RANK", "unset WORLD_SIZE")),
        ({"LOCAL_RANK": "1"}, ("LOCAL_RANK is '1' but RANK",)),
    ],
)
def test_what_is_missing_or_wrong_is_named(environment, parts):
    with pytest.raises(UserError) as refused:
        read_launch(environment)
    told = str(refused.value)
    assert all(part in told for part in parts), told
    assert told.endswith("see docs/launch.md")
    assert "\n" not in told


def test_a_host_that_nobody_knows_is_named():
    with pytest.raises(UserError, match=r"MASTER_ADDR is 'no\.host\.invalid', which this machine cannot resolve"):
        check_address(Launch(0, 2, 0, "no.host.invalid", 29500), patience=0)


@pytest.fixture
def run(tmp_path):
    """The words of a short run, and its folder."""
    return ["distill", "configs/smoke.yaml", "--run-dir", tmp_path / "run", "train.updates=1", "evaluate.every=null"]


def test_half_a_launcher_ends_the_command_before_anything_is_made(run, tmp_path):
    _, said = fewstep(*run, code=2, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    assert "error: RANK is set but MASTER_ADDR" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named(run, tmp_path):
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        port = str(other.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        _, said = fewstep(*run, code=RUN_FAILED, **place)
    assert f"error: MASTER_PORT {port} of MASTER_ADDR localhost is in use by another process" in said
    assert "docs/launch.md" in said
    assert not list(tmp_path.iterdir())


def test_a_process_that_has_its_node_for_itself_needs_no_local_rank(run, tmp_path):
    fewstep(*run, RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT=free_port())
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_two_processes_of_a_node_need_their_local_ranks(run, tmp_path):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    both = [Command(run, RANK=str(rank), **place) for rank in range(2)]
    said = "".join(command.communicate()[1] for command in both)
    assert [command.returncode for command in both] == [2, 2]
    assert "error: LOCAL_RANK" in said
    assert f"is not set, and 2 processes of this run are on {socket.gethostname()}; see docs/launch.md" in said
    assert not list(tmp_path.iterdir())


def test_the_thread_that_watches_the_others_has_ended_before_python_does():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    stop_watching(thread, stop)
    assert not thread.is_alive()
