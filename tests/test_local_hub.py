"""The local Hub against the installed huggingface_hub, each time in a new process: it reads its settings only once."""

import hashlib
import json
import random
from importlib.util import find_spec
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from local_hub import LocalHub, client

NEEDS_XET = pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
TOKENS = {"hf_test_writer": ("ada", "write"), "hf_test_reader": ("ada", "read"), "hf_test_other": ("bob", "write")}
WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {"config.json": b"{}", "sub/model.safetensors": WEIGHTS, "README.md": b"---\nlicense: mit\n---\n"}
UPLOAD = (
    "from huggingface_hub import *; create_repo({0!r}, private=True); upload_folder(repo_id={0!r}, folder_path={1!r})"
)
DOWNLOAD = "from huggingface_hub import *; print(snapshot_download('ada/net'))"
TRY = """
from huggingface_hub import *
def outcome(call, *args, **kwargs):
    try:
        return call(*args, **kwargs) and "done"
    except Exception as error:
        return f"{error.response.status_code} {type(error).__name__}".removesuffix(" HfHubHTTPError")
change = dict(path_or_fileobj=b"1", path_in_repo="a", repo_id="ada/open", parent_commit="0" * 40)
print(outcome(model_info, "ada/net"), outcome(upload_file, **change), outcome(create_repo, "ada/new"), sep=", ")
"""
OUTCOMES = {
    "hf_test_writer": "done, 412, done",
    "hf_test_reader": "done, 403, 403",
    "hf_test_other": "404 RepositoryNotFoundError, 403, 403",
    "hf_test_wrong": "401, 401, 401",
    None: "401 RepositoryNotFoundError, 401, 401",
}
RESUME = """
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000  # what is shorter than one chunk starts again
from huggingface_hub import *
try:
    print(hf_hub_download("ada/net", "sub/model.safetensors"))
except Exception:  # the oldest client resumes only when it is asked again
    print(hf_hub_download("ada/net", "sub/model.safetensors"))
"""


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub", TOKENS) as hub:
        hub.add("ada/net", FILES, private=True)
        hub.add("ada/open", FILES)
        yield hub


@pytest.mark.parametrize("xet", [False, pytest.param(True, marks=NEEDS_XET)])
def test_files_go_up_and_come_down_bit_for_bit(tmp_path, xet):
    for path, data in FILES.items():
        (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / path).write_bytes(data)
    with LocalHub(tmp_path / "hub", TOKENS, xet=xet) as hub:
        up = client(UPLOAD.format("ada/net", str(tmp_path / "up")), hub, tmp_path / "a", "hf_test_writer")
        down = client(DOWNLOAD, hub, tmp_path / "b", "hf_test_reader")
    assert (up.returncode, down.returncode) == (0, 0), up.stderr + down.stderr
    assert {path: (tmp_path / down.stdout.strip() / path).read_bytes() for path in FILES} == FILES
    assert FILES.items() <= hub.files("ada/net").items()
    assert hub.is_private("ada/net")
    cdn = [(request.method, request.account) for request in hub.requests if request.host == "cdn"]
    assert cdn == ([] if xet else [("PUT", None), ("GET", None)])


@pytest.mark.parametrize("token", OUTCOMES)
def test_a_token_may_do_what_it_may_on_the_hub(hub, tmp_path, token):
    done = client(TRY, hub, tmp_path / "home", token)
    assert done.stdout.strip() == OUTCOMES[token], done.stderr


def test_a_cut_transfer_is_resumed(hub, tmp_path):
    hub.faults.append({"action": "truncate", "bytes": 100_500, "host": "cdn"})
    done = client(RESUME, hub, tmp_path / "home", "hf_test_reader")
    assert (tmp_path / done.stdout.strip()).read_bytes() == WEIGHTS, done.stderr
    assert [(r.status, r.range) for r in hub.requests if r.host == "cdn"] == [(200, None), (206, "bytes=100000-")]


def test_faults(hub):
    get = build_opener(ProxyHandler({})).open
    url = f"{hub.endpoint}/ada/open/resolve/main/sub/model.safetensors"
    part = Request(url, headers={"Range": "bytes=10-19"})
    hub.faults += [{"action": "no_range"}, {"action": "corrupt", "offset": 7, "host": "cdn"}, {"action": "lie"}]
    corrupt = WEIGHTS[10:17] + bytes([WEIGHTS[17] ^ 1]) + WEIGHTS[18:20]
    assert [get(part).read() for _ in range(3)] == [WEIGHTS, corrupt, WEIGHTS[10:20]]
    said = [json.load(get(f"{hub.endpoint}/api/models/ada/open/tree/main/sub"))[0]["lfs"]["oid"] for _ in range(2)]
    assert [oid == hashlib.sha256(WEIGHTS).hexdigest() for oid in said] == [False, True]
    assert not hub.faults
