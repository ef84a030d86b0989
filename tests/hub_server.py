"""A loopback file server that speaks as much of the Hugging Face Hub as downloading needs."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = 'c0ffee' + 34 * '0'


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        self.server.requests.append((self.command, self.path, self.headers.get('Range')))

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        path = self.server.files.get(self.path)
        if path is None:
            self.send_response(404)
            self.send_header('X-Error-Code', 'EntryNotFound')
            self.send_header('X-Repo-Commit', COMMIT)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content = Path(path).read_bytes()
        self.send_response(200)
        self.send_header('X-Repo-Commit', COMMIT)
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if body:
            cut = self.server.cut.pop(self.path, None)
            self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True


@contextmanager
def serve(files: dict[str, Path], cut: dict[str, int] | None = None):
    """Serve files by URL path on 127.0.0.1.

    Args:
        files: Local files by the path of their URL.
        cut: Paths whose next body ends after so many bytes.

    Yields:
        The base URL and the list of requests, which grows as they come.
    """
    server = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    server.files, server.cut, server.requests = files, dict(cut or {}), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}', server.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
