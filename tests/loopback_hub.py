"""A small Hugging Face hub on loopback: what `huggingface_hub` and `datasets` ask of one that they
are pointed at with HF_ENDPOINT.

    repository = Repository({"data/train.parquet": b"..."})
    with Hub({"me/set": repository}, kind="datasets") as hub:
        ... HF_ENDPOINT=hub.url ...
    hub.asked                                  # (method, path) of every request

Served: information on a repository and a revision, refs, the tree, information on paths, and files
(ranges too). A revision is a branch, a tag or a commit. What it has not is 404, as the hub says it.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

Files = Mapping[str, bytes]


@dataclass
class Repository:
    """One repository: the files of `main`, and those of other revisions by name."""

    files: Files
    revisions: dict[str, Files] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, Files] | None:
        """(commit, files) of a branch, a tag or a commit."""
        known = {"main": self.files, **self.revisions}
        named = {name: (commit(files), files) for name, files in known.items()}
        by_commit = {sha: (sha, files) for sha, files in named.values()}
        return named.get(revision) or by_commit.get(revision)


def commit(files: Files) -> str:
    """The commit that holds these files."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Hub:
    """Serves repositories while the block lasts. `kind`: datasets or models."""

    def __init__(self, repositories: Mapping[str, Repository], kind: str = "datasets") -> None:
        self.repositories = dict(repositories)
        self.kind = kind
        self.asked: list[tuple[str, str]] = []
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
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _serve(self) -> None:
        from aiohttp import web

        asyncio.set_event_loop(self._loop)
        app = web.Application()
        api, files = f"/api/{self.kind}/{{owner}}/{{name}}", "/{owner}/{name}/resolve/{revision}"
        files = files if self.kind == "models" else f"/{self.kind}{files}"
        app.router.add_get(api, self._information)
        app.router.add_get(f"{api}/revision/{{revision}}", self._information)
        app.router.add_get(f"{api}/refs", self._refs)
        app.router.add_get(f"{api}/tree/{{revision}}", self._tree)
        app.router.add_get(f"{api}/tree/{{revision}}/{{path:.*}}", self._tree)
        app.router.add_post(f"{api}/paths-info/{{revision}}", self._paths)
        app.router.add_get(f"{files}/{{path:.+}}", self._file)  # HEAD too
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def _at(self, request: web.Request) -> tuple[str, str, Files]:
        """(repository, commit, files) of a request. Raises 404 as the hub does."""
        from aiohttp import web

        self.asked.append((request.method, request.path))
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        revision = request.match_info.get("revision", "main")
        repository = self.repositories.get(name)
        if repository is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        found = repository.at(revision)
        if found is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
        return (name, *found)

    async def _information(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, sha, files = self._at(request)
        told: dict[str, Any] = {
            "id": name,
            "sha": sha,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(files)],
        }
        return web.json_response(told)

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

        _, sha, files = self._at(request)
        path = request.match_info["path"]
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if path not in files:
            raise web.HTTPNotFound(headers={**headers, "X-Error-Code": "EntryNotFound"})
        body = files[path]
        headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        part = request.http_range
        if part.start is None and part.stop is None:
            return web.Response(body=body, headers=headers)
        start, stop, _ = part.indices(len(body))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return web.Response(status=206, body=body[start:stop], headers=headers)

    async def _unknown(self, request: web.Request) -> web.Response:
        from aiohttp import web

        self.asked.append((request.method, request.path))
        raise web.HTTPNotFound


def _entry(path: str, files: Files) -> dict[str, Any]:
    body = files[path]
    oid = hashlib.sha1(body).hexdigest()
    return {"type": "file", "path": path, "oid": oid, "size": len(body)}
