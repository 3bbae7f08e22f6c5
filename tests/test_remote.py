"""Weights over a local Hub: pushed, pulled, pinned, and all that can go wrong on the way.

Each step of a client is a fresh process with its own cache, as on another machine.
"""

import json
import os
import re
import shlex
import shutil
import signal
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from local_hub import Gate, LocalHub, client
from safetensors.torch import load_file, save_file
from test_hub import CONVOLUTIONAL, HOSTILE, SMALL
from test_local_hub import NEEDS_XET
from zoo import FIRST, create

from timm_mobilevit_zoo import hub as our_hub

ROOT = Path(__file__).resolve().parent.parent
TOKENS = {
    "hf_token_of_me_to_write": ("me", "write"),
    "hf_token_of_me_to_read": ("me", "read"),
    "hf_token_of_eve_to_write": ("eve", "write"),
}
ME, READER, EVE = TOKENS
REPO = "me/small.digits"
WEIGHTS = "model.safetensors"

# What a client's process says about a model: each tensor's digest, and its answer to one image.
TELL = """
import hashlib, json, sys
import timm, torch
import timm_mobilevit_zoo
from timm_mobilevit_zoo import hub

def tell(model, wrapped=None):
    model.eval()
    torch.manual_seed(1)
    image = torch.rand(1, *model.pretrained_cfg["input_size"])
    with torch.inference_mode():
        logits = (wrapped or model)(image)
    logits = getattr(logits, "logits", logits)
    tensors = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in model.state_dict().items()}
    return {"tensors": tensors, "logits": logits.flatten().tolist(), "training": model.training}

def attempt(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"

def say(value):
    print("\\n" + json.dumps(value))
"""


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub", TOKENS) as hub:
        yield hub


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folders = {}
    for name in {SMALL, CONVOLUTIONAL}:
        folders[name] = tmp_path_factory.mktemp("exported") / name
        our_hub.export(create(name, num_classes=3), folders[name], card={"license": "mit"})
    return folders


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported[SMALL], tmp_path / "folder")


@pytest.fixture
def run(hub, tmp_path):
    """Run code in a fresh process; the home is new for each call unless it is named."""
    homes = iter(range(100))

    def run(code, *args, token=ME, home=None, status=0, **env):
        home = tmp_path / (home or f"home{next(homes)}")
        done = client(["-c", TELL + code, *map(str, args)], hub, home, token=token, **env)
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) if status == 0 else done.stderr

    return run


COMMANDS = """
import contextlib, io, json, sys
from timm_mobilevit_zoo.cli import main
done = []
for argv in json.loads(sys.argv[1]):
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            main(argv)
        except SystemExit as end:
            done.append([end.code, said.getvalue() + complained.getvalue()])
print(json.dumps(done))
"""


@pytest.fixture
def zoo(hub, tmp_path):
    """Run commands one after the other in a fresh process; return what each said if its status is as expected."""
    homes = iter(range(100))

    def zoo(*commands, status=(), **env):
        argvs = json.dumps([[str(arg) for arg in command] for command in commands])
        done = client(["-c", COMMANDS, argvs], hub, tmp_path / f"zoo{next(homes)}", token=ME, **env)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [code for code, _ in found] == list(status or [0] * len(commands)), found
        return [text for _, text in found]

    return zoo


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def expected(folder):
    """What `tell` has to say of the model in a folder."""
    scope = {}
    exec(TELL, scope)
    return scope["tell"](timm.create_model(f"local-dir:{folder}", pretrained=True))


def same(told, folder):
    wanted = expected(folder)
    assert told["tensors"] == wanted["tensors"]
    torch.testing.assert_close(torch.tensor(told["logits"]), torch.tensor(wanted["logits"]))


def changes(requests):
    return [(one.method, one.path) for one in requests if one.method not in ("GET", "HEAD")]


# There and back


