"""The tests' Hub is a Hub: it answers as the real one was seen to, and the ordinary client takes it for one."""

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from memory_hub import MemoryHub, card_errors, environment

TRACE = json.loads((Path(__file__).parent / "hub_trace.json").read_text(encoding="utf-8"))
TOKENS = {"owner": "hf_owner", "another": "hf_another", "unknown": "hf_nobody", "none": None}
SMALL, LARGE = b"small\n", b"large" * 100
CLIENT = """
    import json
    from huggingface_hub import HfApi, snapshot_download, hf_hub_download
    from huggingface_hub.errors import *

    def raised(call, *args, **kwargs):
        try:
            call(*args, **kwargs)
        except Exception as error:
            return type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)

    api = HfApi()
"""


def ask(hub, method, path, *, token, body=None):
    """Status, headers and body of an answer; redirects are not followed."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    headers = {"Authorization": f"Bearer {TOKENS[token]}"} if TOKENS[token] else {}
    connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    is_json = "json" in answer.headers["Content-Type"] and data
    return answer.status, answer.headers, json.loads(data) if is_json else data


def client(hub, home, code, token="hf_owner"):
    """What a process with the ordinary client prints, as JSON."""
    code = textwrap.dedent(CLIENT) + textwrap.dedent(code)
    asks = os.environ | environment(hub, home, token=token)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=asks, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def fill(hub, home):
    """`owner/public` and `owner/private`, with a file in git and a large one."""
    (home / "files" / "sub").mkdir(parents=True)
    (home / "files" / "sub" / "small.txt").write_bytes(SMALL)
    (home / "files" / "sub" / "large.safetensors").write_bytes(LARGE)
    client(
        hub,
        home,
        f"""
        for name, private in (("owner/public", False), ("owner/private", True)):
            api.create_repo(name, private=private)
            api.upload_folder(repo_id=name, folder_path={str(home / "files")!r})
        print("1")
        """,
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with MemoryHub({"hf_owner": "owner", "hf_another": "another"}) as hub:
        fill(hub, home)
        yield hub, home


@pytest.fixture
def names(filled):
    hub, _ = filled
    return {
        "{PUBLIC}": "owner/public",
        "{PRIVATE}": "owner/private",
        "{MISSING}": "owner/missing",
        "{SHA}": hub.commits("owner/private")[-1]["oid"],
        "{SMALL}": "sub/small.txt",
        "{LARGE}": "sub/large.safetensors",
        "{SMALL_SIZE}": str(len(SMALL)),
        "{LARGE_SIZE}": str(len(LARGE)),
        "{SMALL_SHA1}": hashlib.sha1(b"blob %d\0" % len(SMALL) + SMALL).hexdigest(),
        "{LARGE_SHA256}": hashlib.sha256(LARGE).hexdigest(),
        "{UNKNOWN_SHA256}": hashlib.sha256(b"abc").hexdigest(),
    }


def filled_in(value, names):
    text = json.dumps(value)
    for name, known in names.items():
        text = text.replace(name, known)
    assert not re.search(r"\{[A-Z]", text)
    return json.loads(text)


TYPES = {"string": str, "number": int, "boolean": bool, "array": list, "object": dict}


def check_shape(value, shape, where="body"):
    """That a JSON value has at least the keys of a shape, of its types; a text that is no type is itself."""
    if isinstance(shape, dict):
        assert isinstance(value, dict) and shape.keys() <= value.keys(), (where, value)
        for key in shape:
            check_shape(value[key], shape[key], f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list) and value, (where, value)
        for item in value:
            check_shape(item, shape[0], f"{where}[]")
    elif shape in TYPES:
        assert isinstance(value, TYPES[shape]), (where, value)
    else:
        assert value == shape, where


@pytest.mark.parametrize("exchange", TRACE["exchanges"], ids=lambda exchange: exchange["what"])
def test_it_answers_as_the_real_one(exchange, filled, names):
    hub, _ = filled
    exchange = filled_in(exchange, names)
    status, headers, body = ask(
        hub, exchange["method"], exchange["path"], token=exchange["token"], body=exchange.get("send")
    )
    assert status == exchange["status"], body
    for name, text in exchange.get("headers", {}).items():
        assert headers[name] is not None and text in ("*", headers[name]), (name, headers[name])
    assert not [name for name in exchange.get("absent", []) if name in headers]
    if "body" in exchange:
        check_shape(body, exchange["body"])
    for entry in exchange.get("each", []):
        some = [x for x in body if x["type"] == entry["type"] and ("lfs" in x) == entry.get("large", False)]
        check_shape(some, [entry["shape"]])


def test_the_trace_names_its_sources():
    assert len(TRACE["exchanges"]) >= 12
    used = [exchange["source"] for exchange in TRACE["exchanges"]]
    assert set(used) == set(TRACE["sources"]) and sum(source != "client" for source in used) > len(used) / 2


def test_the_client_raises_what_it_raises_at_the_real_one(filled):
    hub, home = filled
    owner = """
        print(json.dumps([
            raised(api.model_info, "owner/missing"),
            raised(api.model_info, "owner/public", revision="none"),
            raised(hf_hub_download, "owner/public", "none.txt"),
            raised(api.create_repo, "owner/public"),
            raised(api.create_repo, "another/mine"),
            raised(api.create_branch, "owner/public", branch="main"),
            raised(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="owner/public",
                   parent_commit="0" * 40),
            raised(api.upload_file, path_or_fileobj=b"---\\nlicense: [1]\\n---", path_in_repo="README.md",
                   repo_id="owner/public"),
        ]))
    """
    assert client(hub, home, owner) == [
        ["RepositoryNotFoundError", 404],
        ["RevisionNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404],
        ["HfHubHTTPError", 409],
        ["HfHubHTTPError", 403],
        ["HfHubHTTPError", 409],
        ["HfHubHTTPError", 412],
        ["ValueError", None],
    ]
    others = """
        print(json.dumps([
            api.model_info("owner/public").private,
            raised(api.model_info, "owner/private"),
            raised(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="owner/public"),
        ]))
    """
    found, refused = ["RepositoryNotFoundError", 404], ["HfHubHTTPError", 403]
    assert client(hub, home, others, token="hf_another") == [False, found, refused]
    stranger = client(hub, home, others, token=None)
    refused = ["HfHubHTTPError", 401]  # the client calls it RepositoryNotFoundError, but over https alone
    assert stranger == [False, refused, refused]


def test_what_goes_up_comes_down(filled, tmp_path):
    """Files, branches, tags, deletions, in models and data sets."""
    hub, home = filled
    code = f"""
        from pathlib import Path

        names, folder, large = [], Path({str(home / "files")!r}), "sub/large.safetensors"
        for repo_type in ("model", "dataset"):
            kind = {{"repo_type": repo_type}}
            first = api.upload_folder(repo_id=api.create_repo("trip", **kind).repo_id, folder_path=folder, **kind).oid
            api.create_tag("owner/trip", tag="v1", **kind)
            api.create_branch("owner/trip", branch="next", **kind)
            new = {{"path_in_repo": "a/b/new.txt", "repo_id": "owner/trip", "revision": "next"}}
            api.upload_file(path_or_fileobj=b"new", **new, **kind)
            api.delete_file("sub/small.txt", "owner/trip", **kind)
            for revision in ("main", "v1", "next", first):
                local = Path(snapshot_download("owner/trip", revision=revision, **kind))
                names.append(sorted(str(p.relative_to(local)) for p in local.rglob("*") if p.is_file()))
                assert (local / large).read_bytes() == (folder / large).read_bytes()
            assert [x.path for x in api.list_repo_tree("owner/trip", revision="v1", **kind)] == ["sub"]
            assert [x.path for x in api.get_paths_info("owner/trip", [large, "no"], **kind)] == [large]
            assert api.file_exists("owner/trip", "sub/small.txt", revision="v1", **kind)
            assert not api.file_exists("owner/trip", "sub/small.txt", **kind)
            api.delete_repo("owner/trip", **kind)
            assert not api.repo_exists("owner/trip", **kind)
        print(json.dumps(names))
    """
    small, large, new = "sub/small.txt", "sub/large.safetensors", "a/b/new.txt"
    assert client(hub, home, code) == [[large], [large, small], [new, large, small], [large, small]] * 2


def test_faults_come_when_they_are_wanted(filled):
    hub, _ = filled
    hub.fail("GET", "/refs", status=503, times=1)
    assert [ask(hub, "GET", "/api/models/owner/public/refs", token="none")[0] for _ in range(2)] == [503, 200]
    hub.cut("GET", "/refs", times=5)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(hub, "GET", "/api/models/owner/public/refs", token="none")
    hub.heal()
    assert ask(hub, "GET", "/api/models/owner/public/refs", token="none")[0] == 200
    assert hub.requests[-2:] == [
        ("GET", "/api/models/owner/public/refs", None),
        ("GET", "/api/models/owner/public/refs", 200),
    ]


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("license: mit\ntags: [a]", None),
        ("tags: a", '"tags" must be a list'),
        ("license: [mit]", '"license" must be a string'),
        ("a: [", "YAML Metadata Error"),
        ("model-index:\n- name: x\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: d}", "metrics"),
        (
            "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: d}\n"
            "    metrics: [{type: accuracy, value: 0}]",
            None,
        ),
    ],
)
def test_metadata_are_read(metadata, problem):
    problems = " ".join(card_errors(f"---\n{metadata}\n---\nText", "model"))
    assert problem in problems if problem else problems == ""
