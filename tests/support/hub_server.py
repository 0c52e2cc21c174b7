"""A small Hub on this machine: it takes commits of models, keeps files, and gives them back. A real HTTP server.

Weights go by LFS, as on the Hub: a batch of hashes, an upload by `PUT` to where that says, and a download behind a redirect. It
does not speak Xet, which the library takes instead unless `HF_HUB_DISABLE_XET` is set.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

from bootstrap.registry.cards import LICENCES

_COMMIT = "c" * 40


class HubServer:
    """`files` of each repository; `private` ones; `tokens` are what came as authorization; `large` what came by LFS, by hash."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
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
            return 200, {"errors": _wrong_in_head(json.loads(body)["content"]), "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [*map(self._to_upload, json.loads(body)["objects"])]}
        if path == "/lfs/verify":
            return (200, {}) if json.loads(body)["oid"] in self.large else (404, {})
        repo, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if action == "preupload":
            modes = {file["path"]: _mode(file["path"]) for file in json.loads(body)["files"]}
            rows = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return 200, {"files": rows}
        for line in map(json.loads, body.splitlines()):
            told = line["value"]
            if line["key"] == "file":
                assert _mode(told["path"]) == "regular"
                self.files[repo][told["path"]] = base64.b64decode(told["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][told["path"]] = self.large[told["oid"]]
        return 200, {"success": True, "commitOid": _COMMIT, "commitUrl": f"{self.url}/{repo}/commit/{_COMMIT}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.files:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.files[repo] = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, {"url": f"{self.url}/{repo}", "name": repo}

    def put(self, path: str, body: bytes) -> int:
        """Takes a file by LFS, if it is the one that was announced."""
        oid = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return 400
        self.large[oid] = body
        return 200

    def _to_upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        actions = {"upload": {"href": f"{self.url}/lfs/{asked['oid']}"}, "verify": {"href": f"{self.url}/lfs/verify"}}
        return {**asked, **({} if asked["oid"] in self.large else {"actions": actions})}

    def got(self, path: str) -> tuple[int, Any] | None:
        """What a GET answers: a status with JSON, or bytes; None where nothing is there."""
        if found := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            return 200, self.large[found[1]]
        if found := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.files.get(found[1], {}).get(found[2])
            return None if content is None else (200, content)
        found = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+?)(/(revision|tree)/([^/]+)(/.+)?)?", path)
        if found is None or found[1] not in self.files or found[4] not in (None, "main", _COMMIT):
            return None
        files = self.files[found[1]]
        if found[3] == "tree":
            below = [name for name in files if f"/{name}".startswith(f"{found[5]}/" if found[5] else "/")]
            rows = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": _etag(files[name])} for name in below
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

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._answer(self.server.hub.put(self.path.partition("?")[0], body), b"", {})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = self.server.hub.got(path)
        if found is not None and isinstance(found[1], bytes) and "/resolve/" in path and _mode(path) == "lfs":
            self._redirect(found[1])
        elif found is None:
            code = "RepoNotFound" if self.path.startswith("/api") else "EntryNotFound"
            self._answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not here"})
        elif isinstance(found[1], bytes):
            self._answer(200, found[1], {"ETag": f'"{_etag(found[1])}"', "X-Repo-Commit": _COMMIT})
        else:
            self._answer(found[0], json.dumps(found[1]).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET  # noqa: N815

    def _redirect(self, content: bytes) -> None:
        """Sends the client to where large files lie, with what the Hub says of them beforehand."""
        hub, oid = self.server.hub, hashlib.sha256(content).hexdigest()
        hub.large[oid] = content
        linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": _COMMIT}
        self._answer(302, b"", {**linked, "Location": f"{hub.url}/cdn/{oid}"})

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


def _mode(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


def _wrong_in_head(card: str) -> list[dict[str, str]]:
    """What the Hub refuses in the head of a card, as far as our cards could have it."""
    head = yaml.safe_load(card.split("---\n")[1])
    checks = {
        "license": head.get("license", "mit") in LICENCES | {"other"},
        "license_name": (head.get("license") == "other") == ("license_name" in head),
        "tags": all(isinstance(tag, str) for tag in head.get("tags", [])),
        "base_model": re.fullmatch(r"[\w.-]+/[\w.-]+", head.get("base_model", "a/b")) is not None,
        "pipeline_tag": head.get("pipeline_tag") == "text-generation",
        "library_name": head.get("library_name") in ("transformers", "peft"),
    }
    return [{"message": f'"{name}" is not allowed'} for name, good in checks.items() if not good]


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