@pytest.mark.parametrize("xet", [False, pytest.param(True, marks=NEEDS_XET)])
def test_a_round_trip_is_bit_for_bit(exported, tmp_path, xet):
    folder = exported[CONVOLUTIONAL]
    with LocalHub(tmp_path / "hub", TOKENS, xet=xet) as hub:

        def zoo(*args):
            done = client(["-m", "timm_mobilevit_zoo", *args], hub, tmp_path / "push", token=ME)
            assert done.returncode == 0, done.stderr
            return done.stdout

        planned = zoo("push", str(folder), REPO)
        assert not hub.exists(REPO)
        assert changes(hub.requests) == []
        digests = our_hub.check(folder)["sha256"]
        for text in (REPO, hub.endpoint, "as me", "private repository, new", "nothing was changed", *digests.values()):
            assert text in planned
        pushed = zoo("push", str(folder), REPO, "--yes")
        sha = hub.head(REPO)
        assert f"revision {sha}" in pushed
        assert hub.is_private(REPO)
        assert len(hub.commits(REPO)) == 2, "the Hub's own first one, and ours"
        there = hub.files(REPO)
        assert {name: there[name] for name in digests} == {name: (folder / name).read_bytes() for name in digests}
        assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in there["README.md"].decode()
        uploads = [one for one in hub.requests if one.method == "PUT"]
        assert bool(uploads) != xet, "through LFS, or through Xet's own store"

        code = """
repo, sha, digests = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pinned = hub.load(repo, revision=sha, sha256=digests)
say([tell(pinned), tell(timm.create_model(f"hf-hub:{repo}", pretrained=True)),
    tell(timm.create_model(f"hf-hub:{repo}@{sha}", pretrained=True))])
"""
        args = [REPO, sha, json.dumps(digests)]
        done = client(["-c", TELL + code, *args], hub, tmp_path / "load", token=ME)
        assert done.returncode == 0, done.stderr
        for told in json.loads(done.stdout.splitlines()[-1]):
            same(told, folder)
        before = len(hub.requests)
        code = "say(tell(hub.load(sys.argv[1], revision=sys.argv[2], num_classes=3)))"
        done = client(["-c", TELL + code, *args], hub, tmp_path / "load")  # nor is a token needed
        same(json.loads(done.stdout.splitlines()[-1]), folder)
        assert len(hub.requests) == before, "a full commit id in the cache needs no request"


def test_transformers_loads_what_we_push(hub, run, folder):
    sha = hub.add(REPO, contents(folder))
    told = run(
        """
from transformers import AutoModel, AutoModelForImageClassification
repo = sys.argv[1]
wrapped = AutoModelForImageClassification.from_pretrained(repo).eval()
features = AutoModel.from_pretrained(repo).eval()
torch.manual_seed(1)
image = torch.rand(1, *wrapped.timm_model.pretrained_cfg["input_size"])
plain = timm.create_model(f"hf-hub:{repo}@{sys.argv[2]}", pretrained=True, num_classes=0).eval()
with torch.inference_mode():
    gap = (features(image).pooler_output - plain(image)).abs().max().item()
say([tell(wrapped.timm_model, wrapped), gap, wrapped.config.num_labels])
""",
        REPO,
        sha,
    )
    same(told[0], folder)
    assert told[1:] == [0, 3]


def test_what_timm_pushes_loads_through_ours(hub, run):
    told = run(
        """
torch.manual_seed(0)
model = timm.create_model(sys.argv[1], num_classes=4)
timm.models.push_to_hf_hub(model, "theirs", model_config={"label_names": ["a", "b", "c", "d"]})
sha = json.loads(json.dumps(__import__("huggingface_hub").model_info("me/theirs").sha))
loaded = hub.load("me/theirs", revision=sha)
say([tell(model), tell(loaded), loaded.pretrained_cfg["label_names"]])
""",
        SMALL,
    )
    assert told[0] == told[1]
    assert told[2] == ["a", "b", "c", "d"]
    assert "pytorch_model.bin" in hub.files("me/theirs"), "which is not asked for"
    assert not [one for one in hub.requests if one.method == "GET" and one.path.endswith("pytorch_model.bin")]


def test_revisions_and_tags(hub, run, zoo, folder, tmp_path):
    first = hub.add(REPO, contents(folder))
    our_hub.export(create(SMALL, num_classes=5), tmp_path / "second", card={"license": "mit"})
    second = hub.add(REPO, contents(tmp_path / "second"))
    hub.tag(REPO, "v1", first)
    output = tmp_path / "deep" / "pulled"
    newest, tagged = zoo(["pull", REPO], ["pull", REPO, "--revision", "v1", "-o", output])
    assert f"revision {second}" in newest
    assert f"revision {first}" in tagged
    assert contents(output) == contents(folder)
    assert os.listdir(tmp_path / "deep") == ["pulled"]
    told = run(
        """
repo, first = sys.argv[1:]
say([attempt(lambda: hub.load(repo)), attempt(lambda: hub.load(repo, revision="v1")),
    attempt(lambda: hub.load(repo, revision=first[:8])), tell(hub.load(repo, revision=first)),
    attempt(lambda: hub.load(repo, revision="0" * 40)), attempt(lambda: hub.pull(repo, revision="v2")),
    tell(timm.create_model(f"hf-hub:{repo}@v1", pretrained=True))])
""",
        REPO,
        first,
    )
    for message in told[:3]:
        assert re.match("ValueError: revision=.* must be a full commit id, 40 lower-case hex digits", message)
    same(told[3], folder)
    assert re.match(r"HubError: \(404\) config.json of me/small.digits at 0{10}: .*no such revision", told[4])
    assert re.match(r"HubError: \(404\) me/small.digits at v2: the repository has no such revision", told[5])
    same(told[6], folder)


# Who may


