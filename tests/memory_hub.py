"""A Hugging Face Hub in memory, on 127.0.0.1, for the ordinary `huggingface_hub` client.

Repositories of models and data sets with branches, tags, commits and large files; tokens, namespaces and private
repositories; the error headers by which the client tells what went wrong. `hub_trace.json` holds what the real one
answers, and `test_memory_hub.py` compares. The client reads its environment when it is imported: see [`environment`].
"""

import base64
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".png")  # the real one decides by .gitattributes and size
NO_COMMIT = "0" * 40
EXPOSED = "X-Repo-Commit,X-Request-Id,X-Error-Code,X-Error-Message,X-Total-Count,ETag,Link,Accept-Ranges,Content-Range"


def environment(hub: "MemoryHub", home: Path, *, token: str | None) -> dict[str, str]:
    """Variables of a process whose client asks this Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",  # large files go by LFS
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_TOKEN": token or "",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@dataclass
class Repo:
    """A repository: trees of files by commit, commits by branch."""

    private: bool = False
    trees: dict[str, dict[str, bytes]] = field(default_factory=lambda: {NO_COMMIT: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": NO_COMMIT})
    tags: dict[str, str] = field(default_factory=dict)
    commits: list[dict] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        """Of a branch, a tag or a commit itself."""
        known = self.branches | self.tags
        return known.get(revision, revision if revision in self.trees else None)


class Answer(Exception):  # noqa: N818  (an answer is raised wherever it is known)
    """What the Hub answers."""

    def __init__(self, status: int, body: dict | list | bytes = b"", headers: dict[str, str] | None = None):
        self.status, self.headers = status, headers or {}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers.setdefault("Content-Type", "application/json; charset=utf-8")


def error(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error as the real Hub words it: in the body and, so that a HEAD request has it too, in the headers."""
    known = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, {"error": message}, known | headers)


def unauthorized(message: str = "Invalid username or password.") -> Answer:
    """To a stranger; also where there is nothing, so that nobody learns what is private."""
    return error(401, message, **{"WWW-Authenticate": 'Bearer realm="Authentication required", charset="UTF-8"'})


@dataclass
class Fault:
    """Requests that are to fail: by a status, or cut off where that is None."""

    method: str
    pattern: str
    status: int | None
    times: int


