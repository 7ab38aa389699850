"""A small Hugging Face hub on loopback: what `huggingface_hub` and `datasets` ask of one that they
are pointed at with HF_ENDPOINT.

    repository = Repository({"data/train.parquet": b"..."})
    with Hub({"me/set": repository}, kind="datasets") as hub:
        ... HF_ENDPOINT=hub.url ...
    hub.asked                                  # (method, path) of every request

Served: information on a repository and a revision, refs, the tree, information on paths, files
(ranges too; those of LARGE bytes and more by a redirect, as LFS), who may read a gated or private
repository, and creating one and committing to it (small files in the commit, large ones uploaded
before). A revision is a branch, a tag or a commit. What it has not is 404, as the hub says it.
`hub.faults` makes it fail: refuse, wait, or cut a body short.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from aiohttp import web

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

Files = Mapping[str, bytes]
TOKEN = "hf_loopback"
"""The one token that this hub knows."""
LARGE = 1 << 16
"""Bytes from which a file is an LFS one."""
BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass
class Repository:
    """One repository: the files of `main`, and those of other revisions by name; `kind` (datasets,
    models) where it is not the hub's. The files of a `gated` one are for `granted` tokens alone; a
    `private` one is not there without a token."""

    files: Files
    revisions: dict[str, Files] = field(default_factory=dict)
    kind: str = ""
    gated: bool = False
    granted: bool = False
    private: bool = False
    card: dict[str, Any] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, Files] | None:
        """(commit, files) of a branch, a tag or a commit."""
        known = {"main": self.files, **self.revisions}
        named = {name: (commit(files), files) for name, files in known.items()}
        by_commit = {sha: (sha, files) for sha, files in named.values()}
        return named.get(revision) or by_commit.get(revision)


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD PATH" matches: a `status` with
    `headers` (0: none of its own), after `wait` seconds; or, with `cut`, a body of so many bytes
    and a closed connection."""

    match: str
    status: int = 0
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    cut: int | None = None


def commit(files: Files) -> str:
    """The commit that holds these files."""
    held = [(path, hashlib.sha1(body).hexdigest()) for path, body in sorted(files.items())]
    return hashlib.sha1(repr(held).encode()).hexdigest()


