"""A small Hugging Face Hub on the loopback interface: repositories, LFS, Xet, access, and faults.

It speaks what the real client (huggingface_hub) speaks when it creates a repository, pushes to it
without Xet and loads from it. As on the real Hub, large files come from another origin (here
`localhost` instead of `127.0.0.1`), and only the redirect to it carries what the Hub knows of the
file. The store of Xet is a folder: its `casUrl` is `local:///FOLDER`, which the client reads.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKENS = {'hf_write': 'write', 'hf_read': 'read'}
XET_EXPIRES = 9_999_999_999  # in seconds since 1970
LFS_SUFFIXES = ('.safetensors', '.bin', '.pth')
LICENSES = ('apache-2.0', 'mit', 'cc-by-nc-sa-4.0', 'cc-by-4.0', 'other', 'unknown')  # some


@dataclass
class Fault:
    """What goes wrong with requests."""

    match: str  # searched in `METHOD path`
    times: int = 10**9  # how many requests it meets
    status: int | None = None  # of an answer without a body
    code: str = ''  # `X-Error-Code` of that answer
    headers: dict[str, str] = field(default_factory=dict)  # instead of the answer's own
    keep: float | None = None  # share of the body after which the connection is reset
    flip: bool = False  # a byte in the middle of the body is another
    before: Callable[[], object] = lambda: None  # called before the request is answered


@dataclass
class Repo:
    """A repository: commits of branches by name, files by path by commit, messages in order."""

    private: bool = False
    large: tuple[str, ...] = LFS_SUFFIXES
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str, message: str) -> str:
        hashes = [(path, git_sha1(content)) for path, content in sorted(files.items())]
        text = f'{len(self.commits)} {branch} {message} {hashes}'
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.refs[branch] = oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = 'main') -> dict[str, bytes]:
        return self.commits[self.refs.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """The server. Large files are downloaded by Xet, for clients that can; by HTTP otherwise."""

    daemon_threads = True

    def __init__(self, cas: Path, xet: bool = True) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.cas, self.xet = cas, xet  # folder of the Xet store, and whether it is used
        self.repos: dict[str, Repo] = {}  # by name
        self.plain: dict[str, Path] = {}  # further files by the path of their URL
        self.lfs: dict[str, bytes] = {}  # large files by their sha256
        self.xet_hashes: dict[str, str] = {}
        self.faults: list[Fault] = []  # the first that matches and has `times` left occurs
        self.requests: list[str] = []  # method and path of all that came, in order
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    @property
    def cdn(self) -> str:
        return f'http://localhost:{self.server_port}'

    def add(self, name: str, files: dict[str, bytes], **kwargs: Any) -> Repo:
        """Make a repository of these files."""
        repo = self.repos[name] = Repo(**kwargs)
        self.change(name, 'initial commit', **files)
        return repo

    def change(self, name: str, message: str, **files: bytes) -> None:
        """Commit other content of some files to main."""
        repo = self.repos[name]
        before = repo.commits[repo.refs['main']] if repo.refs else {}
        repo.commit({**before, **files}, 'main', message)
        self.lfs.update((sha256(f), f) for path, f in files.items() if path.endswith(repo.large))

    def xet_hash(self, content: bytes) -> str:
        """Put a file into the Xet store and return its hash there, which is not its sha256."""
        import hf_xet

        oid, store = sha256(content), {'endpoint': f'local://{self.cas}', 'token': 'xet'}
        with self.lock:
            if oid not in self.xet_hashes:
                session = hf_xet.XetSession()
                with session.new_upload_commit(
                    **store, token_expiry_unix_secs=XET_EXPIRES
                ) as commit:
                    upload = commit.start_upload_bytes(content, sha256=hf_xet.COMPUTE_SHA256)
                self.xet_hashes[oid] = str(upload.result().xet_info.hash)
        return self.xet_hashes[oid]

    def count(self, match: str) -> int:
        """How many requests came whose `METHOD path` matches."""
        return sum(bool(re.search(match, request)) for request in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what the tests are about."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class Refusal(Exception):
    """An answer that is an error: status, `X-Error-Code`, text."""


class _Handler(BaseHTTPRequestHandler):
    """A method for each route returns what it answers: bytes, or what becomes JSON."""

    protocol_version = 'HTTP/1.1'
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        asked, hub = f'{self.command} {self.path}', self.server
        with hub.lock:
            hub.requests.append(asked)
            met = (f for f in hub.faults if f.times > 0 and re.search(f.match, asked))
            self.fault = next(met, Fault(''))
            self.fault.times -= 1
        self.fault.before()
        self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if self.headers.get('Transfer-Encoding') == 'chunked':
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.status, self.answer = 200, {}  # headers
        try:
            self._send(self._respond())
        except Refusal as error:
            status, code, text = error.args
            self.status = status
            self.answer |= {'X-Error-Code': code} if code else {}
            self._send({'error': text})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _respond(self) -> Any:
        if self.fault.status is not None:
            raise Refusal(self.fault.status, self.fault.code, 'a fault of the test')
        route = unquote(urlsplit(self.path).path)
        if route in self.server.plain:
            return self._file(self.server.plain[route].read_bytes())
        for method, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, route)
            if match and self.command in method:
                return handler(self, *match.groups())
        raise Refusal(404, '', 'no such route')

    def _send(self, content: Any) -> None:
        """Answer, with the fault that this request has met, if any."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        fault = self.fault
        if fault.flip and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        self.send_response(self.status)
        headers = {'Content-Length': str(len(body)), **self.answer, **fault.headers}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == 'HEAD':
            return
        self.wfile.write(body if fault.keep is None else body[: int(fault.keep * len(body))])
        if fault.keep is not None:
            self.wfile.flush()
            time.sleep(0.05)  # what was written arrives, then the reset
            self.close_connection = True
            linger = struct.pack('ii', 1, 0)
            with suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                # the duplicate of the descriptor in wfile and rfile keeps the socket open otherwise
                self.connection.shutdown(socket.SHUT_RD)

    def _role(self) -> str | None:
        return TOKENS.get((self.headers.get('Authorization') or '').removeprefix('Bearer '))

    def _refuse_reader(self) -> None:
        if self._role() != 'write':
            raise Refusal(403 if self._role() else 401, '', 'this token has no write access')

    def _repo(self, name: str, write: bool = False) -> Repo:
        """The repository, if the token allows it."""
        repo, role = self.server.repos.get(name), self._role()
        if repo is None or (repo.private and role is None):
            # the Hub does not tell a private repository from none
            raise Refusal(401 if role is None else 404, 'RepoNotFound', 'Repository not found')
        if write:
            self._refuse_reader()
        return repo

    def _at(self, name: str, revision: str) -> tuple[Repo, str, dict[str, bytes]]:
        """A repository, the commit that a revision is, and its files."""
        repo = self._repo(name)
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise Refusal(404, 'RevisionNotFound', f'no revision {revision}')
        return repo, commit, repo.commits[commit]

    # --- pushes ---------------------------------------------------------------------------------

    def _create(self) -> Any:
        asked = json.loads(self.body)
        name = f'{asked.get("organization") or "me"}/{asked["name"]}'
        self._refuse_reader()
        private = asked.get('visibility') == 'private' or asked.get('private') is True
        start = {'.gitattributes': b'*.safetensors filter=lfs\n'}
        self.server.add(name, start, private=private)
        return {'url': f'{self.server.url}/{name}'}

    def _validate_yaml(self) -> Any:
        license = re.search(r'^license: *(\S+)$', json.loads(self.body)['content'], re.MULTILINE)
        errors = []
        if license and license[1] not in LICENSES:
            errors = [{'message': f'"license" must be one of {", ".join(LICENSES)}'}]
            self.status = 400
        return {'errors': errors, 'warnings': []}

    def _preupload(self, name: str, revision: str) -> Any:
        repo = self._repo(name, write=True)
        files = json.loads(self.body)['files']
        for file in files:
            is_large = file['path'].endswith(repo.large)
            file |= {'uploadMode': 'lfs' if is_large else 'regular', 'shouldIgnore': False}
        return {'files': files}

    def _batch(self, name: str) -> Any:
        objects = json.loads(self.body)['objects']
        for entry in objects:
            upload = {'href': f'{self.server.cdn}/lfs/{entry["oid"]}'}
            entry['actions'] = {'upload': upload}
        return {'transfer': 'basic', 'objects': objects}

    def _put(self, oid: str) -> Any:
        self.server.lfs[oid] = self.body
        return b''

    def _commit(self, name: str, branch: str) -> Any:
        repo, before, files = self._at(name, branch)
        self._repo(name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line['value'] for line in lines if line['key'] == 'header')
        if header.get('parentCommit') not in (None, before):
            raise Refusal(412, '', 'A commit has happened since. Please refresh and try again.')
        files = dict(files)
        for line in lines:
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                files[value['path']] = self.server.lfs[value['oid']]
        oid = repo.commit(files, branch, header['summary'])
        return {'commitUrl': f'{self.server.url}/{name}/commit/{oid}', 'commitOid': oid}

    def _branch(self, name: str, branch: str) -> Any:
        repo = self._repo(name, write=True)
        repo.refs[branch] = repo.refs['main']
        return {}

    # --- downloads ------------------------------------------------------------------------------

    def _info(self, name: str, revision: str = 'main') -> Any:
        repo, commit, files = self._at(name, revision)
        siblings = []
        for path, content in sorted(files.items()):
            entry = {'rfilename': path, 'size': len(content), 'blobId': git_sha1(content)}
            siblings.append(entry | self._lfs(repo, path, content, 'sha256'))
        facts = {'id': name, 'modelId': name, 'sha': commit, 'private': repo.private}
        return {**facts, 'siblings': siblings, 'tags': [], 'downloads': 0, 'likes': 0}

    def _tree(self, name: str, revision: str) -> Any:
        repo, _, files = self._at(name, revision)
        entries = []
        for path, content in sorted(files.items()):
            entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': git_sha1(content)}
            entries.append(entry | self._lfs(repo, path, content, 'oid'))
        return entries

    def _lfs(self, repo: Repo, path: str, content: bytes, key: str) -> dict[str, Any]:
        lfs = {key: sha256(content), 'size': len(content), 'pointerSize': 130}
        return {'lfs': lfs} if path.endswith(repo.large) else {}

    def _resolve(self, name: str, revision: str, path: str) -> Any:
        repo, commit, files = self._at(name, revision)
        self.answer['X-Repo-Commit'] = commit
        if path not in files:
            raise Refusal(404, 'EntryNotFound', f'no file {path}')
        content = files[path]
        if not path.endswith(repo.large):
            return self._file(content, git_sha1(content))
        oid = sha256(content)
        self.answer['Location'] = f'{self.server.cdn}/cdn/{oid}'
        self.answer['X-Linked-ETag'] = f'"{oid}"'
        self.answer['X-Linked-Size'] = str(len(content))
        if self.server.xet:
            token = f'{self.server.url}/api/models/{name}/xet-read-token/{commit}'
            self.answer['X-Xet-Hash'] = self.server.xet_hash(content)
            self.answer['X-Xet-Refresh-Route'] = token
        self.status = 302
        return b''

    def _xet_token(self, name: str) -> Any:
        self._repo(name)
        url = f'local://{self.server.cas}'
        # the client's Python reads headers, its Rust the body
        self.answer['X-Xet-Cas-Url'] = url
        self.answer['X-Xet-Access-Token'] = 'xet'
        self.answer['X-Xet-Token-Expiration'] = str(XET_EXPIRES)
        return {'accessToken': 'xet', 'exp': XET_EXPIRES, 'casUrl': url}

    def _file(self, content: bytes, etag: str = '') -> bytes:
        self.answer['ETag'] = f'"{etag or sha256(content)}"'
        return content


