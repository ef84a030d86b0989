"""A small Hugging Face Hub on the loopback interface: repositories with branches, Xet and git LFS,
downloads with redirects, access, and faults on request.

It speaks what the real client (huggingface_hub) speaks when it creates a repository, pushes to it
and loads from it. As on the real Hub, files of LFS come from another origin (here `localhost`
instead of `127.0.0.1`) and only the redirect to it carries what the Hub knows of the file. The
store of Xet is a folder: its `casUrl` is `local:///FOLDER`, which the client reads and writes.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {'hf_write': 'write', 'hf_read': 'read'}
OWNER = 'me'
XET_EXPIRES = 9_999_999_999  # in seconds since 1970
LFS_SUFFIXES = ('.safetensors', '.bin', '.pth')
# a few of the identifiers that the Hub's validation knows
LICENSES = ('apache-2.0', 'mit', 'bsd-3-clause', 'cc-by-nc-sa-4.0', 'cc-by-4.0', 'other', 'unknown')


@dataclass
class Fault:
    """What goes wrong with requests.

    Attributes:
        match: Regular expression for `METHOD path`, searched.
        times: How many requests it meets.
        status: Answer with this status, no body.
        code: `X-Error-Code` of that answer.
        headers: Headers of that answer, or instead of the answer's own.
        keep: Share of the body after which the connection is reset.
        longer: How many bytes more than there are the Content-Length promises.
        flip: Bytes in the middle of the body are others.
        hold: After `keep` of the body wait until this is set, in place of a reset.
    """

    match: str
    times: int = 10**9
    status: int | None = None
    code: str = ''
    headers: dict[str, str] = field(default_factory=dict)
    keep: float | None = None
    longer: int = 0
    flip: bool = False
    hold: threading.Event | None = None


@dataclass
class Repo:
    """A repository.

    Attributes:
        private: Whether it is hidden without a token.
        gated: Whether its files are.
        large: Suffixes of files that git does not hold itself, but LFS or Xet.
        refs: Commits of branches and tags by name.
        commits: Files by path, by commit.
        messages: Messages of the commits, in order.
    """

    private: bool = False
    gated: bool = False
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

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        oid = self.refs.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repos: By name.
        plain: Further files by the path of their URL, outside of any repository.
        lfs: Large files by their sha256.
        cas: Folder of the Xet store.
        xet: Whether large files are downloaded by Xet, for clients that can; by HTTP otherwise.
        faults: What goes wrong; the first that matches and has `times` left does.
        requests: Method, path and Range header of all that came, in order.
    """

    daemon_threads = True

    def __init__(self, cas: Path, xet: bool = True) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.cas, self.xet = cas, xet
        self.repos: dict[str, Repo] = {}
        self.plain: dict[str, Path] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []
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
        repo.commit(files, 'main', 'initial commit')
        self.lfs.update((sha256(f), f) for path, f in files.items() if path.endswith(repo.large))
        return repo

    def xet_hash(self, content: bytes) -> str:
        """Put a file into the Xet store and return its hash there, which is not its sha256."""
        import hf_xet

        if found := _xet_files(self.cas).get(sha256(content)):
            return found[0]
        with self.lock, hf_xet.XetSession().new_upload_commit(**self._xet()) as commit:
            upload = commit.start_upload_bytes(content, sha256=hf_xet.COMPUTE_SHA256)
        return str(upload.result().xet_info.hash)

    def large(self, oid: str) -> bytes | None:
        """The large file with a sha256, of LFS or of the Xet store."""
        import hf_xet

        if oid not in self.lfs and (found := _xet_files(self.cas).get(oid)):
            with tempfile.NamedTemporaryFile() as file:
                with hf_xet.XetSession().new_file_download_group(**self._xet()) as group:
                    group.start_download_file(hf_xet.XetFileInfo(*found), file.name)
                self.lfs[oid] = Path(file.name).read_bytes()
        return self.lfs.get(oid)

    def _xet(self) -> dict[str, Any]:
        return {
            'endpoint': f'local://{self.cas}',
            'token': 'xet',
            'token_expiry_unix_secs': XET_EXPIRES,
        }

    def count(self, match: str) -> int:
        """How many requests came whose `METHOD path` matches."""
        return sum(bool(re.search(match, f'{method} {path}')) for method, path, _ in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what the tests are about."""


def _xet_files(cas: Path) -> dict[str, tuple[str, int]]:
    """The files of a Xet store by their sha256, each with its Xet hash and its size.

    They stand in the store's shards. Records have 48 bytes. A file's are its hash, flags and number
    of entries; its entries, each with a number of bytes; as many for verification, if its flags say
    so; and its sha256.
    """

    def text(record: bytes) -> str:
        return ''.join(f'{part:016x}' for part in struct.unpack('<4Q', record[:32]))

    files = {}
    for shard in cas.glob('xet/xorbs/shards/*.mdb'):
        content = shard.read_bytes()
        at = 48
        while (record := content[at : at + 48])[:32] != b'\xff' * 32:
            flags, count = struct.unpack('<II', record[32:40])
            entries = [content[at + 48 * (i + 1) : at + 48 * (i + 2)] for i in range(count)]
            size = sum(struct.unpack('<I', entry[36:40])[0] for entry in entries)
            at += 48 * (1 + count * (2 if flags >> 31 else 1))
            if flags >> 30 & 1:
                files[text(content[at : at + 48])] = text(record), size
                at += 48
    return files


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    # --- faults ---------------------------------------------------------------------------------

    def _take_fault(self) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.times > 0 and re.search(fault.match, f'{self.command} {self.path}'):
                    fault.times -= 1
                    return fault
        return None

    def _reset(self) -> None:
        """Close the connection the hard way (RST)."""
        self.close_connection = True
        linger = struct.pack('ii', 1, 0)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # the duplicate of the descriptor in wfile and rfile keeps the socket open otherwise
            self.connection.shutdown(socket.SHUT_RD)

    # --- answers --------------------------------------------------------------------------------

    def _send(self, status: int, body: bytes = b'', headers: dict[str, str] | None = None) -> None:
        """Answer, with the fault that this request has met, if any."""
        fault = self.fault
        headers = {'Content-Length': str(len(body)), **(headers or {})}
        if fault:
            headers |= fault.headers
            if fault.longer:
                headers['Content-Length'] = str(int(headers['Content-Length']) + fault.longer)
            if fault.flip and body:
                middle = len(body) // 2
                other = bytes(byte ^ 0xFF for byte in body[middle : middle + 64])
                body = body[:middle] + other + body[middle + 64 :]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == 'HEAD':
            return
        if fault and fault.keep is not None:
            self.wfile.write(body[: int(fault.keep * len(body))])
            self.wfile.flush()
            if fault.hold is None:
                time.sleep(0.05)  # what was written arrives, then the reset
                self._reset()
                return
            fault.hold.wait(60)
            body = body[int(fault.keep * len(body)) :]
        self.wfile.write(body)
        if fault and fault.longer:
            self.close_connection = True

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {'Content-Type': 'application/json'})

    def _error(self, status: int, code: str = '', text: str = '', **headers: str) -> None:
        headers |= {'X-Error-Code': code} if code else {}
        headers |= {'X-Error-Message': text} if text else {}
        self._send(status, json.dumps({'error': text or code}).encode(), headers)

    # --- requests -------------------------------------------------------------------------------

    def _handle(self) -> None:
        self.fault = self._take_fault()
        with self.server.lock:
            self.server.requests.append((self.command, self.path, self.headers.get('Range')))
        fault = self.fault
        self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if self.headers.get('Transfer-Encoding') == 'chunked':
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if fault and fault.status is not None:
            self._error(fault.status, fault.code, 'a fault of the test')
            return
        self.route = unquote(urlsplit(self.path).path)
        if self.route in self.server.plain:
            self._file(self.server.plain[self.route].read_bytes())
            return
        for method, pattern, handler in _ROUTES:
            found = re.fullmatch(pattern, self.route)
            if found and self.command in method:
                handler(self, *found.groups())
                return
        self._error(404, '', 'no such route')

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _role(self) -> str | None:
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        return TOKENS.get(token)

    def _repo(self, name: str, write: bool = False) -> Repo | None:
        """The repository, or None after an error was sent."""
        repo, role = self.server.repos.get(name), self._role()
        if repo is None or (repo.private and role is None):
            # the Hub does not tell a private repository from none
            self._error(401 if role is None else 404, 'RepoNotFound', 'Repository not found')
        elif repo.gated and role is None:
            self._error(401, 'GatedRepo', 'Access to model is restricted')
        elif write and role is None:
            self._error(401, '', 'Invalid username or password.')
        elif write and role != 'write':
            self._error(403, '', 'this token has no write access')
        else:
            return repo
        return None

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f'{asked.get("organization") or OWNER}/{asked["name"]}'
        if self._role() is None:
            self._error(401, '', 'Invalid username or password.')
        elif self._role() != 'write' or not name.startswith(f'{OWNER}/'):
            self._error(403, '', f'You do not have the rights to create {name}')
        elif name in self.server.repos:
            self._json({'error': 'exists', 'url': f'{self.server.url}/{name}'}, 409)
        else:
            private = asked.get('visibility') == 'private' or asked.get('private') is True
            self.server.add(
                name, {'.gitattributes': b'*.safetensors filter=lfs\n'}, private=private
            )
            self._json({'url': f'{self.server.url}/{name}'})

    def _validate_yaml(self) -> None:
        content = json.loads(self.body)['content']
        found = re.match(r'---\n(.*?\n)---\n', content, re.DOTALL)
        license_line = re.search(r'^license: *(\S+)$', found[1] if found else '', re.MULTILINE)
        warnings = [] if found else [{'message': 'empty or missing yaml metadata in repo card'}]
        if license_line and license_line[1] not in LICENSES:
            error = {'message': f'"license" must be one of {", ".join(LICENSES)}'}
            self._json({'errors': [error], 'warnings': warnings}, 400)
        else:
            self._json({'errors': [], 'warnings': warnings})

    def _repo_at(self, name: str, revision: str, write: bool = False) -> tuple[Any, Any]:
        """A repository and its files at a revision; after an error was sent, None for one."""
        repo = self._repo(name, write=write)
        at = None if repo is None else repo.files(revision)
        if repo is not None and at is None:
            self._error(404, 'RevisionNotFound', f'no revision {revision}')
        return repo, at

    def _preupload(self, name: str, revision: str) -> None:
        repo, at = self._repo_at(name, revision, write=True)
        if repo is None or at is None:
            return
        answer = []
        for file in json.loads(self.body)['files']:
            old = at[1].get(file['path'])
            large = file['path'].endswith(repo.large)
            oid = None if old is None else (sha256 if large else git_sha1)(old)
            mode = 'lfs' if large else 'regular'
            answer.append({
                'path': file['path'], 'uploadMode': mode, 'oid': oid, 'shouldIgnore': False,
            })  # fmt: skip
        self._json({'files': answer})

    def _batch(self, name: str) -> None:
        if self._repo(name, write=True) is None:
            return
        objects = []
        for item in json.loads(self.body)['objects']:
            entry = {'oid': item['oid'], 'size': item['size']}
            if item['oid'] not in self.server.lfs:
                entry['actions'] = {'upload': {'href': f'{self.server.cdn}/lfs/{item["oid"]}'}}
            objects.append(entry)
        self._json({'transfer': 'basic', 'objects': objects})

    def _put(self, oid: str) -> None:
        if sha256(self.body) != oid:
            self._error(400, '', 'the content has another sha256')
            return
        self.server.lfs[oid] = self.body
        self._send(200)

    def _xet_token(self, name: str, kind: str) -> None:
        if self._repo(name, write=kind == 'write') is None:
            return
        url = f'local://{self.server.cas}'
        # the client's Python reads headers, its Rust the body
        body = json.dumps({'accessToken': 'xet', 'exp': XET_EXPIRES, 'casUrl': url}).encode()
        self._send(200, body, {
            'X-Xet-Cas-Url': url, 'X-Xet-Access-Token': 'xet',
            'X-Xet-Token-Expiration': str(XET_EXPIRES),
        })  # fmt: skip

    def _commit(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        if repo is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line['value'] for line in lines if line['key'] == 'header')
        with self.server.lock:
            if branch not in repo.refs:
                self._error(404, 'RevisionNotFound', f'no branch {branch}')
                return
            if header.get('parentCommit') not in (None, repo.refs[branch]):
                self._error(412, '', 'A commit has happened since. Please refresh and try again.')
                return
            files = dict(repo.commits[repo.refs[branch]])
            for line in lines:
                value = line['value']
                if line['key'] == 'file':
                    files[value['path']] = base64.b64decode(value['content'])
                elif line['key'] == 'lfsFile':
                    content = self.server.large(value['oid'])
                    if content is None:
                        self._error(400, '', 'this LFS object was not uploaded')
                        return
                    files[value['path']] = content
                elif line['key'] == 'deletedFile':
                    files.pop(value['path'], None)
            oid = repo.commit(files, branch, header['summary'])
        self._json({'commitUrl': f'{self.server.url}/{name}/commit/{oid}', 'commitOid': oid})

    def _ref(self, name: str, kind: str, ref: str) -> None:
        repo = self._repo(name, write=True)
        if repo is None:
            return
        asked = json.loads(self.body or b'{}')
        new, start = (ref, 'main') if kind == 'branch' else (asked['tag'], ref)
        if new in repo.refs:
            self._error(409, '', 'Reference already exists')
            return
        repo.refs[new] = repo.refs[start]
        self._json({})

    def _info(self, name: str, revision: str | None = None) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        at = repo.files(revision or 'main')
        if at is None:
            self._error(404, 'RevisionNotFound', f'no revision {revision}')
            return
        oid, files = at
        blobs = 'blobs' in parse_qs(urlsplit(self.path).query)
        siblings = []
        for path, content in sorted(files.items()):
            entry: dict[str, Any] = {'rfilename': path}
            if blobs:
                entry |= {'blobId': git_sha1(content), 'size': len(content)}
            if blobs and path.endswith(repo.large):
                entry['lfs'] = {
                    'sha256': sha256(content), 'size': len(content), 'pointerSize': 130,
                }  # fmt: skip
            siblings.append(entry)
        facts = {'id': name, 'modelId': name, 'sha': oid, 'private': repo.private}
        self._json({**facts, 'siblings': siblings, 'tags': [], 'downloads': 0, 'likes': 0})

    def _tree(self, name: str, revision: str) -> None:
        """The files that `snapshot_download` asks for."""
        repo, at = self._repo_at(name, revision)
        if repo is None or at is None:
            return
        entries = []
        for path, content in sorted(at[1].items()):
            entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': git_sha1(content)}
            if path.endswith(repo.large):
                entry['lfs'] = {'oid': sha256(content), 'size': len(content), 'pointerSize': 130}
            entries.append(entry)
        self._json(entries)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        at = repo.files(revision)
        if at is None:
            self._error(404, 'RevisionNotFound', f'no revision {revision}')
        elif path not in at[1]:
            self._error(404, 'EntryNotFound', f'no file {path}', **{'X-Repo-Commit': at[0]})
        else:
            content, headers = at[1][path], {'X-Repo-Commit': at[0]}
            if not path.endswith(repo.large):
                self._file(content, {**headers, 'ETag': f'"{git_sha1(content)}"'})
                return
            oid = sha256(content)
            headers |= {
                'Location': f'{self.server.cdn}/cdn/{oid}',
                'X-Linked-ETag': f'"{oid}"',
                'X-Linked-Size': str(len(content)),
            }
            if self.server.xet:
                headers |= {
                    'X-Xet-Hash': self.server.xet_hash(content),
                    'X-Xet-Refresh-Route':
                        f'{self.server.url}/api/models/{name}/xet-read-token/{at[0]}',
                }  # fmt: skip
            self._send(302, b'', headers)

    def _cdn(self, oid: str) -> None:
        self._file(self.server.lfs[oid])

    def _file(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        """A file, or the rest of it from where a Range starts."""
        headers = {'ETag': f'"{sha256(content)}"', 'Accept-Ranges': 'bytes', **(headers or {})}
        found = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
        if found is None:
            self._send(200, content, headers)
            return
        start = int(found[1])
        headers['Content-Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
        self._send(206, content[start:], headers)


_NAME = r'((?:[\w.-]+/)?[\w.-]+)'
_ROUTES = (
    ('POST', r'/api/repos/create', _Handler._create),
    ('POST', r'/api/validate-yaml', _Handler._validate_yaml),
    ('POST', rf'/api/models/{_NAME}/preupload/(.+)', _Handler._preupload),
    ('POST', rf'/api/models/{_NAME}/commit/(.+)', _Handler._commit),
    ('POST', rf'/api/models/{_NAME}/(branch|tag)/(.+)', _Handler._ref),
    ('GET', rf'/api/models/{_NAME}/revision/(.+)', _Handler._info),
    ('GET', rf'/api/models/{_NAME}/tree/([^/]+)', _Handler._tree),
    ('GET', rf'/api/models/{_NAME}', _Handler._info),
    ('GET', rf'/api/models/{_NAME}/xet-(read|write)-token/.+', _Handler._xet_token),
    ('POST', rf'/{_NAME}\.git/info/lfs/objects/batch', _Handler._batch),
    ('PUT', r'/lfs/([0-9a-f]{64})', _Handler._put),
    ('GET HEAD', r'/cdn/([0-9a-f]{64})', _Handler._cdn),
    ('GET HEAD', rf'/{_NAME}/resolve/([^/]+)/(.+)', _Handler._resolve),
)


@contextmanager
def hub(xet: bool = True) -> Iterator[Hub]:
    """A Hub for the length of a block.

    Args:
        xet: Whether large files are downloaded by Xet, as on the real Hub. By HTTP, a fault can
            meet their content.
    """
    with tempfile.TemporaryDirectory() as cas:
        yield from _serve(Hub(Path(cas), xet))


def _serve(server: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        for fault in server.faults:
            if fault.hold is not None:
                fault.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve(files: dict[str, Path]) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """Serve files by URL path.

    Args:
        files: Local files by the path of their URL.

    Yields:
        The base URL and the list of requests, which grows as they come.
    """
    with hub() as server:
        server.plain = files
        yield server.url, server.requests