class Hub:
    """Serves repositories while the block lasts. `kind`: datasets or models, where a repository
    does not say."""

    def __init__(self, repositories: Mapping[str, Repository], kind: str = "datasets") -> None:
        self.repositories = dict(repositories)
        self.kind = kind
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        """Every token that came."""
        self.faults: list[Fault] = []
        self.uploads: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)

    def of(self, name: str, path: str) -> int:
        """How many requests for a path of a repository came."""
        return sum(name in asked and path in asked for _, asked in self.asked)

    def _serve(self) -> None:
        from aiohttp import web

        asyncio.set_event_loop(self._loop)

        @web.middleware
        async def each(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._each(request, handler)

        app = web.Application(middlewares=[each], client_max_size=1 << 30)
        for kind in ("datasets", "models"):
            api = f"/api/{kind}/{{owner}}/{{name}}"
            app.router.add_get(api, self._information)
            app.router.add_get(f"{api}/revision/{{revision}}", self._information)
            app.router.add_get(f"{api}/refs", self._refs)
            app.router.add_get(f"{api}/auth-check", self._access)
            app.router.add_get(f"{api}/tree/{{revision}}", self._tree)
            app.router.add_get(f"{api}/tree/{{revision}}/{{path:.*}}", self._tree)
            app.router.add_post(f"{api}/paths-info/{{revision}}", self._paths)
            app.router.add_post(f"{api}/preupload/{{revision}}", self._modes)
            app.router.add_post(f"{api}/commit/{{revision}}", self._commit)
            top = "/datasets" if kind == "datasets" else ""
            own = f"{top}/{{owner}}/{{name}}"
            app.router.add_get(f"{own}/resolve/{{revision}}/{{path:.+}}", self._file)
            app.router.add_post(f"{own}.git/info/lfs/objects/batch", self._batch)
        app.router.add_get("/lfs/{kind}/{owner}/{name}/{revision}/{path:.+}", self._large)
        app.router.add_put("/upload/{oid}", self._upload)
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post("/api/validate-yaml", self._fine)
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        port = runner.addresses[0][1]
        self.url, self._elsewhere = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _each(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request: noted, its token looked at, and made to fail where a fault says so."""
        from aiohttp import web

        self.asked.append((request.method, request.path))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        fault = self._fault(f"{request.method} {request.path}")
        if fault is not None:
            await asyncio.sleep(fault.wait)
            if fault.status:
                return web.Response(status=fault.status, headers=fault.headers)
        if token:
            self.tokens.add(token)
            if token != TOKEN:
                return web.Response(status=401, headers={"X-Error-Message": BAD_TOKEN})
        answer = await handler(request)
        if fault is None or fault.cut is None or not isinstance(answer, web.Response):
            return answer
        body = bytes(answer.body or b"")  # type: ignore[arg-type]
        cut = web.StreamResponse(status=answer.status, headers=answer.headers)
        cut.content_length = len(body)
        await cut.prepare(request)
        await cut.write(body[: fault.cut])
        if request.transport is not None:
            request.transport.close()
        return cut

    def _fault(self, asked: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.match, asked):
                fault.times -= 1
                return fault
        return None

    def _at(self, request: web.Request) -> tuple[str, str, Files]:
        """(repository, commit, files) of a request. Raises 404 as the hub does."""
        from aiohttp import web

        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        revision = request.match_info.get("revision", "main")
        repository = self.repositories.get(name)
        kind = "datasets" if re.match(r"/(api/|lfs/)?datasets/", request.path) else "models"
        hidden = repository is not None and repository.private and not _token(request)
        if repository is None or (repository.kind or self.kind) != kind or hidden:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        found = repository.at(revision)
        if found is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
        return (name, *found)

    def _granted(self, name: str, request: web.Request) -> None:
        """Raises 401 or 403 as the hub does for a gated repository."""
        from aiohttp import web

        repository = self.repositories[name]
        if not repository.gated or (repository.granted and _token(request)):
            return
        refused = {
            "X-Error-Code": "GatedRepo",
            "X-Error-Message": f"{name} is restricted",
        }
        if _token(request):
            raise web.HTTPForbidden(headers=refused)
        raise web.HTTPUnauthorized(headers=refused)

    async def _information(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, sha, files = self._at(request)
        repository = self.repositories[name]
        told: dict[str, Any] = {
            "id": name,
            "sha": sha,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "cardData": repository.card,
            "siblings": [{"rfilename": path, "size": len(files[path])} for path in sorted(files)],
        }
        return web.json_response(told)

    async def _access(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, _, _ = self._at(request)
        self._granted(name, request)
        return web.Response()

    async def _refs(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, _, _ = self._at(request)
        revisions = {"main": self.repositories[name].files, **self.repositories[name].revisions}
        branches = [
            {"name": each, "ref": f"refs/heads/{each}", "targetCommit": commit(files)}
            for each, files in revisions.items()
        ]
        return web.json_response({"branches": branches, "converts": [], "tags": []})

    async def _tree(self, request: web.Request) -> web.Response:
        from aiohttp import web

        _, _, files = self._at(request)
        within = request.match_info.get("path", "").strip("/")
        top = f"{within}/" if within else ""
        below = {path for path in files if path.startswith(top)}
        if not below and top:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        deep = request.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path in sorted(below):
            *folders, _ = path.removeprefix(top).split("/")
            for depth in range(1, len(folders) + 1):
                if deep or depth == 1:
                    folder = top + "/".join(folders[:depth])
                    entries[folder] = {"type": "directory", "path": folder, "oid": "0", "size": 0}
            if deep or not folders:
                entries[path] = _entry(path, files)
        return web.json_response(list(entries.values()))

    async def _paths(self, request: web.Request) -> web.Response:
        from aiohttp import web

        _, _, files = self._at(request)
        wanted = (await request.post()).getall("paths", [])
        if not wanted:
            wanted = (await request.json()).get("paths", [])
        found = []
        for path in map(str, wanted):
            if path in files:
                found.append(_entry(path, files))
            elif any(each.startswith(f"{path}/") for each in files):
                found.append({"type": "directory", "path": path, "oid": "0", "size": 0})
        return web.json_response(found)

    async def _file(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, sha, files = self._at(request)
        self._granted(name, request)
        path = request.match_info["path"]
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if path not in files:
            raise web.HTTPNotFound(headers={**headers, "X-Error-Code": "EntryNotFound"})
        body = files[path]
        if len(body) < LARGE:
            headers["ETag"] = f'"{_oid(body)}"'
            return _part(request, body, headers)
        kind = self.repositories[name].kind or self.kind
        headers["X-Linked-ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        headers["X-Linked-Size"] = str(len(body))
        headers["Location"] = f"{self._elsewhere}/lfs/{kind}/{name}/{sha}/{path}"
        return web.Response(status=302, headers=headers)

    async def _large(self, request: web.Request) -> web.Response:
        """The other server, that holds large files."""
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        found = self.repositories[name].at(request.match_info["revision"])
        assert found is not None
        body = found[1][request.match_info["path"]]
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        return _part(request, body, {"ETag": etag, "Accept-Ranges": "bytes"})

    async def _create(self, request: web.Request) -> web.Response:
        from aiohttp import web

        if not _token(request):
            raise web.HTTPUnauthorized(headers={"X-Error-Message": "You need to be authenticated"})
        asked = await request.json()
        self.created.append(asked)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        kind = "datasets" if asked.get("type") == "dataset" else "models"
        top = "datasets/" if kind == "datasets" else ""
        url = f"{self.url}/{top}{name}"
        if name in self.repositories:
            return web.json_response({"url": url, "name": name, "id": name}, status=409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.repositories[name] = Repository({}, kind=kind, private=private)
        return web.json_response({"url": url, "name": name, "id": name})

    async def _modes(self, request: web.Request) -> web.Response:
        from aiohttp import web

        self._at(request)
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for each in (await request.json())["files"]
        ]
        return web.json_response({"files": files})

    async def _batch(self, request: web.Request) -> web.Response:
        from aiohttp import web

        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}"}}}
            for each in (await request.json())["objects"]
        ]
        said = {"transfer": "basic", "objects": objects}
        return web.json_response(said, content_type="application/vnd.git-lfs+json")

    async def _upload(self, request: web.Request) -> web.Response:
        from aiohttp import web

        body = await request.read()
        if hashlib.sha256(body).hexdigest() != request.match_info["oid"]:
            raise web.HTTPBadRequest
        self.uploads[request.match_info["oid"]] = body
        return web.Response()

    async def _commit(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, _, before = self._at(request)
        files = dict(before)
        for line in (await request.read()).splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif said["key"] == "lfsFile":
                files[value["path"]] = self.uploads[value["oid"]]
        self.repositories[name].files = files
        sha = commit(files)
        top = "datasets/" if "/api/datasets/" in request.path else ""
        address = f"{self.url}/{top}{name}/commit/{sha}"
        done = {"success": True, "commitOid": sha, "commitUrl": address, "hookOutput": ""}
        return web.json_response(done)

    async def _fine(self, request: web.Request) -> web.Response:
        from aiohttp import web

        return web.json_response({"warnings": [], "errors": []})

    async def _unknown(self, request: web.Request) -> web.Response:
        from aiohttp import web

        raise web.HTTPNotFound


def _token(request: web.Request) -> bool:
    return "Authorization" in request.headers


def _part(request: web.Request, body: bytes, headers: dict[str, str]) -> web.Response:
    """A body, or the range of it that is asked for."""
    from aiohttp import web

    part = request.http_range
    if part.start is None and part.stop is None:
        return web.Response(body=body, headers=headers)
    start, stop, _ = part.indices(len(body))
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
    return web.Response(status=206, body=body[start:stop], headers=headers)


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def _entry(path: str, files: Files) -> dict[str, Any]:
    body = files[path]
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": _oid(body), "size": len(body)}
    if len(body) >= LARGE:
        oid = hashlib.sha256(body).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(body), "pointerSize": 130}
    return entry


def point_at(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process take a hub for its own, with empty caches below a folder and no token."""
    from huggingface_hub import constants

    from core.pretrained import hub

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MAGPIE_CACHE", str(folder / "magpie"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "_commits", {})
    monkeypatch.setattr(hub, "_knocked", {})
