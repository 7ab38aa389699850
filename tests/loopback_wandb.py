"""W&B's API on loopback, as far as uploading offline runs goes: it knows runs, keeps the lines of
their histories at the places that they were sent to, and takes files. It does not check steps, and
knows no artifacts."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any]


class LoopbackWandb:
    """Runs by id with their histories (place -> line). `refuse`: file streams are answered by an
    error, as by a server that is down."""

    def __init__(self) -> None:
        self.histories: dict[str, dict[int, Answer]] = defaultdict(dict)
        self.opened: list[str] = []
        self.groups: dict[str, str] = {}
        self.refuse = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> LoopbackWandb:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def losses(self, run: str) -> list[float]:
        """The losses of a run's history, line by line."""
        lines = self.histories[run]
        return [lines[place]["loss"] for place in sorted(lines) if "loss" in lines[place]]

    def stream(self, path: str, body: Answer) -> None:
        """Lines arrive."""
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history:
            run = path.split("/")[-2]
            for place, line in enumerate(history["content"], history["offset"]):
                self.histories[run][place] = json.loads(line)

    def query(self, text: str, asked: Answer) -> Answer:
        """The reply to a GraphQL query, known by what it asks for."""
        name = str(asked.get("name"))
        if "viewer" in text:
            versions = {"max_cli_version": "9.9.9"}
            info = {"cliVersionInfo": versions, "latestLocalVersionInfo": None}
            viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}, "serverInfo": info}
        if "upsertBucket" in text:
            new = name not in self.opened
            self.opened.append(name)
            self.groups[name] = asked.get("groupName") or self.groups.get(name, "")
            project = {"id": "p", "name": asked.get("project"), "entity": {"name": "me"}}
            bucket = {"id": name, "name": name, "displayName": name, "config": "{}"}
            return {
                "upsertBucket": {
                    "bucket": {**bucket, "project": project, "historyLineCount": 0},
                    "inserted": new,
                }
            }
        if "createRunFiles" in text:
            files = [{"name": n, "uploadUrl": f"{self.url}/put/{n}"} for n in asked["files"]]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        if "historyLineCount" in text:
            return {"model": {"bucket": self._bucket(name)}}
        return {}

    def _bucket(self, name: str) -> Answer | None:
        if name not in self.opened:
            return None
        lines = self.histories[name]
        tail = [json.dumps(lines[max(lines)])] if lines else []
        return {
            "name": name,
            "displayName": name,
            "historyLineCount": len(lines),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "summaryMetrics": tail[0] if tail else "{}",
            "config": "{}",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }


def _handler(server: LoopbackWandb) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self._body()
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                answer = server.query(asked["query"], asked.get("variables") or {})
                self._reply({"data": answer})
            elif "file_stream" in self.path and server.refuse:
                self._reply({"error": "refused"}, 400)
            else:
                if re.search("file_stream$", self.path):
                    server.stream(self.path, json.loads(body))
                self._reply({})

        def do_PUT(self) -> None:
            self._body()
            self._reply({})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            zipped = self.headers.get("Content-Encoding") == "gzip"
            return gzip.decompress(body) if zipped else body

        def _reply(self, value: Answer, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
