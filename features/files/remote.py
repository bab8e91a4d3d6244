"""Files at a URL (s3://, gs://, http(s):// and others that fsspec supports). The sole user of fsspec."""

import email.utils
import errno
import html
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from hoarfrost.features.errors import DatasetError, ImageDecodeError, RemoteError, Unreadable, reason_of
from hoarfrost.features.files.local import MAX_FILE_BYTES, FileStamp

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PAUSES_S = (0.5, 1.0, 2.0)  # between attempts; the stores' libraries retry within each of them
CONNECT_SECONDS = 10
READ_SECONDS = 60  # without a byte
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_HTTP = frozenset({"http", "https"})
_HAVE_HOSTS = _HTTP | {"s3", "s3a", "gs", "gcs"}
_MODIFIED = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified")
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5")

# By the name of the class or the store's code, because none of these libraries needs to be installed.
_NO_CREDENTIALS = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError", "ProfileNotFound",
    "UnauthorizedSSOTokenError", "SSOTokenLoadError", "DefaultCredentialsError", "RefreshError",
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken",
    "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidClientTokenId",
})  # fmt: skip
_UNREACHED = frozenset({
    "ClientConnectorError", "ClientConnectionError", "ClientOSError", "ServerDisconnectedError", "ClientPayloadError",
    "ServerTimeoutError", "ConnectionTimeoutError", "SocketTimeoutError", "FSTimeoutError", "TimeoutError",
    "ClientConnectorDNSError", "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "HTTPClientError",
    "ConnectionClosedError", "IncompleteRead", "ResponseStreamingError",
})  # fmt: skip
_ADVICE = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use ~/.aws/credentials. For another S3 "
    "server set AWS_ENDPOINT_URL; for a public bucket set FSSPEC_S3_ANON=true.",
    "gs": "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS. For a public bucket set "
    "FSSPEC_GS_TOKEN=anon.",
    "http": "Add the server's name, user and password to ~/.netrc.",
}  # fmt: skip
_ADVICE |= {"s3a": _ADVICE["s3"], "gcs": _ADVICE["gs"], "https": _ADVICE["http"]}

Answer = TypeVar("Answer")

# They warn at each of their own attempts; we report the final failure once.
for _library in ("fsspec", "s3fs", "gcsfs", "aiobotocore", "botocore"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class RemoteEntry:
    """An entry of a folder at a URL; `path` is its URL. Some stores list stamps, too: that saves a request per file."""

    name: str
    path: str
    folder: bool
    stamp: FileStamp | None

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return not self.folder


def is_url(place: object) -> bool:
    """Return whether a path is a URL."""
    scheme, mark, _ = str(place).partition("://")
    return bool(mark) and len(scheme) > 1 and scheme.isascii() and scheme.isalnum()  # one letter is a drive of Windows


def join_url(root: str, relative: str) -> str:
    """Return the URL of a file by its path relative to a folder's URL; over HTTP, names are quoted."""
    return f"{root.rstrip('/')}/{quote(relative, errors='surrogateescape') if _scheme(root) in _HTTP else relative}"


def checked_url(url: str) -> str:
    """Return a URL with its scheme in lower case.

    Raises
    ------
    DatasetError
        If it is malformed or contains a password, its scheme is unknown, or a library is missing.
    """
    scheme, mark, rest = url.partition("://")
    url = scheme.lower() + mark + rest
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DatasetError(f"{_without_query(url)}: not a well-formed URL ({error}). Correct it.") from error
    if "@" in parts.netloc and ":" in parts.netloc.rpartition("@")[0]:
        raise DatasetError(
            f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}: a password in a URL would be stored in the cache. "
            f"Remove it from the URL. {_advice(url)}"
        )
    if not parts.netloc and parts.scheme in _HAVE_HOSTS:
        raise DatasetError(f"{url}: the {'server' if parts.scheme in _HTTP else 'bucket'} is missing. Correct the URL.")
    _file_system(url)
    return url


