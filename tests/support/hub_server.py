"""A small Hub on this machine: it takes commits, keeps their files, and gives them back. A real HTTP server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_COMMIT = "c" * 40


class HubServer:
    """`files` of each repository; `private` ones; `tokens` are what came as authorization."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def posted(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        repo, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return 200, {"success": True, "commitOid": _COMMIT, "commitUrl": f"{self.url}/{repo}/commit/{_COMMIT}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.files:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.files[repo] = {}
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, {"url": f"{self.url}/{repo}", "name": repo}

    def got(self, path: str) -> tuple[int, Any] | None:
        """What a GET answers: a status with JSON, or bytes; None where nothing is there."""
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.files.get(found[1], {}).get(found[2])
            return None if content is None else (200, content)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/(revision|tree)/[^/]+)?", path)
        if found is None or found[1] not in self.files:
            return None
        files = self.files[found[1]]
        if found[3] == "tree":
            rows = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": _etag(files[name])} for name in files
            ]
            return 200, rows
        names = [{"rfilename": name} for name in files]
        repo = {"id": found[1], "modelId": found[1], "sha": _COMMIT, "private": self.private[found[1]]}
        return 200, {**repo, "siblings": names}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        self.server.hub.tokens.add(self.headers.get("authorization"))
        if self.headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, content = self.server.hub.posted(self.path.partition("?")[0], body)
        self._answer(status, json.dumps(content).encode(), {})

    def do_GET(self) -> None:
        found = self.server.hub.got(self.path.partition("?")[0])
        if found is None:
            code = "RepoNotFound" if self.path.startswith("/api") else "EntryNotFound"
            self._answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not here"})
        elif isinstance(found[1], bytes):
            self._answer(200, found[1], {"ETag": f'"{_etag(found[1])}"', "X-Repo-Commit": _COMMIT})
        else:
            self._answer(found[0], json.dumps(found[1]).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET  # noqa: N815

    def _chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
