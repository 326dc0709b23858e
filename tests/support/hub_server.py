"""A Hugging Face Hub on loopback: repositories, branches, commits, large files, and the ways they break.

It speaks what `huggingface_hub` speaks to the real one, xet apart: the API and the files on one origin, the
large files on another ("storage", as the real Hub's are in S3), which must never see a token.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from loopback import serve

TOKENS = {"hf_ann": ("ann", "write"), "hf_ann_read": ("ann", "read"), "hf_bob": ("bob", "write")}
LARGE = (".safetensors", ".bin")


@dataclass(frozen=True)
class Entry:
    """A file of a commit; `sha256` if it is a large one, whose git object is then a pointer."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    message: str
    files: dict[str, Entry]


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, message: str, files: dict[str, Entry]) -> Commit:
        parent = self.branches.get(branch)
        content = json.dumps([parent, message, sorted((n, e.oid) for n, e in files.items())])
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), parent, message, files)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def history(self, branch: str = "main") -> list[Commit]:
        """Newest first."""
        found, oid = [], self.branches.get(branch)
        while oid is not None:
            found.append(self.commits[oid])
            oid = found[-1].parent
        return found


@dataclass
class Hub:
    """What the server holds and has seen; a test sets the fields between calls.

    Attributes:
        root: where the content of files lies, by hash.
        url: of the Hub itself.
        storage: of the large files.
        part: large files above this many bytes are uploaded in parts of it.
        breaks: how often to break the connection: half-way through an `upload` or a `download` of a large
            file, before or after a commit is made (`commit`, `committed`).
        hang: a download stops half-way and waits for `resume`.
        status: what every request is answered with, if not None.
        seen: requests as `METHOD /path`.
        ranges: the Range headers that came to the storage.
        leaked: Authorization headers that came to the storage.
    """

    root: Path
    url: str = ""
    storage: str = ""
    part: int | None = None
    breaks: Counter[str] = field(default_factory=Counter)
    hang: bool = False
    hanging: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    seen: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    repositories: dict[str, Repository] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def create(self, name: str, *, private: bool = False) -> Repository:
        repository = self.repositories[name] = Repository(private)
        repository.add("main", "initial commit", {".gitattributes": self.keep(b"*.safetensors filter=lfs\n")})
        return repository

    def keep(self, content: bytes) -> Entry:
        """Store a small file as git does."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.root / oid).write_bytes(content)
        return Entry(oid, len(content))

    def put(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit that is there from the start, small files only."""
        repository = self.repositories.get(name) or self.create(name)
        kept = {path: self.keep(content) for path, content in files.items()}
        old = repository.commits[repository.branches[branch]].files
        return repository.add(branch, "put", {**old, **kept}).oid

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        return (self.root / self.find(self.repositories[name], revision).files[path].etag).read_bytes()

    def files(self, name: str, revision: str = "main") -> dict[str, Entry]:
        return self.find(self.repositories[name], revision).files

    def find(self, repository: Repository, revision: str) -> Commit:
        oid = repository.branches.get(revision, revision)
        if oid not in repository.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository.commits[oid]

    def should_break(self, what: str) -> bool:
        with self.lock:
            if self.breaks[what] <= 0:
                return False
            self.breaks[what] -= 1
            return True


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class Broken(Exception):
    """The connection is to break here."""