def stamp_of_url(url: str) -> FileStamp:
    """Return a file's size and modification time.

    If the server reports neither a time nor a tag, the time is now: such a file is read again each time. Raise
    FileNotFoundError if the file is missing, ImageDecodeError if it is too large or access is denied, and RemoteError if
    the server cannot be reached or requires (other) credentials.
    """
    files = _file_system(url)
    info = _retried(url, lambda: files.info(files._strip_protocol(url)))
    if info.get("type") == "directory":
        raise IsADirectoryError(f"{url} is a folder")
    stamp = _stamp(info) or FileStamp(int(info.get("size") or -1), time.time_ns())
    if stamp.size > MAX_FILE_BYTES:
        raise ImageDecodeError(Unreadable.FILE_TOO_LARGE, f"{stamp.size:,} bytes, of at most {MAX_FILE_BYTES:,}")
    return stamp


def read_url(url: str) -> bytes:
    """Read a whole file; see `hoarfrost.features.files.read`."""
    files = _file_system(url)
    try:
        content: bytes = _retried(url, lambda: files.cat_file(files._strip_protocol(url)))
    except OSError as error:
        raise ImageDecodeError(reason_of(error).kind) from error
    return content


def list_url(url: str) -> list[RemoteEntry]:
    """List a folder, in no particular order.

    Raises
    ------
    DatasetError
        If the folder is missing, or access to it is denied.
    RemoteError
        If the server cannot be reached, or requires (other) credentials.
    """
    if _scheme(url) in _HTTP and (urlsplit(url).query or urlsplit(url).fragment):
        # Names would be appended to the query, and the same page answer each: a folder within itself, without end.
        raise DatasetError(
            f"{_without_query(url)}: the URL of a folder must not have a part after '?' or '#'. Remove that part. In a name, "
            "write %3F for '?' and %23 for '#'."
        )
    files = _file_system(url)
    path = f"{url.rstrip('/')}/" if _scheme(url) in _HTTP else files._strip_protocol(url)
    try:
        found = _retried(url, lambda: files.ls(path, detail=True))
    except FileNotFoundError as error:
        raise DatasetError(
            f"{url}: nothing was found at this URL. Check it, including upper and lower case."
        ) from error
    except ImageDecodeError as error:
        raise DatasetError(f"{url}: cannot be listed: {error}. {_advice(url)}") from error
    return list(_entries(url, path, found))


def _entries(url: str, path: str, found: list[Mapping[str, Any]]) -> Iterator[RemoteEntry]:
    folder = url.rstrip("/") + "/"
    for info in found:
        name = str(info["name"])
        if _scheme(url) in _HTTP:
            # A page may link to anything: its own table's headings, the folder above, other sites.
            link = html.unescape(name[len(folder) :]).removeprefix("./") if name.startswith(folder) else ""
            if "?" in link or "#" in link:  # in a file's name they are quoted
                continue
            name = unquote(link.rstrip("/"), errors="surrogateescape")
        else:
            name = name.rstrip("/")
            name = "" if name == path.rstrip("/") else name.rpartition("/")[2]  # some stores list the folder as well
        if name and name not in {".", ".."} and "/" not in name:
            yield RemoteEntry(name, join_url(url, name), info.get("type") == "directory", _stamp(info))


def _stamp(info: Mapping[str, Any]) -> FileStamp | None:
    """Return the stamp that a store reports: whole seconds, and a checksum of the file's tag in place of a fraction."""
    size = info.get("size")
    seconds = next((at for key in _MODIFIED if (at := _seconds(info.get(key))) is not None), None)
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
    if size is None or (seconds is None and not tag):
        return None
    return FileStamp(int(size), (seconds or 0) * 10**9 + zlib.crc32(tag.strip('"').encode()) % 10**9)


def _seconds(value: object) -> int | None:
    for parse in (datetime.fromisoformat, email.utils.parsedate_to_datetime):
        if isinstance(value, str):
            with suppress(ValueError, TypeError):
                value = parse(value)
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return int(value) if isinstance(value, int | float) else None


def _without_query(url: str) -> str:
    """Return a URL without its query, which may be a signature."""
    return url.partition("?")[0].partition("#")[0]


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _file_system(url: str) -> "AbstractFileSystem":
    parts = urlsplit(url)
    return _opened(_scheme(url), parts.netloc if _scheme(url) not in {"s3", "s3a", "gs", "gcs"} else "", os.getpid())