class MemoryHub:
    """The server; a context manager.

    Args:
        users (`dict[str, str]`): Names by token. A user may write into the namespace of that name.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self._repos: dict[tuple[str, str], Repo] = {}
        self._blobs: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self.requests: list[tuple[str, str, int | None]] = []
        self._lock = threading.RLock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self):
                hub._handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.elsewhere = self.url.replace("127.0.0.1", "localhost")  # large files come from another host

    def start(self) -> "MemoryHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    __enter__ = start

    def __exit__(self, *args):
        self.stop()

    # ---- For tests -------------------------------------------------------------------------------------------------

    def repos(self) -> list[tuple[str, str]]:
        """Id and type of every repository."""
        return [(repo_id, repo_type) for repo_type, repo_id in self._repos]

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The files of a repository, by path; none where there is none."""
        repo = self._repos.get((repo_type, repo_id))
        return dict(repo.trees[repo.commit_of(revision)]) if repo else {}

    def commits(self, repo_id: str, repo_type: str = "model") -> list[dict]:
        """A repository's commits in their order: `oid`, `summary`."""
        return list(self._repos[repo_type, repo_id].commits)

    def is_private(self, repo_id: str, repo_type: str = "model") -> bool:
        return self._repos[repo_type, repo_id].private

    def delete(self, repo_id: str, repo_type: str = "model") -> None:
        del self._repos[repo_type, repo_id]

    def fail(self, method: str, pattern: str, *, status: int, times: int) -> None:
        """Answer the next requests whose path matches with an error."""
        self._faults.append(Fault(method, pattern, status, times))

    def cut(self, method: str, pattern: str, *, times: int) -> None:
        """Take the next requests whose path matches, and close the line without an answer."""
        self._faults.append(Fault(method, pattern, None, times))

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    # ---- Serving ---------------------------------------------------------------------------------------------------

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = self._body(handler)
        url = urllib.parse.urlsplit(handler.path)
        request = Request(
            method=handler.command,
            path=urllib.parse.unquote(url.path),
            query={name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()},
            body=body,
            headers=handler.headers,
        )
        with self._lock:
            fault = self._fault(request)
            if fault is not None and fault.status is None:
                self.requests.append((request.method, request.path, None))
                handler.close_connection = True
                return
            try:
                if fault is not None:
                    raise error(fault.status, "as the test wants it")
                self._route(request)
            except Answer as answer:
                self.requests.append((request.method, request.path, answer.status))
                self._send(handler, answer)

    @staticmethod
    def _body(handler: BaseHTTPRequestHandler) -> bytes:
        if handler.headers.get("Transfer-Encoding") != "chunked":
            return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(handler.rfile.readline(), 16):
            chunks.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(chunks)

    def _fault(self, request: "Request") -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.method == request.method and re.search(fault.pattern, request.path):
                fault.times -= 1
                return fault
        return None

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.send_response(answer.status)
        headers = {"Access-Control-Expose-Headers": EXPOSED, "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer.body)

    def _route(self, request: "Request") -> None:
        """Raises the answer."""
        for methods, pattern, call in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in methods.split():
                call(self, request, **{name: value for name, value in match.groupdict().items() if value is not None})
        raise error(404, "Sorry, we can't find the page you are looking for.")

    # ---- Who asks, for what ----------------------------------------------------------------------------------------

    def _user(self, request: "Request") -> str | None:
        """The name behind a request's token; None without one."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise unauthorized("Invalid credentials in Authorization header")
        return self.users.get(token)

    def _repo(self, request: "Request", repo_type: str, repo_id: str, *, write: bool = False) -> Repo:
        user, repo = self._user(request), self._repos.get((repo_type, repo_id))
        mine = repo_id.split("/")[0] == user
        if repo is None or (repo.private and not mine):
            raise unauthorized() if user is None else error(404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise unauthorized()
        if write and not mine:
            raise error(403, "You don't have the rights to write to this repository")
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        commit = repo.commit_of(revision)
        if commit is None:
            raise error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- Repositories ----------------------------------------------------------------------------------------------

    def whoami(self, request: "Request") -> None:
        user = self._user(request)
        if user is None:
            raise unauthorized()
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        raise Answer(200, {"type": "user", "id": "1", "name": user, "fullname": user, "orgs": [], "auth": token})

    def create(self, request: "Request") -> None:
        user, asked = self._user(request), json.loads(request.body)
        if user is None:
            raise unauthorized()
        repo_type, namespace = asked.get("type") or "model", asked.get("organization") or user
        if namespace != user:
            message = f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"'
            raise error(403, message)
        key = repo_type, f"{namespace}/{asked['name']}"
        url = f"{self.url}/{'' if repo_type == 'model' else repo_type + 's/'}{key[1]}"
        if key in self._repos:
            raise Answer(409, {"error": f"You already created this {repo_type} repo", "url": url})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self._repos[key] = Repo(private=private)
        raise Answer(200, {"url": url, "name": key[1], "id": hashlib.sha1(url.encode()).hexdigest()[:24]})

    def delete_repo(self, request: "Request") -> None:
        asked = json.loads(request.body)
        repo_type = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or self._user(request)}/{asked['name']}"
        self._repo(request, repo_type, repo_id, write=True)
        del self._repos[repo_type, repo_id]
        raise Answer(200, {})

    def info(self, request: "Request", kind: str, repo_id: str, revision: str = "main") -> None:
        repo = self._repo(request, kind, repo_id)
        commit = self._commit(repo, revision)
        readme = repo.trees[commit].get("README.md", b"").decode()
        metadata = _front_matter(readme) or {}
        raise Answer(
            200,
            {
                "_id": hashlib.sha1(repo_id.encode()).hexdigest()[:24],
                "id": repo_id,
                "author": repo_id.split("/")[0],
                "sha": commit,
                "createdAt": "2026-01-01T00:00:00.000Z",
                "lastModified": "2026-01-01T00:00:00.000Z",
                "private": repo.private,
                "disabled": False,
                "gated": False,
                "downloads": 0,
                "likes": 0,
                "tags": metadata.get("tags", []),
                "cardData": metadata,
                "siblings": [{"rfilename": path} for path in sorted(repo.trees[commit])],
                **({"modelId": repo_id} if kind == "model" else {}),
            },
        )

    def refs(self, request: "Request", kind: str, repo_id: str) -> None:
        repo = self._repo(request, kind, repo_id)
        found = {
            group: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": commit} for n, commit in some.items()]
            for group, where, some in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
        }
        raise Answer(200, {**found, "converts": []})

    def make_ref(self, request: "Request", kind: str, repo_id: str, ref: str, name: str) -> None:
        repo = self._repo(request, kind, repo_id, write=True)
        refs = repo.branches if ref == "branch" else repo.tags
        if name in refs:
            raise error(409, f"Reference already exists: {name}")
        asked = json.loads(request.body or b"{}")
        start = asked.get("startingPoint") or "main"
        if ref == "tag":  # the revision is in the path, the tag's name in the body
            name, start = asked["tag"], name
        refs[name] = self._commit(repo, start)
        raise Answer(200, {})

    # ---- Files: up -------------------------------------------------------------------------------------------------

    def validate_yaml(self, request: "Request") -> None:
        asked = json.loads(request.body)
        problems = [{"message": text} for text in card_errors(asked["content"], asked["repoType"])]
        raise Answer(400 if problems else 200, {"errors": problems, "warnings": []})

    def preupload(self, request: "Request", kind: str, repo_id: str, revision: str) -> None:
        repo = self._repo(request, kind, repo_id, write=True)
        tree = repo.trees[self._commit(repo, revision)]
        files = json.loads(request.body)["files"]
        raise Answer(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], tree[file["path"]]) if file["path"] in tree else None,
                    }
                    for file in files
                ],
                "commitOid": self._commit(repo, revision),
            },
        )

    def lfs_batch(self, request: "Request", repo_id: str, kind: str = "model") -> None:
        self._repo(request, kind, repo_id, write=True)
        objects = []
        for thing in json.loads(request.body)["objects"]:
            known = thing["oid"] in self._blobs
            action = {"upload": {"href": f"{self.url}/_lfs/{thing['oid']}", "header": {}}}
            objects.append({**thing, **({} if known else {"actions": action})})
        answer = Answer(200, {"transfer": "basic", "objects": objects})
        answer.headers["Content-Type"] = "application/vnd.git-lfs+json"
        raise answer

    def put_blob(self, request: "Request", oid: str) -> None:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise error(422, "The content is not what its name says")
        self._blobs[oid] = request.body
        raise Answer(200)

    def commit(self, request: "Request", kind: str, repo_id: str, revision: str) -> None:
        repo = self._repo(request, kind, repo_id, write=True)
        if revision not in repo.branches:
            raise error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head, (first, *operations) = repo.branches[revision], map(json.loads, request.body.splitlines())
        if first["value"].get("parentCommit", head) != head:
            raise error(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.trees[head])
        for operation in operations:
            self._apply(tree, operation["key"], operation["value"])
        readme = tree.get("README.md", b"").decode()
        if problems := card_errors(readme, kind):
            raise error(400, " ".join(problems))
        oid = hashlib.sha1(f"{time.time_ns()} {head}".encode()).hexdigest()
        repo.trees[oid], repo.branches[revision] = tree, oid
        repo.commits.append({"oid": oid, "summary": first["value"]["summary"]})
        prefix = "" if kind == "model" else f"{kind}s/"
        raise Answer(
            200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{prefix}{repo_id}/commit/{oid}"}
        )

    def _apply(self, tree: dict[str, bytes], key: str, value: dict) -> None:
        path = value["path"]
        if key == "file":
            content = base64.b64decode(value["content"])
            if _is_large(path, len(content)):
                raise error(400, f"{path} must go by LFS")
            tree[path] = content
        elif key == "lfsFile":
            if value["oid"] not in self._blobs:
                raise error(400, f"LFS object {value['oid']} of {path} was never uploaded")
            tree[path] = self._blobs[value["oid"]]
        elif key == "deletedFile":
            if path not in tree:
                raise error(404, f"{path} does not exist", "EntryNotFound")
            del tree[path]
        elif key == "deletedFolder":
            for name in [name for name in tree if name.startswith(path.rstrip("/") + "/")]:
                del tree[name]
        else:
            raise error(400, f"unknown operation {key}")

    # ---- Files: down -----------------------------------------------------------------------------------------------

    def tree(self, request: "Request", kind: str, repo_id: str, revision: str, path: str = "") -> None:
        repo = self._repo(request, kind, repo_id)
        tree = repo.trees[self._commit(repo, revision)]
        prefix, deep = f"{path}/" if path else "", request.query.get("recursive", "").lower() in ("true", "1")
        found = {}
        for name in sorted(name for name in tree if name.startswith(prefix)):
            for folder in _folders(name, prefix) if deep else list(_folders(name, prefix))[:1]:
                found[folder] = {"type": "directory", "oid": NO_COMMIT, "size": 0, "path": folder}
            if deep or "/" not in name.removeprefix(prefix):
                found[name] = _entry(name, tree[name])
        if path and not found:
            raise error(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        raise Answer(200, list(found.values()))

    def paths_info(self, request: "Request", kind: str, repo_id: str, revision: str) -> None:
        repo = self._repo(request, kind, repo_id)
        tree = repo.trees[self._commit(repo, revision)]
        is_json = request.body.startswith(b"{")
        asked = json.loads(request.body) if is_json else urllib.parse.parse_qs(request.body.decode())
        raise Answer(200, [_entry(path, tree[path]) for path in asked["paths"] if path in tree])

    def resolve(self, request: "Request", repo_id: str, revision: str, path: str, kind: str = "model") -> None:
        repo = self._repo(request, kind, repo_id)
        commit = self._commit(repo, revision)
        if path not in repo.trees[commit]:
            raise error(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        data = repo.trees[commit][path]
        common = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not _is_large(path, len(data)):
            raise self._ranged(request, data, {**common, "ETag": f'"{_oid(path, data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        linked = {
            "X-Linked-Etag": f'"{oid}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.elsewhere}/_lfs/{oid}",
        }
        raise Answer(302, b"Found. Redirecting.", {**common, **linked, "Content-Type": "text/plain; charset=utf-8"})

    def get_blob(self, request: "Request", oid: str) -> None:
        raise self._ranged(request, self._blobs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    @staticmethod
    def _ranged(request: "Request", data: bytes, headers: dict[str, str]) -> Answer:
        headers = {**headers, "Content-Type": "application/octet-stream"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if match is None:
            return Answer(200, data, headers)
        start, stop = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
        return Answer(206, data[start : stop + 1], headers)


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    headers: dict


API = r"/api/(?P<kind>model|dataset)s/(?P<repo_id>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>dataset)s/)?(?P<repo_id>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", MemoryHub.whoami),
    ("POST", r"/api/repos/create", MemoryHub.create),
    ("DELETE", r"/api/repos/delete", MemoryHub.delete_repo),
    ("POST", r"/api/validate-yaml", MemoryHub.validate_yaml),
    ("GET", API, MemoryHub.info),
    ("GET", API + r"/revision/(?P<revision>.+)", MemoryHub.info),
    ("GET", API + r"/refs", MemoryHub.refs),
    ("POST", API + r"/(?P<ref>branch|tag)/(?P<name>.+)", MemoryHub.make_ref),
    ("POST", API + r"/preupload/(?P<revision>.+)", MemoryHub.preupload),
    ("POST", PAGE + r"\.git/info/lfs/objects/batch", MemoryHub.lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", MemoryHub.put_blob),
    ("GET HEAD", r"/_lfs/(?P<oid>[0-9a-f]{64})", MemoryHub.get_blob),
    ("POST", API + r"/commit/(?P<revision>.+)", MemoryHub.commit),
    ("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", MemoryHub.tree),
    ("POST", API + r"/paths-info/(?P<revision>.+)", MemoryHub.paths_info),
    ("GET HEAD", PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", MemoryHub.resolve),
]


def _is_large(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > 10_000_000


def _oid(path: str, data: bytes) -> str:
    """A file's name in git; of a large one, its SHA-256."""
    if _is_large(path, len(data)):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
    if _is_large(path, len(data)):
        return {**entry, "lfs": {"oid": _oid(path, data), "size": len(data), "pointerSize": 132}}
    return {**entry, "oid": _oid(path, data)}


def _folders(name: str, prefix: str) -> Iterator[str]:
    """The folders of a file below a prefix, the highest first."""
    parts = name.removeprefix(prefix).split("/")[:-1]
    return (prefix + "/".join(parts[: i + 1]) for i in range(len(parts)))


def _front_matter(text: str) -> dict | None:
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, flags=re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def card_errors(text: str, kind: str) -> list[str]:
    """What the Hub refuses in a card's metadata: types, and results without task, data set or metric."""
    try:
        metadata = _front_matter(text)
    except yaml.YAMLError as problem:
        return [f"YAML Metadata Error: {problem}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["YAML Metadata Error: it is no mapping"]
    lists = {name: metadata.get(name, []) for name in ("tags", "datasets", "task_categories", "configs")}
    problems = [f'"{name}" must be a list' for name, value in lists.items() if not isinstance(value, list)]
    texts = {name: metadata.get(name, "") for name in ("license", "pipeline_tag", "library_name", "base_model")}
    problems += [f'"{name}" must be a string' for name, value in texts.items() if not isinstance(value, str)]
    for entry in metadata.get("model-index") or []:
        for result in entry.get("results", [{}]):
            needed = {"task": ("type",), "dataset": ("type", "name")}
            problems += [
                f'"model-index[0].results[0].{part}.{name}" is required'
                for part, names in needed.items()
                for name in names
                if not result.get(part, {}).get(name)
            ]
            metrics = result.get("metrics") or [{}]
            problems += [
                f'"model-index[0].results[0].metrics[0].{name}" is required'
                for metric in metrics
                for name in ("type", "value")
                if metric.get(name) is None
            ]
    return problems
