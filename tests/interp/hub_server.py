"""A model hub on this machine: folders served over the few paths that the hub client asks for.

Answers are those of the real one as far as the client reads them: commit and ETag headers on files,
`X-Error-Code` on what is absent or gated. Every path asked for is kept in `server.asked`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@contextmanager
def serving(repos: dict[str, dict[str, Path]], gated: tuple[str, ...] = ()) -> Iterator:
    """Serve `{repo: {revision: folder}}` on a free port of this machine; yields the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body):
            server.asked.append(f"{self.command} {self.path}")
            found = FILE.fullmatch(self.path.split("?")[0])
            if not found:
                return self.say(404 if self.path.startswith("/api/") else 200, b"{}", body)
            repo, revision = found["repo"], found["revision"]
            if repo in gated:
                return self.say(403, b"", body, {"X-Error-Code": "GatedRepo"})
            if repo not in repos:
                return self.say(404, b"", body, {"X-Error-Code": "RepoNotFound"})
            commits = {commit(repo, name): folder for name, folder in repos[repo].items()}
            sha = revision if revision in commits else commit(repo, revision)
            if sha not in commits:
                return self.say(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
            path = commits[sha] / found["file"]
            head = {"X-Repo-Commit": sha}
            if not path.is_file():
                return self.say(404, b"", body, head | {"X-Error-Code": "EntryNotFound"})
            content = path.read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            return self.say(200, content, body, head | {"ETag": f'"{tag}"'})

        def say(self, status, content, body, headers=None):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit(repo: str, revision: str) -> str:
    """The commit hash that the server gives to a revision."""
    return hashlib.sha1(json.dumps([repo, revision]).encode()).hexdigest()