def test_who_may_not_is_told_why(hub, run, zoo, folder):
    sha = hub.add(REPO, contents(folder), private=True)
    told = run(
        """
repo, sha, folder, reader, eve = sys.argv[1:]
tokens = [False, "hf_token_of_nobody", eve, reader]
say([attempt(lambda: hub.load(repo, revision=sha, token=token)) for token in tokens]
    + [attempt(lambda: hub.push(folder, repo, token=token)) for token in tokens]
    + [attempt(lambda: hub.push(folder, "eve/x", token=token)) for token in [None, "hf_token\\n", "hf t"]])
""",
        REPO,
        sha,
        folder,
        READER,
        EVE,
    )
    expect = [
        r"HubError: \(401\) .*no such repository, or it is private and no token was given",
        r"HubError: \(401\) .*the token is missing, wrong or expired",
        r"HubError: \(404\) .*no such repository, or it is private and the token's account may not see it",
        "done",
        r"HubError: token=False: a push needs an account's token",
        r"HubError: \(401\) your account: the token is missing, wrong or expired",
        r"HubError: eve may push to repositories of eve, not to me/small.digits",
        r"HubError: the token of me is read-only",
        r"HubError: me may push to repositories of me, not to eve/x",
        "ValueError: token holds white space",
        "ValueError: token holds white space",
    ]
    assert len(told) == len(expect)
    for message, pattern in zip(told, expect, strict=True):
        assert re.match(pattern, message), message
    assert changes(hub.requests) == []
    hub.faults.append({"match": "/commit/", "action": "status", "status": 403, "message": "no"})
    assert (
        "(403) pushing to me/small.digits: the token may not do this"
        in zoo(["push", folder, REPO, "--yes"], status=[2])[0]
    )


def test_no_error_shows_a_token(hub, run, zoo, folder):
    """`client` looks for tokens in all output; here the Hub quotes them, and a user puts one into the address."""
    hub.add(REPO, contents(folder))
    hub.faults.append({"match": "/api/models/", "action": "status", "status": 418, "message": f"{ME} is Bearer {ME}"})
    push = ["push", folder, REPO, "--yes"]
    assert "*** is Bearer ***" in zoo(push, status=[2])[0]
    zoo(push, status=[2], HF_ENDPOINT=hub.endpoint.replace("//", f"//me:{ME}@"))


def test_what_is_wrong_here_is_not_laid_to_the_hub(hub, run, zoo, folder, tmp_path):
    sha = hub.add(REPO, contents(folder))
    (tmp_path / "token").write_bytes(b"hf_secret\xff")
    odd = "the token (HF_TOKEN, or its file) holds characters that no token has"
    for env in ({"HF_TOKEN": "hf_\N{SNOWMAN}"}, {"HF_TOKEN": "", "HF_TOKEN_PATH": str(tmp_path / "token")}):
        assert odd in zoo(["push", folder, REPO], status=[2], **env)[0]
    code = "say(attempt(lambda: hub.load(sys.argv[1], revision=sys.argv[2], cache_dir=sys.argv[3])))"
    told = run(code, REPO, sha, folder / "config.json")
    assert re.match(r"HubError: config.json of .*: \[Errno \d+\] .*config.json", told), told
    assert "did not answer" not in told
    told = zoo(["pull", REPO], status=[2], HF_ENDPOINT="http://127.0.0.1:9/?token=hidden")[0]
    assert "http://127.0.0.1:9/ did not answer" in told
    assert "hidden" not in told


def test_offline_a_card_is_not_missed(hub, run, zoo, folder, tmp_path):
    sha = hub.add(REPO, contents(folder))
    code = "hub.load(sys.argv[1], revision=sys.argv[2], cache_dir=sys.argv[3])\nsay(0)"
    run(code, REPO, sha, tmp_path / "cache")
    pull = ["pull", REPO, "--revision", sha, "-o", tmp_path / "pulled"]
    zoo(pull, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "cache"))
    assert sorted(os.listdir(tmp_path / "pulled")) == ["config.json", WEIGHTS]


# Pushing


def test_a_push_replaces_what_is_stale(hub, zoo, folder):
    old = {"pytorch_model.bin": b"old", "deep/a.PT": b"old", "README.md": b"old", "samples/a.png": b"kept"}
    hub.add(REPO, old, private=True)
    (folder / "notes.txt").write_text("mine")
    (planned,) = zoo(["push", folder, REPO])
    for line in ("delete  pytorch_model.bin", "delete  deep/a.PT", "changed README.md", f"new     {WEIGHTS}"):
        assert line in planned
    assert "samples" not in planned
    assert "notes" not in planned
    assert len(hub.commits(REPO)) == 2
    push = ["push", folder, REPO, "--yes"]
    done, again = zoo([*push, "--message", "All at once"], push)
    assert "deleted pytorch_model.bin" in done
    assert {*hub.files(REPO)} == {".gitattributes", "README.md", "config.json", WEIGHTS, "samples/a.png"}
    assert "same    config.json" in again
    assert f"nothing to push: revision {hub.head(REPO)}" in again
    assert len(hub.commits(REPO)) == 3, "all at once, and nothing the second time"


