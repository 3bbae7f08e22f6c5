"""A Hub that names what it sends as it likes, and one that is busy for a while."""

import json
import re
from types import SimpleNamespace

import pytest
from local_hub import LocalHub, client
from test_hub import SMALL
from zoo import create

from timm_mobilevit_zoo import hub as our_hub
from timm_mobilevit_zoo.hub import client as our_client

REPO = "me/small"
WEIGHTS = "model.safetensors"
# No attempt waits; what would have been waited is kept.
SAY = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
slept = []
time.sleep = slept.append
from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.hub import remote

def attempt(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"

def say(value):
    print("\\n" + json.dumps(value))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "folder"
    our_hub.export(create(SMALL, num_classes=3), folder, card={"license": "mit"})
    return folder


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub", {}) as hub:
        yield hub


def run(hub, home, code, *args):
    done = client(["-c", SAY + code, *map(str, args)], hub, home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NAMES = {
    "a path": "../../../mine",
    "a path from the root": "{home}/mine",
    "a path of Windows": "..\\..\\mine",
    "a folder": "..",
    "a name without end": "a" * 500,
    "a name that moves the cursor": "a b",
}
LOAD = """
cases, honest = json.loads(sys.argv[1]), json.loads(sys.argv[2])
if honest:  # it lies to the client alone, which asks once more
    remote.metadata = lambda url, token: SimpleNamespace(size=None)
Path("mine").write_text("mine")
told = {repo: attempt(lambda: hub.load(repo, revision=sha, sha256=pins, cache_dir="cache"))
    for repo, (sha, pins) in cases.items()}
files = sorted(str(path) for path in Path(".").rglob("*") if path.is_file() and not path.name.startswith("."))
say([told, Path("mine").read_text(), files])
"""
PINS = [("config.json", {}), ("config.json", {"config.json": "0" * 64}), (WEIGHTS, {WEIGHTS: "0" * 64})]


@pytest.mark.parametrize("honest", [False, True], ids=["", "once"])
def test_what_a_hub_calls_a_file_is_no_path(hub, tmp_path, folder, honest):
    cases, home = {}, tmp_path / "home"
    for number, etag in enumerate(NAMES.values()):
        for place, (name, pins) in enumerate(PINS):
            repo, quoted = f"me/case{number}-{place}", f'"{etag.format(home=home)}"'
            cases[repo] = hub.add(repo, contents(folder)), pins
            lie = {"ETag": quoted, "X-Linked-Etag": quoted}
            hub.faults.append({"match": f"{repo}/.*{name}", "action": "headers", "headers": lie, "times": 99})
    told, mine, files = run(hub, home, LOAD, json.dumps(cases), json.dumps(honest))
    for repo, message in told.items():
        name = PINS[int(repo[-1])][0]
        assert re.match(f"Refused: {name} of {repo} at .*: the Hub calls it .*, which is not a file name", message)
        assert len(message) < 400
    assert mine == "mine"
    assert {path for path in files if not path.startswith("cache")} == {"mine"}
    assert len([path for path in files if path.endswith(".safetensors")]) == 0


@pytest.mark.parametrize("honest", [False, True], ids=["", "once"])
def test_what_a_hub_calls_a_commit_is_the_one_that_was_asked_for(hub, tmp_path, folder, honest):
    cases = {}
    for path in ("../../../mine", "0" * 40):
        for files in ({}, contents(folder)):
            repo = f"me/case{len(cases)}"
            cases[repo] = hub.add(repo, files), None
            lie = {"match": f"{repo}/.*config.json", "headers": {"X-Repo-Commit": path}, "times": 99}
            hub.faults.append(lie | {"action": "headers"})
    told, _, files = run(hub, tmp_path / "home", LOAD, json.dumps(cases), json.dumps(honest))
    for repo, message in told.items():
        assert re.match(f"Refused: config.json of {repo} at .*: the Hub sent it as that of commit '[0./]+", message)
    assert not [path for path in files if "config.json" in path], "nor a note that there is none"


def test_a_listing_that_the_client_keeps_is_not_believed():
    with our_client.names_of_commit("a.bin", "0" * 40):
        our_client._look_at_listing((None, "a" * 64, "0" * 40))
        with pytest.raises(our_hub.Refused, match=r"the Hub calls it '\.\./a', which is not a file name"):
            our_client._look_at_listing((None, "../a", "0" * 40))
        odd = SimpleNamespace(etag="a", commit_hash="0" * 40, xet_file_data=SimpleNamespace(file_hash="../a"))
        with pytest.raises(our_hub.Refused, match=r"the Hub keeps it as '\.\./a', which is not a digest"):
            our_client._look_at_headers(odd)


def test_other_requests_of_the_client_are_left_alone(hub, tmp_path, folder):
    sha = hub.add(REPO, contents(folder))
    hub.faults.append({"match": "config.json", "action": "headers", "headers": {"ETag": '"a b"'}, "times": 99})
    code = """
from huggingface_hub import hf_hub_download
say(attempt(lambda: hf_hub_download("me/small", "config.json", revision=sys.argv[1])))
"""
    assert run(hub, tmp_path / "home", code, sha) == "done"


BUSY = {
    "the headers of the config": dict(method="HEAD", match="config.json"),
    "the config": dict(method="GET", match="config.json"),
    "the headers of the weights": dict(method="HEAD", match=WEIGHTS, host="hub"),
    "the weights": dict(method="GET", match=WEIGHTS, host="cdn"),
    "the commit": dict(method="GET", match="/api/models/"),
}


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_hub_is_asked_again(hub, tmp_path, folder, status):
    hub.add(REPO, contents(folder))
    hub.faults += [fault | {"action": "status", "status": status, "times": 2} for fault in BUSY.values()]
    code = """
say([attempt(lambda: hub.pull("me/small", output="pulled")), len(slept), max(slept)])
"""
    told, count, longest = run(hub, tmp_path / "home", code)
    assert told == "done"
    assert hub.faults == [], "all of them have happened"
    assert count >= len(BUSY)
    assert longest <= 8


def test_a_hub_that_says_no_is_not_asked_again(hub, tmp_path, folder):
    shas = {}
    for status in (401, 403, 404, 501):
        repo = f"me/says{status}"
        shas[repo] = hub.add(repo, contents(folder))
        hub.faults.append({"match": repo, "action": "status", "status": status, "times": 99})
    code = """
say([{repo: attempt(lambda: hub.load(repo, revision=sha)) for repo, sha in json.loads(sys.argv[1]).items()}, slept])
"""
    told, slept = run(hub, tmp_path / "home", code, json.dumps(shas))
    assert all(message.startswith(f"HubError: ({repo[-3:]})") for repo, message in told.items())
    assert slept == []
    assert len(hub.requests) == len(shas)


class FailedError(Exception):
    def __init__(self, status=503, **headers):
        self.response = SimpleNamespace(status_code=status, headers=headers)


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (FailedError(503), [1, 2, 4, 8]),
        (FailedError(429, **{"Retry-After": "17"}), [17] * 4),
        (FailedError(429, **{"Retry-After": "3600"}), []),
        (FailedError(429, **{"Retry-After": "9" * 5000}), [1, 2, 4, 8]),
        (FailedError(503, **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), [1, 2, 4, 8]),
        (FailedError(404, **{"Retry-After": "1"}), []),
        (ConnectionResetError(), [1, 2, 4, 8]),
        (ConnectionRefusedError(), []),
        (OSError("Consistency check failed"), [1, 2, 4, 8]),
        (PermissionError(13, "no", "cache"), []),
        (our_hub.Refused("no"), []),
    ],
)
def test_how_long_is_waited(monkeypatch, error, waits):
    slept = []
    monkeypatch.setattr(our_client.time, "sleep", slept.append)

    def call():
        raise error

    with pytest.raises(type(error)):
        our_client.patient(call)
    assert slept == waits
    answers = iter([error, "done"])

    def second():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    if waits:
        assert our_client.patient(second) == "done"