class _Base(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle_request(self) -> None:
        self.left = self._length()
        self.path, _, self.query = self.path.partition("?")
        self.path = urllib.parse.unquote(self.path)
        try:
            self.route()
        except Refused as refused:
            self.drain()
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.reply({"error": refused.message}, refused.status, headers)
        except Broken:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # a client that was killed
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def route(self) -> None:
        raise NotImplementedError

    def _length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def body(self, limit: int | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        count = self.left if limit is None else min(limit, self.left)
        self.left -= count
        return self.rfile.read(count)

    def drain(self) -> None:
        self.body()

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.start(status, len(data), headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def start(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


class _Storage(_Base):
    """The large files: whole or in parts, and from any byte on."""

    def route(self) -> None:
        if "Authorization" in self.headers:
            self.hub.leaked.append(self.headers["Authorization"])
        oid, _, part = self.path.strip("/").partition("/")
        if not re.fullmatch("[0-9a-f]{64}", oid):
            raise Refused(404, "no such object")
        if self.command == "PUT":
            self._put(oid, part)
        else:
            self._get(self.hub.root / oid)

    def _put(self, oid: str, part: str) -> None:
        if self.hub.should_break("upload"):
            self.body(self.left // 2)
            raise Broken
        content = self.body()
        if part:
            (self.hub.root / f"{oid}.{part}").write_bytes(content)
        else:
            store(self.hub, oid, content)
        self.reply(b"", 200, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def _get(self, path: Path) -> None:
        content = path.read_bytes()
        first, status, headers = 0, 200, {"Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            first, status = int(re.fullmatch(r"bytes=(\d+)-\d*", wanted)[1]), 206
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        rest = content[first:]
        self.start(status, len(rest), headers)
        half = len(rest) // 2
        if self.hub.hang or self.hub.breaks["download"] > 0:
            self.wfile.write(rest[:half])
            self.wfile.flush()
            if self.hub.should_break("download"):
                raise Broken
            self.hub.hanging.set()
            self.hub.resume.wait(60)
            self.wfile.write(rest[half:])
        else:
            self.wfile.write(rest)


def store(hub: Hub, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refused(422, "the content's sha256 is not its name")
    (hub.root / oid).write_bytes(content)


class _Api(_Base):
    """The Hub itself."""

    def route(self) -> None:
        self.hub.seen.append(f"{self.command} {self.path}")
        if self.hub.status is not None:
            raise Refused(self.hub.status, "this Hub is having a bad day")
        for method, pattern, handle in _ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, self.path)):
                with self.hub.lock:
                    handle(self, **found.groupdict())
                return
        raise Refused(404, f"no such route: {self.command} {self.path}")

    def user(self) -> tuple[str, str] | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def repository(self, name: str, *, write: bool = False) -> Repository:
        user = self.user()
        found = self.hub.repositories.get(name)
        mine = user is not None and name.split("/")[0] == user[0]
        if found is None or (found.private and not mine):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(name)
        return found

    def may_write(self, name: str) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user != (name.split("/")[0], "write"):
            raise Refused(403, f"Forbidden: you have no right to write to {name}")

    # routes

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        auth = {"accessToken": {"displayName": "t", "role": user[1]}}
        self.reply({"type": "user", "name": user[0], "orgs": [], "auth": auth})

    def validate(self) -> None:
        text = json.loads(self.body())["content"]
        errors = []
        if found := re.match(r"---\n(.*?)\n---", text, re.DOTALL):
            try:
                data = yaml.safe_load(found[1])
            except yaml.YAMLError as error:
                errors.append(str(error))
            else:
                texts = ("license", "library_name", "pipeline_tag", "base_model_relation")
                errors += [f'"{name}" must be a string' for name in texts if not is_text(data.get(name, ""))]
                if not all(is_text(tag) for tag in data.get("tags", [])):
                    errors.append('"tags" must be strings')
        found_errors = [{"message": error} for error in errors]
        self.reply({"errors": found_errors, "warnings": []}, 400 if errors else 200)

    def create(self) -> None:
        wanted = json.loads(self.body())
        user = self.user()
        name = f"{wanted.get('organization') or (user and user[0])}/{wanted['name']}"
        self.may_write(name)
        if name in self.hub.repositories:
            self.reply({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
            return
        self.hub.create(name, private=wanted.get("visibility") == "private" or wanted.get("private") is True)
        self.reply({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def info(self, name: str, revision: str | None = None) -> None:
        repository = self.repository(name)
        commit = self.hub.find(repository, revision or "main")
        about = {"_id": "0", "id": name, "modelId": name, "sha": commit.oid, "private": repository.private}
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        self.reply(about | {"tags": [], "downloads": 0, "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        commit = self.hub.find(self.repository(name), revision)
        files = []
        for path, entry in sorted(commit.files.items()):
            one = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
            if entry.sha256:
                one["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
            files.append(one)
        self.reply(files)

    def branch(self, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        wanted = json.loads(self.body() or b"{}")
        if branch in repository.branches:
            raise Refused(409, f"Reference already exists: {branch}")
        start = self.hub.find(repository, wanted.get("startingPoint") or "main")
        repository.branches[branch] = start.oid
        self.reply({}, 201)

    def refs(self, name: str) -> None:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": oid}
            for branch, oid in self.repository(name).branches.items()
        ]
        self.reply({"branches": branches, "converts": [], "tags": []})

    def preupload(self, name: str, revision: str) -> None:
        commit = self.hub.find(self.repository(name, write=True), revision)
        answers = []
        for wanted in json.loads(self.body())["files"]:
            path = wanted["path"]
            old = commit.files.get(path)
            is_large = path.endswith(LARGE) or wanted["size"] > 10_000_000
            answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": old.etag} if old else {}))
        self.reply({"files": answers})

    def batch(self, name: str) -> None:
        self.repository(name, write=True)
        wanted = json.loads(self.body())
        transfer, objects = "basic", []
        for one in wanted["objects"]:
            oid, size = one["oid"], one["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            if not (self.hub.root / oid).exists():
                upload: dict[str, Any] = {"href": f"{self.hub.storage}/{oid}", "header": {}}
                if self.hub.part is not None and size > self.hub.part and "multipart" in wanted["transfers"]:
                    transfer = "multipart"
                    count = -(-size // self.hub.part)
                    urls = {str(n): f"{self.hub.storage}/{oid}/{n:05d}" for n in range(1, count + 1)}
                    upload = {
                        "href": f"{self.hub.url}/{name}.git/complete/{oid}",
                        "header": {"chunk_size": str(self.hub.part), **urls},
                    }
                verify = {"href": f"{self.hub.url}/{name}.git/info/lfs/objects/verify", "header": {}}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self.reply({"transfer": transfer, "objects": objects})

    def complete(self, name: str, oid: str) -> None:
        wanted = json.loads(self.body())
        parts = sorted(self.hub.root.glob(f"{oid}.*"))
        etags = [f'"{hashlib.md5(part.read_bytes()).hexdigest()}"' for part in parts]
        if [part["etag"] for part in wanted["parts"]] != etags:
            raise Refused(400, "the parts are not those that were uploaded")
        store(self.hub, oid, b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()
        self.reply({"success": True})

    def verify(self, name: str) -> None:
        self.repository(name, write=True)
        wanted = json.loads(self.body())
        path = self.hub.root / wanted["oid"]
        if not path.exists() or path.stat().st_size != wanted["size"]:
            raise Refused(404, "Object is not there, or not all of it")
        self.reply({})

    def commit(self, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        if revision not in repository.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body().splitlines()]
        if self.hub.should_break("commit"):
            raise Broken
        header, *operations = lines
        if header["key"] != "header":
            raise Refused(400, "the first line is no header")
        if (
            header["value"].get("parentCommit", repository.branches[revision])
            != repository.branches[revision]
        ):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[repository.branches[revision]].files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = self.hub.keep(base64.b64decode(value["content"]))
            elif operation["key"] == "lfsFile":
                if not (self.hub.root / value["oid"]).exists():
                    raise Refused(400, f"{value['path']}: the large file was not uploaded")
                pointer = self.hub.keep(f"oid sha256:{value['oid']}\nsize {value['size']}\n".encode())
                files[value["path"]] = Entry(pointer.oid, value["size"], value["oid"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"unknown operation {operation['key']}")
        made = repository.add(revision, header["value"]["summary"], files)
        if self.hub.should_break("committed"):
            raise Broken
        url = f"{self.hub.url}/{name}/commit/{made.oid}"
        self.reply({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit = self.hub.find(self.repository(name), revision)
        headers = {"X-Repo-Commit": commit.oid}
        entry = commit.files.get(path)
        if entry is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        if entry.sha256 is None:
            content = (self.hub.root / entry.oid).read_bytes()
            self.reply(content, 200, headers | {"ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"})
            return
        headers |= {
            "X-Linked-Etag": f'"{entry.sha256}"',
            "X-Linked-Size": str(entry.size),
            "Location": f"{self.hub.storage}/{entry.sha256}?signed=yes",
        }
        self.reply(b"Found. Redirecting", 302, headers)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


_ID = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Api.whoami),
    ("POST", "/api/validate-yaml", _Api.validate),
    ("POST", "/api/repos/create", _Api.create),
    ("GET", f"/api/models/{_ID}", _Api.info),
    ("GET", f"/api/models/{_ID}/revision/(?P<revision>.+)", _Api.info),
    ("GET", f"/api/models/{_ID}/tree/(?P<revision>[^/]+)/?", _Api.tree),
    ("GET", f"/api/models/{_ID}/refs", _Api.refs),
    ("POST", f"/api/models/{_ID}/branch/(?P<branch>.+)", _Api.branch),
    ("POST", f"/api/models/{_ID}/preupload/(?P<revision>.+)", _Api.preupload),
    ("POST", f"/api/models/{_ID}/commit/(?P<revision>.+)", _Api.commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Api.batch),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/verify", _Api.verify),
    ("POST", rf"/{_ID}\.git/complete/(?P<oid>[0-9a-f]+)", _Api.complete),
    ("GET HEAD", f"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Api.resolve),
]


@contextlib.contextmanager
def serve_hub(root: Path) -> Iterator[Hub]:
    """A Hub while the block runs."""
    root.mkdir(parents=True, exist_ok=True)
    hub = Hub(root)
    with (
        serve(type("Storage", (_Storage,), {"hub": hub})) as storage,
        serve(type("Api", (_Api,), {"hub": hub})) as url,
    ):
        hub.url, hub.storage = url, storage
        try:
            yield hub
        finally:
            hub.resume.set()


def environment(
    hub: Hub, home: Path, token: str | None = "hf_ann", *, offline: bool = False
) -> dict[str, str]:
    """The variables by which a fresh process finds this Hub, with a cache of its own."""
    found = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1" if offline else "0",
    }
    return found | ({"HF_TOKEN": token} if token else {})


def connect(monkeypatch: Any, hub: Hub, home: Path, token: str | None = "hf_ann", **settings: Any) -> None:
    """Point the library in this process at this Hub: it has read its environment when it was imported."""
    wanted = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in (wanted | settings).items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