def test_private_unless_asked(hub, zoo, folder):
    hub.add("me/open", {"a": b"a"})
    push = ["push", folder, "--yes"]
    refused, _, _, branch, number = zoo(
        [*push, "me/open"],
        [*push, "me/open", "--no-private"],
        [*push, "me/new", "--no-private"],
        [*push, "me/other", "--branch", "dev"],
        [*push, "me/new", "--no-private", "--branch", "0" * 40],
        status=[2, 0, 0, 2, 2],
    )
    assert "must be the name of a branch" in number
    assert "--private, but me/open is public already" in refused
    assert "--no-private" in refused
    assert len(hub.commits("me/open")) == 3
    assert not hub.is_private("me/new")
    assert "its first commit goes to main" in branch
    assert not hub.exists("me/other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "README.md").write_text("# no metadata"),
            "README.md: license: None is not one that the Hub knows",
        ),
        (lambda f: edit(f, "library_name: timm", "library_name: x"), "library_name='x' must be 'timm'"),
        (lambda f: edit(f, "- timm\n", "- transformers\n"), "tags must not have 'transformers'"),
        (lambda f: edit(f, "import timm_mobilevit_zoo", ""), "must show its readers to `import timm_mobilevit_zoo`"),
        (lambda f: edit(f, "license: mit", "license: [mit"), "README.md cannot be read"),
        (lambda f: edit(f, "license: mit", "license: other"), "license: 'other' needs license_name and license_link"),
        (lambda f: (f / "README.md").write_bytes(b"\xff"), "README.md cannot be read"),
        (lambda f: (f / "README.md").write_text("x" * (2 << 20)), "README.md has more than 1048576 bytes"),
        (lambda f: (f / "last.pt").write_bytes(b"x"), "last.pt is a pickle"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    ],
)
def test_what_is_not_pushed(folder, change, message):
    change(folder)
    with pytest.raises(our_hub.Refused, match=re.escape(message)):
        our_hub.push(folder, REPO, token="hf_unused")  # refused before the Hub is asked


def edit(folder, old, new):
    path = folder / "README.md"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../b", "a/..", "a/", "hf-hub:a/b", "a b/c", "", None])
def test_what_is_no_repository(folder, repo):
    with pytest.raises(ValueError, match="repo_id="):
        our_hub.push(folder, repo)


def test_a_commit_in_between_stops_a_push(hub, zoo, folder):
    hub.add(REPO, {"a": b"a"}, private=True)
    gate = Gate()
    hub.faults.append({"match": "/preupload/", "action": "hold", "gate": gate})
    with ThreadPoolExecutor() as pool:
        push = pool.submit(zoo, ["push", folder, REPO, "--yes"], status=[2])
        assert gate.reached()
        theirs = hub.add(REPO, {"b": b"b"})
        gate.open()
        assert "(412) pushing to me/small.digits: somebody else has committed in between" in push.result()[0]
    assert hub.head(REPO) == theirs


def test_two_pushes_at_once(hub, tmp_path, exported):
    """One of them may be told to look again; what is there then is one push's, whole."""
    folders = []
    for classes in (4, 5):
        folders.append(tmp_path / f"of{classes}")
        our_hub.export(create(SMALL, num_classes=classes), folders[-1], card={"license": "mit"})

    def push(folder):
        args = ["-m", "timm_mobilevit_zoo", "push", str(folder), REPO, "--yes"]
        return client(args, hub, tmp_path / f"home-{folder.name}", token=ME, own=True)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(push, folders))
    assert any(one.returncode == 0 for one in done)
    assert all(one.returncode == 0 or "(412)" in one.stderr or "(409)" in one.stderr for one in done), done
    there = hub.files(REPO)
    wholes = [{name: (f / name).read_bytes() for name in ("config.json", WEIGHTS)} for f in folders]
    assert {name: there[name] for name in wholes[0]} in wholes


def test_a_repository_that_appears_after_the_look_is_left_alone(hub, zoo, folder):
    gate = Gate()
    hub.faults.append({"match": "/repos/create", "action": "hold", "gate": gate})
    with ThreadPoolExecutor() as pool:
        push = pool.submit(zoo, ["push", folder, REPO, "--yes"], status=[2])
        assert gate.reached()
        theirs = hub.add(REPO, {"config.json": b"theirs", "pytorch_model.bin": b"theirs"}, private=True)
        gate.open()
        assert f"(409) creating {REPO}: it exists already, or is being changed" in push.result()[0]
    assert hub.head(REPO) == theirs


