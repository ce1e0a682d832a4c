"""A model hub of static files on the loopback, answering what `huggingface_hub` asks for."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
API = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([^/]+))?")


@dataclass
class Hub:
    """`repos` name -> folder; every repository has one commit, on branch main and
    tagged v1. `asked` is a log."""

    repos: dict[str, Path]
    gated: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.reply()

        def do_GET(self):
            self.reply()

        def reply(self):
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {path}")
            status, headers, body = answer(hub, path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    if match := FILE.fullmatch(path):
        repo, revision, name = match.groups()
        if trouble := refusal(hub, repo, revision):
            return trouble
        file = hub.repos[repo] / name
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        content = file.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, content
    if match := API.fullmatch(path):
        repo, revision = match.groups()
        if trouble := refusal(hub, repo, revision or "main"):
            return trouble
        files = [{"rfilename": p.name} for p in sorted(hub.repos[repo].iterdir())]
        told = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
    return 404, {"X-Error-Code": "EntryNotFound"}, b""


def refusal(hub: Hub, repo: str, revision: str) -> tuple[int, dict[str, str], bytes] | None:
    if repo in hub.gated:
        return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"}, b""
    if repo not in hub.repos:
        return 404, {"X-Error-Code": "RepoNotFound"}, b""
    if revision not in ("main", "v1", COMMIT):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    return None