@lru_cache(maxsize=64)
def _opened(scheme: str, host: str, pid: int) -> "AbstractFileSystem":  # noqa: ARG001 - a forked process needs its own
    """Return the file system of a scheme, shared by all threads."""
    try:
        from fsspec import filesystem, get_filesystem_class

        takes_listings = getattr(get_filesystem_class(scheme), "async_impl", False)
        options: dict[str, Any] = {"use_listings_cache": False} if takes_listings else {}
        if scheme in _HTTP:
            from aiohttp import ClientTimeout

            options["timeout"] = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
            options["client_kwargs"] = {"trust_env": True}  # proxies and ~/.netrc, as hospitals have them
        elif scheme in {"s3", "s3a"}:
            # More would request each file's size before reading it; we read many files at once.
            options["max_concurrency"] = 1
        elif scheme in {"sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs"}:
            options["host"] = host
        return filesystem(scheme, skip_instance_cache=True, **options)
    except ValueError as error:
        raise DatasetError(
            f"{scheme}://{host}: URLs of this kind are not supported. Use s3://, gs://, http(s):// or a path."
        ) from error
    except ImportError as error:
        raise DatasetError(
            f"{scheme}:// needs a library that is not installed ({error}). Install it: pip install 'hoarfrost[remote]'."
        ) from error
    except (TypeError, OSError) as error:  # an archive or a repository, within another file
        raise DatasetError(f"{scheme}:// needs more than a URL. Use s3://, gs://, http(s):// or a path.") from error


def _retried(url: str, ask: Callable[[], Answer]) -> Answer:
    """Call a function, again after temporary failures; raise this package's errors in place of fsspec's."""
    pauses_s = iter(PAUSES_S)
    while True:
        try:
            return ask()
        except Exception as error:  # every store's library raises its own
            pause_s = next(pauses_s, None)
            if pause_s is None or not _is_temporary(error):
                raise _translated(url, error) from error
            time.sleep(pause_s)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: fsspec reports a missing server as a missing file."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error came from, if any."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        in_response = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        of_itself = cause.status if hasattr(cause, "status") else getattr(cause, "code", None)
        for status in (of_itself, in_response):
            if isinstance(status, int) and 400 <= status < 600:
                return status
    return None


def _codes(error: BaseException) -> set[str]:
    """Return the names of an error's classes, and the code that an S3 store sent."""
    found: set[str] = set()
    for cause in _causes(error):
        found.update(kind.__name__ for kind in type(cause).__mro__)
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code")))
    return found


def _is_temporary(error: BaseException) -> bool:
    if _codes(error) & _NO_CREDENTIALS:
        return False
    return _status(error) in _RETRIED_STATUS or (_status(error) is None and bool(_codes(error) & _UNREACHED))


def _translated(url: str, error: Exception) -> Exception:
    """Return an error of one image, which skips that image, or of the server, which ends the extraction."""
    status, codes = _status(error), _codes(error)
    place = f"{_scheme(url)}://{urlsplit(url).netloc.rpartition('@')[2]}"
    if status == 401 or codes & _NO_CREDENTIALS:
        return RemoteError(f"{place}: credentials are missing, wrong or expired ({_reason(error)}). {_advice(url)}")
    if status == 403 or (status is None and isinstance(error, PermissionError)):
        return ImageDecodeError(Unreadable.ACCESS_DENIED.format(place))
    if status == 404 or (status is None and isinstance(error, FileNotFoundError) and not codes & _UNREACHED):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    if status is None and codes & _UNREACHED:
        return RemoteError(
            f"{place} does not answer after {len(PAUSES_S) + 1} attempts ({_reason(error)}). What was saved so far is safe. "
            "Run the same command again when the server answers."
        )
    return ImageDecodeError(Unreadable.SERVER_ANSWERS.format(place, f"HTTP {status}" if status else _reason(error)))


def _reason(error: BaseException) -> str:
    """Return the first cause on one line, without the query of a URL."""
    first = list(_causes(error))[-1]
    text = " ".join(str(first).split()) or type(first).__name__
    return text.partition("?")[0][:200]


def _advice(url: str) -> str:
    return _ADVICE.get(_scheme(url), f"fsspec's documentation of {_scheme(url)} states how to pass credentials.")