def test_a_folder_that_changes_meanwhile_is_not_pushed(hub, run, folder):
    told = run(
        """
from timm_mobilevit_zoo.hub import commit
plan = commit.plan
def late(repo_id, files, **options):
    with open(sys.argv[1] + "/model.safetensors", "ab") as file:
        file.write(b"more")
    return plan(repo_id, files, **options)
commit.plan = late
say(attempt(lambda: hub.push(sys.argv[1], sys.argv[2], dry_run=False)))
""",
        folder,
        REPO,
    )
    assert told == f"Refused: {folder} has changed since it was checked"
    assert not hub.exists(REPO)


@pytest.mark.parametrize(
    "answer", [None, ["me"], {}, {"name": "me", "orgs": ["ours"]}, {"name": "me", "orgs": None, "auth": None}]
)
def test_an_odd_answer_about_the_account_is_told(folder, monkeypatch, answer):
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda *args, **kwargs: answer)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: 1 / 0)
    usable = isinstance(answer, dict) and "auth" in answer
    with pytest.raises(our_hub.HubError, match=f"{REPO}: .*ZeroDivision" if usable else "your account: .*Error"):
        our_hub.push(folder, REPO, token="hf_unused")


def test_names_on_the_hub_do_not_move_the_cursor(hub, zoo, folder):
    hub.add(REPO, {"\x1b[2J.pt": b"a", "a\nnothing was changed.pt": b"b"}, private=True)
    (told,) = zoo(["push", folder, REPO])
    assert "  delete  ?[2J.pt\n" in told
    assert "  delete  a?nothing was changed.pt\n" in told


def test_a_hub_that_keeps_something_else_is_noticed(hub, zoo, folder):
    hub.faults.append({"match": "/tree/", "action": "lie", "times": 9})
    (message,) = zoo(["push", folder, REPO, "--yes"], status=[2])
    assert re.search(rf"{WEIGHTS} of {REPO} at {hub.head(REPO)} is \w+ on the Hub, not \w+: do not use it", message)


# Bad ways


BAD_WAYS = {
    "cut": (dict(host="cdn", action="truncate", bytes=100_000, times=2), "done"),
    "pieces": (dict(host="cdn", action="pieces", chunk=100_000), "done"),
    "corrupt": (dict(host="cdn", action="corrupt", offset=100_000), "done"),
    "no-range": (dict(host="cdn", action="no_range", times=9), "done"),
    "always-corrupt": (
        dict(host="cdn", action="corrupt", offset=100_000, times=99),
        r"Refused: model.safetensors of me/always-corrupt at \w{10}: its digest is \w+, not \w+$",
    ),
    "failing": (dict(action="status", status=500, times=99), r"HubError: \(500\) .*: the Hub failed; try again"),
    "busy": (dict(action="status", status=429, times=99), r"HubError: \(429\) .*: too many requests; wait a while"),
    "forbidden": (dict(action="status", status=403, times=99), r"HubError: \(403\) .*: the token may not do this"),
}


def test_a_bad_way_is_survived_or_told(hub, run, folder):
    repos = {f"me/{way}": hub.add(f"me/{way}", contents(folder)) for way in BAD_WAYS}
    assert (folder / WEIGHTS).stat().st_size > 200_000
    hub.faults += [
        {"method": "GET" if "host" in fault else "HEAD", "match": f"me/{way}/"} | fault
        for way, (fault, _) in BAD_WAYS.items()
    ]
    code = """
import time
time.sleep = lambda seconds: None  # between attempts
def load(repo, sha):
    assert tell(hub.load(repo, revision=sha))["tensors"] == json.loads(sys.argv[2])
say({repo: attempt(lambda: load(repo, sha)) for repo, sha in json.loads(sys.argv[1]).items()})
"""
    told = run(code, json.dumps(repos), json.dumps(expected(folder)["tensors"]))
    for way, (_, pattern) in BAD_WAYS.items():
        assert re.match(pattern, told[f"me/{way}"]), (way, told[f"me/{way}"])
    assert {fault["times"] > 1 for fault in hub.faults} == {True}, "those that are survived have happened"


def test_without_a_network(hub, run, folder, tmp_path):
    sha = hub.add(REPO, contents(folder))
    code = "say(attempt(lambda: hub.load(sys.argv[1], revision=sys.argv[2], token=False)))"
    told = run(code, REPO, sha, HF_ENDPOINT="http://127.0.0.1:9")
    assert re.match("HubError: config.json of .*: http://127.0.0.1:9 did not answer as it should", told), told
    told = run(code, REPO, sha, HF_HUB_OFFLINE="1")
    assert re.match("HubError: config.json of .* is not in the cache, and HF_HUB_OFFLINE is set", told), told
    assert run(code, REPO, sha, home="home") == "done"
    code = "say(hub.pull(sys.argv[1], revision=sys.argv[2], output='taken')['path'])"
    taken = run(code, REPO, sha, home="home", HF_HUB_OFFLINE="1")
    assert sorted(os.listdir(tmp_path / "home" / taken)) == ["config.json", WEIGHTS], "the card was never downloaded"