_NAME = r'((?:[\w.-]+/)?[\w.-]+)'
_ROUTES = (
    ('POST', r'/api/repos/create', _Handler._create),
    ('POST', r'/api/validate-yaml', _Handler._validate_yaml),
    ('POST', rf'/api/models/{_NAME}/preupload/(.+)', _Handler._preupload),
    ('POST', rf'/api/models/{_NAME}/commit/(.+)', _Handler._commit),
    ('POST', rf'/api/models/{_NAME}/branch/(.+)', _Handler._branch),
    ('GET', rf'/api/models/{_NAME}/revision/(.+)', _Handler._info),
    ('GET', rf'/api/models/{_NAME}/tree/([^/]+)', _Handler._tree),
    ('GET', rf'/api/models/{_NAME}', _Handler._info),
    ('GET', rf'/api/models/{_NAME}/xet-read-token/.+', _Handler._xet_token),
    ('POST', rf'/{_NAME}\.git/info/lfs/objects/batch', _Handler._batch),
    ('PUT', r'/lfs/([0-9a-f]{64})', _Handler._put),
    ('GET HEAD', r'/cdn/([0-9a-f]{64})', lambda self, oid: self._file(self.server.lfs[oid])),
    ('GET HEAD', rf'/{_NAME}/resolve/([^/]+)/(.+)', _Handler._resolve),
)


@contextmanager
def hub(xet: bool = True) -> Iterator[Hub]:
    """A Hub for the length of a block.

    Args:
        xet: Whether large files are downloaded by Xet, as on the real Hub. By HTTP, a fault can
            meet their content.
    """
    with tempfile.TemporaryDirectory() as cas, Hub(Path(cas), xet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serve(files: dict[str, Path]) -> Iterator[str]:
    """Serve files by the path of their URL below the base URL."""
    with hub() as server:
        server.plain = files
        yield server.url
