"""A Hub on this machine, over real HTTP: what `huggingface_hub`'s client asks of one, and faults on demand.

with reachable_hub(monkeypatch) as hub:
    push(folder, "me/mine")
    hub.files("me/mine")["config.json"]              # what a commit holds, as bytes
    hub.fault("PUT", "/objects/", "die half way")    # the next upload ends in the middle, and the server is gone
    hub.start()                                      # back again, with all it had

Repositories are commits of whole trees; large files live apart and are served from another origin (`localhost` beside
`127.0.0.1`), as the real one's are from a CDN.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, unquote, urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import _http


@dataclass
class File:
    """Of a commit; `sha256` where the content lies apart."""

    size: int
    content: bytes | None = None
    sha256: str | None = None

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def blob_id(self) -> str:
        stored = self.content if self.sha256 is None else self.pointer
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        oid = hashlib.sha1(repr((len(self.messages), sorted(files), message)).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)


@dataclass
class Fault:
    method: str
    pattern: str
    what: int | str
    after: int
    times: int


class LoopbackHub:
    """The server and what it holds.

    Args:
        account: whose token is accepted, and whose namespace can be written to. large: bytes from which a file lies apart,
            beside all *.safetensors, *.bin, *.parquet, *.png. part_size: bytes of the parts of an upload, None for one.
        page_size: entries of a tree that one answer holds.
    """

    token = "hf_" + "L00pback" * 4

    def __init__(self, account: str = "me", large: int = 1 << 20, part_size: int | None = None, page_size: int = 1000):
        self.account, self.large, self.part_size, self.page_size = account, large, part_size, page_size
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.authorized_elsewhere: list[str] = []  # requests to the other origin that carried a token: must stay empty
        self.server, self.port = None, 0

    def __enter__(self) -> "LoopbackHub":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]  # the same again when it comes back
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def elsewhere(self) -> str:
        return f"http://localhost:{self.port}"

    def fault(self, method: str, pattern: str, what: int | str, *, after: int = 0, times: int = 1) -> None:
        """Let requests fail.

        Args:
            what: a status, "drop" (the connection ends without an answer), "die half way" (in the middle of the body, and
                the server is gone), or "die after" (it did what was asked, and nobody hears of it).
            after: how many such requests succeed first. times: how many fail.
        """
        self.faults.append(Fault(method, pattern, what, after, times))

    def asked(self, method: str, pattern: str) -> list[str]:
        """The paths of such requests so far."""
        return [path for m, path in self.requests if m == method and re.search(pattern, path)]

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """name -> content, of what was pushed."""
        repository = self.repository(repo_id, repo_type)
        tree = repository.commits[repository.find(revision)]
        return {
            name: file.content if file.sha256 is None else repository.objects[file.sha256]
            for name, file in tree.items()
            if name != ".gitattributes"
        }

    def head(self, repo_id: str, branch: str = "main", repo_type: str = "model") -> str:
        return self.repository(repo_id, repo_type).branches[branch]


@contextmanager
def reachable_hub(monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub for this process, offline as it may be otherwise; its token is the environment's, and the client doesn't wait
    between its tries."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", LoopbackHub.token)
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE  # made of the endpoint when the client was imported
        path = template[template.index("/{repo_id}") :]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + path)
        yield hub
        assert not hub.authorized_elsewhere


class _Answer(Exception):  # noqa: N818
    def __init__(self, status: int, body=None, headers: dict[str, str] | None = None):
        self.status, self.body, self.headers = status, body, headers or {}


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self):
        self._serve()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD  # noqa: N815

    # ---- one request

    def _serve(self) -> None:
        self.url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(self.url.query).items()}
        self.hub.requests.append((self.command, self.url.path))
        if self.server is not self.hub.server:  # a connection from before it died
            return self._hang_up(dies=False)
        fault = self._fault()
        if fault == "drop" or fault == "die half way":
            if fault == "die half way":
                self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            return self._hang_up(dies=fault == "die half way")
        self.body = self._read_body()
        try:
            if isinstance(fault, int):
                raise _Answer(fault, {"error": f"the server was told to answer {fault}"})
            self._route()
            raise _Answer(404, {"error": f"no such route: {self.command} {self.path}"})
        except _Answer as answer:
            if fault == "die after":
                return self._hang_up(dies=True)
            self._send(answer)

    def _fault(self) -> int | str | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.method == self.command and re.search(fault.pattern, self.url.path) and fault.times:
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault.what
        return None

    def _hang_up(self, *, dies: bool) -> None:
        self.close_connection = True
        if dies:
            self.hub.stop()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, answer: _Answer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        if isinstance(answer.body, dict) and answer.status >= 400:
            self.send_header("X-Error-Message", answer.body["error"])
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- what is asked

    def _route(self) -> None:
        parts = [unquote(part) for part in self.url.path.split("/")[1:]]
        if parts[0] == "objects":
            self._objects(parts[1], parts[2:])
        if parts[:2] == ["api", "whoami-v2"]:
            self._need_token()
            raise _Answer(200, {"type": "user", "name": self.hub.account, "orgs": [], "auth": {}})
        if parts[:2] == ["api", "validate-yaml"]:
            raise _Answer(200, {"errors": [], "warnings": []})
        if parts[:2] == ["api", "repos"]:
            self._create_or_delete(parts[2])
        if parts[0] == "api":
            kind, parts = parts[1].removesuffix("s"), parts[2:]
        else:
            kind = parts[0].removesuffix("s") if parts[0] in ("datasets", "spaces") else "model"
            parts = parts[0 if kind == "model" else 1 :]
        repo_id, rest = "/".join(parts[:2]).removesuffix(".git"), parts[2:]
        repository = self._repository(kind, repo_id)
        if rest[:1] == ["info"]:
            self._lfs_batch(repository, kind, repo_id)
        if rest[:1] == ["resolve"]:
            self._resolve(repository, kind, repo_id, rest[1], "/".join(rest[2:]))
        getattr(self, f"_api_{rest[0]}" if rest else "_api_revision")(repository, kind, repo_id, rest[1:])

    def _token_is_good(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _need_token(self) -> None:
        if not self._token_is_good():
            raise _Answer(401, {"error": "Invalid credentials in Authorization header"})

    def _repository(self, kind: str, repo_id: str) -> Repository:
        repository = self.hub.repositories.get((kind, repo_id))
        if self.headers.get("Authorization") and not self._token_is_good():
            raise _Answer(401, {"error": "Invalid credentials in Authorization header"})
        if repository is None or (repository.private and not self._token_is_good()):
            raise _Answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if self.command in ("POST", "DELETE"):
            self._need_token()
        return repository

    def _create_or_delete(self, what: str) -> None:
        self._need_token()
        asked = json.loads(self.body)
        owner, kind = asked.get("organization") or self.hub.account, asked.get("type", "model")
        key = (kind, f"{owner}/{asked['name']}")
        if owner != self.hub.account:
            raise _Answer(403, {"error": f"You don't have the rights to create a {kind} under this namespace"})
        if what == "delete":
            if self.hub.repositories.pop(key, None) is None:
                raise _Answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            raise _Answer(200, {})
        if key in self.hub.repositories:
            raise _Answer(409, {"error": f"You already created this {kind} repo"})
        repository = self.hub.repositories[key] = Repository(private=asked.get("visibility") == "private")
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repository.commit("main", {".gitattributes": File(len(attributes), attributes)}, "initial commit")
        prefix = "" if kind == "model" else f"{kind}s/"
        raise _Answer(200, {"url": f"{self.hub.endpoint}/{prefix}{key[1]}", "name": key[1], "id": "0"})

    def _find(self, repository: Repository, revision: str) -> str:
        oid = repository.find(revision)
        if oid is None:
            raise _Answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return oid

    def _api_revision(self, repository, kind, repo_id, rest) -> None:
        oid = self._find(repository, rest[0] if rest else "main")
        siblings = [{"rfilename": name} for name in repository.commits[oid]]
        raise _Answer(200, {"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []})

    def _api_tree(self, repository, kind, repo_id, rest) -> None:
        tree = repository.commits[self._find(repository, rest[0])]
        entries = []
        for name, file in sorted(tree.items()):
            entry = {"type": "file", "path": name, "size": file.size, "oid": file.blob_id}
            if file.sha256 is not None:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
            entries.append(entry)
        start, headers = int(self.query.get("cursor", 0)), {}
        if start + self.hub.page_size < len(entries):
            following = f"{self.hub.endpoint}{self.url.path}?recursive=true&cursor={start + self.hub.page_size}"
            headers["Link"] = f'<{following}>; rel="next"'
        raise _Answer(200, entries[start : start + self.hub.page_size], headers)

    def _api_refs(self, repository, kind, repo_id, rest) -> None:
        def named(refs: dict[str, str], where: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        found = {"branches": named(repository.branches, "heads"), "tags": named(repository.tags, "tags")}
        raise _Answer(200, {**found, "converts": []})

    def _api_branch(self, repository, kind, repo_id, rest) -> None:
        if self.command == "DELETE":
            del repository.branches[rest[0]]
            raise _Answer(200, {})
        if rest[0] in repository.branches:
            raise _Answer(409, {"error": f"Reference already exists: {rest[0]}"})
        start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
        repository.branches[rest[0]] = self._find(repository, start)
        raise _Answer(200, {})

    def _api_tag(self, repository, kind, repo_id, rest) -> None:
        tag = json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise _Answer(409, {"error": f"Tag already exists: {tag}"})
        repository.tags[tag] = self._find(repository, rest[0])
        raise _Answer(200, {})

    # ---- writing

    def _api_preupload(self, repository, kind, repo_id, rest) -> None:
        tree = repository.commits[self._find(repository, rest[0])]
        asked = json.loads(self.body)
        ignored = asked.get("gitIgnore")
        if ignored is None and ".gitignore" in tree:
            ignored = tree[".gitignore"].content.decode()
        answers = []
        for file in asked["files"]:
            name, there = file["path"], tree.get(file["path"])
            apart = name.endswith((".safetensors", ".bin", ".parquet", ".png")) or file["size"] >= self.hub.large
            answer = {"path": name, "uploadMode": "lfs" if apart else "regular"}
            answer["shouldIgnore"] = name in (ignored or "").split()
            if there is not None:
                answer["oid"] = there.sha256 or there.blob_id
            answers.append(answer)
        raise _Answer(200, {"files": answers})

    def _lfs_batch(self, repository, kind, repo_id) -> None:
        answers = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repository.objects:
                href = f"{self.hub.elsewhere}/objects/{quote(f'{kind}:{repo_id}', safe='')}/{asked['oid']}"
                upload = {"href": href}
                if self.hub.part_size is not None:
                    count = -(-asked["size"] // self.hub.part_size)
                    upload["header"] = {str(n): f"{href}/{n}" for n in range(1, count + 1)}
                    upload["header"]["chunk_size"] = str(self.hub.part_size)
                answer["actions"] = {"upload": upload}
            answers.append(answer)
        raise _Answer(200, {"transfer": "basic", "objects": answers})

    def _objects(self, key: str, rest: list[str]) -> None:
        """Uploads, whole or in parts, and downloads; the URL is the permission, as with signed ones."""
        if self.headers.get("Authorization"):
            self.hub.authorized_elsewhere.append(self.path)
        repository, oid = self.hub.repositories[tuple(key.split(":", 1))], rest[0]
        if self.command in ("GET", "HEAD"):
            raise self._content(repository.objects[oid], {"ETag": f'"{oid}"'})
        if self.command == "PUT" and len(rest) == 2:
            repository.objects[f"{oid}/{rest[1]}"] = self.body
            raise _Answer(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
        content = self.body
        if self.command == "POST":
            parts = [f"{oid}/{part['partNumber']}" for part in json.loads(self.body)["parts"]]
            content = b"".join(repository.objects.pop(part) for part in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Answer(400, {"error": "the content isn't what its sha256 says"})
        repository.objects[oid] = content
        raise _Answer(200, b"")

    def _api_commit(self, repository, kind, repo_id, rest) -> None:
        if rest[0] not in repository.branches:
            self._find(repository, rest[0])
            raise _Answer(400, {"error": f"{rest[0]} is not a branch"})
        files, message = dict(repository.commits[repository.branches[rest[0]]]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            what, value = item["key"], item["value"]
            if what == "header":
                message, parent = value["summary"], value.get("parentCommit")
                if parent is not None and not repository.branches[rest[0]].startswith(parent):
                    raise _Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            elif what == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = File(len(content), content)
            elif what == "lfsFile":
                if value["oid"] not in repository.objects:
                    raise _Answer(400, {"error": f"LFS pointer pointed to a file that does not exist: {value['path']}"})
                files[value["path"]] = File(value["size"], sha256=value["oid"])
            elif what == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(rest[0], files, message)
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.endpoint}/{prefix}{repo_id}/commit/{oid}"
        raise _Answer(200, {"commitUrl": url, "commitOid": oid, "success": True})

    # ---- reading

    def _resolve(self, repository, kind, repo_id, revision, name) -> None:
        oid = self._find(repository, revision)
        file = repository.commits[oid].get(name)
        if file is None:
            raise _Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        if file.sha256 is None:
            raise self._content(file.content, {"ETag": f'"{file.blob_id}"', "X-Repo-Commit": oid})
        location = f"{self.hub.elsewhere}/objects/{quote(f'{kind}:{repo_id}', safe='')}/{file.sha256}"
        linked = {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        raise _Answer(302, b"", {"Location": location, "X-Repo-Commit": oid, "ETag": f'"{file.blob_id}"', **linked})

    def _content(self, content: bytes, headers: dict[str, str]) -> _Answer:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None:
            return _Answer(200, content, headers)
        start = int(asked[1])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return _Answer(206, content[start:], headers)