def test_a_damaged_cache_is_mended_once(hub, run, folder):
    sha = hub.add(REPO, contents(folder))
    code = """
from pathlib import Path
repo, sha, folder = sys.argv[1:]
def damage(name="model.safetensors"):
    blob = next(Path("cache").glob(f"models--*/snapshots/{sha}/{name}")).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
def load(**options):
    return attempt(lambda: hub.load(repo, revision=sha, cache_dir="cache", **options))
say([load(), (damage(), load())[1], (damage("config.json"), load())[1], (damage(), load(local_files_only=True))[1],
    load(), load(sha256={"model.safetensors": "0" * 64}), load(local_files_only=True)])
"""
    told = run(code, REPO, sha, folder)
    weights = [one for one in hub.requests if one.method == "GET" and one.host == "cdn"]
    assert told[:3] == ["done"] * 3
    assert re.match("Refused: .* is damaged in the cache, and offline it cannot be fetched again", told[3])
    assert told[4] == told[6] == "done"
    assert re.match(rf"Refused: {WEIGHTS} of .* its digest is \w+, not 0{{64}}", told[5]), "a wrong pin: no damage"
    assert len(weights) == 3, "the first one, and one for each damage that was mended"


def test_a_killed_download_is_taken_up_again(hub, run, folder, tmp_path):
    sha = hub.add(REPO, contents(folder))
    size, gate = (folder / WEIGHTS).stat().st_size, Gate()
    hub.faults.append({"host": "cdn", "method": "GET", "action": "pieces", "chunk": size // 8, "gate": gate})
    code = "hub.load(sys.argv[1], revision=sys.argv[2])"
    process = client(["-c", TELL + code, REPO, sha], hub, tmp_path / "home", wait=False)
    try:
        assert gate.reached(), "a part of the file has been sent"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        gate.open()
    left = [path for path in (tmp_path / "home").rglob("*") if path.name.endswith(".incomplete")]
    assert left
    same(run("say(tell(hub.load(sys.argv[1], revision=sys.argv[2])))", REPO, sha, home="home"), folder)


# Strangers

NOT_OVER_HTTP = {
    "a link out",
    "a folder for weights",
    "a pickle beside",
    "a pickle below",
    "a link to itself",
    "a pickle of joblib",
    "an archive",
}  # refused in folders


def test_hostile_repositories_are_refused_by_name(hub, run, exported, tmp_path):
    cases = {}
    for number, (case, (attack, message)) in enumerate(sorted(HOSTILE.items())):
        if case not in NOT_OVER_HTTP:
            path = shutil.copytree(exported[SMALL], tmp_path / f"case{number}")
            attack(path)
            cases[f"eve/case{number}"] = (hub.add(f"eve/case{number}", contents(path)), message)
    path = shutil.copytree(exported[CONVOLUTIONAL], tmp_path / "variance")
    tensors = load_file(path / WEIGHTS)
    key = next(key for key in tensors if key.endswith("running_var"))
    save_file(tensors | {key: tensors[key] * 0 - 1}, path / WEIGHTS)
    cases["eve/variance"] = (hub.add("eve/variance", contents(path)), "holds negative variances")
    vast = contents(exported[SMALL])
    vast[WEIGHTS] += bytes(4 << 20)
    cases["eve/vast"] = (hub.add("eve/vast", vast), rf"{WEIGHTS} of eve/vast .*has [\d,]+ bytes; at most")
    assert len(cases) >= 40
    told = run(
        """
cases = json.loads(open(sys.argv[1]).read())
say({repo: attempt(lambda: hub.load(repo, revision=sha)) for repo, sha in cases.items()})
""",
        write(tmp_path / "cases.json", json.dumps({repo: sha for repo, (sha, _) in cases.items()})),
    )
    for repo, (_, message) in cases.items():
        missing = message.endswith("is missing")  # on a Hub that is a 404
        assert re.match("HubError: .404. " if missing else "Refused: ", told[repo]), (repo, told[repo])
        message = message.replace("has more than 8388608 bytes", "of eve/.* has 9,437,184 bytes; at most 8,388,608")
        assert missing or re.search(message, told[repo]), (repo, told[repo], message)
    fetched = {one.path for one in hub.requests if one.method == "GET"}
    assert not any("vast" in path and WEIGHTS in path for path in fetched), "refused by its size, before it is sent"


def test_a_hub_cannot_swap_a_pinned_file_for_one_of_another_commit(hub, run, folder):
    """It answers for the config in the name of a commit whose weights are in the cache, as a user's unpinned load."""
    (folder / "config.json").write_text(re.sub(r',\s*"probe".*', "}", (folder / "config.json").read_text(), flags=re.S))
    files, digests = contents(folder), our_hub.check(folder)["sha256"]
    other = {key: value + 1 for key, value in load_file(folder / WEIGHTS).items()}
    save_file(other, folder / WEIGHTS)
    theirs, pinned = hub.add(REPO, contents(folder)), hub.add(REPO, files)
    code = "say(attempt(lambda: hub.load(sys.argv[1], revision=sys.argv[2], sha256=json.loads(sys.argv[3]))))"
    assert run(code, REPO, theirs, "null", home="home") == "done"
    swap = {"match": "config.json", "action": "headers", "headers": {"X-Repo-Commit": theirs}, "times": 9}
    hub.faults.append(swap)
    told = run(code, REPO, pinned, json.dumps(digests), home="home")
    assert re.match(rf"Refused: config.json of {REPO} at .*: the Hub sent it as that of commit '{theirs}'", told)
    hub.faults.clear()
    assert run(code, REPO, pinned, json.dumps(digests), home="new") == "done"


def test_a_file_without_a_digest_needs_a_pin(hub, run, folder):
    sha, digests = hub.add(REPO, contents(folder)), our_hub.check(folder)["sha256"]
    odd = {"ETag": '"5f3e-1"', "X-Linked-Etag": '"5f3e-1"'}
    hub.faults += [{"match": WEIGHTS, "host": "hub", "action": "headers", "headers": odd, "times": 99}]
    code = "say(attempt(lambda: hub.load(sys.argv[1], revision=sys.argv[2], sha256=json.loads(sys.argv[3]))))"
    told = run(code, REPO, sha, "null")
    assert told == f"Refused: {WEIGHTS}: the Hub keeps it as '5f3e-1', which is not a digest; give its sha256"
    assert run(code, REPO, sha, json.dumps(digests)) == "done"


def test_a_size_that_is_not_announced_is_looked_at_after_the_download(hub, run, folder):
    sha = hub.add(REPO, contents(folder) | {WEIGHTS: (folder / WEIGHTS).read_bytes() + bytes(4 << 20)})
    hub.faults += [
        {"match": WEIGHTS, "host": "hub", "action": "headers", "headers": {"X-Linked-Size": ""}, "times": 99}
    ]
    told = run("say(attempt(lambda: hub.load(sys.argv[1], revision=sys.argv[2])))", REPO, sha)
    right = rf"Refused: {WEIGHTS} of {REPO} at .* has [\d,]+ bytes; at most [\d,]+ are right"
    assert re.match(rf"{right}|HubError: \(416\) {WEIGHTS}", told), "older clients find it odd themselves"
    assert "signature" not in told, "it would open the file to whoever reads it"


@pytest.mark.parametrize("sha256", [["0" * 64], "0" * 64, {"model.safetensors": "A" * 64}, {"README.md": "0" * 64}])
def test_malformed_pins_are_named(sha256):
    with pytest.raises(ValueError, match=r"sha256=.* must give 64 .*hex digits"):
        our_hub.load(REPO, revision="0" * 40, sha256=sha256)


def write(path, text):
    path.write_text(text)
    return path


# The page


def test_the_page_on_weights_runs(hub, run, zoo, folder, tmp_path):
    """Its examples that need a Hub, in their order but for the commands, which come first."""
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8").partition("## Publish")[2]
    shell, python = (re.findall(rf"^```{kind}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) for kind in ("sh", "py"))
    names = {"OWNER/NAME": REPO, "my-model": folder, "local-dir:FOLDER": f"local-dir:{folder}", "RUN": tmp_path / "run"}
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "README.md").unlink()
    pushed, pulled = (block.splitlines() for block in shell if "OWNER/NAME" in block)

    def argv(line):
        words = shlex.split(line, comments=True)
        assert words.pop(0) == "timm-mobilevit-zoo"
        output = tmp_path / "pulled" if words[0] == "pull" else folder
        return [
            names.get(word, {"FOLDER": output, "COMMIT": hub.exists(REPO) and hub.head(REPO)}.get(word, word))
            for word in words
        ]

    assert "pushed: revision" in zoo(*map(argv, pushed))[-1]
    zoo(*map(argv, pulled))
    assert contents(tmp_path / "pulled")[WEIGHTS] == contents(folder)[WEIGHTS]
    code = "\n".join(python).replace("COMMIT", hub.head(REPO))
    for name, meant in names.items():
        code = code.replace(name, str(meant))
    assert run(code + "\nsay(len(list(model.parameters())))", home="home")


# Names


@pytest.mark.slow
def test_a_name_with_pins_is_pretrained(hub, run, tmp_path, exported):
    """The package's copy here has a hub config that carries a repository and pins."""
    name, folder = SMALL, tmp_path / "weights"
    our_hub.export(create(name), folder, card={"license": "mit"})
    sha = hub.add(REPO, contents(folder))
    copy = tmp_path / "copy"
    for part in ("timm_mobilevit_zoo", "hub_configs"):
        shutil.copytree(ROOT / part, copy / part)
    path = copy / "hub_configs" / f"{name}.json"
    config = json.loads(path.read_text())
    config["hub"] = {"repo_id": REPO, "revision": sha, "sha256": our_hub.check(folder)["sha256"]}
    path.write_text(json.dumps(config))
    code = """
name = sys.argv[1]
say([tell(timm.create_model(name, pretrained=True)), tell(hub.load(name)), timm.is_model_pretrained(name),
    hub.pull(name)["revision"], timm_mobilevit_zoo.__file__])
"""
    told = run(code, name, home="home", PYTHONPATH=str(copy))
    same(told[0], folder)
    same(told[1], folder)
    assert told[2:4] == [True, sha]
    assert Path(told[4]).is_relative_to(copy)
    before = len(hub.requests)
    same(
        run("say(tell(timm.create_model(sys.argv[1], pretrained=True)))", name, home="home", PYTHONPATH=str(copy)),
        folder,
    )
    assert len(hub.requests) == before

    hub.add(REPO, contents(folder) | {WEIGHTS: b"other"})
    config["hub"]["sha256"][WEIGHTS] = "0" * 64
    path.write_text(json.dumps(config))
    message = run("timm.create_model(sys.argv[1], pretrained=True)", name, status=1, PYTHONPATH=str(copy))
    assert re.search(rf"Refused: {WEIGHTS} of {REPO} at {sha[:10]}: its digest is \w+, not 0{{64}}", message)


@pytest.mark.parametrize("ask", [our_hub.load, our_hub.pull])
def test_what_is_no_name(ask):
    for model in (None, 5, Path("a/b")):
        with pytest.raises(ValueError, match=r"model=.* must be a repository, 'owner/name', or a registered name"):
            ask(model)


def test_names_without_weights_say_so(run):
    told = run(
        """
say([attempt(lambda: hub.load(sys.argv[1])), attempt(lambda: hub.load("resnet18")),
    attempt(lambda: hub.load("nothing")), attempt(lambda: hub.pull(sys.argv[1])),
    attempt(lambda: hub.load(sys.argv[1], revision="0" * 40))])
""",
        next(name for name in FIRST if not timm.get_pretrained_cfg(name).has_weights),
    )
    for message in (told[0], told[1], told[3]):
        assert re.match("ValueError: model='.*' has no published weights", message)
    assert re.match("ValueError: model='nothing' is neither a repository, owner/name, nor a model", told[2])
    assert re.match("ValueError: revision='0{40}': .* has its own", told[4])


# Commands


def test_convert_and_push(hub, zoo, tmp_path):
    torch.save(create(SMALL, num_classes=3).state_dict(), tmp_path / "mine.pth")
    args = ["convert", tmp_path / "mine.pth", "-m", SMALL, "--license", "mit"]
    told = zoo(
        [*args, "-o", tmp_path / "no", "--push", "nowhere"],
        [*args, "-o", tmp_path / "no", "--yes"],
        [*args, "-o", tmp_path / "one", "--push", REPO],
        status=[2, 2, 0],
    )
    assert "--push nowhere must be 'owner/name'" in told[0]
    assert "nothing was changed on the Hub" in told[2]
    assert f"push {tmp_path / 'one'} {REPO} --yes pushes" in told[2], "convert itself wants a new folder"
    assert not (tmp_path / "no").exists()
    assert not hub.exists(REPO)
    (pushed,) = zoo([*args, "-o", tmp_path / "two", "--push", REPO, "--yes"])
    assert f"revision {hub.head(REPO)}" in pushed
    assert hub.files(REPO)[WEIGHTS] == (tmp_path / "two" / WEIGHTS).read_bytes()


def test_a_refused_pull_leaves_nothing(hub, zoo, folder, tmp_path):
    (folder / WEIGHTS).write_bytes(b"hello")
    hub.add(REPO, contents(folder))
    (tmp_path / "pulled").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    outputs = [tmp_path / "pulled" / "new", tmp_path / "full"]
    told = zoo(*(["pull", REPO, "-o", output] for output in outputs), status=[2, 2])
    assert "is not a safetensors file" in told[0]
    assert "--output " in told[1]
    assert os.listdir(tmp_path / "pulled") == []
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_progress_is_for_terminals(hub, exported, tmp_path):
    folder = exported[CONVOLUTIONAL]

    def push(repo, **options):
        args = ["-m", "timm_mobilevit_zoo", "push", str(folder), repo, "--yes"]
        return client(args, hub, tmp_path / repo, token=ME, **options)

    done = push("me/piped")
    assert done.stderr == ""
    fcntl, termios = (pytest.importorskip(module, reason="no terminals here") for module in ("fcntl", "termios"))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a bar is as wide as its terminal
    shown = []
    reader = threading.Thread(target=lambda: shown.extend(iter(lambda: os.read(ours, 1 << 16), b"end")), daemon=True)
    reader.start()
    assert push("me/shown", stderr=theirs).returncode == 0
    os.write(theirs, b"end")
    reader.join(5)
    assert b"%" in b"".join(shown)
